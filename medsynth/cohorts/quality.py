"""What a scan's pixels say about it: the quality table of an index, its flags and its duplicates."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from medsynth.cohorts.manifest import Row, list_counts, write_table
from medsynth.config import ReadingOptions
from medsynth.errors import DataError
from medsynth.scans import Scan, read_header, read_scan, scan_suffix, split_item

_COLUMNS = (
    "path",
    "modality",
    "instances",
    "shape",
    "spacing",
    "dtype",
    "minimum",
    "maximum",
    "mean",
    "std",
    "flags",
    "duplicate_of",
    "sha256",
    "reason",
)


@dataclass(frozen=True, kw_only=True)
class ScanQuality:
    """Facts of one scan.

    `modality` and `instances` (files) are those of DICOM. `shape` is `(channel, *spatial)`, `spacing` in millimetres, `dtype`
    that of the file, the four statistics are in physical units. `sha256` is that of shape and pixels; `reason` says why a
    scan was left out. `flags` are any of

    - `constant`;
    - `near_empty`: 99 % of the pixels lie within 1 % of the scan's own range around its median;
    - `nan_zeroed`: some voxels were no numbers;
    - `tilt_resampled`: the gantry was tilted, and the slices were resampled upright;
    - `burned_in`: the header says that pixels hold text (BurnedInAnnotation), which may name the patient;
    - `duplicate`: pixels equal to an earlier scan of the same patient, named in `duplicate_of`;
    - `duplicate_patients`: equal to one of another patient;
    - `dropped`, `unreadable`, `aside` (no scan to learn from, such as a localizer): left out of the cohort.
    """

    path: str
    modality: str = ""
    instances: int | None = None
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    dtype: str = ""
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    std: float | None = None
    flags: tuple[str, ...] = ()
    duplicate_of: str = ""
    sha256: str = ""
    reason: str = ""
    label: str | None = None  # as the file itself says, where its format has a place for it


def examine_scans(
    files: Sequence[Path], names: Sequence[str], *, reading: ReadingOptions, progress: bool
) -> list[ScanQuality]:
    """Read every scan once and return its facts, in order; one that cannot be read has the flag `unreadable`."""

    def examine(file: Path, name: str) -> ScanQuality:
        try:
            header = read_header(file, reading=reading)
            return measure_quality(read_scan(file, reading=reading), name=name, dtype=header.dtype)
        except DataError as error:
            return ScanQuality(path=name, flags=("unreadable",), reason=str(error))

    # Items of one NPZ share its decoded array, so a second thread has nothing to win there.
    workers = 1 if any(split_item(file)[1] for file in files) else 2
    with ThreadPoolExecutor(max_workers=workers) as pool:
        results = pool.map(examine, files, names)
        return list(tqdm(results, total=len(files), desc="reading scans", unit="scan", disable=not progress))


def measure_quality(scan: Scan, *, name: str, dtype: str = "") -> ScanQuality:
    """Return the facts of one scan under `name`, without those that need a second scan."""
    array = np.ascontiguousarray(scan.array, dtype=np.float32)
    low, high = float(array.min()), float(array.max())
    flags: tuple[str, ...] = ()
    if low == high:
        flags = ("constant",)
    elif np.mean(np.abs(array - np.median(array)) <= 0.01 * (high - low)) >= 0.99:
        flags = ("near_empty",)
    if "nan_voxels" in scan.attributes:
        flags = (*flags, "nan_zeroed")
    if "tilt_degrees" in scan.attributes:
        flags = (*flags, "tilt_resampled")
    return ScanQuality(
        path=name,
        shape=array.shape,
        spacing=tuple(round(length, 6) for length in scan.spacing),
        dtype=dtype,
        minimum=low,
        maximum=high,
        mean=float(array.mean(dtype=np.float64)),
        std=float(array.std(dtype=np.float64)),
        flags=flags,
        sha256=hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest(),
        label=scan.label,
    )


def flag_duplicates(qualities: Sequence[ScanQuality], rows: Sequence[Row]) -> tuple[list[ScanQuality], list[int]]:
    """Flag scans whose pixels equal those of an earlier one, and return the numbers of those that lie in another split.

    Constant scans are left out: equal blanks do not make two people one.
    """
    first: dict[str, int] = {}
    flagged = list(qualities)
    across: list[int] = []
    for number, (quality, row) in enumerate(zip(qualities, rows, strict=True)):
        if "constant" in quality.flags:
            continue
        earlier = first.setdefault(quality.sha256, number)
        if earlier == number:
            continue
        flag = "duplicate" if rows[earlier].patient_id == row.patient_id else "duplicate_patients"
        flagged[number] = replace(quality, flags=(*quality.flags, flag), duplicate_of=rows[earlier].path)
        if rows[earlier].split != row.split:
            across.append(number)
    return flagged, across


def check_one_kind(qualities: Sequence[ScanQuality]) -> None:
    """Refuse (`DataError`) scans of different numbers of axes or channels: no model takes both."""
    kinds = Counter((len(quality.shape) - 1, quality.shape[0]) for quality in qualities)
    if len(kinds) > 1:
        rarest = kinds.most_common()[-1][0]
        name = next(one.path for one in qualities if (len(one.shape) - 1, one.shape[0]) == rarest)
        got = " and ".join(
            f"{count} in {axes}D with {channels} channel{'s' if channels > 1 else ''}"
            for (axes, channels), count in kinds.most_common()
        )
        raise DataError(f"{name}: need scans of one kind, got {got}; try indexing them apart")


def note_mixture(qualities: Sequence[ScanQuality], notes: list[str]) -> None:
    """Note pixel types, modalities and file formats where there are several."""
    types = Counter(one.dtype for one in qualities)
    if len(types) > 1:
        notes.append(f"mixed pixel types: {list_counts(types)}: one intensity range may not suit both")
    if len(modalities := Counter(one.modality or "none" for one in qualities)) > 1:
        notes.append(f"mixed modalities: {list_counts(modalities)}: see that their intensities mean the same")
    formats = Counter(scan_suffix(one.path) or "DICOM" for one in qualities)
    if len(formats) > 1:
        notes.append(f"mixed file formats: {list_counts(formats)}: see that their intensities mean the same")


def note_flags(quality: Sequence[ScanQuality], notes: list[str]) -> None:
    """Note how many scans have each of the flags that make one look again."""
    meanings = {
        "constant": "are constant",
        "near_empty": "are nearly empty",
        "tilt_resampled": "were taken with a tilted gantry and are resampled",
        "burned_in": "say that text is burned into their pixels: look at them, it may name the patient",
        "duplicate": "repeat another scan of the same patient",
        "duplicate_patients": "have the pixels of another patient of the same split (one person under two IDs?)",
    }
    for flag, meaning in meanings.items():
        if count := sum(flag in facts.flags for facts in quality):
            notes.append(f"{count} scans {meaning}; see the quality table")


def write_quality(qualities: Sequence[ScanQuality], path: Path) -> None:
    """Write the quality table as CSV, atomically; tuples are joined by `x` (shape, spacing) or blanks (flags)."""
    write_table(path, _COLUMNS, ([_cell(getattr(quality, name), name) for name in _COLUMNS] for quality in qualities))


def _cell(value: object, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return (" " if name == "flags" else "x").join(
            f"{part:g}" if isinstance(part, float) else str(part) for part in value
        )
    return f"{value:.6g}" if isinstance(value, float) else str(value)
