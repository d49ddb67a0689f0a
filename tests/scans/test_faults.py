"""The rows of FAULTS.md that a scan file can show: refused in one line that names the file, in bounded memory."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medsynth.config import IndexOptions, IntensityOptions, Loading
from medsynth.scans import Intensity, Scan, measure_intensity, read_header, read_scan, write_scan
from tests.scans.refusing import peak_of, refused


def nifti_bytes(array: np.ndarray, change: Callable[[nibabel.Nifti1Header], object] = lambda header: None) -> bytes:
    """Return a NIfTI file by nibabel, with its header changed afterwards."""
    content = nibabel.Nifti1Image(array, np.diag([1.0, 1, 2, 1]), dtype=array.dtype).to_bytes()
    header = nibabel.Nifti1Header(content[:348], check=False)
    change(header)
    return header.binaryblock + content[348:]


def set_field(key: str, value: object) -> Callable[[nibabel.Nifti1Header], object]:
    return lambda header: header.__setitem__(key, value)


def gzip_zeros(head: bytes, count: int) -> bytes:
    """Return a gzip file of `head` and `count` zero bytes, without holding them."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=9) as packed:
        packed.write(head)
        for _ in range(count // (1 << 20)):
            packed.write(bytes(1 << 20))
    return stream.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bytes(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*each) for each in (head, *chunks, (b"IEND", b"")))


def npy_bytes(header: str, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + content


def test_fault_01_truncated_nifti_gz(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    array = np.random.default_rng(0).integers(0, 999, size=(1, 9, 9, 9)).astype(np.int16)
    write_scan(Scan(array=array), path)
    whole = path.read_bytes()
    for length in (0, 5, 20, 200, len(whole) // 2, len(whole) - 9, len(whole) - 4, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path)
    path.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])
    assert "CRC" in refused(path)


def test_fault_01_truncated_files_of_the_other_formats(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 200, size=(1, 30, 30), dtype=np.uint8)
    for suffix in (".nii", ".png", ".npz"):
        path = tmp_path / f"scan{suffix}"
        write_scan(Scan(array=array), path)
        whole = path.read_bytes()
        for length in (0, 5, 20, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            refused(path)
        path.unlink()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_fault_02_header_claims_30000_cubed(tmp_path: Path, suffix: str) -> None:
    content = nifti_bytes(np.zeros((2, 3, 4), np.int16), set_field("dim", [3, 30000, 30000, 30000, 1, 1, 1, 1]))
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    assert "30000 x 30000 x 30000" in refused(path, header=True)
    assert "at most 512 MiB" in refused(path)
    said, peak = peak_of(path)
    assert said.startswith(str(path))
    assert peak < 40


def test_fault_03_nifti_gz_bomb_over_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    head = nifti_bytes(np.zeros((1, 1, 1), np.uint8), set_field("dim", [3, 700, 700, 700, 1, 1, 1, 1]))[:352]
    path.write_bytes(gzip_zeros(head, 343 << 20))
    assert path.stat().st_size < 500_000
    assert "at most 100 MiB" in refused(path, loading=Loading(max_mib=100), header=True)
    said, peak = peak_of(path, max_mib=100)
    assert "at most 100 MiB decoded, got 700 x 700 x 700" in said
    assert peak < 40
    assert read_header(path).shape == (1, 700, 700, 700)  # the budget is an option: 512 MiB allow it


def test_fault_03_the_peak_that_these_tests_watch_does_rise(tmp_path: Path) -> None:
    path = tmp_path / "large.nii.gz"
    head = nifti_bytes(np.zeros((1, 1, 1), np.uint8), set_field("dim", [3, 512, 512, 320, 1, 1, 1, 1]))[:352]
    path.write_bytes(gzip_zeros(head, 80 << 20))
    said, peak = peak_of(path)
    assert said == "read"
    assert peak > 75


def test_fault_03_nifti_gz_longer_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip_zeros(nifti_bytes(np.zeros((4, 4, 4), np.int16)), 343 << 20))
    assert "goes on after" in refused(path)
    said, peak = peak_of(path)
    assert "goes on after" in said
    assert peak < 40


def test_fault_03_nifti_gz_with_a_bomb_before_the_voxels(tmp_path: Path) -> None:
    head = nifti_bytes(np.zeros((4, 4, 4), np.int16), set_field("vox_offset", 300 << 20))
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip_zeros(head[:352], 343 << 20))
    assert "vox_offset" in refused(path, header=True)


def test_fault_05_png_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    squeezed = zlib.compress(bytes(1 << 20), 9)
    path.write_bytes(png_bytes(50000, 50000, (b"IDAT", squeezed)))
    assert "50000 x 50000" in refused(path, header=True)
    said, peak = peak_of(path)
    assert "at most 512 MiB" in said
    assert peak < 40
    path.write_bytes(png_bytes(2**31 - 1, 2**31 - 1, (b"IDAT", squeezed), bits=16))
    refused(path)


