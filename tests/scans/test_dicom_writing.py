"""DICOM out: written and read again, and what the files say."""

from __future__ import annotations

import datetime
import getpass
import socket
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import orientations

from medsynth.errors import ConfigError, DataError
from medsynth.scans import PICTURE_AFFINE, read_header, read_scan, write_dicom, write_scan
from tests.dicom_files import oblique, series_of, write_series
from tests.scans.dicom_out import (
    AXIAL,
    PROVENANCE,
    assert_same_volume,
    content_of,
    files_of,
    headers_of,
    in_patient,
    scan_of,
    values,
)

# There and back --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    origin=st.tuples(*[st.floats(-1500, 1500)] * 3),
    spacing=st.tuples(*[st.floats(0.05, 8)] * 3),
    mirrored=st.booleans(),
    modality=st.sampled_from(["CT", "MR"]),
)
def test_any_volume_comes_back(tmp_path_factory, angles, origin, spacing, mirrored, modality):
    turned = oblique(*angles)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([turned[:3], turned[3:], np.cross(turned[:3], turned[3:])], axis=1) * spacing
    affine[:3, 2] *= -1 if mirrored else 1
    affine[:3, 3] = origin
    scan = scan_of(values(low=0 if modality == "MR" else -1000), affine)
    path = tmp_path_factory.mktemp("any") / "series"
    write_dicom(scan, path, modality=modality)
    assert_same_volume(read_scan(path), scan, atol=1e-8)


@pytest.mark.parametrize("codes", ["SPL", "LAS", "RAS", "PIR", "ILA"])
@pytest.mark.parametrize(("thick", "planes"), [(None, "axial"), (0, "sagittal"), (1, "coronal"), (2, "axial")], ids=str)
def test_slices_are_as_radiologists_look_at_them(tmp_path, codes, thick, planes):
    wanted = orientations.axcodes2ornt(codes)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, flip) in enumerate(wanted):
        affine[int(world), axis] = flip * (4.0 if int(world) == thick else 1.0)
    write_dicom(scan_of(values(), affine), tmp_path / "series", modality="CT")
    expected = {"axial": [1, 0, 0, 0, 1, 0], "sagittal": [0, 1, 0, 0, 0, -1], "coronal": [1, 0, 0, 0, 0, -1]}
    headers = headers_of(tmp_path / "series")
    normal = np.cross(expected[planes][:3], expected[planes][3:])
    places = [np.array(one.ImagePositionPatient, dtype=float) for one in headers]
    for number, one in enumerate(headers):
        assert [float(cosine) for cosine in one.ImageOrientationPatient] == expected[planes]
        assert one.InstanceNumber == number + 1
        assert one.SpacingBetweenSlices == one.SliceThickness == (1 if thick is None else 4)
    assert all((after - before) @ normal > 0 for before, after in pairwise(places))
    assert_same_volume(read_scan(tmp_path / "series"), scan_of(values(), affine), atol=1e-9)


def test_each_voxel_lies_where_the_standard_puts_it(tmp_path):
    """By PS3.3, C.7.6.2.1.1, from the elements alone, and not by our reader."""
    turned = np.array(oblique(10, -25, 40)).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([*turned, np.cross(*turned)], axis=1) * (0.7, 0.8, 3)
    affine[:3, 3] = (12, -34, 56)
    scan = scan_of(values(), affine)
    write_dicom(scan, tmp_path / "ct", modality="CT")
    seen = 0
    for one in headers_of(tmp_path / "ct"):
        stored = one.pixel_array * one.RescaleSlope + one.RescaleIntercept
        across, along = np.array(one.ImageOrientationPatient, dtype=float).reshape(2, 3)
        for row, column in np.ndindex(stored.shape):
            place = (
                np.array(one.ImagePositionPatient, dtype=float)
                + across * one.PixelSpacing[1] * column
                + along * one.PixelSpacing[0] * row
            )
            voxel = np.linalg.inv(affine) @ (-place[0], -place[1], place[2], 1)
            index = np.rint(voxel[:3]).astype(int)
            np.testing.assert_allclose(voxel[:3], index, atol=1e-8)
            assert stored[row, column] == scan.array[(0, *index)]
            seen += 1
    assert seen == scan.array.size


