"""DICOM out, judged by others: read by dcm2niix and highdicom, validated by dciodvfy and dcentvfy."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsynth.config import Loading
from medsynth.errors import ConfigError, DataError
from medsynth.scans import Scan, read_scan, write_dicom, write_segmentation
from tests.dicom_files import oblique, series_of, write_series
from tests.scans.dicom_out import (
    AXIAL,
    PROVENANCE,
    assert_same_volume,
    converted,
    files_of,
    headers_of,
    scan_of,
    values,
)

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "dicom"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real DICOM series are not beside the repository")
needs_dcm2niix = pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
needs_dciodvfy = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools are not installed")

# Releases before 2026 do not know Synthetic Data, which the standard has since gained.
ALLOWED = "Error - </(0008,001c)> - Attribute with an even group number is not a recognized standard attribute"


# Masks -----------------------------------------------------------------------------------------------------------------


def test_a_mask_lies_on_its_scan(tmp_path):
    highdicom = pytest.importorskip("highdicom")
    scan = scan_of(values())
    mask = Scan(array=(scan.array > 500).astype(np.uint8), affine=AXIAL)
    write_dicom(scan, tmp_path / "ct", modality="CT")
    write_segmentation(mask, tmp_path / "seg.dcm", images=tmp_path / "ct", label="ground glass")
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    images = headers_of(tmp_path / "ct")
    order = [one.SOPInstanceUID for one in images]
    frames = seg.get_pixels_by_source_instance(order)[..., 0]
    np.testing.assert_array_equal(frames, mask.array[0])  # slice, row, column, as the files are
    assert (seg.PatientID, seg.StudyInstanceUID) == (images[0].PatientID, images[0].StudyInstanceUID)
    assert seg.FrameOfReferenceUID == images[0].FrameOfReferenceUID
    assert (seg.SyntheticData, seg.get_segment_description(1).segment_label) == ("YES", "ground glass")
    assert seg.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109100"
    assert {element.value for element in seg.iterall() if element.VR == "DA" and element.value} == {"19000101"}
    write_segmentation(mask, tmp_path / "again.dcm", images=tmp_path / "ct", label="ground glass")
    assert (tmp_path / "again.dcm").read_bytes() == (tmp_path / "seg.dcm").read_bytes()
    with pytest.raises(DataError, match="need an image, got Segmentation Storage"):
        read_scan(tmp_path / "seg.dcm")


def test_masks_of_other_scans_are_refused(tmp_path):
    write_dicom(scan_of(values()), tmp_path / "ct", modality="CT")
    write_dicom(scan_of(values(1, 4, 5)), tmp_path / "cr.dcm", modality="CR")
    write_series(series_of(values(3, 4, 5)), tmp_path / "real")
    mask = Scan(array=np.ones((1, 5, 6, 8), dtype=bool), affine=AXIAL)
    for images, given_mask, message in (
        ("ct", replace(mask, affine=AXIAL + np.eye(4, k=3)), "need a mask on the grid of the images"),
        ("ct", replace(mask, array=mask.array[:, :3]), "need a mask on the grid of the images"),
        ("real", mask, "need synthetic images"),
        ("cr.dcm", mask, "need CT or MR for a SEG"),
        ("none", mask, "need the DICOM that write_dicom wrote"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_segmentation(given_mask, tmp_path / "seg.dcm", images=tmp_path / images)
    assert not (tmp_path / "seg.dcm").exists()


# Oracles ---------------------------------------------------------------------------------------------------------------


@needs_dcm2niix
@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("angles", [(0, 0, 0), (10, -25, 20), (100, 5, 170), (-90, 0, 90)])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "floats"])
def test_dcm2niix_reads_the_same_volume(tmp_path, modality, angles, whole):
    turned = oblique(*angles)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([turned[:3], turned[3:], np.cross(turned[:3], turned[3:])], axis=1) * (0.7, 0.8, 2.5)
    affine[:3, 3] = (12, -34, 156)
    array = values(low=0 if modality == "MR" else -1000)
    scan = scan_of(array if whole else array * np.float32(0.37), affine)
    write_dicom(scan, tmp_path / "series", modality=modality)
    ours, theirs = read_scan(tmp_path / "series"), converted(tmp_path / "series", tmp_path / "out")
    assert theirs.array.shape == ours.array.shape
    np.testing.assert_allclose(theirs.affine, ours.affine, rtol=0, atol=1e-4)
    np.testing.assert_allclose(theirs.array, ours.array, rtol=0, atol=0 if whole else 1e-4)
    if whole:
        assert_same_volume(theirs, scan, atol=1e-4)


@real
@needs_dcm2niix
@pytest.mark.parametrize(("name", "modality"), [("ct_phantom", "CT"), ("mr_t1_sagittal", "MR")])
def test_real_series_come_back_unchanged(tmp_path, name, modality):
    scan = read_scan(REAL / name, loading=Loading())
    write_dicom(replace(scan, provenance=PROVENANCE), tmp_path / name, modality=modality)
    again, theirs = read_scan(tmp_path / name), converted(tmp_path / name, tmp_path / "out")
    np.testing.assert_array_equal(again.array, scan.array)
    np.testing.assert_allclose(again.affine, scan.affine, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(theirs.array, scan.array)
    np.testing.assert_allclose(theirs.affine, scan.affine, rtol=0, atol=1e-4)


@needs_dciodvfy
@pytest.mark.parametrize(
    ("array", "modality"),
    [
        (values(), "CT"),
        (values() * 0.37, "CT"),
        (values(1, 7, 9), "CT"),
        (values(low=0, dtype="uint16"), "MR"),
        (values() * 0.37, "MR"),
        (values(1, 7, 9, low=0), "MR"),
        (values(1, 7, 9, dtype="uint8", low=0, high=256), "CR"),
        (values(1, 7, 9, dtype="uint16", low=0), "CR"),
        (values(1, 7, 9) * 0.37, "CR"),
        (values(1, 7, 9, dtype="uint8", low=0, high=256), "OT"),
        (values(1, 7, 9), "OT"),
        (values(1, 7, 9) * 0.37, "OT"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.ndim - 1}D {value.dtype}",
)
def test_validators_find_nothing_but_the_element_that_they_do_not_know(tmp_path, array, modality):
    path = tmp_path / ("series" if array.ndim == 4 else "one.dcm")
    write_dicom(scan_of(array), path, modality=modality)
    for file in files_of(path):
        assert set(errors_in(file)) <= {ALLOWED}
    assert entity_problems(files_of(path)) == ""


@needs_dciodvfy
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_validators_pass_masks(tmp_path, modality):
    pytest.importorskip("highdicom")
    write_dicom(scan_of(values(low=0)), tmp_path / "series", modality=modality)
    mask = Scan(array=values(low=0) > 500, affine=AXIAL)
    write_segmentation(mask, tmp_path / "seg.dcm", images=tmp_path / "series")
    assert set(errors_in(tmp_path / "seg.dcm")) <= {ALLOWED}
    assert entity_problems([*files_of(tmp_path / "series"), tmp_path / "seg.dcm"]) == ""


def errors_in(file: Path) -> list[str]:
    judged = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True)
    assert judged.returncode == 0, judged.stderr
    return [line for line in (judged.stdout + judged.stderr).splitlines() if line.startswith("Error")]


def entity_problems(files: list[Path]) -> str:
    judged = subprocess.run(["dcentvfy", *map(str, files)], capture_output=True, text=True, check=True)
    return (judged.stdout + judged.stderr).strip()
