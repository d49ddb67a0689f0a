"""DICOM in: voxels and affines against closed forms, against dcm2niix and against highdicom."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom import uid

from medsynth.scans import Scan, is_dicom, read_header, read_scan, split_item
from tests.dicom_files import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    dataset,
    enhanced_of,
    oblique,
    place_of,
    series_of,
    with_meta,
    write,
    write_series,
)
from tests.scans.dicom_out import in_patient

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "dicom"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real DICOM series are not beside the repository")
needs_dcm2niix = pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")


def volume_of(*shape: int, dtype: str = "int16", low: int = -1000, high: int = 2000) -> np.ndarray:
    return np.random.default_rng(7).integers(low, high, size=shape or (5, 6, 8)).astype(dtype)


def converted(folder: Path, out: Path) -> Scan:
    """Return what our NIfTI reader reads of what dcm2niix makes of a folder."""
    out.mkdir(exist_ok=True)
    command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "converted", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = out.glob("*.nii")
    return read_scan(made)


# Series ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "orientation",
    [AXIAL, SAGITTAL, CORONAL, (-1.0, 0, 0, 0, -1, 0), oblique(10, -25, 40), oblique(100, 5, 170)],
    ids=["axial", "sagittal", "coronal", "prone", "oblique", "steep"],
)
@pytest.mark.parametrize("step", [2.5, -2.5], ids=["along", "against"])
def test_every_voxel_lies_where_the_standard_puts_it(tmp_path, orientation, step):
    place = {"orientation": orientation, "origin": (-31.5, 17.25, 400.0), "spacing": (0.8, 0.7), "step": step}
    stored = volume_of()
    path = write_series(series_of(stored, **place, slope=1, intercept=-1024), tmp_path / "ct")
    scan = read_scan(path)
    assert scan.array.shape == (1, 8, 6, 5)
    assert scan.array.dtype == np.float32
    assert scan.spacing == pytest.approx((0.7, 0.8, 2.5), abs=1e-9)
    for index in np.ndindex(stored.shape):
        slice_, row, column = index
        voxel = (column, 5 - row, slice_ if step > 0 else 4 - slice_)
        assert scan.array[(0, *voxel)] == float(stored[index]) - 1024
        np.testing.assert_allclose((scan.affine @ (*voxel, 1))[:3], place_of(index, **place), atol=1e-6)


def test_header_and_scan_agree(tmp_path):
    path = write_series(series_of(volume_of(), orientation=oblique(3, 4, 5)), tmp_path / "ct")
    scan, header = read_scan(path), read_header(path)
    assert (header.shape, header.dtype) == (scan.array.shape, "int16")
    assert header.spacing == pytest.approx(scan.spacing, abs=1e-12)
    assert scan.array.flags.c_contiguous


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, oblique(10, -25, 40), oblique(5, 95, -20)])
def test_three_dimensional_acquisitions_turn_to_right_anterior_superior(tmp_path, orientation):
    place = {"orientation": orientation, "origin": (3.0, 2.0, 1.0), "spacing": (0.8, 0.7), "step": -2.5}
    stored = volume_of(dtype="uint16", low=0)
    slices = series_of(stored, **place, modality="MR", MRAcquisitionType="3D")
    scan = read_scan(write_series(slices, tmp_path / "mr"))
    assert nibabel.aff2axcodes(scan.affine) == ("R", "A", "S")
    assert scan.array.dtype == np.uint16
    assert read_header(tmp_path / "mr").shape == scan.array.shape
    inverse = np.linalg.inv(scan.affine)
    for index in [(0, 0, 0), (1, 2, 3), (4, 5, 7)]:
        voxel = inverse @ (*place_of(index, **place), 1)
        rounded = np.rint(voxel[:3]).astype(int)
        np.testing.assert_allclose(voxel[:3], rounded, atol=1e-5)
        assert scan.array[(0, *rounded)] == stored[index]


def test_rescaling_of_each_slice_counts(tmp_path):
    stored = volume_of(4, 5, 6, dtype="uint16", low=0)
    slices = series_of(stored, modality="PT")
    for number, one in enumerate(slices):
        one.RescaleSlope, one.RescaleIntercept = 0.5 + number, 0
    scan = read_scan(write_series(slices, tmp_path / "pt"))
    expected = stored * (0.5 + np.arange(4))[:, None, None]
    np.testing.assert_array_equal(scan.array[0], expected.transpose(2, 1, 0)[:, ::-1].astype(np.float32))


def test_mixed_pixel_types_of_a_series_stay_exact(tmp_path):
    slices = series_of(volume_of(3, 4, 4, dtype="uint16", low=40000, high=65536))
    slices[1] = series_of(volume_of(3, 4, 4))[1]
    scan = read_scan(write_series(slices, tmp_path / "ct"))
    assert scan.array.dtype == np.int32
    np.testing.assert_array_equal(scan.array[0, :, ::-1, 1].T, volume_of(3, 4, 4)[1])
    assert scan.array.max() > 32767


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
def test_transfer_syntaxes_without_compression_give_the_same(tmp_path, syntax):
    stored = volume_of()
    scan = read_scan(write_series(series_of(stored), tmp_path / "ct", syntax=syntax))
    np.testing.assert_array_equal(scan.array[0], stored.transpose(2, 1, 0)[:, ::-1])


def test_padding_and_windows_change_nothing(tmp_path):
    stored = volume_of()
    stored[:, 0, 0] = -2000
    plain = read_scan(write_series(series_of(stored), tmp_path / "plain"))
    more = series_of(stored, PixelPaddingValue=-2000, WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID")
    np.testing.assert_array_equal(read_scan(write_series(more, tmp_path / "more")).array, plain.array)
    assert plain.array.min() == -2000


def test_a_series_of_a_mixed_folder_is_an_item(tmp_path):
    one, other = volume_of(3, 4, 5), volume_of(4, 4, 5)
    write_series(series_of(one, series="one"), tmp_path / "both")
    for number, made in enumerate(series_of(other, series="other")):
        write(made, tmp_path / f"both/other{number}.dcm")
    series = [series_of(one, series=name)[0].SeriesInstanceUID for name in ("one", "other")]
    for stored, name in ((one, series[0]), (other, series[1])):
        path = f"{tmp_path}/both#series/{name}"
        assert split_item(path) == (tmp_path / "both", f"series/{name}")
        np.testing.assert_array_equal(read_scan(path).array[0], stored.transpose(2, 1, 0)[:, ::-1])
        assert read_header(path).shape == (1, *stored.shape[::-1])


# Pictures --------------------------------------------------------------------------------------------------------------


def picture(**elements: object) -> pydicom.Dataset:
    made = dataset(volume_of(5, 7, dtype="uint16", low=0, high=4096), modality="CR")
    made.BitsStored, made.HighBit = 12, 11
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def test_a_radiograph_is_rows_and_columns(tmp_path):
    made = picture(ImagerPixelSpacing=[0.2, 0.1])
    scan = read_scan(write(made, tmp_path / "thorax"))
    np.testing.assert_array_equal(scan.array[0], with_meta(made).pixel_array)
    assert (scan.array.dtype, scan.spacing) == (np.uint16, (0.2, 0.1))
    np.testing.assert_array_equal(scan.affine[:3, :2], [[0, -0.1], [-0.2, 0], [0, 0]])
    assert scan.attributes == {}


def test_the_calibrated_spacing_comes_first(tmp_path):
    for elements, spacing in (
        ({"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0.4, 0.3]}, (0.4, 0.3)),
        ({"NominalScannedPixelSpacing": [0.5, 0.6]}, (0.5, 0.6)),
        ({}, (1.0, 1.0)),
    ):
        assert read_scan(write(picture(**elements), tmp_path / "one")).spacing == spacing


def test_unused_bits_are_ignored(tmp_path):
    stored = volume_of(4, 4, dtype="int16", low=-2048, high=2048)
    made = dataset((stored & 0x0FFF) | 0x3000, modality="MR")
    made.BitsStored, made.HighBit, made.PixelRepresentation = 12, 11, 1
    np.testing.assert_array_equal(read_scan(write(made, tmp_path / "one")).array[0], stored)


def test_a_single_slice_lies_in_the_patient(tmp_path):
    place = {"orientation": oblique(10, 20, 30), "origin": (1.0, 2.0, 3.0), "spacing": (0.8, 0.7), "step": 4.0}
    stored = volume_of(1, 6, 8)
    scan = read_scan(write(series_of(stored, **place)[0], tmp_path / "one.dcm"))
    np.testing.assert_array_equal(scan.array[0], stored[0])
    for row, column in ((0, 0), (5, 7), (2, 3)):
        expected = place_of((0, row, column), **place)
        np.testing.assert_allclose((scan.affine @ (row, column, 0, 1))[:3], expected, atol=1e-6)
    assert np.linalg.norm(scan.affine[:3, 2]) == pytest.approx(4)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_file_without_preamble_is_read(tmp_path, bits):
    made = dataset(volume_of(3, 4, dtype=f"uint{bits}", low=0, high=256), modality="CR")
    for implicit in (True, False):
        path = tmp_path / f"one{implicit}.dcm"
        pydicom.dcmwrite(path, made, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
        np.testing.assert_array_equal(read_scan(path).array[0], volume_of(3, 4, low=0, high=256))
        assert not is_dicom(path.rename(tmp_path / "none"))


def test_big_endian(tmp_path):
    made = dataset(volume_of(3, 5), modality="MR")
    made.PixelData = volume_of(3, 5).astype(">i2").tobytes()
    path = write(made, tmp_path / "one", syntax=uid.ExplicitVRBigEndian)
    np.testing.assert_array_equal(read_scan(path).array[0], volume_of(3, 5))


# Enhanced multi-frame --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_frame", [True, False])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_enhanced_files_are_read_as_their_slices(tmp_path, per_frame, modality):
    slices = series_of(volume_of(), orientation=oblique(7, 8, 9), modality=modality, slope=2, intercept=-1024)
    classic = read_scan(write_series(slices, tmp_path / "classic"))
    shuffled = [slices[number] for number in (3, 0, 4, 1, 2)]
    enhanced = read_scan(write(enhanced_of(shuffled, per_frame=per_frame), tmp_path / "enhanced.dcm"))
    np.testing.assert_array_equal(enhanced.array, classic.array)
    np.testing.assert_allclose(enhanced.affine, classic.affine, atol=1e-9)
    assert read_header(tmp_path / "enhanced.dcm").shape == classic.array.shape


def test_rescaling_of_each_frame_counts(tmp_path):
    slices = series_of(volume_of(3, 4, 4), slope=1, intercept=0)
    for number, one in enumerate(slices):
        one.RescaleSlope, one.RescaleIntercept = number + 1, -number
    scan = read_scan(write(enhanced_of(slices), tmp_path / "enhanced"))
    expected = volume_of(3, 4, 4) * np.array([1, 2, 3])[:, None, None] - np.arange(3)[:, None, None]
    np.testing.assert_array_equal(scan.array[0], expected.transpose(2, 1, 0)[:, ::-1])


def test_an_enhanced_file_of_one_frame_is_a_picture(tmp_path):
    slices = series_of(volume_of(1, 4, 5))
    scan = read_scan(write(enhanced_of(slices), tmp_path / "enhanced"))
    np.testing.assert_array_equal(scan.array[0], volume_of(1, 4, 5)[0])


# Oracles ---------------------------------------------------------------------------------------------------------------


@real
@needs_dcm2niix
@pytest.mark.parametrize("name", ["ct_phantom", "mr_t1_sagittal"])
def test_real_series_are_read_as_dcm2niix_reads_them(tmp_path, name):
    scan, expected = read_scan(REAL / name), converted(REAL / name, tmp_path)
    np.testing.assert_array_equal(scan.array, expected.array)
    np.testing.assert_allclose(scan.affine, expected.affine, atol=1e-4)


@needs_dcm2niix
@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, oblique(10, -25, 20), oblique(100, 5, 170)])
@pytest.mark.parametrize(("modality", "acquisition"), [("CT", ""), ("MR", "2D"), ("MR", "3D")])
@pytest.mark.parametrize("step", [2.5, -2.5])
def test_made_series_are_read_as_dcm2niix_reads_them(tmp_path, orientation, modality, acquisition, step):
    slices = series_of(
        volume_of(low=0 if modality == "MR" else -1000),
        orientation=orientation,
        step=step,
        modality=modality,
        slope=1,
        intercept=-1024 if modality == "CT" else 0,
        Manufacturer="SIEMENS",
        MRAcquisitionType=acquisition,
    )
    scan = read_scan(write_series(slices, tmp_path / "series"))
    expected = converted(tmp_path / "series", tmp_path / "out")
    np.testing.assert_allclose(scan.affine, expected.affine, atol=1e-4)
    np.testing.assert_array_equal(scan.array, expected.array)


@needs_dcm2niix
def test_a_single_slice_is_the_picture_that_dcm2niix_reads(tmp_path):
    made = series_of(
        volume_of(1, 6, 8), orientation=oblique(10, 20, 5), slope=1, intercept=-1024, Manufacturer="SIEMENS"
    )
    scan = read_scan(write(made[0], tmp_path / "one/IM1"))
    expected = converted(tmp_path / "one", tmp_path / "out")
    (ours, affine), (theirs, place) = (in_patient(replace(one, array=one.array[..., None])) for one in (scan, expected))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(affine, place, atol=1e-4)


def test_series_are_read_as_highdicom_reads_them(tmp_path):
    highdicom = pytest.importorskip("highdicom")
    slices = series_of(volume_of(), orientation=oblique(10, -25, 40), slope=2, intercept=-1024)
    scan = read_scan(write_series(slices, tmp_path / "ct"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = highdicom.get_volume_from_series([with_meta(one) for one in slices])
    theirs = theirs.to_patient_orientation(nibabel_codes(scan))
    np.testing.assert_array_equal(scan.array[0], theirs.array)
    np.testing.assert_allclose(scan.affine, np.diag([-1, -1, 1, 1]) @ theirs.affine, atol=1e-6)


@real
@pytest.mark.parametrize("name", ["ct_phantom", "mr_t1_sagittal"])
def test_real_series_are_read_as_highdicom_reads_them(name):
    highdicom = pytest.importorskip("highdicom")
    scan = read_scan(REAL / name)
    files = [file for file in (REAL / name).iterdir() if is_dicom(file)]
    slices = [one for one in map(pydicom.dcmread, files) if "PixelData" in one]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = highdicom.get_volume_from_series(slices).to_patient_orientation(nibabel_codes(scan))
    np.testing.assert_array_equal(scan.array[0], theirs.array)
    np.testing.assert_allclose(scan.affine, np.diag([-1, -1, 1, 1]) @ theirs.affine, atol=1e-3)


def nibabel_codes(scan: Scan) -> str:
    """Return the axes of a scan in highdicom's letters."""
    letters = {"R": "R", "L": "L", "A": "A", "P": "P", "S": "H", "I": "F"}
    return "".join(letters[code] for code in nibabel.aff2axcodes(scan.affine))
