"""Features of a whole prepared cohort, extracted once and mapped from disk, so that memory does not grow with the cohort."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path, hash_file, stamp_file, write_json
from medsynth.measures.features import Extractor, extract_features

FORMAT = 1  # raise it when equal scans and weights would give other features
_CHUNK = 256


class KeyedScans(Protocol):
    """Scans `(N, C, *spatial)` in [-1, 1], which may be a memory map, and a `key` that identifies their content."""

    @property
    def scans(self) -> np.ndarray: ...

    @property
    def key(self) -> str: ...


def cached_features(
    prepared: KeyedScans,
    extractor: Extractor,
    *,
    folder: Path,
    progress: bool = True,
    description: str = "features",
) -> np.ndarray:
    """Return the features of all scans as a read-only float32 memory map `(N, D)`, in their order.

    They are extracted chunk by chunk into `folder`; a call that was killed goes on after its last whole chunk, and a second
    call with equal scans and equal weights maps the file and extracts nothing. The files name neither scan nor patient.

    `DataError` without scans or where features are not finite; `ConfigError` for a folder that cannot be written, or an
    extractor that does not return one row a scan.
    """
    if len(prepared.scans) == 0:
        raise DataError("scans: need at least one scan to extract features from, got none")
    described = [FORMAT, prepared.key, extractor.name, extractor.sha256]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    name = f"features-{key[:32]}"
    try:
        stored = _open(folder, name, key)
        if stored is None:
            _extract(prepared, extractor, folder, name, key, progress=progress, description=description)
            stored = _open(folder, name, key)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{folder}: need a folder with room for features, got {reason}; try another --cache_dir"
        ) from error
    if stored is None:
        raise ConfigError(f"{folder}: need a folder that keeps what is written, got another content; try --cache_dir")
    return stored


def _extract(
    prepared: KeyedScans, extractor: Extractor, folder: Path, name: str, key: str, *, progress: bool, description: str
) -> None:
    chunks_folder = folder / f"{name}.parts"
    file = folder / f"{name}.npy"
    count = len(prepared.scans)

    def chunks() -> Iterator[np.ndarray]:
        with tqdm(total=count, desc=description, unit="scan", disable=not progress) as bar:
            for start in range(0, count, _CHUNK):
                indices = np.arange(start, min(start + _CHUNK, count))
                part = chunks_folder / f"{start:09d}.npy"
                rows = _read_chunk(part, len(indices))
                if rows is None:
                    rows = extract_features(extractor, prepared.scans, indices, progress=False)
                    with atomic_path(part) as temporary:
                        np.save(temporary, rows, allow_pickle=False)
                bar.update(len(indices))
                yield rows

    pieces = chunks()
    first = next(pieces)
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, first.shape[1])}
    with atomic_path(file) as temporary:
        with temporary.open("wb") as written:
            np.lib.format.write_array_header_1_0(written, header)
            for rows in chain([first], pieces):
                if rows.shape[1] != first.shape[1]:
                    raise ConfigError(
                        f"{extractor.name}: need {first.shape[1]} features of every scan, got {rows.shape[1]}; "
                        "try features that do not depend on the batch"
                    )
                written.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        digest = hash_file(temporary)
    write_json(folder / f"{name}.json", {"key": key, "sha256": digest, "stamp": stamp_file(file)})
    shutil.rmtree(chunks_folder, ignore_errors=True)


def _read_chunk(path: Path, count: int) -> np.ndarray | None:
    try:
        rows: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.ndim == 2 and len(rows) == count and rows.dtype == np.float32 else None


def _open(folder: Path, name: str, key: str) -> np.ndarray | None:
    """Map the features; None if there are none, or if they are not what was written."""
    file = folder / f"{name}.npy"
    try:
        facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        # Content is read again only where the file has been touched since it was written (a copy, a damaged disk).
        if facts["key"] != key or (facts["stamp"] != stamp_file(file) and facts["sha256"] != hash_file(file)):
            return None
        features: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        return features
    except (OSError, ValueError, KeyError, TypeError):
        return None
