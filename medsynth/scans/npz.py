"""NPZ: one scan a file (plain layout), or many in the layout of MedMNIST. Nothing is ever unpickled.

Plain layout: the array `image`, or `array`, or the only array of numbers; `(H, W)` is 2D and `(D, H, W)` 3D, and only with
a key `channels` (which we write) is the first axis the channel. Optional keys: `affine` (4x4) or `spacing` (millimetres along
each axis), `label`, `attributes` and `provenance` (JSON objects as text).

MedMNIST layout: `train_images`, `train_labels`, and the same for `val` and `test`. `(N, H, W)` holds N 2D scans and
`(N, D, H, W)` N volumes; a last axis of 3 means true colour and is refused. Items are named `train/0`, `train/1`, ...
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medsynth.config import ReadingOptions
from medsynth.errors import ConfigError, DataError
from medsynth.scans.limits import MAX_TEXT, check_affine, check_size, check_spacing, clean_voxels, one_line
from medsynth.scans.scan import PICTURE_AFFINE, Scan, ScanHeader

# Slices run towards the head, rows and columns as in a picture: for volumes that carry no geometry.
VOLUME_AFFINE = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)

_SPLITS = ("train", "val", "test")
_FACTS = ("affine", "spacing", "label", "attributes", "provenance", "channels", "synthetic")
_MAX_MEMBERS = 100
_HEADER_ROOM = 1 << 14  # NumPy itself reads headers up to 10,000 characters
_ITEM = re.compile(r"(train|val|test)/(0|[1-9]\d{0,17})")


@dataclass(frozen=True, kw_only=True)
class _Member:
    """One array of the file as its .npy header describes it; `offset` is where its bytes begin inside the member."""

    file_name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """The members of one file and those of its arrays that were decoded, valid while `key` is that of the file."""

    key: tuple[str, int, int]
    members: Mapping[str, _Member]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


# The file read last. A cohort names thousands of items of one file, and each would cost decoding the whole array.
_last: _Opened | None = None


def read_header(path: Path, item: str | None, name: str, reading: ReadingOptions) -> ScanHeader:
    """Return the header of a scan from the .npy headers inside the file."""
    opened = _open(path, name)
    if _is_collection(opened):
        member, _, _ = _find_item(opened, item, name, reading)
        shape, affine = member.shape[1:], _default_affine(len(member.shape) - 1)
        return ScanHeader(
            shape=(1, *shape), dtype=_returned(member.dtype).name, spacing=_axis_lengths(affine, len(shape))
        )
    member = _find_image(opened, item, name, reading)
    shape = _scan_shape(opened, member, name)
    affine = _affine(path, opened, len(shape) - 1, name)
    return ScanHeader(shape=shape, dtype=_returned(member.dtype).name, spacing=_axis_lengths(affine, len(shape) - 1))


def read(path: Path, item: str | None, name: str, reading: ReadingOptions) -> Scan:
    """Return the scan of a plain NPZ, or the named item of one in the MedMNIST layout, with its label as text.

    The type is kept (bool becomes uint8). The budget counts the whole array that must be decoded. An item with several
    labels has the label None.
    """
    opened = _open(path, name)
    if _is_collection(opened):
        member, split, index = _find_item(opened, item, name, reading)
        array = _cached_array(path, opened, f"{split}_images", name, reading)[index]
        image = array.astype(_returned(array.dtype), order="C", copy=True)[np.newaxis]
        label = _item_label(path, opened, split, index, name, reading)
        image, attributes = clean_voxels(name, image, reading)
        return Scan(array=image, affine=_default_affine(image.ndim - 1), label=label, attributes=attributes)
    member = _find_image(opened, item, name, reading)
    shape = _scan_shape(opened, member, name)
    array = _read_array(path, member, name)
    image = np.array(array.reshape(shape), dtype=_returned(array.dtype), order="C")
    image, counted = clean_voxels(name, image, reading)
    attributes = {**_json_text(path, opened, "attributes", name), **counted}
    return Scan(
        array=image,
        affine=_affine(path, opened, len(shape) - 1, name),
        label=_label(path, opened, name),
        attributes=attributes,
        provenance={key: str(value) for key, value in _json_text(path, opened, "provenance", name).items()},
    )


def list_items(path: Path, name: str) -> list[str]:
    """Return the names of the items of a file in the MedMNIST layout, `[]` for the plain layout."""
    opened = _open(path, name)
    if not _is_collection(opened):
        return []
    items: list[str] = []
    for split in _SPLITS:
        member = opened.members.get(f"{split}_images")
        if member is not None:
            _check_collection(member, f"{split}_images", name)
            items += [f"{split}/{index}" for index in range(member.shape[0])]
    return items


def encode(scan: Scan, name: str) -> bytes:
    """Return the bytes of an NPZ in the plain layout that keeps everything a scan holds; equal scans give equal bytes."""
    array = np.asarray(scan.array)
    arrays: dict[str, np.ndarray] = {
        "image": array,
        "channels": np.array(array.shape[0]),
        "affine": np.asarray(scan.affine, dtype=np.float64),
    }
    if scan.label is not None:
        arrays["label"] = np.array(scan.label)
    if scan.attributes:
        plain = {key: value if isinstance(value, str) else float(value) for key, value in scan.attributes.items()}
        arrays["attributes"] = np.array(json.dumps(plain, sort_keys=True))
    if scan.provenance:
        arrays["provenance"] = np.array(json.dumps(dict(scan.provenance), sort_keys=True))
        arrays["synthetic"] = np.array("YES")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for key, value in arrays.items():
            if value.dtype.kind == "U" and value.dtype.itemsize > 4 * MAX_TEXT:
                raise ConfigError(f"{name}: need a {key} of at most {MAX_TEXT} characters, got more")
            content = io.BytesIO()
            np.lib.format.write_array(content, value, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, content.getbuffer(), compress_type=zipfile.ZIP_DEFLATED, compresslevel=6)
    return stream.getvalue()


def _open(path: Path, name: str) -> _Opened:
    """Return the headers of all arrays in the file; a member that would need unpickling is refused."""
    global _last
    state = path.stat()
    key = (str(path.resolve()), state.st_mtime_ns, state.st_size)
    if _last is not None and _last.key == key:
        return _last
    members: dict[str, _Member] = {}
    with zipfile.ZipFile(path) as packed:
        entries = [entry for entry in packed.infolist() if entry.filename.endswith(".npy")]
        if len(entries) > _MAX_MEMBERS:
            raise DataError(f"{name}: need at most {_MAX_MEMBERS} arrays, got {len(entries)}; try one scan a file")
        for entry in entries:
            key_name = entry.filename.removesuffix(".npy")
            members[key_name] = _read_member(packed, entry, f"{name} [{one_line(key_name)}]")
    _last = _Opened(key=key, members=members)
    return _last


def _read_member(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> _Member:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
        raise DataError(f"{name}: need a stored or deflated array, got another compression; try saving it with NumPy")
    with packed.open(entry) as stream:
        # A header may claim any length; only what is read here is ever inflated for it.
        head = io.BytesIO(stream.read(_HEADER_ROOM))
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{name}: need .npy version 1 or 2, got {version[0]}.{version[1]}; try saving plain numbers")
    shape, fortran, dtype = read(head)
    if dtype.hasobject:
        raise DataError(
            f"{name}: need an array of numbers, got Python objects, which are never unpickled; try saving numbers"
        )
    if any(length < 0 for length in shape):
        raise DataError(f"{name}: need a shape without negative lengths, got {shape}; try another copy")
    size = math.prod(shape) * dtype.itemsize
    if entry.file_size != head.tell() + size:
        raise DataError(
            f"{name}: need {size} bytes after the header, got {entry.file_size - head.tell()}; try another copy"
        )
    return _Member(file_name=entry.filename, shape=shape, dtype=dtype, fortran=fortran, offset=head.tell())


def _read_array(path: Path, member: _Member, name: str) -> np.ndarray:
    """Decode one array, whose size the caller has checked; the end of the member verifies its checksum."""
    count = math.prod(member.shape) * member.dtype.itemsize
    if count == 0:
        return np.zeros(member.shape, dtype=member.dtype)
    with zipfile.ZipFile(path) as packed, packed.open(member.file_name) as stream:
        stream.read(member.offset)
        content = stream.read(count)
        if len(content) < count or stream.read(1):
            raise DataError(f"{name}: need {count} bytes of {member.file_name}, got another number; try another copy")
    return np.frombuffer(content, dtype=member.dtype).reshape(member.shape, order="F" if member.fortran else "C")


def _cached_array(path: Path, opened: _Opened, key: str, name: str, reading: ReadingOptions) -> np.ndarray:
    """Decode an array of a file of many scans once; all arrays that are kept together fit the budget."""
    array = opened.arrays.get(key)
    if array is None:
        array = _read_array(path, opened.members[key], name)
        if sum(kept.nbytes for kept in opened.arrays.values()) + array.nbytes > reading.max_mib << 20:
            opened.arrays.clear()
        opened.arrays[key] = array
    return array


def _is_collection(opened: _Opened) -> bool:
    return any(f"{split}_images" in opened.members for split in _SPLITS)


def _check_collection(member: _Member, key: str, name: str) -> None:
    if member.dtype.kind not in "buif" or member.dtype.itemsize > 8 or len(member.shape) not in (3, 4):
        raise DataError(
            f"{name}: need {key} of numbers (N, H, W) or (N, D, H, W), got {member.dtype} {member.shape}; "
            "try another file"
        )
    if len(member.shape) == 4 and member.shape[-1] == 3:
        raise DataError(f"{name}: need grey scans, got {key} in true colour {member.shape}; try a set of grey scans")


def _find_item(opened: _Opened, item: str | None, name: str, reading: ReadingOptions) -> tuple[_Member, str, int]:
    present = [split for split in _SPLITS if f"{split}_images" in opened.members]
    found = _ITEM.fullmatch(item or "")
    if found is None or found[1] not in present:
        got = "a file of several scans" if item is None else f"#{one_line(item)}"
        raise DataError(f"{name}: need one item of {', '.join(present)}, got {got}; try adding #{present[0]}/0")
    split, index = found[1], int(found[2])
    member = opened.members[f"{split}_images"]
    _check_collection(member, f"{split}_images", name)
    if index >= member.shape[0]:
        raise DataError(f"{name}: need an item below {split}/{member.shape[0]}, got {split}/{index}; try a smaller one")
    check_size(name, member.shape, _returned(member.dtype), reading)
    return member, split, index


def _item_label(path: Path, opened: _Opened, split: str, index: int, name: str, reading: ReadingOptions) -> str | None:
    key = f"{split}_labels"
    member = opened.members.get(key)
    if member is None:
        return None
    if not member.shape or member.shape[0] != opened.members[f"{split}_images"].shape[0]:
        raise DataError(f"{name}: need one label a scan, got {key} of shape {member.shape}; try repairing the file")
    if member.dtype.kind not in "buifU":
        raise DataError(f"{name}: need labels of numbers or text, got {key} of type {member.dtype}; try another file")
    check_size(name, member.shape, member.dtype, reading)
    values = _cached_array(path, opened, key, name, reading)[index].reshape(-1)
    return _as_text(values[0]) if values.size == 1 else None


def _find_image(opened: _Opened, item: str | None, name: str, reading: ReadingOptions) -> _Member:
    if item is not None:
        raise DataError(
            f"{name}: need a file of several scans, got one of one scan; try the path without #{one_line(item)}"
        )
    keys = [key for key in ("image", "array") if key in opened.members][:1]
    if not keys:
        keys = [key for key, member in opened.members.items() if key not in _FACTS and member.dtype.kind in "buif"]
    if len(keys) != 1:
        got = ", ".join(one_line(key) for key in opened.members) or "no array"
        raise DataError(f"{name}: need a key `image` or a single array of numbers, got {got[:100]}; try renaming one")
    member = opened.members[keys[0]]
    if member.dtype.kind not in "buif" or member.dtype.itemsize > 8:
        raise DataError(f"{name}: need real numbers up to 64 bits, got {member.dtype}; try converting the array")
    check_size(name, member.shape, _returned(member.dtype), reading)
    return member


def _scan_shape(opened: _Opened, member: _Member, name: str) -> tuple[int, ...]:
    shape = member.shape if "channels" in opened.members else (1, *member.shape)
    if len(shape) not in (3, 4):
        raise DataError(
            f"{name}: need an array (H, W) or (D, H, W), or (channel, ...) beside a key `channels`, "
            f"got {member.shape}; try reshaping it"
        )
    return shape


def _affine(path: Path, opened: _Opened, rank: int, name: str) -> np.ndarray:
    """Return the affine in the file, else the one made of its voxel sizes, else 1 mm along each axis."""
    if "affine" in opened.members:
        return check_affine(name, _small_numbers(path, opened, "affine", name))
    if "spacing" not in opened.members:
        return _default_affine(rank)
    sizes = check_spacing(name, _small_numbers(path, opened, "spacing", name).reshape(-1).tolist())
    if len(sizes) != rank:
        raise DataError(f"{name}: need a spacing along each of {rank} axes, got {len(sizes)}; try repairing the file")
    return _default_affine(rank) @ np.diag([*sizes, *[1.0] * (4 - rank)])


def _default_affine(rank: int) -> np.ndarray:
    return (PICTURE_AFFINE if rank == 2 else VOLUME_AFFINE).copy()


def _axis_lengths(affine: np.ndarray, rank: int) -> tuple[float, ...]:
    return tuple(float(length) for length in np.linalg.norm(affine[:3, :rank], axis=0))


def _small_numbers(path: Path, opened: _Opened, key: str, name: str) -> np.ndarray:
    member = opened.members[key]
    if member.dtype.kind not in "uif" or math.prod(member.shape) > 16:
        raise DataError(f"{name}: need a few numbers under the key {key}, got {member.dtype} {member.shape}")
    return _read_array(path, member, name).astype(np.float64)


def _label(path: Path, opened: _Opened, name: str) -> str | None:
    member = opened.members.get("label")
    if member is None:
        return None
    if math.prod(member.shape) != 1 or member.dtype.kind not in "buifU" or member.dtype.itemsize > 4 * MAX_TEXT:
        raise DataError(f"{name}: need one text or number as label, got {member.dtype} {member.shape}; try another one")
    return _as_text(_read_array(path, member, name).reshape(-1)[0])


def _json_text(path: Path, opened: _Opened, key: str, name: str) -> dict[str, float | str]:
    member = opened.members.get(key)
    if member is None:
        return {}
    if math.prod(member.shape) != 1 or member.dtype.kind != "U" or member.dtype.itemsize > 4 * MAX_TEXT:
        raise DataError(f"{name}: need a JSON object as text under the key {key}, got {member.dtype} {member.shape}")
    found = json.loads(str(_read_array(path, member, name).reshape(-1)[0]))
    return {str(fact): value if isinstance(value, str) else float(value) for fact, value in found.items()}


def _as_text(value: np.generic) -> str:
    """Return a label as text: whole numbers without a point."""
    number = value.item()
    whole = isinstance(number, bool) or (isinstance(number, float) and number.is_integer())
    return str(int(number) if whole else number)


def _returned(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
