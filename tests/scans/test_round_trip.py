"""What is written comes back, bit for bit where the format allows, and the bytes depend on the scan alone."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medsynth.errors import ConfigError, DataError
from medsynth.scans import Scan, list_items, read_header, read_scan, scan_suffix, split_item, write_scan
from medsynth.scans.scan import PICTURE_AFFINE

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
OBLIQUE = np.array([[0.6, -1.28, 1.44, -31.5], [0.8, 0.96, -1.08, 12.25], [0, 1.2, 2.4, -140.0], [0, 0, 0, 1.0]])


def extremes(dtype: str, shape: tuple[int, ...], *, spread: int | None = None) -> np.ndarray:
    """Return values of `dtype` that include the ends of the type, or values at most `spread` above the lower end."""
    info = np.iinfo(dtype)
    high = info.max if spread is None else min(info.max, info.min + spread)
    values = np.random.default_rng(0).integers(info.min, high, size=shape, dtype=dtype, endpoint=True)
    values.flat[0], values.flat[1] = info.min, high
    return values


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npz"])
@pytest.mark.parametrize("shape", [(1, 5, 7), (1, 4, 5, 6)])
@pytest.mark.parametrize("dtype", [*INTEGERS, "float32", "float64"])
def test_every_type_round_trips_exactly(tmp_path: Path, suffix: str, shape: tuple[int, ...], dtype: str) -> None:
    array = extremes(dtype, shape) if dtype in INTEGERS else np.random.default_rng(1).normal(size=shape).astype(dtype)
    scan = Scan(array=array, affine=OBLIQUE)
    path = tmp_path / f"scan{suffix}"
    write_scan(scan, path)
    back, header = read_scan(path), read_header(path)
    assert back.array.dtype == dtype
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_allclose(back.affine, OBLIQUE, rtol=1e-6)
    assert (header.shape, header.dtype) == (array.shape, dtype)
    assert header.spacing == pytest.approx(back.spacing)
    assert back.array.flags.c_contiguous
    assert back.array.flags.writeable


@pytest.mark.parametrize("dtype", INTEGERS)
def test_png_keeps_integers_and_their_type(tmp_path: Path, dtype: str) -> None:
    array = extremes(dtype, (1, 6, 9), spread=65535)
    path = tmp_path / "scan.png"
    write_scan(Scan(array=array), path)
    back = read_scan(path)
    assert back.array.dtype == dtype == read_header(path).dtype
    np.testing.assert_array_equal(back.array, array)


def test_png_of_unsigned_scans_is_plain_for_pillow(tmp_path: Path) -> None:
    for dtype, mode in (("uint8", "L"), ("uint16", "I;16")):
        array = extremes(dtype, (1, 6, 9))
        write_scan(Scan(array=array), tmp_path / "scan.png")
        with Image.open(tmp_path / "scan.png") as image:
            assert (image.mode, image.size, image.text) == (mode, (9, 6), {})
            np.testing.assert_array_equal(np.asarray(image), array[0])


def test_png_keeps_whole_hounsfield_units_in_floats(tmp_path: Path) -> None:
    array = np.random.default_rng(2).integers(-1024, 3072, size=(1, 8, 8)).astype(np.float32)
    write_scan(Scan(array=array), tmp_path / "scan.png")
    back = read_scan(tmp_path / "scan.png").array
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_png_keeps_floats_to_half_a_step(tmp_path: Path, dtype: str) -> None:
    array = (np.random.default_rng(3).normal(size=(1, 20, 20)) * 400 - 300).astype(dtype)
    write_scan(Scan(array=array), tmp_path / "scan.png")
    back = read_scan(tmp_path / "scan.png").array
    assert back.dtype == dtype
    span = float(array.max()) - float(array.min())
    error = np.abs(back.astype(np.float64) - array.astype(np.float64))
    assert error.max() <= span / 131070 + np.abs(array).max() * np.finfo(dtype).eps


def test_png_keeps_a_constant_float_scan(tmp_path: Path) -> None:
    array = np.full((1, 3, 3), 0.1, dtype=np.float64)
    write_scan(Scan(array=array), tmp_path / "scan.png")
    np.testing.assert_array_equal(read_scan(tmp_path / "scan.png").array, array)


def test_png_keeps_the_affine(tmp_path: Path) -> None:
    write_scan(Scan(array=np.zeros((1, 2, 2), np.uint8), affine=OBLIQUE), tmp_path / "scan.png")
    np.testing.assert_array_equal(read_scan(tmp_path / "scan.png").affine, OBLIQUE)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_nibabel_reads_the_same_values_and_affine(tmp_path: Path, dtype: str) -> None:
    array = (np.random.default_rng(4).normal(size=(1, 4, 5, 6)) * 50 + 60).astype(dtype)
    write_scan(Scan(array=array, affine=OBLIQUE), tmp_path / "scan.nii.gz")
    image = nibabel.load(tmp_path / "scan.nii.gz")
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(image.dataobj), array[0])
    np.testing.assert_allclose(image.affine, OBLIQUE, rtol=1e-6)
    np.testing.assert_allclose(image.get_qform(coded=True)[0], OBLIQUE, atol=1e-4)
    np.testing.assert_allclose(image.header.get_zooms(), np.linalg.norm(OBLIQUE[:3, :3], axis=0), rtol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_a_sheared_affine_is_kept_by_the_sform_alone(tmp_path: Path) -> None:
    sheared = np.array([[1, 0.5, 0, 3], [0, 1, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1.0]])
    write_scan(Scan(array=np.zeros((1, 2, 3, 4), np.int16), affine=sheared), tmp_path / "scan.nii")
    image = nibabel.load(tmp_path / "scan.nii")
    assert image.get_qform(coded=True)[1] == 0
    np.testing.assert_allclose(image.affine, sheared)
    np.testing.assert_allclose(read_scan(tmp_path / "scan.nii").affine, sheared)


def test_a_picture_becomes_a_nifti_of_one_slice(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    write_scan(Scan(array=array), tmp_path / "scan.nii.gz")
    image = nibabel.load(tmp_path / "scan.nii.gz")
    assert image.shape == (3, 4, 1)
    assert nibabel.aff2axcodes(image.affine) == ("P", "L", "S")
    np.testing.assert_array_equal(read_scan(tmp_path / "scan.nii.gz").array, array)
    np.testing.assert_array_equal(read_scan(tmp_path / "scan.nii.gz").affine, PICTURE_AFFINE)


def test_npz_keeps_everything(tmp_path: Path) -> None:
    scan = Scan(
        array=np.random.default_rng(5).normal(size=(3, 4, 5)).astype(np.float16),
        affine=OBLIQUE,
        label="ground-glass ★",
        attributes={"diameter_mm": 7.25, "side": "left"},
        provenance={"run": "abc", "seed": "17"},
    )
    write_scan(scan, tmp_path / "scan.npz")
    back = read_scan(tmp_path / "scan.npz")
    assert back.array.dtype == np.float16
    np.testing.assert_array_equal(back.array, scan.array)
    np.testing.assert_array_equal(back.affine, OBLIQUE)
    assert (back.label, back.attributes, back.provenance) == (scan.label, scan.attributes, scan.provenance)
    assert read_header(tmp_path / "scan.npz").shape == (3, 4, 5)
    assert list_items(tmp_path / "scan.npz") == []


@pytest.mark.parametrize("suffix", [".png", ".npz", ".nii", ".nii.gz"])
def test_provenance_marks_the_file_as_synthetic_and_comes_back(tmp_path: Path, suffix: str) -> None:
    provenance = {"run": "0f3a", "seed": "4", "method": "sampled ★"}
    path = tmp_path / f"scan{suffix}"
    write_scan(Scan(array=np.zeros((1, 4, 4), np.uint8), provenance=provenance), path)
    assert read_scan(path).provenance == provenance
    if suffix == ".png":
        with Image.open(path) as image:
            assert image.text["Synthetic"] == "YES"
    elif suffix == ".npz":
        assert str(np.load(path)["synthetic"]) == "YES"
    else:
        image = nibabel.load(path)
        assert bytes(image.header["descrip"]).startswith(b"SYNTHETIC ")
        assert json.loads(image.header.extensions[0].content.decode())["medsynth.provenance"] == provenance
    write_scan(Scan(array=np.zeros((1, 4, 4), np.uint8)), path)
    assert read_scan(path).provenance == {}


@pytest.mark.parametrize("suffix", [".png", ".npz", ".nii", ".nii.gz"])
def test_equal_scans_give_equal_bytes(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(6).normal(size=(1, 9, 9)).astype(np.float32)
    write_scan(Scan(array=array, provenance={"a": "1", "b": "2"}), tmp_path / f"one{suffix}")
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_scan(Scan(array=array.copy(), provenance={"b": "2", "a": "1"}), tmp_path / f"another{suffix}")
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"another{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("array", "suffix", "error"),
    [
        (np.zeros((1, 2, 2, 2), np.uint8), ".png", ConfigError),
        (np.zeros((3, 2, 2), np.uint8), ".png", ConfigError),
        (np.array([[[0, 70000]]], np.int32), ".png", ConfigError),
        (np.zeros((2, 4, 4), np.uint8), ".nii.gz", ConfigError),
        (np.zeros((1, 40000, 1), np.uint8), ".nii", ConfigError),
        (np.zeros((1, 4, 4), np.uint8), ".jpg", ConfigError),
        (np.zeros((1, 4, 4), np.uint8), ".npz#train/0", ConfigError),
        (np.full((1, 4, 4), np.nan, np.float32), ".npz", DataError),
        (np.zeros((4, 4), np.uint8), ".npz", DataError),
        (np.zeros((1, 0, 4), np.uint8), ".npz", DataError),
        (np.zeros((1, 4, 4), np.complex64), ".npz", DataError),
        (np.zeros((1, 4, 4), np.longdouble), ".npz", DataError),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    tmp_path: Path, array: np.ndarray, suffix: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match="scan"):
        write_scan(Scan(array=array), tmp_path / f"scan{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_singular_affine_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="singular"):
        write_scan(Scan(array=np.zeros((1, 4, 4), np.uint8), affine=np.diag([1.0, 1, 0, 1])), tmp_path / "scan.nii")
    assert list(tmp_path.iterdir()) == []


def test_items_and_suffixes_of_paths() -> None:
    assert split_item("a/b.npz#train/17") == (Path("a/b.npz"), "train/17")
    assert split_item("a/b#1.png") == (Path("a/b#1.png"), None)
    assert split_item("a#1/b.NPZ") == (Path("a#1/b.NPZ"), None)
    assert scan_suffix("A.NII.GZ") == ".nii.gz"
    assert scan_suffix("a.npz#val/0") == ".npz"
    assert scan_suffix("a.nii") == ".nii"
    assert scan_suffix("a.gz") is None
    assert scan_suffix("png") is None
