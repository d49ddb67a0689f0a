"""PNG of one grey channel, exact to the bit.

Pillow decodes the file. Its checksums are verified, and the size budget, not a limit of Pillow, decides what is decoded.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL.PngImagePlugin import PngImageFile, PngInfo

from medsynth.config import Loading
from medsynth.errors import ConfigError, DataError
from medsynth.scans.limits import check_affine, check_size
from medsynth.scans.picture import encode_picture
from medsynth.scans.scan import PICTURE_AFFINE, Scan, ScanHeader, voxel_size

# Bits per value of the kinds that are read, by Pillow's name.
_BITS = {"1": 1, "L;2": 2, "L;4": 4, "L": 8, "I;16B": 16, "LA": 8, "RGB": 8, "RGBA": 8}
_TYPES = ("bool", "int8", "int16", "int32", "int64", "uint32", "uint64", "float16", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class _Rescale:
    """Value = stored * slope + offset, of type `dtype`; with slope 1 and whole offsets it is computed in integers."""

    slope: float
    offset: float | int
    dtype: np.dtype

    def apply(self, stored: np.ndarray) -> np.ndarray:
        if self.dtype.kind in "iub":
            # Integers up to 64 bits: adding modulo 2**64 and cutting to the type is exact for values within the type.
            wrapped = stored.astype(np.uint64) + np.uint64(int(self.offset) % (1 << 64))
            return wrapped.astype(self.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are refused by the caller
            return (stored.astype(np.float64) * self.slope + self.offset).astype(self.dtype)


def read_header(path: Path, item: str | None, name: str, loading: Loading) -> ScanHeader:
    """Return the header of a PNG after all checks that need no pixels."""
    with _open(path, name, loading) as image:
        rescale, affine, _ = _read_text(image, name, loading)
        deep = _BITS[str(image.tile[0].args)] == 16
        dtype = rescale.dtype if rescale else np.dtype(np.uint16 if deep else np.uint8)
        return ScanHeader(shape=(1, image.height, image.width), dtype=dtype.name, spacing=voxel_size(affine, 2))


def read(path: Path, item: str | None, name: str, loading: Loading) -> Scan:
    """Return the scan in a PNG: the stored values as uint8 or uint16, or the physical ones if we wrote the file.

    Grey of 1, 2 and 4 bits is returned as uint8 with values from 0 to 1, 3 and 15. Eight-bit colour is read if red, green and
    blue agree, alpha if nothing is transparent; true colour, transparency, palettes and animations are refused.
    """
    with _open(path, name, loading) as image:
        image.verify()  # the checksums of all chunks; afterwards Pillow needs the file to be opened again
    with _open(path, name, loading) as image:
        rescale, affine, provenance = _read_text(image, name, loading)
        bits = _BITS[str(image.tile[0].args)]
        image.load()
        array = _grey_values(np.asarray(image), image.mode, bits, name)
    if rescale:
        array = rescale.apply(array)
    return Scan(array=array[np.newaxis], affine=affine, provenance=provenance)


def encode(scan: Scan, name: str) -> bytes:
    """Return the bytes of a grey PNG, 8 bits for uint8 and 16 bits for everything else.

    Values that unsigned integers cannot hold are stored as `(value - offset) / slope`, and a text chunk says so to our
    reader: exact for whole numbers within 65535 of each other, else to half a step, 1/131070 of the scan's range.
    """
    array = np.asarray(scan.array)
    if array.ndim != 3 or array.shape[0] != 1:
        raise ConfigError(f"{name}: need a 2D scan of one channel for PNG, got {array.shape}; try .nii.gz or .npz")
    stored, rescale = _to_unsigned(array[0], name)
    info = PngInfo()
    if scan.provenance:
        info.add_text("Synthetic", "YES")
        info.add_text("medsynth.provenance", json.dumps(dict(scan.provenance), sort_keys=True))
    if rescale:
        values = {"slope": rescale.slope, "offset": rescale.offset, "dtype": rescale.dtype.name}
        info.add_text("medsynth.rescale", json.dumps(values))
    if not np.array_equal(scan.affine, PICTURE_AFFINE):
        info.add_text("medsynth.affine", json.dumps(np.asarray(scan.affine, dtype=np.float64).tolist()))
    return encode_picture(stored, info)


def _to_unsigned(array: np.ndarray, name: str) -> tuple[np.ndarray, _Rescale | None]:
    """Return `array` as uint8 or uint16, and how to get its values back, None if they are the same."""
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    if array.dtype.name in ("uint8", "uint16"):
        return array, None
    if array.dtype.name not in _TYPES:
        raise ConfigError(f"{name}: need integers or floats up to 64 bits for PNG, got {array.dtype}; try .npz")
    low, high = array.min().item(), array.max().item()
    if array.dtype.kind in "iub":
        if high - low > 65535:
            raise ConfigError(f"{name}: need whole numbers within 65535 for PNG, got {low} to {high}; try .npz")
        offset = 0 if low >= 0 and high <= 65535 else low
        stored = array.astype(np.uint64) - np.uint64(offset % (1 << 64))
        return stored.astype(np.uint16), _Rescale(slope=1.0, offset=offset, dtype=array.dtype)
    values, span = array.astype(np.float64), high - low
    if not math.isfinite(span):
        raise DataError(f"{name}: need a finite range of values, got {low} to {high}")
    if span <= 65535 and abs(low) < 2**52 and bool((values == np.round(values)).all()):
        offset = 0.0 if low >= 0 and high <= 65535 else low
        return (values - offset).astype(np.uint16), _Rescale(slope=1.0, offset=offset, dtype=array.dtype)
    slope = span / 65535 or 1.0  # a constant scan, or a range below the smallest float, is its offset
    stored = np.clip(np.round((values - low) / slope), 0, 65535)
    return stored.astype(np.uint16), _Rescale(slope=slope, offset=low, dtype=array.dtype)


def _open(path: Path, name: str, loading: Loading) -> PngImageFile:
    """Return a PNG whose pixels are not decoded yet, after all checks that do not need them."""
    image = PngImageFile(path)
    kind = image.tile[0].args if image.tile else None
    if image.mode == "P":
        raise DataError(f"{name}: need grey values, got a palette picture; try converting it to greyscale")
    if image.custom_mimetype == "image/apng" or "transparency" in image.info:
        got = "transparency" if "transparency" in image.info else "an animation"
        raise DataError(f"{name}: need one opaque grey picture, got {got}; try converting it")
    if kind not in _BITS or image.tile[0].extents != (0, 0, *image.size):
        raise DataError(f"{name}: need grey values of 1 to 16 bits, or colour of 8, got {kind}; try greyscale")
    size, channels = (image.height, image.width), len(image.mode) if _BITS[kind] == 8 else 1
    check_size(name, size, np.dtype(np.uint16 if _BITS[kind] == 16 else np.uint8), loading)
    if channels > 1:  # Pillow decodes colour to four bytes per pixel
        check_size(name, (*size, 4), np.dtype(np.uint8), loading)
    # Deflate never enlarges by more than 5 bytes in 16 KiB; interlacing adds at most 7 filter bytes for each row.
    needed = image.height * (-(-image.width * _BITS[kind] * channels // 8) + 8)
    if _packed_bytes(path, name) > needed + needed // 1000 + (1 << 16):
        raise DataError(f"{name}: need {needed} bytes of pixels at most, got more")
    return image


def _packed_bytes(path: Path, name: str) -> int:
    """Return the bytes of all pixel chunks of a complete file; Pillow itself inflates no more than the picture needs."""
    total, kind = 0, b""
    with path.open("rb") as stream:
        stream.seek(8)
        while kind != b"IEND" and len(head := stream.read(8)) == 8:
            kind, length = head[4:], int.from_bytes(head[:4], "big")
            total += length if kind == b"IDAT" else 0
            stream.seek(length + 4, io.SEEK_CUR)
        if kind != b"IEND" or stream.tell() > path.stat().st_size:
            raise DataError(f"{name}: need a whole PNG, got one that is cut off")
    return total


def _grey_values(decoded: np.ndarray, mode: str, bits: int, name: str) -> np.ndarray:
    """Return the grey values that the file stores, as uint8 or uint16."""
    if decoded.ndim == 2:
        if bits in (2, 4):
            return decoded // np.uint8(255 // (2**bits - 1))  # Pillow stretches 2 and 4 bits to 0..255
        return decoded.astype(np.uint16 if bits == 16 else np.uint8)
    if mode in ("LA", "RGBA") and not (decoded[..., -1] == 255).all():
        raise DataError(f"{name}: need an opaque picture, got transparent pixels; try removing the alpha channel")
    grey = decoded[..., :1]
    if mode in ("RGB", "RGBA") and not (decoded[..., 1:3] == grey).all():
        raise DataError(f"{name}: need a grey picture, got true colour; try converting it to greyscale")
    return np.ascontiguousarray(grey[..., 0])


def _read_text(image: PngImageFile, name: str, loading: Loading) -> tuple[_Rescale | None, np.ndarray, dict[str, str]]:
    """Return what we wrote into the text chunks: scale of the values, affine and provenance.

    A file of others has no scale, and pixels of 1 mm, since the resolutions that programs write are guesses.
    """
    text = {key: str(value) for key, value in image.info.items() if str(key).startswith("medsynth.")}
    affine = json.loads(text.get("medsynth.affine", "null"))
    affine = PICTURE_AFFINE.copy() if affine is None else check_affine(name, np.array(affine, dtype=np.float64))
    provenance = {str(key): str(value) for key, value in json.loads(text.get("medsynth.provenance", "{}")).items()}
    if "medsynth.rescale" not in text:
        return None, affine, provenance
    found = json.loads(text["medsynth.rescale"])
    slope, offset, kind = float(found["slope"]), found["offset"], found["dtype"]
    known = kind in _TYPES and isinstance(offset, int | float) and not isinstance(offset, bool)
    if not (known and math.isfinite(slope) and slope > 0 and math.isfinite(offset)):
        raise DataError(f"{name}: need a valid medsynth.rescale, got {slope}, {offset!r} and {kind!r}")
    dtype = np.dtype(kind)
    check_size(name, image.size, np.dtype(np.float64 if dtype.kind == "f" else dtype), loading)
    return _Rescale(slope=slope, offset=offset, dtype=dtype), affine, provenance
