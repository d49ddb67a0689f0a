"""The rows of FAULTS.md that DICOM files can show: refused in one line that names file and reason, in bounded memory."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

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
    dataset,
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


def deflated(made: Dataset, count: int, path: Path) -> Path:
    """Write a deflated file whose pixels are `count` zero bytes, without holding them."""
    made.PixelData = b""
    write(made, path, syntax=uid.ExplicitVRLittleEndian)
    content = path.read_bytes()
    start = content.index(b"\x08\0\x05\0") if b"\x08\0\x05\0" in content else content.index(b"\x08\0\x08\0")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head, pixels = content[:start], content[start:]
    at = pixels.index(b"\xe0\x7f\x10\0")
    body = packer.compress(pixels[:at] + pixels[at : at + 8] + struct.pack("<I", count))
    body += b"".join(packer.compress(bytes(1 << 20)) for _ in range(count >> 20))
    body += packer.compress(bytes(count & 0xFFFFF)) + packer.flush()
    old = uid.ExplicitVRLittleEndian.encode() + b"\0"
    new = uid.DeflatedExplicitVRLittleEndian.encode()
    head = head.replace(struct.pack("<H", len(old)) + old, struct.pack("<H", len(new)) + new)
    path.write_bytes(head + body)
    return path


def test_the_deflated_files_of_these_tests_are_sound(tmp_path):
    made = dataset(np.zeros((6, 8), np.int16), modality="MR")
    scan = read_scan(deflated(made, 96, tmp_path / "one"))
    np.testing.assert_array_equal(scan.array, np.zeros((1, 6, 8)))


def test_fault_04_deflated_bomb(tmp_path):
    made = dataset(np.zeros((12000, 12000), np.uint16), modality="CR")
    path = deflated(made, 288_000_000, tmp_path / "bomb")
    assert path.stat().st_size < 300_000
    assert "which no scan does" in refused(path, header=True)
    said, peak = peak_of(path)
    assert "288000000 bytes of pixels deflated to" in said
    assert peak < 60
    said, peak = peak_of(path, max_mib=100)
    assert peak < 60


def test_fault_04_deflated_bomb_behind_a_small_header(tmp_path):
    path = deflated(picture(), 288_000_000, tmp_path / "bomb")
    assert "need 96 bytes of pixels" in refused(path)
    said, peak = peak_of(path)
    assert "got 288000000" in said
    assert peak < 60


def test_fault_04_deflated_bomb_before_the_pixels(tmp_path):
    made = picture()
    made.add_new(0x00091001, "OB", b"")
    path = tmp_path / "bomb"
    write(made, path)
    content = path.read_bytes()
    private = content.index(b"\x09\0\x01\x10OB\0\0")
    start = content.index(b"\x08\0\x08\0")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(content[start : private + 8] + struct.pack("<I", 200 << 20))
    body += b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.compress(content[private + 12 :])
    old, new = uid.ExplicitVRLittleEndian.encode() + b"\0", uid.DeflatedExplicitVRLittleEndian.encode()
    head = content[:start].replace(struct.pack("<H", len(old)) + old, struct.pack("<H", len(new)) + new)
    path.write_bytes(head + body + packer.flush())
    assert "need pixels within 16 MiB" in refused(path, header=True)
    assert peak_of(path)[1] < 60


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
    assert "a gantry tilt of 12.5 degrees; try --tilt resample" in refused(path, header=True)
    slices = series_of(noise(6, 6, 8), step=step)
    slices[3].ImagePositionPatient = [-29, -20, float(slices[3].ImagePositionPatient[2])]
    assert "mm beside the others" in refused(write_series(slices, tmp_path / "shifted"))
