"""The pixels of a DICOM file, one frame at a time; no compressed frame is decoded that is larger than its header announces."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder

from medsynth.errors import DataError
from medsynth.scans.dicom.elements import quiet
from medsynth.scans.dicom.header import INSTALL, Instance
from medsynth.scans.limits import damage_as_data_error

_JPEG_2000 = {uid.JPEG2000, uid.JPEG2000Lossless, uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL}
_END = b"\xff\xd9"  # of a codestream, in JPEG, JPEG-LS and JPEG 2000
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_TWELVE_BITS = ", pip install pylibjpeg-libjpeg (GPL) for 12 bits"


def read_frames(instance: Instance) -> Iterator[np.ndarray]:
    """Yield the frames, each `(rows, columns)` in physical units and of the instance's `dtype`.

    MONOCHROME1 is mirrored within the range of the stored bits if `inverted`; rescale slope and intercept are applied in
    float64. Windows (VOI LUT) are not applied, and padding keeps its value.
    Raises `DataError` for pixels that cannot be decoded, or whose codestream is of another size than the header says.
    """
    assert instance.problem is None, instance.problem
    with instance.source.file.open("rb") as stream:
        stream.seek(instance.source.offset)
        for number, plane in enumerate(instance.planes):
            with damage_as_data_error(instance.name, "DICOM"):
                stored = _decode(stream, instance, number)
                if instance.inverted:
                    stored = ~stored if instance.signed else stored.dtype.type((1 << instance.bits_stored) - 1) - stored
                if plane.slope != 1 or plane.intercept != 0:
                    with np.errstate(over="ignore", invalid="ignore"):  # the reader counts or refuses infinities
                        stored = (stored.astype(np.float64) * plane.slope + plane.intercept).astype(instance.dtype)
            yield stored.astype(instance.dtype, copy=False)


def _decode(stream: Any, instance: Instance, number: int) -> np.ndarray:
    source = instance.source
    options: dict[str, Any] = {
        "rows": instance.rows,
        "columns": instance.columns,
        "number_of_frames": instance.frames,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": instance.bits,
        "bits_stored": instance.bits_stored,
        "pixel_representation": int(instance.signed),
        "pixel_keyword": "PixelData",
        "pixel_vr": source.vr,
    }
    with quiet():
        decoder = get_decoder(source.syntax)
        if not source.syntax.is_encapsulated:
            return decoder.as_array(stream, index=number, raw=True, **options)[0]
        if source.offsets:
            options["extended_offsets"] = source.offsets
        frame = get_frame(stream, number, number_of_frames=instance.frames, extended_offsets=source.offsets)
        _check_codestream(instance, frame)
        try:
            return decoder.as_array(stream, index=number, raw=True, **options)[0]
        except Exception as error:  # decoders of other packages raise anything
            hint = INSTALL + (_TWELVE_BITS if source.syntax == uid.JPEGExtended12Bit else "") + ", or another copy"
            need = f"pixels that a decoder of {source.syntax.name} reads"
            raise DataError(f"{instance.name}: need {need}, got {str(error)[:200]}; try {hint}") from error


def _check_codestream(instance: Instance, frame: bytes) -> None:
    """Raise `DataError` unless a compressed frame holds one grey picture of the size that the header announces."""
    name, syntax, rows, columns = instance.name, instance.source.syntax, instance.rows, instance.columns
    if syntax == uid.RLELossless:
        _check_runs(name, frame, rows * columns, instance.bits // 8)
        return
    if not frame.rstrip(b"\0").endswith(_END):
        raise DataError(f"{name}: need complete compressed frames, got one that is cut off")
    got = _jpeg_2000_size(frame) if syntax in _JPEG_2000 else _jpeg_size(frame)
    if got != (rows, columns, 1):
        said = "none" if got is None else f"{got[0]} x {got[1]} of {got[2]}"
        raise DataError(f"{name}: need compressed frames of {rows} x {columns} of 1 channel, got {said}")


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and channels by the SIZ segment (ISO/IEC 15444-1, A.5.1)."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 1 << 16)
    if start < 0 or len(frame) < start + 42:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
    (channels,) = struct.unpack_from(">H", frame, start + 40)
    return bottom - top, right - left, channels


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and channels by the first start of frame (ISO/IEC 10918-1, B.2.2; the same in JPEG-LS)."""
    position = 2
    while frame[:2] == b"\xff\xd8" and position + 10 <= len(frame) and frame[position] == 0xFF:
        marker, length = struct.unpack_from(">xBH", frame, position)
        if marker in _START_OF_FRAME:
            rows, columns, channels = struct.unpack_from(">HHB", frame, position + 5)
            return rows, columns, channels
        position += 1 if marker == 0xFF else 2 + length  # any number of FF may precede a marker
    return None


def _check_runs(name: str, frame: bytes, pixels: int, segments: int) -> None:
    """Count the bytes to which each RLE segment (PS3.5, G.3) unpacks, and stop where they exceed the picture."""
    starts = struct.unpack_from("<16I", frame) if len(frame) >= 64 else (0,)
    if starts[0] != segments:
        raise DataError(f"{name}: need {segments} RLE segments per frame, got {starts[0]}")
    ends = [*starts[2 : segments + 1], len(frame)]
    for start, end in zip(starts[1 : segments + 1], ends, strict=True):
        if 64 * (end - start) <= 2 * pixels:  # two bytes become 128 at most
            continue
        unpacked, position = 0, start
        while position < min(end, len(frame)) and unpacked <= pixels + 1:
            count = frame[position]
            unpacked += count + 1 if count < 128 else 257 - count if count > 128 else 0
            position += count + 2 if count < 128 else 2 if count > 128 else 1
        if unpacked > pixels + 1:
            raise DataError(f"{name}: need RLE segments of {pixels} bytes, got a longer one")
