"""Features of a whole prepared cohort, extracted once and mapped from disk, so that memory does not grow with the cohort."""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path, hash_file, stamp_file, write_json
from medsynth.measures.features import Extractor, extract_features
from medsynth.processes import Ranks, run_ranks

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
    devices: int = 1,
    reopen: Callable[[], Extractor] | None = None,
    progress: bool = True,
    description: str = "features",
) -> np.ndarray:
    """Return the features of all scans as a read-only float32 memory map `(N, D)`, in their order.

    They are extracted chunk by chunk into `folder`; a call that was killed goes on after its last whole chunk, and a second
    call with equal scans and equal weights maps the file and extracts nothing. The files name neither scan nor patient. With
    `devices` processes the chunks are shared out among them, and the features are the same; each calls `reopen`, which must be
    picklable, for an extractor of its own.

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
            if devices > 1 and len(prepared.scans) > _CHUNK:
                assert reopen is not None, "several processes need an extractor each"
                pieces = _missing(folder / f"{name}.parts", len(prepared.scans))
                place = _place(prepared.scans)
                shown = description if progress else ""
                run_ranks(_extract_share, place, reopen, folder / f"{name}.parts", pieces, shown, devices=devices)
                progress = False  # what is left is to put them together
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
            for piece in _pieces(count):
                rows = _read_chunk(chunks_folder, piece)
                if rows is None:
                    rows = _extract_chunk(extractor, prepared.scans, chunks_folder, piece)
                bar.update(len(piece))
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


def _extract_share(
    ranks: Ranks,
    place: Path | np.ndarray,
    reopen: Callable[[], Extractor],
    chunks_folder: Path,
    pieces: Sequence[range],
    description: str,
) -> None:
    """Write the features of every `world`th chunk, in one of several processes."""
    shown = bool(description) and ranks.first
    with ranks.together():
        scans = np.load(place, mmap_mode="r", allow_pickle=False) if isinstance(place, Path) else place
        extractor = reopen()
        with tqdm(total=sum(map(len, pieces)), desc=description, unit="scan", disable=not shown) as bar:
            for turn, piece in enumerate(ranks.share(pieces)):
                _extract_chunk(extractor, scans, chunks_folder, piece)
                # The others keep about the same pace.
                bar.update(sum(map(len, pieces[turn * ranks.world : (turn + 1) * ranks.world])))


def _extract_chunk(extractor: Extractor, scans: np.ndarray, chunks_folder: Path, piece: range) -> np.ndarray:
    rows = extract_features(extractor, scans, np.array(piece), progress=False)
    with atomic_path(_chunk_file(chunks_folder, piece)) as temporary:
        np.save(temporary, rows, allow_pickle=False)
    return rows


def _pieces(count: int) -> list[range]:
    return [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]


def _missing(chunks_folder: Path, count: int) -> list[range]:
    return [piece for piece in _pieces(count) if _read_chunk(chunks_folder, piece) is None]


def _chunk_file(chunks_folder: Path, piece: range) -> Path:
    return chunks_folder / f"{piece.start:09d}.npy"


def _read_chunk(chunks_folder: Path, piece: range) -> np.ndarray | None:
    try:
        rows: np.ndarray = np.load(_chunk_file(chunks_folder, piece), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.ndim == 2 and len(rows) == len(piece) and rows.dtype == np.float32 else None


def _place(scans: np.ndarray) -> Path | np.ndarray:
    """Return the file of a memory map, which other processes can map for themselves; other arrays are sent to them."""
    if isinstance(scans, np.memmap) and isinstance(scans.base, mmap.mmap) and isinstance(scans.filename, str | Path):
        return Path(scans.filename)
    return scans


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
