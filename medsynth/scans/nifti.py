"""NIfTI-1 and NIfTI-2 in one file (`.nii`, `.nii.gz`): nibabel interprets the header, the bytes are read here.

Reading them here bounds the memory: no more is inflated than a header announces that has passed all checks.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Extension

from medsynth.config import Loading
from medsynth.errors import ConfigError, DataError
from medsynth.scans.limits import MAX_TEXT, check_affine, check_size, check_spacing
from medsynth.scans.scan import Scan, ScanHeader, voxel_size

_MAX_OFFSET = 1 << 24  # no scan has header extensions above 16 MiB
_MAX_TAIL = 1 << 16  # bytes that may follow the voxels (some writers pad)
_COMMENT = 6  # NIFTI_ECODE_COMMENT
_PROVENANCE = "medsynth.provenance"
_MILLIMETRES = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}

# nibabel reports each oddity that it repairs on standard error; what matters is refused below.
_silent = logging.Logger("medsynth.nifti", level=logging.CRITICAL + 1)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where the voxels lie in the file and how they become a scan."""

    stored: np.dtype
    returned: np.dtype
    spatial: tuple[int, ...]
    offset: int
    scaling: tuple[float, float] | None
    affine: np.ndarray
    little_endian: bool


def read_header(path: Path, item: str | None, name: str, loading: Loading) -> ScanHeader:
    """Return the header of a NIfTI file after all checks; only the first bytes of a compressed file are inflated."""
    with _open(path) as stream:
        layout = _read_layout(stream, name, loading)
    spacing = voxel_size(layout.affine, len(layout.spatial))
    return ScanHeader(shape=(1, *layout.spatial), dtype=layout.returned.name, spacing=spacing)


