"""PNG of one grey channel, exact to the bit.

The file is taken apart here and only header and pixel chunks reach Pillow, so no compressed text or colour profile is ever
inflated, and the size budget, not a limit of Pillow, decides what is decoded.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from medsynth.config import ReadingOptions
from medsynth.errors import ConfigError, DataError
from medsynth.scans.limits import MAX_TEXT, check_affine, check_size, clean_voxels
from medsynth.scans.scan import PICTURE_AFFINE, Scan, ScanHeader

_MAGIC = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR, _PALETTE, _GREY_ALPHA, _COLOUR_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _COLOUR: 3, _PALETTE: 1, _GREY_ALPHA: 2, _COLOUR_ALPHA: 4}
_KEYS = ("medsynth.rescale", "medsynth.affine", "medsynth.provenance")
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


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """A PNG taken apart: what its header says, our text chunks, and a PNG of nothing but header and pixels."""

    width: int
    height: int
    depth: int
    colour: int
    text: Mapping[str, str]
    pixels: bytes


def read_header(path: Path, item: str | None, name: str, reading: ReadingOptions) -> ScanHeader:
    """Return the header of a PNG after all checks that need no pixels."""
    parts = _take_apart(path, name, reading, pixels=False)
    rescale, affine = _rescale(parts, name, reading), _affine(parts, name)
    dtype = rescale.dtype if rescale else _stored_dtype(parts)
    spacing = np.linalg.norm(affine[:3, :2], axis=0)
    return ScanHeader(
        shape=(1, parts.height, parts.width), dtype=dtype.name, spacing=tuple(float(size) for size in spacing)
    )


def read(path: Path, item: str | None, name: str, reading: ReadingOptions) -> Scan:
    """Return the scan in a PNG: the stored values as uint8 or uint16, or the physical ones where we wrote the file.

    Grey of 1, 2 and 4 bits comes as uint8 with values from 0 to 1, 3 and 15. Eight-bit colour is read where red, green
    and blue agree, alpha where nothing is transparent; true colour, transparency, palettes and animations are refused.
    """
    parts = _take_apart(path, name, reading, pixels=True)
    rescale = _rescale(parts, name, reading)
    with PngImageFile(io.BytesIO(parts.pixels)) as image:
        image.load()
        decoded = np.asarray(image)
    array = _one_channel(decoded, parts, name)
    if rescale:
        array = rescale.apply(array)
    array, attributes = clean_voxels(name, array[np.newaxis], reading)
    provenance = json.loads(parts.text.get("medsynth.provenance", "{}"))
    return Scan(
        array=array,
        affine=_affine(parts, name),
        attributes=attributes,
        provenance={str(key): str(value) for key, value in provenance.items()},
    )


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
        text = json.dumps(dict(scan.provenance), sort_keys=True)
        if len(text) > MAX_TEXT:
            raise ConfigError(f"{name}: need provenance of at most {MAX_TEXT} bytes, got {len(text)}")
        info.add_text("medsynth.provenance", text)
    if rescale:
        values = {"slope": rescale.slope, "offset": rescale.offset, "dtype": rescale.dtype.name}
        info.add_text("medsynth.rescale", json.dumps(values))
    if not np.array_equal(scan.affine, PICTURE_AFFINE):
        info.add_text("medsynth.affine", json.dumps(np.asarray(scan.affine, dtype=np.float64).tolist()))
    stream = io.BytesIO()
    Image.fromarray(stored).save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()


def _to_unsigned(array: np.ndarray, name: str) -> tuple[np.ndarray, _Rescale | None]:
    """Return `array` as uint8 or uint16, and how to get its values back if that is not by doing nothing."""
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    if array.dtype.name in ("uint8", "uint16"):
        return array, None
    if array.dtype.name not in _TYPES:
        raise ConfigError(f"{name}: need integers or floats up to 64 bits for PNG, got {array.dtype}; try .npz")
    low, high = array.min().item(), array.max().item()
    if array.dtype.kind in "iub":
        if high - low > 65535:
            raise ConfigError(
                f"{name}: need whole numbers within 65535 of each other for PNG, got {low} to {high}; try .npz"
            )
        offset = 0 if low >= 0 and high <= 65535 else low
        stored = array.astype(np.uint64) - np.uint64(offset % (1 << 64))
        return stored.astype(np.uint16), _Rescale(slope=1.0, offset=offset, dtype=array.dtype)
    values = array.astype(np.float64)
    span = high - low
    if not math.isfinite(span):
        raise DataError(f"{name}: need a finite range of values, got {low} to {high}")
    whole = span <= 65535 and abs(low) < 2**52 and bool((values == np.round(values)).all())
    if whole:
        offset = 0.0 if low >= 0 and high <= 65535 else low
        return (values - offset).astype(np.uint16), _Rescale(slope=1.0, offset=offset, dtype=array.dtype)
    slope = span / 65535 or 1.0  # a constant scan, or a range below the smallest float, is its offset
    stored = np.clip(np.round((values - low) / slope), 0, 65535)
    return stored.astype(np.uint16), _Rescale(slope=slope, offset=low, dtype=array.dtype)


def _take_apart(path: Path, name: str, reading: ReadingOptions, *, pixels: bool) -> _Parts:
    """Walk over the chunks; `pixels` also collects those of the picture and verifies their checksums."""
    with path.open("rb") as stream:
        end = path.stat().st_size
        if stream.read(8) != _MAGIC:
            raise DataError(f"{name}: need a PNG file, got another format; try another copy")
        kind, length = _chunk_head(stream, name, end)
        if (kind, length) != (b"IHDR", 13):
            raise DataError(f"{name}: need a PNG that begins with its header, got {kind!r}; try another copy")
        content = _chunk_body(stream, kind, length, name)
        width, height, depth, colour = struct.unpack(">IIBB", content[:10])
        _check_kind(name, depth, colour)
        check_size(name, (height, width), np.dtype(np.uint8 if depth <= 8 else np.uint16), reading)
        if colour != _GREY:  # Pillow decodes colour to four bytes a pixel
            check_size(name, (height, width, 4), np.dtype(np.uint8), reading)
        # Deflate never enlarges by more than 5 bytes in 16 KiB; interlacing adds at most 7 filter bytes for each row.
        raw = height * (-(-width * depth * _CHANNELS[colour] // 8) + 8)
        room = raw + raw // 1000 + (1 << 16)
        text: dict[str, str] = {}
        picture: list[bytes] = [_chunk(b"IHDR", content)]
        found = 0
        while kind != b"IEND":
            kind, length = _chunk_head(stream, name, end)
            if kind in (b"acTL", b"tRNS"):
                what = "an animation" if kind == b"acTL" else "transparency"
                raise DataError(f"{name}: need one opaque grey picture, got {what}; try converting it")
            if kind == b"IDAT":
                found += length
                if found > room:
                    raise DataError(f"{name}: need {raw} bytes of pixels at most, got more; try another copy")
            if kind == b"IDAT" and pixels:
                picture.append(_chunk(kind, _chunk_body(stream, kind, length, name)))
            elif kind == b"tEXt" and length <= MAX_TEXT + 80:
                key, _, value = _chunk_body(stream, kind, length, name).partition(b"\0")
                if key.decode("latin-1") in _KEYS:
                    text[key.decode("latin-1")] = value.decode("latin-1")
            else:
                stream.seek(length + 4, io.SEEK_CUR)
        if not found:
            raise DataError(f"{name}: need pixels, got a PNG without any; try another copy")
    picture.append(_chunk(b"IEND", b""))
    body = _MAGIC + b"".join(picture) if pixels else b""
    return _Parts(width=width, height=height, depth=depth, colour=colour, text=text, pixels=body)


def _check_kind(name: str, depth: int, colour: int) -> None:
    if colour == _PALETTE:
        raise DataError(f"{name}: need grey values, got a palette picture; try converting it to greyscale")
    if colour not in _CHANNELS or depth not in (1, 2, 4, 8, 16) or (colour != _GREY and depth < 8):
        raise DataError(
            f"{name}: need a PNG of a known kind, got colour type {colour} of {depth} bits; try another copy"
        )
    if colour != _GREY and depth == 16:
        raise DataError(f"{name}: need 16-bit PNG without colour or alpha, got both; try converting it to greyscale")


def _one_channel(decoded: np.ndarray, parts: _Parts, name: str) -> np.ndarray:
    """Return the grey values that the file stores, as uint8 or uint16."""
    if decoded.shape[:2] != (parts.height, parts.width):
        raise DataError(f"{name}: need {parts.height} x {parts.width} pixels, got {decoded.shape}; try another copy")
    if parts.colour == _GREY:
        if parts.depth == 1:
            return decoded.astype(np.uint8)
        if parts.depth < 8:
            return decoded // np.uint8(255 // (2**parts.depth - 1))  # Pillow stretches 2 and 4 bits to 0..255
        return decoded.astype(_stored_dtype(parts))
    if parts.colour in (_GREY_ALPHA, _COLOUR_ALPHA) and not (decoded[..., -1] == 255).all():
        raise DataError(f"{name}: need an opaque picture, got transparent pixels; try removing the alpha channel")
    grey = decoded[..., 0]
    if parts.colour in (_COLOUR, _COLOUR_ALPHA) and not (
        np.array_equal(grey, decoded[..., 1]) and np.array_equal(grey, decoded[..., 2])
    ):
        raise DataError(f"{name}: need a grey picture, got true colour; try converting it to greyscale")
    return np.ascontiguousarray(grey)


def _stored_dtype(parts: _Parts) -> np.dtype:
    return np.dtype(np.uint16 if parts.depth == 16 else np.uint8)


def _rescale(parts: _Parts, name: str, reading: ReadingOptions) -> _Rescale | None:
    if "medsynth.rescale" not in parts.text:
        return None
    found = json.loads(parts.text["medsynth.rescale"])
    slope, offset, kind = float(found["slope"]), found["offset"], found["dtype"]
    if kind not in _TYPES or isinstance(offset, bool) or not isinstance(offset, int | float):
        raise DataError(f"{name}: need a valid medsynth.rescale, got {kind!r} and {offset!r}; try another copy")
    dtype = np.dtype(kind)
    if not (math.isfinite(slope) and slope > 0 and math.isfinite(offset)):
        raise DataError(
            f"{name}: need a finite medsynth.rescale, got slope {slope} and offset {offset}; try another copy"
        )
    check_size(name, (parts.height, parts.width), np.dtype(np.float64 if dtype.kind == "f" else dtype), reading)
    return _Rescale(slope=slope, offset=offset, dtype=dtype)


def _affine(parts: _Parts, name: str) -> np.ndarray:
    """Return the affine that we wrote, else that of a picture with pixels of 1 mm (resolutions of others are guesses)."""
    if "medsynth.affine" not in parts.text:
        return PICTURE_AFFINE.copy()
    return check_affine(name, np.array(json.loads(parts.text["medsynth.affine"]), dtype=np.float64))


def _chunk_head(stream: IO[bytes], name: str, end: int) -> tuple[bytes, int]:
    head = stream.read(8)
    length = int.from_bytes(head[:4], "big")
    if len(head) < 8 or stream.tell() + length + 4 > end:
        raise DataError(f"{name}: need a whole PNG, got one that is cut off; try another copy")
    return head[4:], length


def _chunk_body(stream: IO[bytes], kind: bytes, length: int, name: str) -> bytes:
    content = stream.read(length)
    if zlib.crc32(kind + content) != int.from_bytes(stream.read(4), "big"):
        raise DataError(f"{name}: need a sound PNG, got a wrong checksum in {kind!r}; try another copy")
    return content


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