def test_fault_05_png_bomb_behind_a_small_header(tmp_path: Path) -> None:
    packer = zlib.compressobj(9)
    squeezed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    path = tmp_path / "bomb.png"
    # Pixels that inflate to 300 MiB for a picture of 64 x 64: too many even squeezed.
    path.write_bytes(png_bytes(64, 64, (b"IDAT", squeezed)))
    assert "pixels at most" in refused(path)
    # For 512 x 512 the squeezed size is plausible: only the announced pixels are inflated.
    path.write_bytes(png_bytes(512, 512, (b"IDAT", squeezed)))
    assert peak_of(path)[1] < 40
    # Text and colour profiles are inflated within narrow limits.
    plain = (b"IDAT", zlib.compress(bytes(65 * 64)))
    for text in ((b"iCCP", b"x\0\0" + squeezed), (b"zTXt", b"x\0\0" + squeezed), (b"iTXt", b"x\0\1\0\0\0" + squeezed)):
        path.write_bytes(png_bytes(64, 64, text, plain))
        assert "Decompressed data too large" in refused(path)
        assert peak_of(path)[1] < 40
        path.write_bytes(png_bytes(64, 64, plain, text))  # the same behind the pixels
        assert peak_of(path)[1] < 40


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_fault_06_npz_with_object_arrays(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    path, planted = folder / "scan.npz", tmp_path / "executed"
    objects = np.empty((2, 2), dtype=object)
    objects[:] = Trap(planted)
    for arrays in (
        {"image": objects},
        {"image": np.zeros((2, 2)), "label": objects},
        {"image": np.zeros((2, 2)), "spare": objects},
        {"train_images": objects[np.newaxis], "train_labels": objects},
    ):
        np.savez(path, allow_pickle=True, **arrays)
        item = "#train/0" if "train_images" in arrays else ""
        assert "never unpickled" in refused(f"{path}{item}")
        assert "never unpickled" in refused(f"{path}{item}", header=True)
    path.write_bytes(pickle.dumps(Trap(planted)))
    refused(path)
    assert not planted.exists()
    pickle.loads(pickle.dumps(Trap(planted)))
    assert planted.exists()  # the trap does work


def test_fault_06_npz_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("image.npy", "w") as stream:
        stream.write(npy_bytes("{'descr': '|u1', 'fortran_order': False, 'shape': (600, 1024, 1024)}"))
        for _ in range(600):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 1_000_000
    assert "600 MiB" in refused(path, header=True)
    said, peak = peak_of(path)
    assert "at most 512 MiB" in said
    assert peak < 40


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000, 100000)}", "bytes after the header"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -4)}", "for the shape (-1, -4)"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2)}", "never unpickled"),
        ("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2, 2)}", "never unpickled"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3)}", "bytes after the header"),
        ("{'descr': '|u1', 'shape': (2, 2)}", "damaged"),
        ("__import__('os').getcwd()", "damaged"),
        ("(" * 5000 + ")" * 5000, "damaged"),
    ],
)
def test_fault_06_npz_whose_header_lies(tmp_path: Path, header: str, said: str) -> None:
    with zipfile.ZipFile(tmp_path / "scan.npz", "w") as packed:
        packed.writestr("image.npy", npy_bytes(header, bytes(4)))
    assert said in refused(tmp_path / "scan.npz")


def test_fault_06_npz_header_that_is_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("image.npy", "w") as stream:
        stream.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", 300 << 20))
        for _ in range(300):
            stream.write(b" " * (1 << 20))
    refused(path, header=True)
    said, peak = peak_of(path)
    assert said.startswith(str(path))
    assert peak < 40


def test_fault_06_npz_under_a_password(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    write_scan(Scan(array=np.zeros((1, 2, 2), np.uint8)), path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 8] |= 1
    path.write_bytes(bytes(content))
    refused(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".nii.gz", ".npz"])
def test_fault_07_nan_or_inf_voxels(tmp_path: Path, value: float, suffix: str) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    array[0, 1, 2] = array[1, 2, 3] = value
    path = tmp_path / f"scan{suffix}"
    if suffix == ".npz":
        np.savez(path, image=array)
    else:
        path.write_bytes(gzip.compress(nifti_bytes(array)))
    assert "got 2 that are NaN or infinite" in refused(path)
    scan = read_scan(path, loading=Loading(nan="zero"))
    assert scan.attributes == {"nan_voxels": 2}
    np.testing.assert_array_equal(scan.array[0], np.where(np.isfinite(array), array, 0))
    assert scan.array.dtype == np.float32
    verb = IndexOptions(
        scans=tmp_path, out=tmp_path / "cohort.csv", nan="zero"
    )  # the options of a verb are a `Loading`
    np.testing.assert_array_equal(read_scan(path, loading=verb).array, scan.array)


def test_fault_07_infinity_made_by_scaling(tmp_path: Path) -> None:
    array = np.full((2, 2, 2), 1e30, dtype=np.float32)
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti_bytes(array, lambda header: header.set_slope_inter(1e30, 0)))
    assert "got 8" in refused(path)