def test_what_the_reader_gives_comes_back_as_it_was(tmp_path):
    for modality, acquisition in (("CT", ""), ("MR", "3D")):
        slices = series_of(
            values(5, 6, 8, low=0), orientation=oblique(4, 5, 6), modality=modality, MRAcquisitionType=acquisition
        )
        first = read_scan(write_series(slices, tmp_path / f"{modality} given"))
        write_dicom(replace(first, provenance=PROVENANCE), tmp_path / modality, modality=modality)
        again = read_scan(tmp_path / modality)
        np.testing.assert_array_equal(again.array, first.array)
        np.testing.assert_allclose(again.affine, first.affine, rtol=0, atol=1e-9)


@pytest.mark.parametrize("modality", ["CT", "MR", "CR", "OT"])
def test_pictures_are_one_file(tmp_path, modality):
    affine = PICTURE_AFFINE @ np.diag([0.2, 0.1, 1, 1])
    if modality in ("CT", "MR"):
        turned = oblique(10, 20, 30)
        normal = np.cross(turned[3:], turned[:3])
        affine[:3, :3] = np.stack([np.array(turned[:3]) * 0.2, np.array(turned[3:]) * 0.1, normal * -3], axis=1)
        affine[:3, 2] *= np.sign(-np.linalg.det(affine[:3, :3]))
        affine[:3, 3] = (4, 5, 6)
    scan = scan_of(values(1, 7, 9, low=0, dtype="uint16"), affine)
    write_dicom(scan, tmp_path / "one.dcm", modality=modality)
    again = read_scan(tmp_path / "one.dcm")
    np.testing.assert_array_equal(again.array, scan.array)
    np.testing.assert_allclose(again.affine, affine, rtol=0, atol=1e-9)
    assert read_header(tmp_path / "one.dcm").modality == modality


# Values ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "modality", "stored"),
    [
        (values(), "CT", "int16"),
        (values().astype(np.float32), "CT", "int16"),
        (values(dtype="uint8", low=0, high=256), "CT", "int16"),
        (values(dtype="int64", low=20_000, high=80_000), "CT", "int16"),
        (values(low=0, high=65_536, dtype="uint16"), "MR", "uint16"),
        (values(), "MR", "int16"),
        (values(dtype="int32", low=-50_000, high=10_000), "MR", "uint16"),
        (values(1, 7, 9, dtype="uint8", low=0, high=256), "CR", "uint8"),
        (values(1, 7, 9, dtype="float64", low=0, high=4096), "CR", "uint16"),
        (values(1, 7, 9), "OT", "int16"),
        (values(1, 7, 9, low=0, high=2).astype(bool), "OT", "uint8"),
    ],
)
def test_whole_numbers_are_exact(tmp_path, array, modality, stored):
    path = tmp_path / ("one.dcm" if array.ndim == 3 else "series")
    write_dicom(scan_of(array), path, modality=modality)
    assert_same = np.testing.assert_array_equal if array.ndim == 3 else assert_same_volume
    if array.ndim == 3:
        assert_same(read_scan(path).array, array)
    else:
        assert_same(read_scan(path), scan_of(array), 1e-9)
    assert {one.pixel_array.dtype.name for one in headers_of(path)} == {stored}
    if modality == "CT" and abs(array.max()) < 32_768:
        assert {(one.RescaleSlope, one.RescaleIntercept, one.RescaleType) for one in headers_of(path)} == {(1, 0, "HU")}
    if modality == "MR" and array.dtype != np.int32:  # the standard knows no rescaling of MR
        assert not any("RescaleSlope" in one for one in headers_of(path))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
@pytest.mark.parametrize("modality", ["CT", "MR", "CR", "OT"])
def test_other_numbers_are_as_near_as_sixteen_bits_are(tmp_path, scale, modality):
    array = np.random.default_rng(1).normal(3, 1, (1, 40, 50)) * scale
    write_dicom(scan_of(array), tmp_path / "one.dcm", modality=modality)
    again = read_scan(tmp_path / "one.dcm").array
    spread = array.max() - array.min()
    assert np.abs(again - array).max() <= spread / 131070 * 1.001 + np.abs(array).max() * 1e-7  # it reads float32


