"""Features of a whole prepared cohort, extracted once and mapped from disk, so that memory does not grow with the cohort."""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path, hash_file, read_json, stamp_file, write_json
from medsynth.measures.features import Extractor, extract_features
from medsynth.processes import Ranks, run_ranks

_FORMAT = 1  # raise it when equal scans and weights would give other features
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

    They are extracted chunk by chunk into `folder`; a call that was killed continues after its last whole chunk, and a second
    call with equal scans and equal weights maps the file and extracts nothing. The files name neither scan nor patient. With
    `devices` processes the chunks are shared out among them, and the features are the same; each calls `reopen`, which must be
    picklable, for an extractor of its own.

    `DataError` without scans or where features are not finite; `ConfigError` for a folder that cannot be written, or an
    extractor that does not return one row per scan.
    """
    if len(prepared.scans) == 0:
        raise DataError("scans: need at least one scan to extract features from, got none")
    identity = json.dumps([_FORMAT, prepared.key, extractor.name, extractor.sha256])
    key = hashlib.sha256(identity.encode()).hexdigest()
    file = folder / f"features-{key[:32]}.npy"
    parts = file.with_suffix(".parts")
    pieces = [range(start, min(start + _CHUNK, len(prepared.scans))) for start in range(0, len(prepared.scans), _CHUNK)]
    shown = description if progress else ""
    try:
        stored = _open(file, key)
        if stored is None:
            missing = [piece for piece in pieces if _read(parts, piece) is None]
            if devices > 1 and len(pieces) > 1:
                assert reopen is not None, "several processes need an extractor each"
                run_ranks(_extract, _place(prepared.scans), reopen, parts, missing, shown, devices=devices)
            else:
                _extract(Ranks(), prepared.scans, lambda: extractor, parts, missing, shown)
            _join(extractor, parts, pieces, file, key)
            stored = _open(file, key)
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(
            f"{folder}: need a folder with room for features, got {why}; try another --cache_dir"
        ) from error
    if stored is None:
        raise ConfigError(f"{folder}: need a folder that keeps what is written, got another content; try --cache_dir")
    return stored


def _extract(
    ranks: Ranks,
    place: Path | np.ndarray,
    reopen: Callable[[], Extractor],
    parts: Path,
    pieces: Sequence[range],
    description: str,
) -> None:
    """Write the features of every `world`th chunk, in one of several processes or the only one."""
    with ranks.together():
        scans = np.load(place, mmap_mode="r", allow_pickle=False) if isinstance(place, Path) else place
        extractor, hidden = reopen(), not (description and ranks.first)
        with tqdm(total=sum(map(len, pieces)), desc=description, unit="scan", disable=hidden) as bar:
            for turn, piece in enumerate(ranks.share(pieces)):
                rows = extract_features(extractor, scans, np.array(piece))
                with atomic_path(_part(parts, piece)) as temporary:
                    np.save(temporary, rows, allow_pickle=False)
                # The other processes keep about the same pace.
                bar.update(sum(map(len, pieces[turn * ranks.world : (turn + 1) * ranks.world])))


def _join(extractor: Extractor, parts: Path, pieces: Sequence[range], file: Path, key: str) -> None:
    """Put the chunks together in one file."""
    width = None
    with atomic_path(file) as temporary:
        with temporary.open("wb") as written:
            for piece in pieces:
                if (rows := _read(parts, piece)) is None:
                    raise OSError("damaged files")
                if width is None:
                    width = rows.shape[1]
                    header = {"descr": "<f4", "fortran_order": False, "shape": (pieces[-1].stop, width)}
                    np.lib.format.write_array_header_1_0(written, header)
                if rows.shape[1] != width:
                    raise ConfigError(
                        f"{extractor.name}: need {width} features of every scan, got {rows.shape[1]}; "
                        "try features that do not depend on the batch"
                    )
                written.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        digest = hash_file(temporary)
    write_json(file.with_suffix(".json"), {"key": key, "sha256": digest, "stamp": stamp_file(file)})
    shutil.rmtree(parts, ignore_errors=True)


def _part(parts: Path, piece: range) -> Path:
    return parts / f"{piece.start:09d}.npy"


def _read(parts: Path, piece: range) -> np.ndarray | None:
    """Return the features of a chunk; None if they are not there, or damaged."""
    try:
        rows: np.ndarray = np.load(_part(parts, piece), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.ndim == 2 and len(rows) == len(piece) and rows.dtype == np.float32 else None


def _place(scans: np.ndarray) -> Path | np.ndarray:
    """Return the file of a memory map, which other processes can map for themselves; other arrays are sent to them."""
    if isinstance(scans, np.memmap) and isinstance(scans.base, mmap.mmap) and isinstance(scans.filename, str | Path):
        return Path(scans.filename)
    return scans


def _open(file: Path, key: str) -> np.ndarray | None:
    """Map the features; None if there are none, or if they are not what was written."""
    try:
        facts = read_json(file.with_suffix(".json"))
        # Content is read again only where the file has been touched since it was written (a copy, a damaged disk).
        if facts["key"] != key or (facts["stamp"] != stamp_file(file) and facts["sha256"] != hash_file(file)):
            return None
        return np.asanyarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, KeyError, TypeError):
        return None
