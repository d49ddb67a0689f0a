"""One way in and one way out for scans of every format, chosen by the suffix of the file; DICOM by its content."""

from __future__ import annotations

import gzip
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medsynth.config import Loading
from medsynth.errors import ConfigError, DataError, one_line
from medsynth.files import atomic_path
from medsynth.scans import nifti, npz, png
from medsynth.scans.dicom import reading as dicom
from medsynth.scans.dicom.elements import is_dicom
from medsynth.scans.dicom.series import SERIES, may_be_dicom
from medsynth.scans.limits import MAX_TEXT, check_affine, check_exists, check_voxels, damage_as_data_error
from medsynth.scans.scan import Scan, ScanHeader

SUFFIXES = (".png", ".npz", ".nii", ".nii.gz")

_FORMATS = {".png": png, ".npz": npz, ".nii": nifti, ".nii.gz": nifti}
# An item of an NPZ, or a series of a folder.
_ITEM = re.compile(
    rf"(?P<file>.*\.npz)#(?P<item>.+)|(?P<folder>.+)#(?P<series>{SERIES}[^/#]+)", re.IGNORECASE | re.DOTALL
)
# Path("http://host") is "http:/host", and a scheme of one letter is a Windows drive.
_URL = re.compile(r"[a-z][a-z0-9+.\-]+:/", re.IGNORECASE)


def split_item(path: Path | str) -> tuple[Path, str | None]:
    """Return file and item of a path such as `set.npz#train/17`, or folder and item of `folder#series/1.2.3`.

    The item is None if the path names none.
    """
    found = _ITEM.fullmatch(str(path))
    if found is None:
        return Path(path), None
    return Path(found["file"] or found["folder"]), found["item"] or found["series"]


def scan_suffix(path: Path | str) -> str | None:
    """Return the suffix of `path` if it is one of `SUFFIXES` (in upper or lower case, without the item), else None.

    DICOM has none: its files may have any name, and a folder of them may be a scan.
    """
    name = split_item(path)[0].name.lower()
    return next((suffix for suffix in reversed(SUFFIXES) if name.endswith(suffix)), None)


def read_header(path: Path | str, *, loading: Loading = Loading()) -> ScanHeader:
    """Return shape, type and voxel size of a scan without decoding its pixels.

    Raises `DataError` for a scan above the size budget, or with a header that shows that it cannot be read.
    """
    file, item, name, reader, kind = _locate(path)
    with damage_as_data_error(name, kind):
        return reader.read_header(file, item, name, loading)


def read_scan(path: Path | str, *, loading: Loading = Loading()) -> Scan:
    """Return the scan in a file, in a folder that holds one DICOM series, or in the item that follows `#`.

    Items are those of an NPZ of several scans (`set.npz#train/17`) and the series of a folder of several
    (`folder#series/1.2.3`, with its SeriesInstanceUID). Values are exact: integers keep their type, scaled integers become
    floats wide enough for them, or their original type if we wrote the file. If `loading.nan == "zero"`, the number of
    replaced voxels is `attributes["nan_voxels"]`. Raises `DataError` for a file that is damaged, over the size budget
    (checked before pixels are decoded) or not a scan of one channel, and for DICOM files that make no complete volume; the
    message names the file.
    """
    file, item, name, reader, kind = _locate(path)
    with damage_as_data_error(name, kind):
        scan: Scan = reader.read(file, item, name, loading)
    if scan.array.dtype.kind != "f" or (finite := np.isfinite(scan.array)).all():
        return scan
    bad = finite.size - int(np.count_nonzero(finite))
    if loading.nan == "refuse":
        raise DataError(f"{name}: need finite voxels, got {bad} that are NaN or infinite; try --nan zero")
    array = np.where(finite, scan.array, scan.array.dtype.type(0))
    return replace(scan, array=array, attributes={**scan.attributes, "nan_voxels": float(bad)})


def list_items(path: Path | str) -> list[str]:
    """Return the items (`train/0`, `train/1`, ...) of a file of several scans, `[]` for a file of one scan.

    Raises `DataError` as `read_header` does.
    """
    file, _, name, reader, kind = _locate(path)
    if reader is not npz:
        return []
    with damage_as_data_error(name, kind):
        return npz.list_items(file)


def list_files(path: Path | str) -> list[Path]:
    """Return the files on which the result of `read_scan` may depend: one, or those of a DICOM folder (not sorted)."""
    file, _ = split_item(path)
    if not file.is_dir():
        return [file]
    return [below for below in file.iterdir() if may_be_dicom(below.name) and below.is_file()]


def write_scan(scan: Scan, path: Path | str) -> None:
    """Write `scan` to `path` in the format of its suffix; the file is complete or absent, and equal scans give equal bytes.

    `.npz` keeps everything; `.nii` and `.nii.gz` keep array (float16 becomes float32), affine (float32) and provenance;
    `.png` keeps a 2D array (floats that are not whole numbers within 65535 of each other: to 1/131070 of their range),
    affine and provenance. A scan with provenance is marked as synthetic inside the file.
    Raises `ConfigError` if the format cannot hold the scan, `DataError` if the scan itself is invalid.
    """
    file, item = split_item(path)
    name, suffix = one_line(path), scan_suffix(path)
    if suffix is None or item is not None or _URL.match(str(path)):
        known = ", ".join(SUFFIXES)
        raise ConfigError(f"{name}: need a local file ending in {known}, got another path; for DICOM try write_dicom")
    check_voxels(name, np.asarray(scan.array))
    check_affine(name, scan.affine)
    if (length := len(json.dumps(dict(scan.provenance)))) > MAX_TEXT:
        raise ConfigError(f"{name}: need provenance of at most {MAX_TEXT} bytes, got {length}")
    content = _FORMATS[suffix].encode(scan, name)
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        if suffix == ".nii.gz":
            # Without time and file name, so that equal content gives equal bytes.
            with gzip.GzipFile(filename="", fileobj=stream, mode="wb", compresslevel=6, mtime=0) as packed:
                packed.write(content)
        else:
            stream.write(content)


def _locate(path: Path | str) -> tuple[Path, str | None, str, Any, str]:
    """Return file or folder, item, printable name, reader and kind of what exists at `path`."""
    name = one_line(path)
    if _URL.match(str(path)):
        raise DataError(f"{name}: need a local file, got a URL; try downloading it first")
    file, item = split_item(path)
    if "\0" in str(file):
        raise DataError(f"{name}: need a file name, got one with a NUL character")
    suffix = scan_suffix(path)
    if os.path.isdir(file) or (suffix is None and (item is not None or is_dicom(file))):
        return file, item, name, dicom, "DICOM"
    check_exists(name, file)
    if suffix is None:
        known = ", ".join(SUFFIXES)
        raise DataError(f"{name}: need {known}, a DICOM file or a folder of them, got another file; try converting it")
    return file, item, name, _FORMATS[suffix], suffix
