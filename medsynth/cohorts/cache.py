"""The prepared cohort: every scan on the model's grid and in its range, in one memory-mapped file keyed by content."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
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
from medsynth.cohorts.manifest import MASK, PATH, SPLITS, Cohort, Row, reason_of
from medsynth.config import GridOptions, IntensityOptions, Loading
from medsynth.errors import ConfigError, DataError
from medsynth.files import (
    atomic_path,
    check_space,
    hash_file,
    name_of,
    read_facts,
    remove_partial,
    stamp_file,
    write_facts,
)
from medsynth.scans import Intensity, list_files, measure_intensity, split_item

FORMAT = 1  # raise it when the pixels of a cache would come out differently
_VOXEL_BYTES = 2  # float16
_ABANDONED_SECONDS = 24 * 3600.0  # nobody writes to it any more
_FRESH_SECONDS = 2.0  # a file changed this recently may change again within one tick of the file system's clock


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedCohort:
    """All scans of a cohort, ready for a model, in the order of its rows.

    `scans` is a read-only float16 memory map `(N, C, *spatial)` in [-1, 1]; `labels` index `classes`; `splits` are
    text; `patients` number the patients without naming them. `affine` (4x4, RAS mm) is that of a prepared scan with the
    median voxel size; its origin is the centre of the grid. `key` identifies the content of scans and options.
    `channels` names each channel by its file: `path`, a sequence or `mask`. `attributes` and `text`, both `(N, D)`
    float32 or None, are what a model is conditioned on besides the class.
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
    text: np.ndarray | None = None

    def indices(self, split: str | Sequence[str] | None = None, label: int | None = None) -> np.ndarray:
        """Return the row numbers of one or several splits, of one class (its index), or both, ascending."""
        splits = SPLITS if split is None else (split,) if isinstance(split, str) else tuple(split)
        chosen = np.isin(self.splits, splits)
        if label is not None:
            chosen &= self.labels == label
        return np.flatnonzero(chosen)


class ScanDataset(Dataset[dict[str, Any]]):
    """Scans of a prepared cohort, all or those of `indices` (as `PreparedCohort.indices` returns them).

    An item is `{"scan": float32 (C, *spatial) in [-1, 1], "label": class number, "index": row of the cohort,
    "synthetic": bool}`, with `"attributes"` and `"text"` (float32) if the prepared cohort has them.
    """

    def __init__(self, prepared: PreparedCohort, indices: Sequence[int] | np.ndarray | None = None) -> None:
        self.prepared = prepared
        self.rows = np.arange(len(prepared.scans)) if indices is None else np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        prepared, index = self.prepared, int(self.rows[position])
        item = {
            "scan": torch.from_numpy(np.array(prepared.scans[index], dtype=np.float32)),
            "label": int(prepared.labels[index]),
            "index": index,
            "synthetic": prepared.rows[index].is_synthetic,
        }
        for name, values in (("attributes", prepared.attributes), ("text", prepared.text)):
            if values is not None:
                item[name] = torch.from_numpy(values[index])
        return item


def prepare_cohort(
    cohort: Cohort,
    *,
    grid: GridOptions,
    intensity: IntensityOptions | Intensity,
    loading: Loading = Loading(),
    classes: Sequence[str] | None = None,
    mask: bool = False,
) -> PreparedCohort:
    """Bring all scans to one grid and range, once; a second call with equal content maps the file and decodes no scan.

    Axes are brought into the order and direction in which pictures are viewed (`orient_scan`). Axes that shrink are
    averaged over areas, axes that grow are interpolated linearly; only then are intensities converted and clipped.
    Intensities that are measured are measured over the training split at full resolution. `classes` fixes the order of
    labels (default: sorted).

    Sequences of a scan become channels after those of `path`, sorted by name; with `mask`, its mask becomes the last
    channel: 1 where it is not 0, else -1, by nearest neighbours, and all -1 for a scan without one. A fixed intensity
    may include the mask's range or not.

    Raises `DataError` for a scan that is missing, unreadable, or has other channels or axes than the first, for
    sequences and masks of other geometry than their scan, for a cohort without masks if they are wanted, and for a
    label outside `classes`; `ConfigError` for a grid that does not suit the scans, or a folder that cannot be written.
    """
    if not cohort.rows:
        raise DataError(f"{cohort.folder}: need at least one scan in the cohort, got none; try another split or label")
    names = cohort.classes if classes is None else tuple(classes)
    if unknown := sorted(set(cohort.classes) - set(names)):
        raise DataError(f"label: need one of {', '.join(names)}, got {unknown[0]!r}; try another cohort")
    folder = loading.cache_folder()
    preparation = _Preparation(cohort, grid, intensity, loading, mask)
    files = [*(file for each in preparation.files for file in each.values()), *filter(None, preparation.masks)]
    with _writing_below(folder):
        key = preparation.key(names, _hash_files(files, _store_of(cohort, folder), progress=loading.progress))
        stored = _open_cache(folder, key)
        if stored is None:
            preparation.write(folder, key)
            stored = _open_cache(folder, key)
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
        channels=tuple(facts["channels"]),
    )


