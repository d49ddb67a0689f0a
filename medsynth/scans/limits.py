"""What every reader refuses: too many bytes, a singular geometry, voxels that are no numbers, errors of many lines."""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError

import numpy as np
from nibabel.spatialimages import HeaderDataError
from pydicom.errors import BytesLengthException, InvalidDicomError

from medsynth.config import ReadingOptions
from medsynth.errors import DataError

MAX_TEXT = 1 << 16  # bytes of one piece of text (provenance, attributes) inside a scan file
_MIB = 1 << 20
# What the parsers of damaged files raise; anything else is a bug of ours and keeps its traceback.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    SyntaxError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    TokenError,  # NumPy reads the header of an array as Python text
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    HeaderDataError,
    BytesLengthException,
    InvalidDicomError,
)


@contextmanager
def damage_as_data_error(name: str, kind: str) -> Iterator[None]:
    """Turn what a parser raises over a damaged file of a `kind` into a `DataError` of one line."""
    try:
        yield
    except _DAMAGE as error:
        reason = one_line(" ".join(str(error).split()))[:200] or type(error).__name__
        raise DataError(
            f"{name}: need a readable {kind} file, got a damaged one ({reason}); try another copy"
        ) from error


def one_line(text: object) -> str:
    """Return `text` on one line, with whatever cannot be printed escaped, for use in an error message."""
    line = " ".join(str(text).split(" "))
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in line)


def check_size(name: str, shape: Sequence[int], dtype: np.dtype, reading: ReadingOptions) -> None:
    """Refuse an array of `shape` and `dtype` that is empty or larger than the budget `reading.max_mib`.

    Counts in Python integers, so that no claimed shape overflows. Raises `DataError`.
    """
    if not shape or any(length < 1 for length in shape):
        raise DataError(f"{name}: need at least one voxel along each axis, got shape {_shape(shape)}; try another file")
    needed = math.prod(int(length) for length in shape) * dtype.itemsize
    if needed > reading.max_mib * _MIB:
        raise DataError(
            f"{name}: need at most {reading.max_mib} MiB decoded, got {_shape(shape)} of {dtype.name}, "
            f"{-(-needed // _MIB)} MiB; try a larger max_mib if you trust the file"
        )


def check_affine(name: str, affine: np.ndarray) -> np.ndarray:
    """Return `affine` as 4x4 float64; `DataError` if it is not finite, not affine, or singular."""
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise DataError(
            f"{name}: need a finite 4x4 affine that ends in 0 0 0 1, got another one; try repairing the file"
        )
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    # Relative to the voxel's edges the determinant is the volume of the skewed unit cube: 1 for orthogonal axes.
    if not (lengths > 0).all() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        raise DataError(
            f"{name}: need an affine with three independent axes, got a singular one (voxel size "
            f"{' x '.join(f'{length:g}' for length in lengths)} mm); try repairing the header"
        )
    return matrix


def check_spacing(name: str, spacing: Sequence[float]) -> tuple[float, ...]:
    """Return voxel sizes as floats; `DataError` unless all are finite and positive."""
    sizes = tuple(float(size) for size in spacing)
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        raise DataError(
            f"{name}: need finite voxel sizes above 0 mm, got {' x '.join(f'{size:g}' for size in sizes)}; "
            "try repairing the header"
        )
    return sizes


def clean_voxels(name: str, array: np.ndarray, reading: ReadingOptions) -> tuple[np.ndarray, dict[str, float | str]]:
    """Return `array` with only finite voxels, and `{"nan_voxels": count}` where some were replaced by 0 (else `{}`).

    Under `reading.nan == "refuse"` such voxels raise `DataError`.
    """
    if array.dtype.kind != "f":
        return array, {}
    finite = np.isfinite(array)
    bad = array.size - int(np.count_nonzero(finite))
    if bad == 0:
        return array, {}
    if reading.nan == "refuse":
        raise DataError(f"{name}: need finite voxels, got {bad} that are NaN or infinite; try --reading.nan zero")
    return np.where(finite, array, array.dtype.type(0)), {"nan_voxels": float(bad)}


def check_exists(name: str, path: Path) -> None:
    """Raise `DataError` unless `path` is a regular file."""
    # Of a name that no file system takes, these say no where those of `Path` raise.
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "none"
        raise DataError(f"{name}: need an existing file, got {found}; try another path")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape) or "()"