def test_a_constant_that_is_not_whole_stays(tmp_path):
    write_dicom(scan_of(np.full((1, 3, 4), 0.1)), tmp_path / "one.dcm", modality="OT")
    np.testing.assert_allclose(read_scan(tmp_path / "one.dcm").array, 0.1, rtol=1e-7)


def test_slices_of_a_volume_share_one_rescaling(tmp_path):
    ramp = np.linspace(0, 1, 240, dtype=np.float32).reshape(1, 5, 6, 8)
    write_dicom(scan_of(ramp), tmp_path / "mr", modality="MR")
    assert len({(one.RescaleSlope, one.RescaleIntercept) for one in headers_of(tmp_path / "mr")}) == 1
    np.testing.assert_allclose(in_patient(read_scan(tmp_path / "mr"))[0], in_patient(scan_of(ramp))[0], atol=1e-5)


# What the files say ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["CT", "MR", "CR", "OT"])
def test_every_file_says_that_it_is_synthetic_and_nothing_of_anyone(tmp_path, modality):
    array = values(low=0) if modality in ("CT", "MR") else values(1, 7, 9, low=0)
    path = tmp_path / ("series" if array.ndim == 4 else "one.dcm")
    write_dicom(scan_of(array), path, modality=modality, patient_id="SYNTH-00ff")
    kinds = {"CT": "CT Image", "MR": "MR Image", "CR": "Computed Radiography Image", "OT": "Secondary Capture Image"}
    for one in headers_of(path):
        assert one.SOPClassUID.name == f"{kinds[modality]} Storage"
        assert one.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert one.SyntheticData == "YES"
        purpose = one.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0]
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
        assert purpose.CodeMeaning == "Synthesizing Equipment"
        assert list(one.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert one.SeriesDescription == f"SYNTHETIC {modality} rare"
        assert "seed=7" in one.DerivationDescription
        assert one.Manufacturer == "Synthetic"
        assert (one.PatientID, one.PatientName) == ("SYNTH-00ff", "SYNTH^00ff")
        assert not any(element.value for element in one.iterall() if element.VR in ("DA", "TM", "DT", "AS"))
        assert not {"PatientIdentityRemoved", "BurnedInAnnotation", "InstitutionName", "StationName"} & set(one.dir())
    said = b"".join(content_of(path).values())
    for word in (str(datetime.date.today().year), socket.gethostname(), str(tmp_path), getpass.getuser() + "@"):
        assert word.encode() not in said
    headers = headers_of(path)
    assert len({one.SOPInstanceUID for one in headers}) == len(headers)
    assert len({(one.StudyInstanceUID, one.SeriesInstanceUID, one.get("FrameOfReferenceUID")) for one in headers}) == 1
    assert read_header(path).modality == modality


def test_equal_scans_are_equal_files_and_others_have_other_uids(tmp_path):
    scan = scan_of(values())
    other = values()
    other[0, 0, 0, 0] += 1
    variants = {
        "one": scan,
        "two": replace(scan, array=scan.array.copy()),
        "voxel": replace(scan, array=other),
        "place": replace(scan, affine=AXIAL + np.eye(4, k=3)),
        "seed": replace(scan, provenance=PROVENANCE | {"seed": "8"}),
    }
    for name, variant in variants.items():
        write_dicom(variant, tmp_path / name, modality="CT", patient_id="SYNTH-1")
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")
    uids = [
        {str(element.value) for one in headers_of(tmp_path / name) for element in one if element.tag.group == 0x20}
        | {one.SOPInstanceUID for one in headers_of(tmp_path / name)}
        for name in ("one", "voxel", "place", "seed")
    ]
    mine = [{word for word in found if word.startswith("1.2.826.0.1.3680043.8.498.")} for found in uids]
    assert all(len(found) == 8 for found in mine)  # study, series, frame of reference, 5 instances
    assert len(set().union(*mine)) == 4 * 8
    write_dicom(scan, tmp_path / "unnamed", modality="CT")
    assert headers_of(tmp_path / "unnamed")[0].PatientID.startswith("SYNTH-")


def test_labels_and_provenance_of_any_kind_are_said_in_bounds(tmp_path):
    scan = scan_of(values(1, 4, 5), label="milchglas\\größe\n" * 20, provenance={"generator": "x" * 5000, "a": "ü\\\0"})
    write_dicom(scan, tmp_path / "one.dcm", modality="CT")
    (one,) = headers_of(tmp_path / "one.dcm")
    assert one.SeriesDescription.startswith("SYNTHETIC CT milchglas/größe")
    assert len(one.SeriesDescription) <= 64
    assert len(one.DerivationDescription.encode()) <= 1024


# Whole or absent -------------------------------------------------------------------------------------------------------


def test_a_series_is_whole_or_absent(tmp_path, monkeypatch):
    from medsynth.scans.dicom import writing

    whole, count = writing.write_bytes, iter(range(9))

    def full(path: Path, content: bytes) -> None:
        if next(count) == 3:
            raise OSError(28, "No space left on device", str(path))
        whole(path, content)

    monkeypatch.setattr(writing, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_dicom(scan_of(values()), tmp_path / "series", modality="CT")
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_cleared_away(tmp_path):
    left = tmp_path / ".unfinished-series"
    left.mkdir()
    (left / "0009.dcm").write_bytes(b"half")
    write_dicom(scan_of(values()), tmp_path / "series", modality="CT")
    assert [path.name for path in tmp_path.iterdir()] == ["series"]
    assert [path.name for path in files_of(tmp_path / "series")] == [f"000{number}.dcm" for number in range(1, 6)]


def test_another_folder_is_never_replaced(tmp_path):
    write_dicom(scan_of(values()), tmp_path / "series", modality="CT")
    before = content_of(tmp_path / "series")
    with pytest.raises(ConfigError, match="need a new folder for a series"):
        write_dicom(scan_of(values() + 1), tmp_path / "series", modality="CT")
    assert content_of(tmp_path / "series") == before


SHEARED = AXIAL @ (np.eye(4) + 0.1 * np.eye(4, k=1) * [0, 0, 1, 0])


@pytest.mark.parametrize(
    ("scan", "options", "error", "message"),
    [
        (scan_of(values(), provenance={}), {}, ConfigError, "need a scan with provenance"),
        (scan_of(values(2, 4, 5, 6)), {}, ConfigError, "need a scan of one channel"),
        (scan_of(values(1, 1, 5, 6)), {}, ConfigError, "need at least 2 slices"),
        (scan_of(values(), SHEARED), {}, ConfigError, r"need axes at right angles for DICOM, got 83\.5 degrees"),
        (scan_of(values()), {"modality": "CR"}, ConfigError, "need modality CT or MR for a volume"),
        (scan_of(values()), {"modality": "DX"}, ConfigError, "need modality CT, MR, CR, OT, got 'DX'"),
        (scan_of(values()), {"patient_id": "Doe^John"}, ConfigError, "need a patient_id of SYNTH-"),
        (scan_of(values(1, 0, 5)), {}, DataError, "need a scan"),
        (scan_of(np.full((1, 3, 4), np.nan)), {}, DataError, "need finite voxels"),
        (scan_of(np.array([[[-1.5e308, 1.5e308]]])), {}, ConfigError, "need values whose range is a number"),
        (scan_of(values(1, 3, 4).astype(complex)), {}, DataError, "of real numbers in 2D or 3D"),
    ],
)
def test_what_dicom_cannot_hold_is_refused(tmp_path, scan, options, error, message):
    with pytest.raises(error, match=message):
        write_dicom(scan, tmp_path / "out", **{"modality": "CT"} | options)
    assert list(tmp_path.iterdir()) == []


def test_write_scan_leads_to_write_dicom(tmp_path):
    with pytest.raises(ConfigError, match="for DICOM try write_dicom"):
        write_scan(scan_of(values()), tmp_path / "one.dcm")
