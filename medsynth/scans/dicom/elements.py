"""The elements of a DICOM file and the place of its pixels, read in bounded memory and without pydicom's warnings.

pydicom reads only the elements that are asked for. It would inflate a deflated file as a whole; here no more is inflated than
is needed.
"""

from __future__ import annotations

import io
import logging
import math
import os
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO, cast

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from medsynth.errors import DataError

_HEADER_ROOM = 1 << 26  # bytes read of the elements before the pixels; skipped elements do not count
_DEFLATED_ROOM = 1 << 24  # inflated bytes before the pixels
_META_ROOM = 1 << 16  # bytes of the file meta information
_BLOCK = 1 << 16

_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")

_turn = threading.RLock()
_logger = logging.getLogger("pydicom")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a file has its pixels: `start` is where its data set begins, `size` the bytes of the whole file.

    `sop_class` is that of the file meta information. `pixels` is the keyword of the element that holds the pixels, "" if there
    is none; `offset` is where its value begins (in a deflated file, after inflating it) and `length` its bytes, None if the
    pixels are encapsulated; `offsets` are then the extended offset table and its lengths, if any.
    """

    file: Path
    syntax: UID
    sop_class: str
    start: int
    size: int
    pixels: str = ""
    vr: str = ""
    offset: int = 0
    length: int | None = None
    offsets: tuple[bytes, bytes] | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom: our checks refuse what matters.

    One thread at a time, since warning filters belong to the whole process.
    """
    with _turn, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = _logger.level
        _logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            _logger.setLevel(level)


