"""One way in and one way out for scans of every format, chosen by the suffix of the file."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from nibabel.spatialimages import HeaderDataError

from medsynth.config import ReadingOptions
from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path
from medsynth.scans import nifti, npz, png
from medsynth.scans.limits import check_affine, check_exists, one_line
from medsynth.scans.scan import Scan, ScanHeader

SUFFIXES = (".png", ".npz", ".nii", ".nii.gz")

_READERS = {".png": png, ".npz": npz, ".nii": nifti, ".nii.gz": nifti}
_ITEM = re.compile(r"(?P<file>.*\.npz)#(?P<item>.+)", re.IGNORECASE | re.DOTALL)
# Path("http://host") is "http:/host", and a scheme of one letter is a Windows drive.
_URL = re.compile(r"[a-z][a-z0-9+.\-]+:/", re.IGNORECASE)
# What the parsers of damaged files raise; anything else is a bug of ours and keeps its traceback.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    OverflowError,
    SyntaxError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    HeaderDataError,
)


def split_item(path: Path | str) -> tuple[Path, str | None]:
    """Return the file and the item of a path such as `set.npz#train/17`; the item is None where the path names none."""
    found = _ITEM.fullmatch(str(path))
    return (Path(found["file"]), found["item"]) if found else (Path(path), None)


def scan_suffix(path: Path | str) -> str | None:
    """Return the suffix out of `SUFFIXES` that `path` has (without its item, in any case of letters), else None."""
    name = split_item(path)[0].name.lower()
    return next((suffix for suffix in reversed(SUFFIXES) if name.endswith(suffix)), None)


def read_header(path: Path | str, *, reading: ReadingOptions = ReadingOptions()) -> ScanHeader:
    """Return shape, type and voxel size of a scan without decoding its pixels.

    Raises `DataError` for a scan above the size budget and for whatever the header shows cannot be read.
    """
    file, item, name, suffix = _locate(path)
    with _one_line_errors(name, suffix):
        return _READERS[suffix].read_header(file, item, name, reading)


def read_scan(path: Path | str, *, reading: ReadingOptions = ReadingOptions()) -> Scan:
    """Return the scan in `path`, or the item that follows `#` in an NPZ of several scans (`set.npz#train/17`).

    Values are exact: integers keep their type, scaled integers become floats wide enough for them, or their original
    type where we wrote the file. Under `reading.nan == "zero"` the number of replaced voxels is
    `attributes["nan_voxels"]`. Raises `DataError` for a file that is damaged, over the size budget (checked before
    pixels are decoded) or not a scan of one channel; the message names the file.
    """
    file, item, name, suffix = _locate(path)
    with _one_line_errors(name, suffix):
        return _READERS[suffix].read(file, item, name, reading)


def list_items(path: Path | str) -> list[str]:
    """Return the items (`train/0`, `train/1`, ...) of a file of several scans, `[]` for a file of one scan.

    Raises `DataError` as `read_header` does.
    """
    file, _, name, suffix = _locate(path)
    if suffix != ".npz":
        return []
    with _one_line_errors(name, suffix):
        return npz.list_items(file, name)


def write_scan(scan: Scan, path: Path | str) -> None:
    """Write `scan` to `path` in the format of its suffix; the file is whole or absent, and equal scans give equal bytes.

    `.npz` keeps everything; `.nii` and `.nii.gz` keep array (float16 becomes float32), affine (float32) and provenance;
    `.png` keeps a 2D array (floats that are not whole numbers within 65535 of each other: to 1/131070 of their range),
    affine and provenance. A scan with provenance is marked as synthetic inside the file.
    Raises `ConfigError` if the format cannot hold the scan, `DataError` if the scan itself is not sound.
    """
    file, item = split_item(path)
    name, suffix = one_line(path), scan_suffix(path)
    if suffix is None or item is not None or _URL.match(str(path)):
        raise ConfigError(f"{name}: need a local file ending in {', '.join(SUFFIXES)}, got another path")
    array = np.asarray(scan.array)
    if array.ndim not in (3, 4) or array.size == 0 or array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        raise DataError(
            f"{name}: need a scan (channel, *spatial) of numbers in 2D or 3D, got {array.shape} {array.dtype}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{name}: need finite voxels to write, got NaN or infinite ones")
    check_affine(name, scan.affine)
    content = _READERS[suffix].encode(scan, name)
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        if suffix == ".nii.gz":
            nifti.write_gzip(stream, content)
        else:
            stream.write(content)


def _locate(path: Path | str) -> tuple[Path, str | None, str, str]:
    """Return file, item, printable name and suffix of an existing file of a known format."""
    name = one_line(path)
    if _URL.match(str(path)):
        raise DataError(f"{name}: need a local file, got a URL; try downloading it first")
    file, item = split_item(path)
    suffix = scan_suffix(path)
    if suffix is None:
        raise DataError(f"{name}: need a file ending in {', '.join(SUFFIXES)}, got another suffix; try converting it")
    if "\0" in str(file):
        raise DataError(f"{name}: need a file name, got one with a NUL character")
    check_exists(name, file)
    return file, item, name, suffix


@contextmanager
def _one_line_errors(name: str, suffix: str) -> Iterator[None]:
    """Turn what a parser raises over a damaged file into a `DataError` of one line."""
    try:
        yield
    except _DAMAGE as error:
        reason = one_line(" ".join(str(error).split()))[:200] or type(error).__name__
        raise DataError(
            f"{name}: need a readable {suffix} file, got a damaged one ({reason}); try another copy"
        ) from error
