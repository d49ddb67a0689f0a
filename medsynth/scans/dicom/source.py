"""The elements of a DICOM file that are asked for, and where its pixels are, in bounded memory.

What comes before the data set is taken apart here, and pydicom reads only the elements that are named. A deflated data set,
which pydicom would inflate as a whole, is inflated here and no further than is needed.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medsynth.errors import DataError
from medsynth.scans.dicom.elements import integer

NAMES = (".dcm", ".dicom", ".ima")  # suffixes of files that may lack the mark

_META_ROOM = 1 << 16  # bytes of one element of the file meta information
_HEADER_ROOM = 1 << 21  # bytes read of the elements before the pixels; what is skipped does not count
_FRAME_ROOM = 1 << 14  # the same for the description of each frame
_MOST_ROOM = 1 << 26
_DEFLATED_ROOM = 1 << 24  # inflated bytes before the pixels
_CHUNK = 1 << 16

_FRAMES_TAG = 0x52000000
_TABLE_TAGS = [0x7FE00001, 0x7FE00002]  # extended offset table and its lengths
_FRAME_TAGS = [0x52009229, 0x52009230, *_TABLE_TAGS]  # functional groups
_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT")


@dataclass(frozen=True, kw_only=True)
class PixelElement:
    """The element that holds the pixels; `offset` is that of its value, in a deflated file that of the inflated value.

    `length` is None where the pixels are encapsulated; `tables` are then the extended offset table and its lengths, if any.
    """

    keyword: str
    vr: str
    offset: int
    length: int | None
    tables: tuple[bytes, bytes] | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a file has its pixels: `start` is where its data set begins, `size` the bytes of the whole file.

    `kind` is the SOP class in front of the data set (that of a DICOMDIR stands only there).
    """

    file: Path
    kind: str
    syntax: UID
    start: int
    size: int
    pixels: PixelElement | None


def is_dicom(file: Path) -> bool:
    """Return whether a file says that it is DICOM, by its suffix or by `DICM` after 128 bytes of anything."""
    try:
        if not os.path.isfile(file) or file.name.lower().endswith(NAMES):
            return os.path.isfile(file)
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_elements(file: Path, name: str, keywords: tuple[str, ...]) -> tuple[Dataset, Source]:
    """Return the elements of a file that `keywords` name, with those that describe its frames, and where its pixels are.

    Raises `DataError` for a file that is no DICOM, or describes itself in more bytes than are ever needed.
    """
    tags: list[BaseTag | int] = [tag for tag in map(tag_for_keyword, keywords) if tag is not None]
    with file.open("rb") as raw:
        kind, syntax, start = _read_meta(raw, name)
        body: IO[bytes] = raw
        if syntax == DeflatedExplicitVRLittleEndian:
            body = _inflate(raw, skip=0, count=_DEFLATED_ROOM)
        limited = _Limited(body, _HEADER_ROOM, name)
        stream = cast(BinaryIO, limited)
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        dataset = read_dataset(
            stream, implicit, little, stop_when=lambda tag, vr, length: tag >= _FRAMES_TAG, specific_tags=tags
        )
        frames = integer(dataset, "NumberOfFrames", 1)
        limited.room = min(_HEADER_ROOM + _FRAME_ROOM * max(frames, 0), _MOST_ROOM)
        dataset.update(
            read_dataset(
                stream,
                implicit,
                little,
                stop_when=lambda tag, vr, length: tag in _PIXELS,
                specific_tags=list(_FRAME_TAGS),
            )
        )
        tables = tuple(getattr(dataset.get(tag), "value", b"") for tag in _TABLE_TAGS)
        pixels = _find_pixels(body, implicit=implicit, little=little, tables=tables if all(tables) else None)
        if pixels is None and body is not raw and body.seek(0, io.SEEK_END) >= _DEFLATED_ROOM:
            raise DataError(
                f"{name}: need pixels within {_DEFLATED_ROOM >> 20} MiB, got more before them; try another copy"
            )
    return dataset, Source(file=file, kind=kind, syntax=syntax, start=start, size=file.stat().st_size, pixels=pixels)