def hash_cohort(cohort: Cohort, *, loading: Loading = Loading(), anew: bool = False) -> str:
    """Return a hash of what a cohort holds: the bytes of its scans and masks with labels, splits, attributes and who shares a
    patient, in order.

    It does not depend on paths, roots or the patients' names. Hashes of files that have not been touched since an earlier call
    are taken from the cache, unless they are wanted `anew`. `DataError` for a missing file.
    """
    files, hashes = _hash_files_of(cohort, loading, anew)
    digest = hashlib.sha256()
    numbers: dict[str, int] = {}
    for row, each in zip(cohort.rows, files, strict=True):
        patient = numbers.setdefault(row.patient_id, len(numbers))
        facts = row.label, row.split, patient, sorted(row.attributes.items())
        digest.update(json.dumps(_content_of(each, hashes, *facts)).encode())
    return digest.hexdigest()


def hash_scans(cohort: Cohort, *, loading: Loading = Loading()) -> list[str]:
    """Return a hash of the bytes of each scan's file (not of its further sequences), in order; errors as above."""
    files, hashes = _hash_files_of(cohort, loading)
    contents = (_content_of({PATH: each[PATH]}, hashes) for each in files)
    return [hashlib.sha256(json.dumps(content).encode()).hexdigest() for content in contents]


def _hash_files_of(
    cohort: Cohort, loading: Loading, anew: bool = False
) -> tuple[list[dict[str, Path]], dict[Path, str]]:
    """Return the files of each scan by name, its mask among them, and the hash of each file."""
    files = [
        cohort.files_of(row) | ({} if (mask := cohort.mask_of(row)) is None else {MASK: mask}) for row in cohort.rows
    ]
    everything = [file for each in files for file in each.values()]
    if anew:
        return files, _hash_files(everything, None, progress=loading.progress)
    folder = loading.cache_folder()
    with _writing_below(folder):
        return files, _hash_files(everything, _store_of(cohort, folder), progress=loading.progress)


def _content_of(files: dict[str, Path], hashes: dict[Path, str], *facts: object) -> list[object]:
    """Return the contents of a scan's files, with its facts, as JSON."""

    def content(file: Path) -> list[object]:
        path, item = split_item(file)
        return [hashes[path], item]

    sequences = [[name, *content(file)] for name, file in sorted(files.items()) if name != PATH]
    return [*content(files[PATH]), *facts, *sequences]


