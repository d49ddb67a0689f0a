"""Near-duplicates in a real cohort: the same scan again, mirrored, shifted a little, compressed, with light noise.

In two splits they let a test look better than it is, and under two patients they make the privacy gate believe that patients
resemble each other. The limit was measured (`benchmarks/near_duplicates.py`): on 5,200 chest X-rays the nearest scan of another
patient lies at .177 or more, adjacent slices of one brain at .086 or more; scans that were mirrored, shifted by 3 %, compressed
as JPEG of quality 30, or given noise of 5 % of their range lie below .08 of the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from medsynth.measures.alignment import AlignedReferences

MOST_SCANS = {2: 20_000, 3: 2_000}  # among which pairs are looked for: time grows with the square
_SIDE = {2: 64, 3: 32}  # pixels along each axis, by the number of spatial axes
_SHIFT = 1 / 32  # of each axis
_NEIGHBOURS = 4  # nearest scans of each
# Distance of `measures.alignment` below which scans of two patients, or of one, are near-duplicates.
NEAR_DUPLICATE, _SAME_PATIENT = 0.08, 0.03
# In cohorts of scans that are all alike: below this share of that quantile of the distances to another patient.
_TYPICAL, _SHARE = 0.75, 0.25


class NearPair(NamedTuple):
    """Two scans by their place, `first` < `second`, and their distance: 0 for copies, 1.41 without likeness."""

    first: int
    second: int
    distance: float


def shrink_scan(array: np.ndarray) -> np.ndarray:
    """Return what is compared of a scan `(C, *spatial)`: one channel of 64 x 64 or 32 x 32 x 32, float16, mean 0, variance 1."""
    axes = array.ndim - 1
    grey = torch.from_numpy(np.asarray(array, dtype=np.float32).mean(0))[None, None]
    small = (adaptive_avg_pool2d if axes == 2 else adaptive_avg_pool3d)(grey, _SIDE[axes])[0].numpy()
    spread = float(small.std())
    return np.asarray((small - small.mean()) / (spread if spread > 0 else 1), dtype=np.float16)


def find_near_duplicates(scans: np.ndarray, patients: Sequence[str], *, progress: bool = False) -> list[NearPair]:
    """Return the pairs of scans that are near-duplicates, nearest first.

    `scans` `(N, 1, *spatial)` are as `shrink_scan` returns them, `patients` their patients. Each scan names its four nearest
    ones at most, so of many copies of one scan not every pair is listed. Adjacent slices and repeated scans of a patient are
    legitimately similar, so the limit is lower there. Nothing counts in a cohort where most scans lie that near to another
    patient's. Empty for fewer than two scans and for more than `MOST_SCANS`.
    """
    if not 2 <= len(scans) <= MOST_SCANS[scans.ndim - 2]:
        return []
    own, names = np.arange(len(scans)), np.asarray(patients)
    shift = round(scans.shape[-1] * _SHIFT)
    found = AlignedReferences(scans, groups=own, shift=shift, parts=False).nearest(
        scans, min(_NEIGHBOURS, len(scans) - 1), barred=own, progress=progress, title="looking for near-duplicates"
    )
    others = names[found.indices] != names[:, None]
    # Where all neighbours are of the same patient, another one lies further away than the last.
    across = np.where(others, found.distances, np.inf).min(1)
    across = np.where(np.isfinite(across), across, found.distances[:, -1])
    limit = min(NEAR_DUPLICATE, _SHARE * float(np.quantile(across, _TYPICAL)))
    near = np.where(others, found.distances < limit, found.distances < min(limit, _SAME_PATIENT))
    pairs = {}
    for first, place in zip(*np.nonzero(near), strict=True):
        second = int(found.indices[first, place])
        pair = NearPair(min(int(first), second), max(int(first), second), float(found.distances[first, place]))
        pairs[pair[:2]] = pair
    return sorted(pairs.values(), key=lambda pair: (pair.distance, pair.first, pair.second))


def link_patients(patients: Sequence[str], pairs: Sequence[NearPair]) -> list[str]:
    """Return for each scan the first of the patients whom near-duplicates link, for those who must share a split."""
    leader = {name: name for name in patients}

    def lead(name: str) -> str:
        while leader[name] != name:
            leader[name] = name = leader[leader[name]]
        return name

    for pair in pairs:
        one, other = sorted(lead(patients[place]) for place in (pair.first, pair.second))
        leader[other] = one
    return [lead(name) for name in patients]
