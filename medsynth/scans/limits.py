"""What every reader refuses: too many bytes, a singular geometry, voxels that are not numbers, damaged files."""

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

from medsynth.config import Loading
from medsynth.errors import DataError

MAX_TEXT = 1 << 16  # bytes of one piece of text (provenance, attributes) inside a scan file
_MIB = 1 << 20
# What the parsers raise over damaged files; anything else is a bug of ours and keeps its traceback. RuntimeError covers
# RecursionError and NotImplementedError; TokenError comes from NumPy, which reads the header of an array as Python text.
_DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, SyntaxError),
    *(RuntimeError, MemoryError, TokenError, struct.error, zlib.error, zipfile.BadZipFile),
    *(HeaderDataError, BytesLengthException, InvalidDicomError),
)


@contextmanager
def damage_as_data_error(name: str, kind: str) -> Iterator[None]:
    """Turn whatever a parser raises over a damaged file of a `kind` into a `DataError`."""
    try:
        yield
    except _DAMAGE as error:
        reason = str(error)[:200] or type(error).__name__
        raise DataError(f"{name}: need a readable {kind} file, got a damaged one ({reason})") from error


def check_size(name: str, shape: Sequence[int], dtype: np.dtype, loading: Loading) -> None:
    """Refuse (`DataError`) an array of `shape` and `dtype` that is empty or larger than the budget `loading.max_mib`."""
    lengths = [int(length) for length in shape]  # Python integers, so that no claimed shape overflows
    said = " x ".join(map(str, lengths)) or "()"
    if not lengths or min(lengths) < 1:
        raise DataError(f"{name}: need at least one voxel along each axis, got shape {said}; try another file")
    needed = math.prod(lengths) * dtype.itemsize
    if needed > loading.max_mib * _MIB:
        raise DataError(
            f"{name}: need at most {loading.max_mib} MiB decoded, got {said} of {dtype.name}, "
            f"{-(-needed // _MIB)} MiB; try a larger max_mib if you trust the file"
        )


def check_affine(name: str, affine: np.ndarray) -> np.ndarray:
    """Return `affine` as 4x4 float64; `DataError` if it is not finite, not affine, or singular."""
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise DataError(f"{name}: need a finite 4x4 affine ending in 0 0 0 1, got another; try repairing the file")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    # Relative to the voxel's edges the determinant is the volume of the skewed unit cube: 1 for orthogonal axes.
    if not (lengths > 0).all() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        sizes = " x ".join(f"{length:g}" for length in lengths)
        raise DataError(f"{name}: need three independent axes, got a singular affine (voxel size {sizes} mm)")
    return matrix


def check_spacing(name: str, spacing: Sequence[float]) -> tuple[float, ...]:
    """Return voxel sizes as floats; `DataError` unless all are finite and positive."""
    sizes = tuple(float(size) for size in spacing)
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        got = " x ".join(f"{size:g}" for size in sizes)
        raise DataError(f"{name}: need finite voxel sizes above 0 mm, got {got}; try repairing the header")
    return sizes


def check_voxels(name: str, array: np.ndarray) -> None:
    """Raise `DataError` unless the array to be written is a scan `(channel, *spatial)` in 2D or 3D of finite real numbers."""
    if array.ndim not in (3, 4) or array.size == 0 or array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        got = f"{array.shape} {array.dtype}"
        raise DataError(f"{name}: need a scan (channel, *spatial) of real numbers in 2D or 3D, got {got}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{name}: need finite voxels to write, got NaN or infinite ones")


def check_exists(name: str, path: Path) -> None:
    """Raise `DataError` unless `path` is a regular file."""
    # os.path answers False for impossible names, where the methods of Path raise.
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "a pipe or device" if os.path.exists(path) else "none"
        raise DataError(f"{name}: need an existing file, got {found}; try another path")
