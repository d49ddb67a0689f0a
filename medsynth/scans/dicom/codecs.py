"""Which transfer syntaxes can be decoded, and that no compressed frame is larger than the header announces."""

from __future__ import annotations

import struct

from pydicom import uid
from pydicom.pixels import get_decoder

from medsynth.errors import DataError
from medsynth.scans.limits import one_line

_NATIVE = {
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
}
_JPEG_2000 = {uid.JPEG2000, uid.JPEG2000Lossless, uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL}
_JPEG = {
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
}
_END = b"\xff\xd9"  # of a codestream, in JPEG, JPEG-LS and JPEG 2000
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
INSTALL = "pip install 'medsynth-diffusion[dicom]'"
TWELVE_BITS = "pip install pylibjpeg-libjpeg (GPL) for 12 bits"


def check_codec(name: str, syntax: uid.UID) -> None:
    """Raise `DataError` that names the transfer syntax unless something that is installed decodes it."""
    if syntax in _NATIVE:
        return
    if syntax not in _JPEG_2000 | _JPEG | {uid.RLELossless}:
        raise DataError(
            f"{name}: need a transfer syntax that can be decoded, got {one_line(syntax.name)}; "
            "try converting it to Explicit VR Little Endian"
        )
    if not get_decoder(syntax).is_available:
        raise DataError(f"{name}: need a decoder of {syntax.name}, got none installed; try {INSTALL}")


def check_codestream(name: str, syntax: uid.UID, frame: bytes, rows: int, columns: int, bits: int) -> None:
    """Raise `DataError` unless a compressed frame says of itself that it is one grey picture of `rows` x `columns`."""
    if syntax == uid.RLELossless:
        _check_runs(name, frame, rows * columns, bits // 8)
        return
    if not frame.rstrip(b"\0").endswith(_END):
        raise DataError(
            f"{name}: need compressed frames that come to an end, got one that is cut off; try another copy"
        )
    got = _jpeg_2000_size(frame) if syntax in _JPEG_2000 else _jpeg_size(frame)
    if got != (rows, columns, 1):
        said = "none" if got is None else f"{got[0]} x {got[1]} of {got[2]}"
        raise DataError(
            f"{name}: need compressed frames of {rows} x {columns} of 1 channel, got {said}; try another copy"
        )


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
        position += 1 if marker == 0xFF else 2 + length  # any number of FF may stand before a marker
    return None


def _check_runs(name: str, frame: bytes, pixels: int, segments: int) -> None:
    """Count what each RLE segment (PS3.5, G.3) unpacks to, and stop where that is more than the picture."""
    starts = struct.unpack_from("<16I", frame) if len(frame) >= 64 else (0,)
    if starts[0] != segments:
        raise DataError(f"{name}: need {segments} RLE segments a frame, got {starts[0]}; try another copy")
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
            raise DataError(f"{name}: need RLE segments of {pixels} bytes, got a longer one; try another copy")
