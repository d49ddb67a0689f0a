"""The prepared cohort: every scan once on the model's grid and in its range, in one memory-mapped file keyed by content."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from medsynth.cohorts.channels import (
    channel_names,
    image_files,
    mask_channel,
    only_images,
    read_channels,
    read_headers,
    read_mask,
    with_mask,
)
from medsynth.cohorts.grid import centre_of_mask, grid_affine, grid_size, grid_spacing, resize_scan, scan_axes
from medsynth.cohorts.manifest import SPLITS, Cohort, Row, reason_of
from medsynth.config import GridOptions, IntensityOptions, ReadingOptions
from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path, check_space, hash_file, stamp_file, write_json
from medsynth.scans import (
    Intensity,
    Scan,
    list_files,
    measure_intensity,
    split_item,
)

FORMAT = 1  # raise it when the pixels of a cache would come out differently
_VOXEL_BYTES = 2  # float16
_FRESH_SECONDS = 2.0  # a file changed this recently may change again within one tick of the file system's clock


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedCohort:
    """All scans of a cohort, ready for a model, in the order of its rows.

    `scans` is a read-only float16 memory map `(N, C, *spatial)` in [-1, 1]; `labels` index `classes`; `splits` are text;
    `patients` number the patients without naming them. `affine` (4x4, RAS mm) is that of a prepared scan with the median
    voxel size; its origin is the centre of the grid. `key` identifies the content of scans and options. `channels` names each
    channel by its file, `path`, a sequence or `mask`. `attributes` `(N, attributes)` float32 is what a model is told of them
    besides the class, None without.
    """

    scans: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    patients: np.ndarray
    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    intensity: Intensity
    affine: np.ndarray
    key: str
    channels: tuple[str, ...] = ()
    attributes: np.ndarray | None = None

    def indices(self, split: str | Sequence[str] | None = None, label: int | None = None) -> np.ndarray:
        """Return the row numbers of one or several splits, of one class (its index), or both, ascending."""
        splits = SPLITS if split is None else (split,) if isinstance(split, str) else tuple(split)
        chosen = np.isin(self.splits, splits)
        if label is not None:
            chosen &= self.labels == label
        return np.flatnonzero(chosen)


def prepare_cohort(
    cohort: Cohort,
    *,
    grid: GridOptions,
    intensity: IntensityOptions | Intensity,
    reading: ReadingOptions = ReadingOptions(),
    classes: Sequence[str] | None = None,
    mask: bool = False,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> PreparedCohort:
    """Bring all scans to one grid and range, once; a second call with equal content maps the file and decodes no scan.

    Axes are brought into the order and direction in which pictures are looked at (`orient_scan`). Axes that shrink are
    averaged over areas, axes that grow are interpolated linearly; only then are intensities converted and clipped.
    Intensities, where they are measured, are measured over the training split at full resolution. `classes` fixes the
    order of labels (default: sorted); `cache_dir` defaults to `.medsynth_cache` in the cohort's folder.

    Sequences of a scan become channels after those of `path`, sorted by name, and with `mask` its mask becomes the last: 1 where
    it is not 0 and -1 elsewhere, by nearest neighbours, all -1 of a scan without one. A fixed intensity may have the mask's ends
    or not.

    Raises `DataError` for a scan that is missing, unreadable, or differs from the first in channels or axes, for sequences and
    masks of another geometry than their scan, for a cohort without masks where they are wanted,
    and for a label outside `classes`; `ConfigError` for a grid that does not suit the scans, or a folder that cannot be
    written.
    """
    if not cohort.rows:
        raise DataError(f"{cohort.folder}: need at least one scan in the cohort, got none; try another split or label")
    names = cohort.classes if classes is None else tuple(classes)
    if unknown := sorted(set(cohort.classes) - set(names)):
        raise DataError(f"label: need one of {', '.join(names)}, got {unknown[0]!r}; try another cohort")
    folder = cohort.folder / ".medsynth_cache" if cache_dir is None else Path(cache_dir)
    files = image_files(cohort)
    masks = [cohort.mask_of(row) for row in cohort.rows] if mask or _by_mask(grid) else [None] * len(files)
    if mask and not any(masks):
        raise DataError(
            f"{cohort.folder}: need a mask of one scan at least, got none; try the column mask, or condition.mask false"
        )
    try:
        everything = [*(file for each in files for file in each.values()), *filter(None, masks)]
        hashes = _hash_files(everything, folder / "hashes.json", progress=progress)
        key = _content_key(cohort.rows, files, hashes, grid, intensity, reading, names)
        if _by_mask(grid):
            known = [hashes[split_item(each)[0]] for each in masks if each is not None]
            key = hashlib.sha256("\n".join([key, *known]).encode()).hexdigest()
        if mask:
            known = ["" if each is None else hashes[split_item(each)[0]] for each in masks]
            key = hashlib.sha256("\n".join([key, "mask", *known]).encode()).hexdigest()
        stored = _open_cache(folder, key)
        if stored is None:
            _build_cache(folder, key, cohort, files, masks, grid, intensity, reading, mask=mask, progress=progress)
            stored = _open_cache(folder, key)
    except OSError as error:
        raise ConfigError(
            f"{folder}: need a folder with room to prepare scans in, got {reason_of(error)}; try --cache_dir"
        ) from error
    if stored is None:
        raise ConfigError(f"{folder}: need a folder that keeps what is written, got another content; try --cache_dir")
    scans, facts = stored
    _, patients = np.unique([row.patient_id for row in cohort.rows], return_inverse=True)
    return PreparedCohort(
        scans=scans,
        labels=np.array([names.index(row.label) for row in cohort.rows], dtype=np.int64),
        splits=np.array([row.split for row in cohort.rows]),
        patients=patients.astype(np.int64),
        rows=cohort.rows,
        classes=names,
        intensity=Intensity.from_dict(facts["intensity"]),
        affine=np.array(facts["affine"], dtype=np.float64),
        key=key,
        channels=tuple(facts.get("channels", ())) or ("path",) * scans.shape[1],
    )


def hash_cohort(cohort: Cohort, *, cache_dir: Path | None = None, progress: bool = True) -> str:
    """Return a hash of what a cohort holds: the bytes of its scans with labels, splits and who shares a patient, in order.

    It changes with none of the paths, roots or patients' names. `DataError` for a missing file.
    """
    folder = cohort.folder / ".medsynth_cache" if cache_dir is None else Path(cache_dir)
    files = [cohort.files_of(row) for row in cohort.rows]
    hashes = _hash_files([file for each in files for file in each.values()], folder / "hashes.json", progress=progress)
    digest = hashlib.sha256()
    numbers: dict[str, int] = {}
    for row, each in zip(cohort.rows, files, strict=True):
        patient = numbers.setdefault(row.patient_id, len(numbers))
        facts = [*_content_of(each["path"], hashes), row.label, row.split, patient, *_sequences(each, hashes)]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _content_of(path: Path, hashes: dict[Path, str]) -> list[str | None]:
    file, item = split_item(path)
    return [hashes[file], item]


def _sequences(files: dict[str, Path], hashes: dict[Path, str]) -> list[list[str | None]]:
    """Return names and contents of the files beside that of `path`."""
    return [[name, *_content_of(path, hashes)] for name, path in sorted(files.items()) if name != "path"]


def _build_cache(
    folder: Path,
    key: str,
    cohort: Cohort,
    files: Sequence[dict[str, Path]],
    masks: Sequence[Path | None],
    grid: GridOptions,
    intensity: IntensityOptions | Intensity,
    reading: ReadingOptions,
    *,
    mask: bool,
    progress: bool,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # an unwritable folder shows now, not after an hour of reading
        pass
    channels, size = _check_headers(files, grid, reading)
    shape = (len(files), len(channels) + mask, *size)
    check_space(folder, math.prod(shape) * _VOXEL_BYTES, purpose="the prepared scans", option="--cache_dir")
    if isinstance(intensity, IntensityOptions):
        train = [file for file, row in zip(files, cohort.rows, strict=True) if row.split == "train"]
        if intensity.method in ("percentiles", "minmax") and not train:
            raise DataError(
                f"intensity: need training scans to measure {intensity.method}, got none; try --intensity.method range"
            )
        bar = tqdm(train, desc="measuring intensity", unit="scan", disable=not progress)
        intensity = measure_intensity(intensity, (read_channels(each, reading).array for each in bar))
    images = only_images(intensity, len(channels)) if mask else intensity
    spacings: list[tuple[float, ...]] = []
    axes: list[str] = []

    def prepared() -> Iterator[np.ndarray]:
        bar = tqdm(files, desc="preparing scans", unit="scan", disable=not progress)
        for each, mask_file in zip(bar, masks, strict=True):
            scan = read_channels(each, reading)
            axes.append(scan_axes(scan))
            if axes[-1] != axes[0]:
                raise DataError(
                    f"{each['path']}: need the plane {axes[0]} of the first scan, got {axes[-1]}; try separate cohorts"
                )
            found = None if mask_file is None else read_mask(mask_file, scan, reading)
            centre = _centre(found, each["path"], grid)
            array, spacing = resize_scan(scan, grid=grid, intensity=images, centre=centre)
            spacings.append(spacing)
            if mask:
                array = np.concatenate([array, mask_channel(found, size, grid=grid, centre=centre)])
            yield array.astype(np.float16)

    array_file = folder / f"{key[:32]}.npy"
    digest = _write_array(array_file, shape, prepared())
    facts = {
        "format": FORMAT,
        "key": key,
        "shape": shape,
        "channels": [*channels, "mask"] if mask else channels,
        "intensity": (with_mask(images, len(channels)) if mask else images).as_dict(),
        "affine": grid_affine(axes[0], np.median(spacings, axis=0), shape[2:]).tolist(),
        "sha256": digest,
        "stamp": stamp_file(array_file),
    }
    write_json(folder / f"{key[:32]}.json", facts)


def _by_mask(grid: GridOptions) -> bool:
    """Whether scans are laid by their masks; only where voxels have a size of their own is there a choice."""
    return grid.spacing is not None and grid.centre == "mask"


def _centre(mask: Scan | None, file: Path, grid: GridOptions) -> tuple[float, ...] | None:
    """Return the index that comes to the middle of the grid; None for the middle of the scan, also where its mask is empty."""
    if not _by_mask(grid):
        return None
    if mask is None:
        raise DataError(f"{file}: need a mask for its centre, got none; try grid.centre scan")
    return centre_of_mask(mask)


def _open_cache(folder: Path, key: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Map the cached scans; None if there are none, or if they are not what was written."""
    array_file = folder / f"{key[:32]}.npy"
    try:
        facts = json.loads((folder / f"{key[:32]}.json").read_text(encoding="utf-8"))
        if facts["key"] != key or facts["format"] != FORMAT:
            return None
        # Content is read again only where the file has been touched since it was written (a copy, a damaged disk).
        if facts["stamp"] != stamp_file(array_file) and facts["sha256"] != hash_file(array_file):
            return None
        scans = np.load(array_file, mmap_mode="r", allow_pickle=False)
        valid = scans.dtype == np.float16 and list(scans.shape) == facts["shape"]
        return (scans, facts) if valid else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_array(path: Path, shape: tuple[int, ...], arrays: Iterable[np.ndarray]) -> str:
    """Write one .npy of float16 piece by piece and return its sha256.

    Plain writes rather than a writable memory map: a full disk then raises an error instead of killing the process.
    """
    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for array in arrays:
                file.write(np.ascontiguousarray(array, dtype="<f2").tobytes())
        return hash_file(temporary)


