"""The elements of a DICOM file and the place of its pixels, read in bounded memory and without pydicom's warnings."""

from __future__ import annotations

import io
import logging
import math
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from medsynth.errors import DataError

_HEADER_ROOM = 1 << 26  # bytes read of the elements before the pixels; skipped elements do not count
_META_ROOM = 1 << 16  # bytes of the file meta information

_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")

_turn = threading.RLock()
_logger = logging.getLogger("pydicom")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a file of `size` bytes has its pixels; `sop_class` is that of the file meta information.

    `pixels` is the keyword of the element that holds the pixels, "" if there is none; its value begins at `offset` and has
    `length` bytes, None if the pixels are encapsulated; `offsets` are then the extended offset table and its lengths, if any.
    """

    file: Path
    syntax: uid.UID
    sop_class: str
    size: int
    pixels: str = ""
    vr: str = ""
    offset: int = 0
    length: int | None = None
    offsets: tuple[bytes, bytes] | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom, whose checks ours replace; one thread at a time, since warning filters belong to the whole process."""
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

    Raises `DataError` for a file that is not DICOM, is deflated, or has a header longer than any scan needs.
    """
    tags: list[BaseTag | int] = [tag for tag in map(tag_for_keyword, (*keywords, *_OFFSETS)) if tag is not None]
    with file.open("rb") as raw:
        sop_class, syntax = _read_meta(raw, name)
        if syntax == uid.DeflatedExplicitVRLittleEndian:  # a few bytes may become gigabytes
            raise DataError(f"{name}: need a file that is not deflated, got {syntax.name}; try gdcmconv --raw")
        source = Source(file=file, syntax=syntax, sop_class=sop_class, size=file.stat().st_size)
        at: list[tuple[int, str | None, int]] = []  # tag, type and length of the element that holds the pixels

        def is_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
            at[:] = [(tag, vr, length)]
            return tag in _PIXELS

        dataset = read_dataset(
            cast(BinaryIO, _Limited(raw, _HEADER_ROOM, name)),
            syntax == uid.ImplicitVRLittleEndian,
            syntax != uid.ExplicitVRBigEndian,
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
                offset=raw.tell() + (12 if vr in EXPLICIT_VR_LENGTH_32 else 8),
                length=None if length == 0xFFFFFFFF else length,
                offsets=(offsets[0], offsets[1]) if all(offsets) else None,
            )
    return dataset, source


class _Limited:
    """A stream of which only `limit` bytes can be read; skipping is free."""

    def __init__(self, stream: BinaryIO, limit: int, name: str) -> None:
        self.stream, self.limit, self.room, self.name = stream, limit, limit, name
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.room:
            raise DataError(f"{self.name}: need a header of at most {self.limit >> 10} KiB, got a longer one")
        content = self.stream.read(size)
        self.room -= len(content)
        return content


def _read_meta(stream: BinaryIO, name: str) -> tuple[str, uid.UID]:
    """Return the SOP class ("" if unknown) and the transfer syntax; the stream then stands at the data set."""
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
        return sop_class, uid.UID(syntax)
    # Without a transfer syntax: two capital letters after the first tag mean that types are explicit.
    first = stream.read(6)
    stream.seek(-len(first), io.SEEK_CUR)
    if not (first[4:].isalpha() and first[4:].isupper()):
        return sop_class, uid.ImplicitVRLittleEndian
    return sop_class, uid.ExplicitVRBigEndian if first[:2] == b"\0\x08" else uid.ExplicitVRLittleEndian