def words(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return all values of an element as text, `()` if it is missing or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return ()
    return tuple(str(one).strip() for one in (value if isinstance(value, MultiValue | list | tuple) else (value,)))


def text(dataset: Dataset, keyword: str) -> str:
    """Return an element as text, "" if it is missing."""
    return "\\".join(words(dataset, keyword))


def number(dataset: Dataset, keyword: str, default: float) -> float:
    """Return the single number of an element, `default` if it is missing; `ValueError` if it is not finite."""
    found = vector(dataset, keyword, 1)
    return float(default) if found is None else found[0]


def integer(dataset: Dataset, keyword: str, default: int) -> int:
    """Return the single whole number of an element, `default` if it is missing; `ValueError` for another number."""
    value = number(dataset, keyword, default)
    if not value.is_integer():
        raise ValueError(f"{keyword} is {value:g}, not a whole number")
    return int(value)


def vector(dataset: Dataset, keyword: str, length: int) -> tuple[float, ...] | None:
    """Return the numbers of an element, None if it is missing; `ValueError` unless they are `length` finite numbers."""
    found = tuple(float(one) for one in words(dataset, keyword))
    if not found:
        return None
    if len(found) != length or not all(map(math.isfinite, found)):
        raise ValueError(f"{keyword} must have {length} finite value{'s' if length > 1 else ''}")
    return found


def is_dicom(file: Path) -> bool:
    """Return whether a file claims to be DICOM, by its suffix or by `DICM` after its first 128 bytes."""
    try:
        if not os.path.isfile(file) or file.name.lower().endswith((".dcm", ".dicom", ".ima")):
            return os.path.isfile(file)
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_elements(file: Path, name: str, keywords: Sequence[str]) -> tuple[Dataset, Source]:
    """Return the elements of a file that `keywords` name, and where its pixels are.

    Raises `DataError` for a file that is not DICOM, or whose header is longer than any scan needs.
    """
    tags: list[BaseTag | int] = [tag for tag in map(tag_for_keyword, (*keywords, *_OFFSETS)) if tag is not None]
    with file.open("rb") as raw:
        sop_class, syntax = _read_meta(raw, name)
        source = Source(file=file, syntax=syntax, sop_class=sop_class, start=raw.tell(), size=file.stat().st_size)
        deflated = syntax == DeflatedExplicitVRLittleEndian
        body: IO[bytes] = _inflate(raw, skip=0, count=_DEFLATED_ROOM) if deflated else raw
        at: list[tuple[int, str | None, int]] = []  # tag, type and length of the element that holds the pixels

        def is_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
            at[:] = [(tag, vr, length)]
            return tag in _PIXELS

        dataset = read_dataset(
            cast(BinaryIO, _Limited(body, _HEADER_ROOM, name)),
            syntax == ImplicitVRLittleEndian,
            syntax != ExplicitVRBigEndian,
            stop_when=is_pixels,
            specific_tags=tags,
        )
        if at and at[0][0] in _PIXELS:
            tag, vr, length = at[0]
            offsets = tuple(getattr(dataset.get(keyword), "value", b"") for keyword in _OFFSETS)
            source = replace(
                source,
                pixels=_PIXELS[tag],
                vr=vr or "OW",
                offset=body.tell() + (12 if vr in EXPLICIT_VR_LENGTH_32 else 8),
                length=None if length == 0xFFFFFFFF else length,
                offsets=(offsets[0], offsets[1]) if all(offsets) else None,
            )
        elif deflated and body.seek(0, io.SEEK_END) >= _DEFLATED_ROOM:
            raise DataError(f"{name}: need pixels within {_DEFLATED_ROOM >> 20} MiB, got more before them")
    return dataset, source


@contextmanager
def open_pixels(source: Source, *, count: int) -> Iterator[BinaryIO]:
    """Yield a stream that stands at the value of the pixels; of a deflated file it holds `count` bytes."""
    with source.file.open("rb") as raw:
        if source.syntax == DeflatedExplicitVRLittleEndian:
            raw.seek(source.start)
            yield _inflate(raw, skip=source.offset, count=count)
        else:
            raw.seek(source.offset)
            yield raw


class _Limited:
    """A stream of which only `limit` bytes can be read; skipping is free."""

    def __init__(self, stream: IO[bytes], limit: int, name: str) -> None:
        self.stream, self.limit, self.room, self.name = stream, limit, limit, name
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.room:
            raise DataError(f"{self.name}: need a header of at most {self.limit >> 10} KiB, got a longer one")
        content = self.stream.read(size)
        self.room -= len(content)
        return content


def _read_meta(stream: IO[bytes], name: str) -> tuple[str, UID]:
    """Return the SOP class of the file meta information ("" if there is none) and the transfer syntax.

    The stream then stands at the data set.
    """
    head = stream.read(132)
    if head[128:] != b"DICM":
        stream.seek(0)
        # Files without preamble begin with an element of group 2 or 8.
        if head[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
            raise DataError(f"{name}: need a DICOM file, got another format")
    limited = cast(BinaryIO, _Limited(stream, _META_ROOM, name))
    meta = read_dataset(limited, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    sop_class, syntax = text(meta, "MediaStorageSOPClassUID"), text(meta, "TransferSyntaxUID")
    if syntax:
        return sop_class, UID(syntax)
    # Without a transfer syntax: two capital letters after the first tag mean that types are explicit.
    first = stream.read(6)
    stream.seek(-len(first), io.SEEK_CUR)
    if not (first[4:].isalpha() and first[4:].isupper()):
        return sop_class, ImplicitVRLittleEndian
    return sop_class, ExplicitVRBigEndian if first[:2] == b"\0\x08" else ExplicitVRLittleEndian


def _inflate(stream: IO[bytes], *, skip: int, count: int) -> io.BytesIO:
    """Return `count` inflated bytes, or as many as there are, after the first `skip`."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    result = io.BytesIO()
    while result.tell() < count and not unpacker.eof:
        packed = unpacker.unconsumed_tail or stream.read(_BLOCK)
        content = unpacker.decompress(packed, min(skip, _BLOCK) or min(count - result.tell(), 1 << 20))
        if not packed and not content:  # cut off; until then the unpacker may hold bytes back
            break
        if skip:
            skip -= len(content)
        else:
            result.write(content)
    result.seek(0)
    return result