@contextmanager
def open_pixels(source: Source, *, count: int) -> Iterator[BinaryIO]:
    """Yield a stream that stands at the value of the pixels; of a deflated file, `count` bytes of it."""
    assert source.pixels is not None
    with source.file.open("rb") as raw:
        if source.syntax == DeflatedExplicitVRLittleEndian:
            raw.seek(source.start)
            yield _inflate(raw, skip=source.pixels.offset, count=count)
        else:
            raw.seek(source.pixels.offset)
            yield raw


class _Limited:
    """A stream of which only `room` more bytes can be read; skipping costs nothing."""

    def __init__(self, stream: IO[bytes], room: int, name: str) -> None:
        self.stream, self.room, self.name = stream, room, name
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.room:
            raise DataError(
                f"{self.name}: need a header of {_HEADER_ROOM >> 20} MiB at most, or {_FRAME_ROOM >> 10} KiB a frame, "
                "got a longer one; try another copy"
            )
        content = self.stream.read(size)
        self.room -= len(content)
        return content


def _read_meta(stream: IO[bytes], name: str) -> tuple[str, UID, int]:
    """Return SOP class (or nothing), transfer syntax and where the data set begins; the stream then stands there."""
    head = stream.read(132)
    marked = head[128:] == b"DICM"
    if not marked:
        stream.seek(0)
        # Files without preamble are known by a first element of group 2 or 8.
        if head[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
            raise DataError(f"{name}: need a DICOM file, got another format; try another copy")
    found = {2: "", 16: ""}  # Media Storage SOP Class UID and Transfer Syntax UID
    while True:
        start = stream.tell()
        element = stream.read(8)
        if len(element) < 8 or element[:2] != b"\x02\0":
            break
        length = int.from_bytes(element[6:], "little")
        if element[4:6] in _LONG:
            length = int.from_bytes(stream.read(4), "little")
        if length > _META_ROOM:
            raise DataError(
                f"{name}: need a sound DICOM file, got {length} bytes of file meta information; try another copy"
            )
        value = stream.read(length)
        found[int.from_bytes(element[2:4], "little")] = value.decode("ascii", "replace").strip("\0 ")
    stream.seek(start)
    if found[16]:
        return found[2], UID(found[16]), start
    # Without a transfer syntax, two capitals after the first tag tell an explicit one.
    explicit = element[4:6].isalpha() and element[4:6].isupper()
    if explicit and element[:2] == b"\0\x08":
        return found[2], ExplicitVRBigEndian, start
    return found[2], (ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian), start


def _find_pixels(
    stream: IO[bytes], *, implicit: bool, little: bool, tables: tuple[bytes, ...] | None
) -> PixelElement | None:
    """Return the pixel element at which the stream stands, None at the end of the file."""
    order = "little" if little else "big"
    head = stream.read(8 if implicit else 12)
    if len(head) < (8 if implicit else 12):
        return None
    tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
    length = int.from_bytes(head[-4:], order)  # type: ignore[arg-type]
    return PixelElement(
        keyword=_PIXELS[tag],
        vr="OW" if implicit else head[4:6].decode("ascii", "replace"),
        offset=stream.tell(),
        length=None if length == 0xFFFFFFFF else length,
        tables=None if tables is None else (tables[0], tables[1]),
    )


def _inflate(stream: IO[bytes], *, skip: int, count: int) -> io.BytesIO:
    """Return `count` inflated bytes, or those that there are, after the first `skip`."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    result = io.BytesIO()
    while result.tell() < count and not unpacker.eof:
        packed = unpacker.unconsumed_tail or stream.read(_CHUNK)
        content = unpacker.decompress(packed, min(skip, _CHUNK) or min(count - result.tell(), 1 << 20))
        if not packed and not content:  # cut off; until then the unpacker may hold some back
            break
        if skip:
            skip -= len(content)
        else:
            result.write(content)
    result.seek(0)
    return result
