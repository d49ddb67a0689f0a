"""NPZ: one scan per file (plain layout), or many in the layout of MedMNIST. Nothing is ever unpickled.

Plain layout: the array `image`, or `array`, or the only array of numbers; `(H, W)` is 2D and `(D, H, W)` 3D, and the first axis
is the channel only if there is a key `channels` (which we write). Optional keys: `affine` (4x4) or `spacing` (millimetres along
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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medsynth.config import Loading
from medsynth.errors import ConfigError, DataError, one_line
from medsynth.scans.limits import MAX_TEXT, check_affine, check_size, check_spacing
from medsynth.scans.scan import PICTURE_AFFINE, VOLUME_AFFINE, Scan, ScanHeader, voxel_size

_SPLITS = ("train", "val", "test")
_FACTS = ("affine", "spacing", "label", "attributes", "provenance", "channels", "synthetic")
_MAX_MEMBERS = 100
_HEADER_ROOM = 1 << 14  # NumPy itself reads headers up to 10,000 characters
_ITEM = re.compile(r"(train|val|test)/(0|[1-9]\d{0,17})")

_Header = tuple[tuple[int, ...], np.dtype]


@dataclass(frozen=True, kw_only=True)
class _File:
    """The arrays of one file: shape and type of each, and those that were decoded. `stamp` changes when the file does."""

    path: Path
    name: str
    stamp: tuple[str, int, int]
    headers: dict[str, _Header]
    decoded: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        """The splits of a file in the MedMNIST layout, none in the plain layout."""
        return [split for split in _SPLITS if f"{split}_images" in self.headers]

    def array(self, key: str, loading: Loading) -> np.ndarray:
        """Decode an array whose size was checked; those of a file of many scans are kept as far as the budget allows."""
        if key in self.decoded:
            return self.decoded[key]
        array = _decode(self.path, key)
        if self.splits:
            if sum(kept.nbytes for kept in self.decoded.values()) + array.nbytes > loading.max_mib << 20:
                self.decoded.clear()
            self.decoded[key] = array
        return array

    def fact(self, key: str, kinds: str, most: int, need: str) -> np.ndarray | None:
        """Return a small array of at most `most` values of certain `kinds`, None if there is none."""
        if key not in self.headers:
            return None
        shape, dtype = self.headers[key]
        if dtype.kind not in kinds or not 0 < math.prod(shape) <= most or dtype.itemsize > 4 * MAX_TEXT:
            raise DataError(f"{self.name}: need {need} under the key {key}, got {dtype} {shape}; try another file")
        return _decode(self.path, key)

    def facts(self, key: str) -> dict[str, float | str]:
        """Return a JSON object of texts and numbers, `{}` if there is none."""
        text = self.fact(key, "U", 1, "a JSON object as text")
        found = {} if text is None else json.loads(str(text.reshape(-1)[0]))
        return {str(fact): value if isinstance(value, str) else float(value) for fact, value in found.items()}


# The file read last. A cohort names thousands of items of one file, and each would otherwise decode the whole array.
_last: _File | None = None


def read_header(path: Path, item: str | None, name: str, loading: Loading) -> ScanHeader:
    """Return the header of a scan from the .npy headers inside the file."""
    file = _open(path)
    key, _, shape = _find(file, item, loading)
    spacing = voxel_size(_affine(file, len(shape) - 1), len(shape) - 1)
    return ScanHeader(shape=shape, dtype=_returned(file.headers[key][1]).name, spacing=spacing)


def read(path: Path, item: str | None, name: str, loading: Loading) -> Scan:
    """Return the scan of a plain NPZ, or the named item of one in the MedMNIST layout, with its label as text.

    The type is kept (bool becomes uint8). The budget counts the whole array that must be decoded. An item with several
    labels has the label None.
    """
    file = _open(path)
    key, index, shape = _find(file, item, loading)
    stored = file.array(key, loading) if index is None else file.array(key, loading)[index].copy()
    return Scan(
        array=np.asarray(stored, dtype=_returned(stored.dtype), order="C").reshape(shape),
        affine=_affine(file, len(shape) - 1),
        label=_label(file, key, index, loading),
        attributes=file.facts("attributes"),
        provenance={fact: str(value) for fact, value in file.facts("provenance").items()},
    )


def list_items(path: Path) -> list[str]:
    """Return the names of the items of a file in the MedMNIST layout, `[]` for the plain layout."""
    file = _open(path)
    for split in file.splits:
        _scan_shape(file, f"{split}_images")
    return [f"{split}/{index}" for split in file.splits for index in range(file.headers[f"{split}_images"][0][0])]


def encode(scan: Scan, name: str) -> bytes:
    """Return the bytes of an NPZ in the plain layout that keeps everything a scan holds; equal scans give equal bytes."""
    array = np.asarray(scan.array)
    arrays = {"image": array, "channels": np.array(len(array)), "affine": np.asarray(scan.affine, dtype=np.float64)}
    if scan.label is not None:
        arrays["label"] = np.array(scan.label)
    if scan.attributes:
        plain = {key: value if isinstance(value, str) else float(value) for key, value in scan.attributes.items()}
        arrays["attributes"] = np.array(json.dumps(plain, sort_keys=True))
    if scan.provenance:
        arrays["provenance"] = np.array(json.dumps(dict(scan.provenance), sort_keys=True))
        arrays["synthetic"] = np.array("YES")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:  # not numpy.savez, which writes the time into the file
        for key, value in arrays.items():
            if value.dtype.kind == "U" and value.dtype.itemsize > 4 * MAX_TEXT:
                raise ConfigError(f"{name}: need a {key} of at most {MAX_TEXT} characters, got more")
            content = io.BytesIO()
            np.lib.format.write_array(content, value, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, content.getbuffer(), compress_type=zipfile.ZIP_DEFLATED, compresslevel=6)
    return stream.getvalue()


def _open(path: Path) -> _File:
    """Return the headers of all arrays in the file; a file with an array that would need unpickling is refused."""
    global _last
    state = path.stat()
    stamp, name = (str(path.resolve()), state.st_mtime_ns, state.st_size), one_line(path)
    if _last is None or (_last.stamp, _last.name) != (stamp, name):
        with zipfile.ZipFile(path) as packed:
            entries = [entry for entry in packed.infolist() if entry.filename.endswith(".npy")]
            if len(entries) > _MAX_MEMBERS:
                raise DataError(f"{name}: need at most {_MAX_MEMBERS} arrays, got {len(entries)}; try one scan a file")
            headers = {entry.filename.removesuffix(".npy"): _read_member(packed, entry, name) for entry in entries}
        _last = _File(path=path, name=name, stamp=stamp, headers=headers)
    return _last


def _read_member(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> _Header:
    """Return shape and type of an array, after checking that its bytes are as many as its header says."""
    name = f"{name} [{one_line(entry.filename)}]"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{name}: need a stored or deflated array, got another compression; try saving it with NumPy")
    with packed.open(entry) as stream:
        head = io.BytesIO(stream.read(_HEADER_ROOM))  # a header may claim any length; no more than this is inflated
    first = np.lib.format.read_magic(head) == (1, 0)
    shape, _, dtype = (np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0)(head)
    size, found = math.prod(shape) * dtype.itemsize, entry.file_size - head.tell()
    if dtype.hasobject:
        raise DataError(f"{name}: need an array of numbers, got Python objects, which are never unpickled; try numbers")
    if size != found or any(length < 0 for length in shape):
        raise DataError(f"{name}: need {size} bytes after the header, got {found} for the shape {shape}")
    return shape, dtype


def _decode(path: Path, key: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as packed:  # which verifies the checksum
        array: np.ndarray = packed[f"{key}.npy"]
    return array


def _find(file: _File, item: str | None, loading: Loading) -> tuple[str, int | None, tuple[int, ...]]:
    """Return the key of the array that holds a scan, the index of the item in it, and the shape `(channel, *spatial)`."""
    index, splits = None, file.splits
    if splits:
        found = _ITEM.fullmatch(item or "")
        if found is None or found[1] not in splits:
            got = "a file of several scans" if item is None else f"#{item}"
            raise DataError(f"{file.name}: need an item of {', '.join(splits)}, got {got}; try adding #{splits[0]}/0")
        key, index = f"{found[1]}_images", int(found[2])
        if index >= (count := file.headers[key][0][0]):
            raise DataError(f"{file.name}: need an item below {found[1]}/{count}, got #{item}")
    elif item is not None:
        raise DataError(f"{file.name}: need a file of several scans, got one scan; try the path without #{item}")
    else:
        numbers = [key for key, (_, dtype) in file.headers.items() if key not in _FACTS and dtype.kind in "buif"]
        keys = [key for key in ("image", "array") if key in file.headers][:1] or numbers
        if len(keys) != 1:
            got = ", ".join(file.headers)[:100] or "no array"
            raise DataError(f"{file.name}: need a key `image` or one array of numbers, got {got}; try renaming one")
        key = keys[0]
    shape = _scan_shape(file, key)
    check_size(file.name, file.headers[key][0], _returned(file.headers[key][1]), loading)
    return key, index, shape


def _scan_shape(file: _File, key: str) -> tuple[int, ...]:
    """Return the shape `(channel, *spatial)` of the scan, or of each of several scans, in an array."""
    shape, dtype = file.headers[key]
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise DataError(f"{file.name}: need real numbers up to 64 bits, got {key} of {dtype}; try converting the array")
    need, colour = "an array (H, W) or (D, H, W), or (channel, ...) beside a key `channels`", ""
    scan = shape if "channels" in file.headers else (1, *shape)
    if file.splits:
        need, colour = "grey scans (N, H, W) or (N, D, H, W)", " in true colour" if shape[3:] == (3,) else ""
        scan = (1, *shape[1:])
    if len(scan) not in (3, 4) or colour:
        raise DataError(f"{file.name}: need {need}, got {key} of {shape}{colour}; try reshaping or converting it")
    return scan


def _affine(file: _File, rank: int) -> np.ndarray:
    """Return the affine in the file, else one made of its voxel sizes, else 1 mm along each axis."""
    affine, spacing = (file.fact(key, "uif", 16, "a few numbers") for key in ("affine", "spacing"))
    if affine is not None:
        return check_affine(file.name, affine)
    sizes = (1.0,) * rank if spacing is None else check_spacing(file.name, spacing.reshape(-1).tolist())
    if len(sizes) != rank:
        raise DataError(f"{file.name}: need a spacing along each of {rank} axes, got {len(sizes)}; try another file")
    return (PICTURE_AFFINE if rank == 2 else VOLUME_AFFINE) @ np.diag([*sizes, *[1.0] * (4 - rank)])


def _label(file: _File, key: str, index: int | None, loading: Loading) -> str | None:
    """Return the label of a scan, or of item `index` of the images `key`, as text; None if it has none or several."""
    if index is None:
        found = file.fact("label", "buifU", 1, "one text or number")
    else:
        labels = key.replace("_images", "_labels")
        if labels not in file.headers:
            return None
        shape, dtype = file.headers[labels]
        if shape[:1] != file.headers[key][0][:1] or dtype.kind not in "buifU":
            raise DataError(f"{file.name}: need one number or text for each scan in {labels}, got {dtype} {shape}")
        check_size(file.name, shape, dtype, loading)
        found = file.array(labels, loading)[index]
    if found is None or found.size != 1:
        return None
    number = found.reshape(-1)[0].item()
    whole = isinstance(number, bool) or (isinstance(number, float) and number.is_integer())
    return str(int(number) if whole else number)


def _returned(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
