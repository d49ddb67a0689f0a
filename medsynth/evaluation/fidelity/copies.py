"""Scans that a synthetic set and a real cohort have in common, pixel for pixel."""

from __future__ import annotations

import hashlib

import numpy as np


def identical_scans(candidates: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return which candidates `(Q, C, *spatial)` equal some reference `(R, C, *spatial)` in every pixel, bool `(Q,)`.

    Either may be a memory map; one scan is held at a time, so this takes one reading of both sets. Near copies are not
    found.
    """
    known = {_digest(scan) for scan in references}
    return np.array([_digest(scan) in known for scan in candidates], dtype=bool)


def _digest(scan: np.ndarray) -> bytes:
    # Equal values as equal bytes: one type, and no negative zero.
    values = np.ascontiguousarray(scan, dtype=np.float32) + np.float32(0)
    return hashlib.sha256(values.tobytes()).digest()