class _Preparation:
    """What `prepare_cohort` was asked for, and how its file is written."""

    def __init__(
        self, cohort: Cohort, grid: GridOptions, intensity: IntensityOptions | Intensity, loading: Loading, mask: bool
    ) -> None:
        self.cohort, self.grid, self.intensity, self.loading, self.mask = cohort, grid, intensity, loading, mask
        # Only if voxels have a size of their own is there a choice of where the scan lies.
        self.centred_on_mask = grid.spacing is not None and grid.centre == "mask"
        self.files = image_files(cohort)
        wanted = mask or self.centred_on_mask
        self.masks = [cohort.mask_of(row) if wanted else None for row in cohort.rows]
        if mask and not any(self.masks):
            hint = "the column mask, or condition.mask false"
            raise DataError(f"{cohort.folder}: need a mask of at least one scan, got none; try {hint}")

    def key(self, classes: Sequence[str], hashes: dict[Path, str]) -> str:
        """Return the hash of all that the prepared scans depend on."""
        if isinstance(self.intensity, IntensityOptions):
            # A whole number means the same from a file, from the command line and from Python.
            ends = asdict(self.intensity) | {"low": float(self.intensity.low), "high": float(self.intensity.high)}
        else:
            ends = self.intensity.as_dict()
        options = {
            "format": FORMAT,
            "grid": asdict(self.grid),
            "intensity": {"fixed": isinstance(self.intensity, Intensity), **ends},
            "nan": self.loading.nan,
            "classes": list(classes),
            "mask": [self.mask, self.centred_on_mask],
        }
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
        for row, files, mask in zip(self.cohort.rows, self.files, self.masks, strict=True):
            known = None if mask is None else hashes[split_item(mask)[0]]
            digest.update(json.dumps(_content_of(files, hashes, row.label, row.split, known)).encode())
        return digest.hexdigest()

    def write(self, folder: Path, key: str) -> None:
        """Write the prepared scans and the facts about them."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # an unwritable folder fails now, not after an hour of reading
            pass
        remove_partial(folder, seconds=_ABANDONED_SECONDS)
        channels, size = self._check_headers()
        shape = (len(self.files), len(channels) + self.mask, *size)
        check_space(folder, math.prod(shape) * _VOXEL_BYTES, purpose="the prepared scans", option="--cache_dir")
        intensity = self._measure_intensity()
        images = only_images(intensity, len(channels)) if self.mask else intensity
        spacings: list[tuple[float, ...]] = []
        axes: list[str] = []
        array_file = folder / f"{key[:32]}.npy"
        digest = _write_array(array_file, shape, self._prepare(images, size, spacings, axes))
        facts = {
            "format": FORMAT,
            "key": key,
            "shape": shape,
            "channels": [*channels, MASK] if self.mask else channels,
            "intensity": (with_mask(images, len(channels)) if self.mask else images).as_dict(),
            "affine": grid_affine(axes[0], np.median(spacings, axis=0), shape[2:]).tolist(),
            "sha256": digest,
            "stamp": stamp_file(array_file),
        }
        write_facts(folder / f"{key[:32]}.json", facts)

    def _check_headers(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the names of the channels and the size of the grid; refuse scans that differ before any is decoded."""
        first = read_headers(self.files[0], self.loading)
        axes = len(first[PATH].shape) - 1
        size = grid_size(self.grid, axes)
        if self.grid.spacing is not None:
            grid_spacing(self.grid, axes)
        for files in self.files[1:]:
            for name, header in read_headers(files, self.loading).items():
                kinds = {
                    "spatial axes": (len(header.shape) - 1, axes),
                    "channels": (header.shape[0], first[name].shape[0]),
                }
                for what, (got, want) in kinds.items():
                    if got != want:
                        need = f"{want} {what} like the first scan"
                        raise DataError(f"{files[name]}: need {need}, got {got}; try separate cohorts")
        return channel_names(first), size

    def _measure_intensity(self) -> Intensity:
        if isinstance(self.intensity, Intensity):
            return self.intensity
        train = [files for files, row in zip(self.files, self.cohort.rows, strict=True) if row.split == "train"]
        if self.intensity.method in ("percentiles", "minmax") and not train:
            method = self.intensity.method
            raise DataError(
                f"intensity: need training scans to measure {method}, got none; try --intensity.method range"
            )
        bar = tqdm(train, desc="measuring intensity", unit="scan", disable=not self.loading.progress)
        return measure_intensity(self.intensity, (read_channels(files, self.loading).array for files in bar))

    def _prepare(
        self, intensity: Intensity, size: Sequence[int], spacings: list[tuple[float, ...]], axes: list[str]
    ) -> Iterator[np.ndarray]:
        """Yield each scan (float16), and append its voxel size and the direction of its axes."""
        bar = tqdm(self.files, desc="preparing scans", unit="scan", disable=not self.loading.progress)
        for files, mask_file in zip(bar, self.masks, strict=True):
            scan = read_channels(files, self.loading)
            axes.append(scan_axes(scan))
            if axes[-1] != axes[0]:
                need = f"the plane {axes[0]} of the first scan"
                raise DataError(f"{files[PATH]}: need {need}, got {axes[-1]}; try separate cohorts")
            mask = None if mask_file is None else read_mask(mask_file, scan, self.loading)
            if self.centred_on_mask and mask is None:
                raise DataError(f"{files[PATH]}: need a mask for its centre, got none; try grid.centre scan")
            centre = centre_of_mask(mask) if self.centred_on_mask and mask is not None else None
            array, spacing = resize_scan(scan, grid=self.grid, intensity=intensity, centre=centre)
            spacings.append(spacing)
            if self.mask:
                array = np.concatenate([array, mask_channel(mask, size, grid=self.grid, centre=centre)])
            yield array.astype(np.float16)