def read(path: Path, item: str | None, name: str, loading: Loading) -> Scan:
    """Return the scan in a NIfTI file; `(H, W)` and `(H, W, 1)` are 2D.

    Without scaling the stored type is kept; with `scl_slope` the values are computed in float64 and returned as float32
    (relative error below 6e-8) where the stored type has at most 24 significant bits, else as float64. The affine
    follows nibabel (sform before qform before voxel sizes); metres and micrometres become millimetres. Of the header
    extensions only our own provenance is kept.
    """
    with _open(path) as stream:
        layout = _read_layout(stream, name, loading)
        provenance = _parse_extensions(_read_exactly(stream, layout.offset - stream.tell(), name), layout)
        count = math.prod(layout.spatial) * layout.stored.itemsize
        content = _read_exactly(stream, count, name)
        # Reading to the end, within bounds, makes gzip verify its checksum.
        tail = len(stream.read(_MAX_TAIL + 1))
    if tail > _MAX_TAIL:
        raise DataError(f"{name}: need {count} bytes of voxels as announced, got a file that goes on after them")
    stored = np.frombuffer(content, dtype=layout.stored).reshape(layout.spatial, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are refused or counted by `read_scan`
        if layout.scaling is not None:
            stored = stored.astype(np.float64)
            stored *= layout.scaling[0]
            stored += layout.scaling[1]
        array = np.array(stored, dtype=layout.returned, order="C")
    return Scan(array=array[np.newaxis], affine=layout.affine, provenance=provenance)


def encode(scan: Scan, name: str) -> bytes:
    """Return the bytes of an uncompressed NIfTI-1 file: sform, qform where it can say the same, millimetres.

    float16 becomes float32 and bool uint8; every other type is written as it is.
    """
    array = np.asarray(scan.array)
    if array.shape[0] != 1:
        raise ConfigError(f"{name}: need a scan of one channel for NIfTI, got {array.shape[0]}; try .npz")
    if max(array.shape) > np.iinfo(np.int16).max:
        raise ConfigError(f"{name}: need at most 32767 voxels along an axis for NIfTI, got {array.shape[1:]}; try .npz")
    array = array[0] if array.ndim == 4 else array[0][..., np.newaxis]
    array = array.astype({"bool": np.uint8, "float16": np.float32}.get(array.dtype.name, array.dtype), copy=False)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(1, 0)
    header.set_qform(scan.affine, code="scanner", strip_shears=True)
    header.set_sform(scan.affine, code="scanner")
    if not np.allclose(header.get_qform(), scan.affine, rtol=0, atol=1e-3):
        header.set_qform(None, code="unknown")  # a quaternion cannot express shears: better none than a wrong one
        header["pixdim"][1:4] = np.linalg.norm(scan.affine[:3, :3], axis=0)
    if scan.provenance:
        summary = "SYNTHETIC " + " ".join(f"{key}={value}" for key, value in sorted(scan.provenance.items()))
        header["descrip"] = summary.encode("ascii", "replace")[:79]
        text = json.dumps({_PROVENANCE: dict(scan.provenance)}, sort_keys=True).encode("ascii")
        header.extensions.append(Nifti1Extension("comment", text))
    stream = io.BytesIO()
    header.write_to(stream)
    stream.write(b"\0" * (int(header["vox_offset"]) - stream.tell()))
    stream.write(array.tobytes(order="F"))
    return stream.getvalue()


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _read_layout(stream: IO[bytes], name: str, loading: Loading) -> _Layout:
    """Read and check the header; the stream then stands after it and its four extension bytes."""
    block = _read_exactly(stream, 348, name)
    kind: type[nibabel.Nifti1Header] = nibabel.Nifti1Header
    if not kind.may_contain_header(block):
        block += _read_exactly(stream, 540 - 348, name)
        kind = nibabel.Nifti2Header
        if not kind.may_contain_header(block):
            raise DataError(f"{name}: need a NIfTI file, got another format or a damaged header")
    header = kind(block, check=False)
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise DataError(f"{name}: need header and voxels in one file, got the header of a pair; try .nii.gz")
    _read_exactly(stream, 4, name)

    axes = int(header["dim"][0])
    if not 1 <= axes <= 7:
        raise DataError(f"{name}: need 2 or 3 axes, got a damaged header that says {axes}")
    shape = [int(length) for length in header["dim"][1 : axes + 1]]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) not in (2, 3):
        said = " x ".join(map(str, shape))
        raise DataError(f"{name}: need a 2D or 3D scan, got {len(shape)}D ({said}); try splitting it first")
    stored = header.get_data_dtype()
    if stored.fields is not None or stored.kind not in "uif" or stored.itemsize > 8:
        kind_name = header.get_value_label("datatype")
        raise DataError(f"{name}: need one real number per voxel, got {kind_name}; try converting it")
    slope, intercept = header.get_slope_inter()
    scaling = None if slope is None or (slope == 1 and intercept == 0) else (float(slope), float(intercept))
    returned = stored.newbyteorder("=")
    if scaling is not None:
        wide = (stored.kind in "ui" and stored.itemsize > 2) or stored.itemsize == 8
        returned = np.dtype(np.float64 if wide else np.float32)
    check_size(name, shape, max(stored, returned, key=lambda dtype: dtype.itemsize), loading)

    spatial_pixdim = np.asarray(header["pixdim"], dtype=np.float64)[1 : min(axes, 3) + 1]
    check_spacing(name, [abs(size) for size in spatial_pixdim])
    if axes < 3 and not (np.isfinite(header["pixdim"][3]) and header["pixdim"][3] != 0):
        header["pixdim"][3] = 1.0  # a 2D header may lack the slice thickness
    offset, first = float(header["vox_offset"]), header.sizeof_hdr + 4
    if not (offset.is_integer() and first <= offset <= _MAX_OFFSET):
        raise DataError(f"{name}: need voxels that begin at byte {first} to {_MAX_OFFSET}, got vox_offset {offset:g}")
    header.check_fix(logger=_silent)
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= _MILLIMETRES[header.get_xyzt_units()[0]]
    return _Layout(
        stored=stored,
        returned=returned,
        spatial=tuple(shape[:2]) if shape[2:] == [1] else tuple(shape),
        offset=int(offset),
        scaling=scaling,
        affine=check_affine(name, affine),
        little_endian=header.endianness == "<",
    )


def _read_exactly(stream: IO[bytes], count: int, name: str) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise DataError(f"{name}: need {count} more bytes, got {len(content)} before the end")
    return content


def _parse_extensions(content: bytes, layout: _Layout) -> dict[str, str]:
    """Return our provenance from the header extensions, `{}` if there is none; other extensions are ignored."""
    order = "little" if layout.little_endian else "big"
    start = 0
    while start + 8 <= len(content):
        size = int.from_bytes(content[start : start + 4], order, signed=True)  # type: ignore[arg-type]
        code = int.from_bytes(content[start + 4 : start + 8], order, signed=True)  # type: ignore[arg-type]
        if size < 8 or start + size > len(content):
            return {}
        text = content[start + 8 : start + size].rstrip(b"\0")
        if code == _COMMENT and len(text) <= MAX_TEXT and _PROVENANCE.encode() in text:
            found = json.loads(text)
            return {str(key): str(value) for key, value in found[_PROVENANCE].items()}
        start += size
    return {}
