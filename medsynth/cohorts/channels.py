"""The files and channels of a scan: sequences on one grid become its channels, and its mask one more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medsynth.cohorts.grid import orient_scan, resize_mask
from medsynth.cohorts.manifest import MASK, PATH, Cohort, Row, is_sequence_name
from medsynth.config import GridOptions, Loading
from medsynth.errors import ConfigError, DataError
from medsynth.scans import Intensity, Scan, ScanHeader, read_header, read_scan

_SAME_PLACE = 1e-2  # millimetres


def are_channels(names: Sequence[object]) -> bool:
    """Return whether these can be the channels of a scan: those of one file after those of the other, the mask last."""
    files = [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name]
    images = files[:-1] if files[-1:] == [MASK] else files
    return (
        images[:1] == [PATH]
        and all(map(is_sequence_name, images[1:]))
        and len(set(images)) == len(images)
        and names.count(MASK) == len(files) - len(images)
    )


def parse_channels(text: str, channels: Sequence[str], *, option: str) -> tuple[str, ...]:
    """Return the channels that a text such as `t1,mask` names, in the order of `channels`.

    Raises `ConfigError` with the name of the option for none, all or unknown channels.
    """
    known = list(dict.fromkeys(channels))
    wanted = {part.strip() for part in text.split(",")} - {""}
    unknown = sorted(wanted - set(known))
    if unknown or not wanted or wanted == set(known):
        got = repr(unknown[0]) if unknown else "all of them" if wanted else "none"
        raise ConfigError(f"{option}: need some of the run's channels {', '.join(known)}, but not all, got {got}")
    return tuple(name for name in known if name in wanted)


def image_files(cohort: Cohort) -> list[dict[str, Path]]:
    """Return the files of every row, by name in the order of their channels.

    Raises `DataError` for a missing file, and for a row that lacks one of the cohort's sequences.
    """
    names = (PATH, *cohort.sequences)
    found = []
    for row in cohort.rows:
        files = cohort.files_of(row)
        if missing := [name for name in names if name not in files]:
            raise DataError(
                f"{files[PATH]}: need a file of the sequence {missing[0]} like other scans of the cohort, got an empty cell; "
                "try filling it in, or removing the row or the column"
            )
        found.append({name: files[name] for name in names})
    return found


def read_headers(files: dict[str, Path], loading: Loading) -> dict[str, ScanHeader]:
    """Return the headers of the files of one scan; `DataError` if their axes have other lengths than those of the first."""
    headers = {name: read_header(file, loading=loading) for name, file in files.items()}
    wanted = headers[PATH].shape[1:]
    for name, header in headers.items():
        if sorted(header.shape[1:]) != sorted(wanted):  # axes may be stored in another order
            raise _other_geometry(files[name], "the first sequence of its scan", wanted, header.shape[1:])
    return headers


def channel_names(headers: dict[str, ScanHeader]) -> tuple[str, ...]:
    """Return the name of each channel of a scan: that of its file, repeated for each channel of the file."""
    return tuple(name for name, header in headers.items() for _ in range(header.shape[0]))


def count_channels(cohort: Cohort, row: Row, *, mask: bool, loading: Loading) -> int:
    """Return how many channels a scan has, with or without its mask, from the headers of its files."""
    headers = (read_header(file, loading=loading) for file in cohort.files_of(row).values())
    return sum(header.shape[0] for header in headers) + mask


def read_channels(files: dict[str, Path], loading: Loading) -> Scan:
    """Return the scan `(C, *spatial)` of all files, oriented by `orient_scan`; `DataError` for files of other geometry."""
    first, *others = (orient_scan(read_scan(file, loading=loading)) for file in files.values())
    for scan, file in zip(others, list(files.values())[1:], strict=True):
        check_geometry(scan, first, file, whose="the first sequence of its scan")
    if not others:
        return first
    return replace(first, array=np.concatenate([scan.array for scan in (first, *others)]))


def read_mask(mask: Path, scan: Scan, loading: Loading) -> Scan:
    """Return a mask, oriented like its scan; `DataError` for one of another geometry."""
    found = orient_scan(read_scan(mask, loading=loading))
    check_geometry(found, scan, mask, whose="its scan")
    return found


def check_geometry(found: Scan, scan: Scan, file: Path, *, whose: str) -> None:
    """Raise `DataError` that names the file if a scan has another shape, or lies at another place, than `scan` (of `whose`)."""
    if found.spatial_shape != scan.spatial_shape or not np.allclose(found.affine, scan.affine, atol=_SAME_PLACE):
        raise _other_geometry(file, whose, scan.spatial_shape, found.spatial_shape)


def mask_channel(
    mask: Scan | None, size: Sequence[int], *, grid: GridOptions, centre: Sequence[float] | None
) -> np.ndarray:
    """Return `(1, *grid)` float32: 1 where the mask is not 0, else -1, placed by `resize_mask`; all -1 without a mask."""
    if mask is None:
        return np.full((1, *size), -1, dtype=np.float32)
    inside = replace(mask, array=np.any(mask.array != 0, axis=0, keepdims=True).astype(np.uint8))
    return resize_mask(inside, grid=grid, centre=centre).astype(np.float32) * 2 - 1


def with_mask(intensity: Intensity, channels: int) -> Intensity:
    """Return the conversion of `channels` image channels, followed by that of a mask (0 and 1)."""
    images = only_images(intensity, channels)
    repeat = channels if len(images.low) == 1 else 1
    return Intensity(low=(*images.low * repeat, 0.0), high=(*images.high * repeat, 1.0))


def only_images(intensity: Intensity, channels: int) -> Intensity:
    """Return the conversion of `channels` image channels, without that of a mask, if there is one after them."""
    if len(intensity.low) != channels + 1:
        return intensity
    return Intensity(low=intensity.low[:channels], high=intensity.high[:channels])


def select_channels(cohort: Cohort, names: Sequence[str]) -> Cohort:
    """Return the cohort with some of its sequences only, in the order of their channels; the first becomes `path`.

    Masks stay. Raises `ConfigError` for a sequence that the cohort lacks, `DataError` for a row that lacks one.
    """
    if unknown := [name for name in names if name not in (PATH, *cohort.sequences)]:
        known = ", ".join((PATH, *cohort.sequences))
        raise ConfigError(f"channels: need sequences of the cohort ({known}), got {unknown[0]}; try another cohort")
    first, *others = [name for name in (PATH, *cohort.sequences) if name in names] or [PATH]
    rows = []
    for row in cohort.rows:
        files = {PATH: row.path} | dict(row.sequences)
        if missing := [name for name in (first, *others) if name not in files]:
            raise DataError(f"{row.path}: need a file of the sequence {missing[0]}, got none; try removing the row")
        rows.append(replace(row, path=files[first], sequences={name: files[name] for name in others}))
    return replace(cohort, rows=tuple(rows))


def _other_geometry(file: Path, whose: str, wanted: tuple[int, ...], got: tuple[int, ...]) -> DataError:
    return DataError(f"{file}: need the geometry of {whose}, {wanted}, got {got} or another place; try resampling it")