def _open_cache(folder: Path, key: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Map the cached scans; None if there are none, or if they are not what was written."""
    array_file = folder / f"{key[:32]}.npy"
    try:
        facts = read_facts(folder / f"{key[:32]}.json")
        if facts["key"] != key or facts["format"] != FORMAT:
            return None
        # Content is read again only if the file was touched since it was written (a copy, a damaged disk).
        if facts["stamp"] != stamp_file(array_file) and facts["sha256"] != hash_file(array_file):
            return None
        scans = np.load(array_file, mmap_mode="r", allow_pickle=False)
        valid = scans.dtype == np.float16 and list(scans.shape) == facts["shape"]
        return (scans, facts) if valid else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_array(path: Path, shape: tuple[int, ...], arrays: Iterable[np.ndarray]) -> str:
    """Write one .npy of float16 piece by piece and return its sha256."""
    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:  # not a memory map: with a full disk it would kill the process
            np.lib.format.write_array_header_1_0(file, header)
            for array in arrays:
                file.write(np.ascontiguousarray(array, dtype="<f2").tobytes())
        return hash_file(temporary)


@contextmanager
def _writing_below(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder}: need a folder with room to prepare scans in, got {reason_of(error)}; try --cache_dir"
        ) from error


def _store_of(cohort: Cohort, folder: Path) -> Path:
    """Return the file below `folder` that keeps the hashes of a cohort's files."""
    return folder / f"hashes-{name_of(cohort.folder)}.json"


def _known_hashes(store: Path | None) -> dict[str, Any]:
    try:
        return {} if store is None else dict(read_facts(store))
    except (OSError, ValueError, TypeError):
        return {}


def _hash_files(paths: Sequence[Path], store: Path | None, *, progress: bool) -> dict[Path, str]:
    """Return the sha256 of each file, read again only if size or times of change differ from those in the JSON file `store`.

    The hash of a folder is made of those of its files, not of their names. The store knows files by a hash of their
    path, so it names no file.
    """
    known, added = _known_hashes(store), {}
    hashes = {}
    parts = {path: list_files(path) for path in dict.fromkeys(split_item(path)[0] for path in paths)}
    unique = dict.fromkeys(file for files in parts.values() for file in files)
    for file in tqdm(unique, desc="checking files", unit="file", disable=not progress):
        try:
            stamp, name = stamp_file(file), name_of(file)
            entry = known.get(name)
            if isinstance(entry, list) and entry[:-1] == stamp:
                hashes[file] = entry[-1]
                continue
            hashes[file] = hash_file(file)
        except OSError as error:
            raise DataError(f"{file}: need a readable file, got {reason_of(error)}; try another cohort") from error
        if time.time() - max(stamp[1:]) / 1e9 > _FRESH_SECONDS:
            added[name] = [*stamp, hashes[file]]
    if added and store is not None:
        # Read again: another process may have added its own meanwhile.
        write_facts(store, _known_hashes(store) | added)
    for path, files in parts.items():
        if files != [path]:
            hashes[path] = hashlib.sha256("\n".join(sorted(hashes[file] for file in files)).encode()).hexdigest()
    return hashes
