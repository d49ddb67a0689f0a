"""The rows of FAULTS.md that DICOM files can show: refused in one line that names file and reason, in bounded memory."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from medsynth.config import Loading
from medsynth.scans import read_scan
from medsynth.scans.dicom import elements
from tests.dicom_files import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    enhanced_of,
    new_uid,
    noise,
    oblique,
    picture,
    series_of,
    write,
    write_series,
)
from tests.scans.refusing import peak_of, refused


def ct(**elements: object) -> list[Dataset]:
    """Return six slices at distances of 5 mm."""
    return series_of(noise(6, 6, 8), step=5, **elements)


def test_fault_04_deflated_bomb(tmp_path):
    """A deflated file is refused by its transfer syntax, before a byte of it is inflated."""
    write(picture(), tmp_path / "bomb", syntax=uid.DeflatedExplicitVRLittleEndian)
    content = (tmp_path / "bomb").read_bytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(288)) + packer.flush()
    (tmp_path / "bomb").write_bytes(content[: content.index(b"1.2.840.10008.1.2.1.99") + 22] + body)
    assert "not deflated, got Deflated Explicit VR Little Endian; try gdcmconv --raw" in refused(
        tmp_path / "bomb", header=True
    )
    said, peak = peak_of(tmp_path / "bomb")
    assert "try gdcmconv --raw" in said
    assert peak < 40


def test_a_header_that_claims_too_much(tmp_path):
    for rows, columns, frames in ((65535, 65535, 1), (512, 512, 2**31 - 1)):
        path = write(picture(Rows=rows, Columns=columns, NumberOfFrames=frames), tmp_path / "one")
        refused(path, header=True)
        said, peak = peak_of(path)
        assert said.startswith(str(path))
        assert peak < 40
    enhanced = enhanced_of(series_of(noise(3, 6, 8)))
    enhanced.NumberOfFrames = 2**31 - 1
    assert "need a description of each of 2147483647 frames, got 3" in refused(write(enhanced, tmp_path / "one"))


def test_the_budget_counts_the_whole_series(tmp_path):
    path = write_series(series_of(noise(5, 512, 512)), tmp_path / "ct")
    assert "at most 2 MiB decoded, got 512 x 512 x 5 of int16, 3 MiB" in refused(path, loading=Loading(max_mib=2))
    assert read_scan(path, loading=Loading(max_mib=3)).array.shape == (1, 512, 512, 5)


def test_a_header_longer_than_any(tmp_path, monkeypatch):
    monkeypatch.setattr(elements, "_HEADER_ROOM", 2 << 20)
    made = picture()
    made.PatientID = "x" * 65000
    made.add_new(0x00091001, "UN", bytes(3 << 20))
    write(made, tmp_path / "one")
    read_scan(tmp_path / "one")  # what nobody asks for is skipped
    nested = Dataset()
    nested.add_new(0x00091001, "UN", bytes(3 << 20))
    made.ReferencedImageSequence = [nested]
    made["ReferencedImageSequence"].is_undefined_length = True
    assert "need a header of at most 2048 KiB" in refused(write(made, tmp_path / "one"), header=True)


# Geometry --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [[0.0, 0.7], [0.8, -0.7]])
def test_fault_09_pixel_spacing_that_is_none(tmp_path, spacing):
    path = write_series(ct(PixelSpacing=spacing), tmp_path / "ct")
    assert "need finite voxel sizes above 0 mm" in refused(path, header=True)
    refused(path / "IM1")


@pytest.mark.parametrize(
    "orientation", [(0.0,) * 6, (1.0, 0, 0, 1, 0, 0), (2.0, 0, 0, 0, 1, 0), (1.0, 0, 0, 0, 0.9, 0.1)]
)
def test_fault_09_orientation_that_is_none(tmp_path, orientation):
    path = write_series(ct(ImageOrientationPatient=list(orientation)), tmp_path / "ct")
    assert "need rows and columns at right angles" in refused(path, header=True)
    refused(path / "IM1")


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "x", "1\\2", "1\\2\\3\\4"])
def test_fault_09_positions_that_are_none(tmp_path, value):
    path = write_series(ct(), tmp_path / "ct")
    file = path / "IM3"
    content = file.read_bytes()
    at = content.index(b"\x20\0\x32\0DS")
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    text = f"{value}\\0\\0" if value.count("\\") == 0 else value
    file.write_bytes(content[: at + 8] + text.encode().ljust(length)[:length] + content[at + 8 + length :])
    assert "IM3: need a readable DICOM file" in refused(path)


@pytest.mark.parametrize("missing", [1, 3, 4])
def test_fault_13_series_with_a_missing_slice(tmp_path, missing):
    path = write_series(ct()[:missing] + ct()[missing + 1 :], tmp_path / "ct")
    said = refused(path, header=True)
    assert "need slices at even distances, got 10 mm between" in said
    assert "others are 5 mm (a missing slice?)" in said
    refused(path)


def test_fault_13_enhanced_file_with_a_missing_frame(tmp_path):
    slices = series_of(noise(6, 6, 8), step=5)
    path = write(enhanced_of(slices[:2] + slices[3:]), tmp_path / "one")
    assert "got 10 mm between frame 2 and frame 3" in refused(path)


def test_distances_that_headers_round_are_even(tmp_path):
    slices = series_of(noise(9, 6, 8), step=0.625)
    for one in slices:
        one.ImagePositionPatient = [f"{float(value):.2f}" for value in one.ImagePositionPatient]
    scan = read_scan(write_series(slices, tmp_path / "ct"))
    assert scan.spacing[2] == pytest.approx(0.625, abs=1e-3)


def test_fault_14_two_series_in_one_folder(tmp_path):
    path = write_series(series_of(noise(3, 6, 8), series="one"), tmp_path / "both")
    for number, made in enumerate(series_of(noise(4, 6, 8), series="other")):
        write(made, path / f"other{number}")
    said = refused(path)
    assert "need one series, got 2" in said
    for name, count in (("one", 3), ("other", 4)):
        assert f"{new_uid('series', name)} ({count} CT)" in said
    assert f"try {path}#series/{new_uid('series', 'one')}" in said
    assert "none of this SeriesInstanceUID" in refused(f"{path}#series/1.2.3")


def test_fault_14_a_duplicate_instance(tmp_path):
    path = write_series(ct(), tmp_path / "ct")
    (path / "copy").write_bytes((path / "IM3").read_bytes())
    said = refused(path)
    assert "got 7 slices at 6 positions, such as " in said
    assert "IM3" in said
    assert "copy" in said


def test_fault_14_several_times_in_one_series(tmp_path):
    path = write_series(ct() + ct(SOPInstanceUID="1.2"), tmp_path / "ct")
    assert "got 12 slices at 6 positions" in refused(path)
    slices = series_of(noise(3, 6, 8))
    assert "got 6 slices at 3 positions" in refused(write(enhanced_of(slices + slices), tmp_path / "enhanced"))


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"ImageOrientationPatient": list(oblique(2, 0, 0))}, "one orientation, got 2"),
        ({"PixelSpacing": [0.8, 0.75]}, "one pixel spacing"),
        ({"Rows": 8, "Columns": 6}, "one size, got "),
        ({"ImagePositionPatient": None}, "need ImagePositionPatient, ImageOrientationPatient and PixelSpacing"),
        ({"PixelSpacing": None}, "PixelSpacing of every slice, got IM"),
    ],
)
def test_slices_that_make_no_volume(tmp_path, elements, said):
    slices = ct()
    for keyword, value in elements.items():
        setattr(slices[4], keyword, value)
    assert said in refused(write_series(slices, tmp_path / "ct"), header=True)


def test_a_localizer_of_three_planes(tmp_path):
    slices = [series_of(noise(1, 6, 8), orientation=plane)[0] for plane in (AXIAL, SAGITTAL, CORONAL)]
    for number, one in enumerate(slices):
        one.SOPInstanceUID = f"1.2.{number}"
    assert "got 3 (a localizer?)" in refused(write_series(slices, tmp_path / "scout"))


def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path):
    step = np.array([0, 0, 3 / np.cos(np.radians(12.5))])
    path = write_series(series_of(noise(6, 6, 8), orientation=oblique(12.5, 0, 0), step=step), tmp_path / "ct")
    assert "a gantry tilt of 12.5 degrees; try correcting it with dcm2niix" in refused(path, header=True)
    slices = series_of(noise(6, 6, 8), step=step)
    slices[3].ImagePositionPatient = [-29, -20, float(slices[3].ImagePositionPatient[2])]
    assert "mm beside the others" in refused(write_series(slices, tmp_path / "shifted"))