def _check_headers(
    files: Sequence[dict[str, Path]], grid: GridOptions, reading: ReadingOptions
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of the channels of all scans and the size of their grid.

    Scans with other channels or axes than the first are refused before any is decoded.
    """
    first = read_headers(files[0], reading)
    axes = len(first["path"].shape) - 1
    size = grid_size(grid, axes)
    if grid.spacing is not None:
        grid_spacing(grid, axes)
    for each in files[1:]:
        for name, header in read_headers(each, reading).items():
            for what, have, want in (
                ("spatial axes", len(header.shape) - 1, axes),
                ("channels", header.shape[0], first[name].shape[0]),
            ):
                if have != want:
                    raise DataError(
                        f"{each[name]}: need {want} {what} like the first scan, got {have}; try separate cohorts"
                    )
    return channel_names(first, mask=False), size


def _content_key(
    rows: Sequence[Row],
    files: Sequence[dict[str, Path]],
    hashes: dict[Path, str],
    grid: GridOptions,
    intensity: IntensityOptions | Intensity,
    reading: ReadingOptions,
    classes: Sequence[str],
) -> str:
    fixed = isinstance(intensity, Intensity)
    options = {
        "format": FORMAT,
        "grid": asdict(grid),
        "intensity": {
            "fixed": fixed,
            # A whole number means the same from a file, from the command line and from Python.
            **(
                intensity.as_dict()
                if isinstance(intensity, Intensity)
                else asdict(intensity) | {"low": float(intensity.low), "high": float(intensity.high)}
            ),
        },
        "nan": reading.nan,
        "classes": list(classes),
    }
    if reading.tilt != "refuse":  # where it refuses, there is nothing that it could have changed
        options["tilt"] = reading.tilt
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for row, each in zip(rows, files, strict=True):
        facts = [*_content_of(each["path"], hashes), row.label, row.split, *_sequences(each, hashes)]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _hash_files(paths: Sequence[Path], store: Path, *, progress: bool) -> dict[Path, str]:
    """Return the sha256 of each file, read again only if its size or time of change differs from `store`.

    That of a folder is made of those of its files, whatever they are called. The store knows files by a hash of their path, so
    it names no file.
    """
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    hashes: dict[Path, str] = {}
    changed = False
    parts = {path: list_files(path) for path in dict.fromkeys(split_item(path)[0] for path in paths)}
    unique = dict.fromkeys(file for files in parts.values() for file in files)
    for file in tqdm(unique, desc="checking files", unit="file", disable=not progress):
        stamp = stamp_file(file)
        name = hashlib.sha256(os.path.realpath(file).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        entry = known.get(name)
        if isinstance(entry, list) and entry[:2] == stamp and len(entry) == 3:
            hashes[file] = entry[2]
            continue
        try:
            hashes[file] = hash_file(file)
        except OSError as error:
            raise DataError(f"{file}: need a readable file, got {reason_of(error)}; try another cohort") from error
        if time.time() - stamp[1] / 1e9 > _FRESH_SECONDS:
            known[name] = [*stamp, hashes[file]]
            changed = True
    if changed:
        write_json(store, known)
    for folder, files in parts.items():
        if files != [folder]:
            hashes[folder] = hashlib.sha256("\n".join(sorted(hashes[file] for file in files)).encode()).hexdigest()
    return hashes
