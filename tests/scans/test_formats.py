"""What each format means: layouts, kinds of pictures, geometry, and files of others."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medsynth.config import Loading
from medsynth.errors import DataError
from medsynth.scans import VOLUME_AFFINE, Scan, list_items, npz, read_header, read_scan, write_scan


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: object) -> Path:
    """Write with nibabel, then set fields of the header in the file."""
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype)
    content = bytearray(image.to_bytes())
    fields = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for key, value in header.items():
        fields[key] = value
    content[:348] = fields.binaryblock
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return path


# PNG


def few_bits_png(values: np.ndarray, bits: int) -> bytes:
    rows = b""
    for row in values:
        packed = 0
        for value in row:
            packed = packed << bits | int(value)
        length = -(-len(row) * bits // 8)
        rows += b"\0" + (packed << (8 * length - bits * len(row))).to_bytes(length, "big")
    parts = [(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def test_png_modes_of_others(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, size=(6, 7), dtype=np.uint8)
    path = tmp_path / "scan.png"
    for mode in ("L", "LA", "RGB", "RGBA"):
        Image.fromarray(grey).convert(mode).save(path)
        scan = read_scan(path)
        assert scan.array.dtype == np.uint8
        np.testing.assert_array_equal(scan.array[0], grey, err_msg=mode)
    Image.fromarray(grey > 99).save(path)  # one bit, as many masks are
    np.testing.assert_array_equal(read_scan(path).array[0], grey > 99)
    assert read_header(path).dtype == "uint8"


@pytest.mark.parametrize("bits", [2, 4])
def test_png_of_few_bits_keeps_the_stored_values(tmp_path: Path, bits: int) -> None:
    values = np.arange(2**bits, dtype=np.uint8).reshape(2, -1)
    (tmp_path / "scan.png").write_bytes(few_bits_png(values, bits))
    np.testing.assert_array_equal(read_scan(tmp_path / "scan.png").array[0], values)


def test_png_with_colour_transparency_palette_or_frames_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[1, 1, 2] = 1
    Image.fromarray(colour).save(path)
    with pytest.raises(DataError, match=r"scan.png: need a grey picture, got true colour"):
        read_scan(path)
    clear = np.full((4, 4, 2), 255, np.uint8)
    clear[0, 0, 1] = 254
    Image.fromarray(clear).save(path)
    with pytest.raises(DataError, match="transparent"):
        read_scan(path)
    Image.new("P", (4, 4)).save(path)
    with pytest.raises(DataError, match="palette"):
        read_header(path)
    Image.new("L", (4, 4)).save(path, transparency=0)
    with pytest.raises(DataError, match="transparency"):
        read_header(path)
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="animation"):
        read_header(path)


def test_png_limits_of_pillow_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scan(Scan(array=np.full((1, 64, 64), 7, np.uint8)), tmp_path / "scan.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert (read_scan(tmp_path / "scan.png").array == 7).all()


# NPZ


def test_npz_plain_layouts(tmp_path: Path) -> None:
    picture, volume = np.arange(6.0).reshape(2, 3), np.arange(24).reshape(2, 3, 4)
    path = tmp_path / "scan.npz"
    for keys in ({"image": picture, "mask": volume}, {"array": picture, "x": volume}, {"anything": picture}):
        np.savez(path, **keys)
        np.testing.assert_array_equal(read_scan(path).array, picture[np.newaxis])
    np.savez_compressed(path, volume=volume, spacing=[2.0, 0.5, 0.25], label=3, affine_note=np.array("text"))
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.array, volume[np.newaxis])
    assert scan.spacing == (2.0, 0.5, 0.25) == read_header(path).spacing
    assert nibabel.aff2axcodes(scan.affine) == ("S", "P", "L") == nibabel.aff2axcodes(VOLUME_AFFINE)
    assert scan.label == "3"
    np.savez(path, image=volume, channels=2, label="b", affine=np.diag([3.0, 2, 1, 1]))
    scan = read_scan(path)
    assert scan.array.shape == (2, 3, 4) == read_header(path).shape
    assert scan.spacing == (3.0, 2.0)
    assert scan.label == "b"
    np.savez(path, image=np.asfortranarray(volume.astype(">i2")))
    assert read_scan(path).array.dtype == np.dtype("int16")
    np.testing.assert_array_equal(read_scan(path).array[0], volume)
    np.savez(path, image=picture > 2)
    assert read_scan(path).array.dtype == np.uint8


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"a": np.zeros((2, 2)), "b": np.zeros((2, 2))}, "need a key `image`"),
        ({"label": np.array("x")}, "need a key `image`"),
        ({"image": np.zeros(4)}, "need an array"),
        ({"image": np.zeros((2, 2), complex)}, "need real numbers"),
        ({"image": np.zeros((0, 2))}, "at least one voxel"),
        ({"image": np.zeros((2, 2)), "spacing": [1.0, 0.0]}, "voxel sizes above 0"),
        ({"image": np.zeros((2, 2)), "spacing": [1.0]}, "along each of 2 axes"),
        ({"image": np.zeros((2, 2)), "affine": np.zeros((4, 4))}, "affine"),
        ({"image": np.zeros((2, 2)), "affine": np.zeros((400, 4))}, "a few numbers"),
        ({"image": np.zeros((2, 2)), "attributes": np.array("[1]")}, "damaged"),
        ({"image": np.zeros((2, 2)), "attributes": np.array("{")}, "damaged"),
    ],
)
def test_npz_that_is_no_scan_is_refused(tmp_path: Path, keys: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "scan.npz", **keys)
    with pytest.raises(DataError, match=rf"scan\.npz: .*{message}"):
        read_scan(tmp_path / "scan.npz")


def medmnist(path: Path, *, tail: tuple[int, ...] = (4, 5), labels: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, size=(count, *tail), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 9, size=(count, labels), dtype=np.uint8)
    np.savez_compressed(path, **arrays)
    return arrays


@pytest.mark.parametrize("tail", [(4, 5), (3, 4, 5)])
def test_medmnist_items(tmp_path: Path, tail: tuple[int, ...]) -> None:
    path = tmp_path / "set.npz"
    arrays = medmnist(path, tail=tail)
    items = list_items(path)
    assert items == [f"train/{i}" for i in range(6)] + ["val/0", "val/1", "test/0", "test/1", "test/2"]
    for item in items:
        split, index = item.split("/")
        scan = read_scan(f"{path}#{item}")
        np.testing.assert_array_equal(scan.array[0], arrays[f"{split}_images"][int(index)])
        assert scan.label == str(arrays[f"{split}_labels"][int(index), 0])
        assert read_header(f"{path}#{item}").shape == scan.array.shape == (1, *tail)
    first = read_scan(f"{path}#train/0").array
    first[:] = 0  # what is handed out is the caller's own
    np.testing.assert_array_equal(read_scan(f"{path}#train/0").array[0], arrays["train_images"][0])


@pytest.mark.parametrize(
    "item", ["", "#train/6", "#train", "#train/-1", "#other/0", "#train/0/0", "#train/1_0", "#train/٣"]
)
def test_medmnist_items_that_are_not_there(tmp_path: Path, item: str) -> None:
    medmnist(tmp_path / "set.npz")
    with pytest.raises(DataError, match=r"set\.npz"):
        read_scan(f"{tmp_path / 'set.npz'}{item}")


def test_medmnist_in_colour_is_refused_and_many_labels_are_none(tmp_path: Path) -> None:
    medmnist(tmp_path / "set.npz", tail=(4, 5, 3))
    for read in (list_items, lambda path: read_scan(f"{path}#train/0")):
        with pytest.raises(DataError, match="true colour"):
            read(tmp_path / "set.npz")
    medmnist(tmp_path / "many.npz", labels=14)
    assert read_scan(f"{tmp_path / 'many.npz'}#val/1").label is None


def test_medmnist_arrays_are_decoded_once_and_again_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "set.npz"
    medmnist(path)
    decoded = []
    plain = npz._decode
    monkeypatch.setattr(npz, "_decode", lambda path, key: decoded.append(key) or plain(path, key))
    for index in (0, 1, 2, 0):
        read_scan(f"{path}#train/{index}")
        read_scan(f"{path}#test/0")
    assert sorted(decoded) == ["test_images", "test_labels", "train_images", "train_labels"]
    np.savez(path, train_images=np.full((1, 4, 5), 9, np.uint8))
    assert (read_scan(f"{path}#train/0").array == 9).all()
    assert read_scan(f"{path}#train/0").label is None


def test_an_item_of_a_file_of_one_scan_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", image=np.zeros((2, 2)))
    with pytest.raises(DataError, match="several scans"):
        read_scan(f"{tmp_path / 'scan.npz'}#train/0")


# NIfTI


def test_nifti_shapes(tmp_path: Path) -> None:
    for shape, expected in (
        ((4, 5), (1, 4, 5)),
        ((4, 5, 1), (1, 4, 5)),
        ((4, 5, 1, 1), (1, 4, 5)),
        ((4, 5, 6), (1, 4, 5, 6)),
        ((4, 5, 6, 1, 1), (1, 4, 5, 6)),
        ((1, 5, 6), (1, 1, 5, 6)),
    ):
        array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
        path = save_nifti(tmp_path / "scan.nii.gz", array)
        np.testing.assert_array_equal(read_scan(path).array, array.reshape(expected))
        assert read_header(path).shape == expected


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 2)])
def test_nifti_affine_follows_nibabel(tmp_path: Path, codes: tuple[int, int]) -> None:
    affine = nibabel.affines.from_matvec(np.array([[0, -2, 0], [0.5, 0, 0], [0, 0, 3.0]]), [1, 2, 3])
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), None)
    image.header.set_qform(affine, code=codes[0])
    image.header.set_sform(np.diag([4.0, 5, 6, 1]), code=codes[1])
    image.to_filename(tmp_path / "scan.nii")
    np.testing.assert_array_equal(read_scan(tmp_path / "scan.nii").affine, nibabel.load(tmp_path / "scan.nii").affine)


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_nifti_units_become_millimetres(tmp_path: Path, unit: int, factor: float) -> None:
    path = save_nifti(tmp_path / "scan.nii", np.zeros((2, 3, 4), np.int16), np.diag([2.0, 2, 2, 1]), xyzt_units=unit)
    assert read_scan(path).spacing == (2 * factor,) * 3 == read_header(path).spacing


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
def test_nifti_of_either_kind_and_byte_order(tmp_path: Path, kind: type, order: str) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4) - 5
    image = kind(array, np.diag([1.0, 2, 3, 1]), kind.header_class(endianness=order))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"scanned by somebody"))
    image.to_filename(tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(scan.array[0], array)
    assert scan.array.dtype.isnative
    assert scan.spacing == (1.0, 2.0, 3.0)
    assert scan.provenance == {}


def test_nifti_of_a_pair_or_of_analyze_is_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "scan.nii", np.zeros((2, 3, 4), np.int16), magic=b"ni1")
    with pytest.raises(DataError, match="pair"):
        read_scan(path)
    path.write_bytes(b"something else" * 100)
    with pytest.raises(DataError, match="another format"):
        read_scan(path)


def test_nifti_padded_at_its_end_is_read(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "scan.nii", np.ones((2, 3, 4), np.int16))
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    assert read_scan(path).array.sum() == 24


# All formats


@pytest.mark.parametrize(
    "path", ["https://example.org/scan.png", "s3://bucket/scan.npz", Path("http://h/scan.nii.gz"), "file:///scan.png"]
)
def test_urls_are_refused(path: str | Path) -> None:
    with pytest.raises(DataError, match="URL"):
        read_scan(path)


@pytest.mark.parametrize("name", ["scan.pkl", "scan.npy", "scan.pt", "scan", "scan.png.exe"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"\.nii\.gz"):
        read_scan(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".npz", ".nii", ".nii.gz"])
def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    with pytest.raises(DataError, match="existing file"):
        read_scan(path)
    path.mkdir()
    with pytest.raises(DataError, match="folder"):
        read_header(path)
    path.rmdir()
    for content in (b"", b"\0" * 4000, b"PK\x03\x04" + b"x" * 500, b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(content)
        for read in (read_scan, read_header):
            with pytest.raises(DataError) as caught:
                read(path)
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)


def test_a_line_break_in_a_name_does_not_break_the_message(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_scan(tmp_path / "two\nlines.png")
    assert "two\\nlines.png" in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".npz", ".nii", ".nii.gz"])
def test_the_budget_is_exact(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    write_scan(Scan(array=np.zeros((1, 1024, 1024), np.uint8)), path)
    assert read_scan(path, loading=Loading(max_mib=1)).array.size == 1 << 20
    write_scan(Scan(array=np.zeros((1, 1024, 1025), np.uint8)), path)
    for read in (read_scan, read_header):
        with pytest.raises(DataError, match="at most 1 MiB"):
            read(path, loading=Loading(max_mib=1))


@pytest.mark.parametrize("suffix", [".png", ".npz", ".nii", ".nii.gz"])
def test_damaged_bytes_give_one_line_or_a_scan(tmp_path: Path, suffix: str) -> None:
    """A thousand random changes of sound files: each ends in a scan or in a DataError, never in anything else."""
    path = tmp_path / f"scan{suffix}"
    array = np.random.default_rng(0).normal(size=(1, 5, 6)).astype(np.float32)
    write_scan(Scan(array=array, label="a", attributes={"b": 1.0}, provenance={"run": "c"}), path)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    messages = []
    for trial in range(1000):
        content = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            # Half of the changes meet the beginning, where headers are.
            end = len(content) if rng.random() < 0.5 else min(len(content), 400)
            content[int(rng.integers(end))] = int(rng.integers(256))
        if trial % 4 == 0:
            del content[int(rng.integers(len(content))) :]
        path.write_bytes(bytes(content))
        try:
            read_scan(path, loading=Loading(max_mib=1))
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 300
    assert not [message for message in messages if "\n" in message or str(path) not in message]