def test_fault_08_constant_image(tmp_path: Path) -> None:
    array = np.full((1, 6, 7), 40, dtype=np.uint8)
    for suffix in (".png", ".npz", ".nii.gz"):
        write_scan(Scan(array=array), tmp_path / f"scan{suffix}")
        np.testing.assert_array_equal(read_scan(tmp_path / f"scan{suffix}").array, array)
    for options in (IntensityOptions(), IntensityOptions(method="minmax")):
        with np.errstate(all="raise"):
            intensity = measure_intensity(options, [array, array])
            assert (intensity.low, intensity.high) == ((40.0,), (40.0,))
            with pytest.warns(UserWarning, match="both 40"):
                model = intensity.to_model(array)
        assert (model == -1).all()
        assert (intensity.to_physical(model) == 40).all()


def test_fault_08_the_warning_comes_once() -> None:
    intensity = Intensity(low=(5.0,), high=(5.0,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(20):
            intensity.to_model(np.full((2, 3, 3), 5.0))
    assert len(caught) == 1


@pytest.mark.parametrize("size", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_fault_09_voxel_size_that_is_none(tmp_path: Path, size: float, axis: int) -> None:
    def change(header: nibabel.Nifti1Header) -> None:
        header["pixdim"][axis] = size

    path = tmp_path / "scan.nii"
    path.write_bytes(nifti_bytes(np.ones((2, 3, 4), np.int16), change))
    assert "voxel sizes above 0 mm" in refused(path, header=True)
    refused(path)


@pytest.mark.parametrize("row", [[0.0, 0, 0, 0], [2.0, 0, 0, 1], [1.0, np.nan, 0, 0], [np.inf, 0, 0, 0], [0, 1, 0, 0]])
def test_fault_09_singular_affine(tmp_path: Path, row: list[float]) -> None:
    def change(header: nibabel.Nifti1Header) -> None:
        header["sform_code"] = 1
        header["srow_x"], header["srow_y"], header["srow_z"] = row, [0, 1, 0, 0], [2, 0, 0, 0]

    path = tmp_path / "scan.nii"
    path.write_bytes(nifti_bytes(np.ones((2, 3, 4), np.int16), change))
    assert "affine" in refused(path, header=True)
    refused(path)


def test_fault_11_nifti_of_four_axes(tmp_path: Path) -> None:
    for shape in ((2, 3, 4, 2), (2, 3, 1, 1, 3), (2, 3, 4, 5, 6, 7)):
        path = tmp_path / "scan.nii"
        path.write_bytes(nifti_bytes(np.zeros(shape, np.int16)))
        assert f"got {len(shape)}D" in refused(path, header=True)
        refused(path)


@pytest.mark.parametrize(
    "dtype",
    [np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), np.dtype("complex64"), np.dtype("complex128")],
    ids=["rgb", "complex64", "complex128"],
)
def test_fault_11_nifti_in_colour_or_complex(tmp_path: Path, dtype: np.dtype) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(nifti_bytes(np.zeros((2, 3, 4), dtype))))
    assert "one real number per voxel" in refused(path, header=True)
    refused(path)


def test_fault_11_nifti_of_unknown_type(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti_bytes(np.zeros((2, 3, 4), np.int16), set_field("datatype", 77)))
    refused(path)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8", "int8"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0, 0), (np.nan, 0), (1, -1024), (0.5, 3), (0.1, -7.3)])
def test_fault_12_scaled_integers(tmp_path: Path, dtype: str, slope: float, intercept: float) -> None:
    info = np.iinfo(dtype)
    array = np.linspace(info.min, info.max, 60).astype(dtype).reshape(3, 4, 5)

    def change(header: nibabel.Nifti1Header) -> None:
        header["scl_slope"], header["scl_inter"] = slope, intercept

    path = tmp_path / "scan.nii"
    path.write_bytes(nifti_bytes(array, change))
    scan = read_scan(path)
    assert read_header(path).dtype == scan.array.dtype.name
    if intercept == 0:  # slopes of 0 and NaN mean: not scaled
        assert scan.array.dtype == dtype
        np.testing.assert_array_equal(scan.array[0], array)
        return
    exact = array.astype(np.float64) * np.float64(np.float32(slope)) + np.float64(np.float32(intercept))
    assert scan.array.dtype == np.float32
    np.testing.assert_array_equal(scan.array[0], exact.astype(np.float32))
    if slope in (1, 0.5):
        np.testing.assert_array_equal(scan.array[0].astype(np.float64), exact)
    np.testing.assert_array_equal(scan.array[0], nibabel.load(path).get_fdata().astype(np.float32))


def test_fault_12_scaled_wide_integers_stay_exact(tmp_path: Path) -> None:
    array = np.array([[[2**31 - 1, -(2**31), 2**24 + 1]]], dtype=np.int32)
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti_bytes(array, lambda header: header.set_slope_inter(1, -1024)))
    assert read_scan(path).array.dtype == np.float64
    np.testing.assert_array_equal(read_scan(path).array[0], array.astype(np.int64) - 1024)
