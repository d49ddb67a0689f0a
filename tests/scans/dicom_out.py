"""What the tests of written DICOM share: scans to write, and what is found in the files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pydicom
from nibabel import orientations

from medsynth.scans import PICTURE_AFFINE, Scan, read_scan

PROVENANCE = {
    "synthetic": "YES",
    "generator": "medsynth 0.1.0",
    "method": "sample",
    "run": "0123456789abcdef",
    "seed": "7",
}
AXIAL = np.array(
    [[0, 0, -0.7, 90.25], [0, -0.8, 0, 20], [2.5, 0, 0, -300], [0, 0, 0, 1]]
)  # the model's: slice, row, column


def scan_of(array: np.ndarray, affine: np.ndarray | None = None, **facts: object) -> Scan:
    flat = array.ndim == 3
    affine = (PICTURE_AFFINE if flat else AXIAL) if affine is None else affine
    return Scan(array=array, affine=affine, **{"provenance": PROVENANCE, "label": "rare"} | facts)


def values(*shape: int, dtype: str = "int16", low: int = -1000, high: int = 2000) -> np.ndarray:
    return np.random.default_rng(3).integers(low, high, size=shape or (1, 5, 6, 8)).astype(dtype)


def in_patient(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels and affine with axes nearest to right, anterior, superior: the same for any order of a volume's axes."""
    turn = orientations.io_orientation(scan.affine)
    affine = scan.affine @ orientations.inv_ornt_aff(turn, scan.spatial_shape)
    return orientations.apply_orientation(scan.array[0], turn), affine


def assert_same_volume(one: Scan, other: Scan, atol: float) -> None:
    (voxels, affine), (expected, place) = in_patient(one), in_patient(other)
    np.testing.assert_array_equal(voxels, expected)
    np.testing.assert_allclose(affine, place, rtol=0, atol=atol)


def converted(path: Path, out: Path) -> Scan:
    """Return what our NIfTI reader reads of what dcm2niix makes of a series."""
    out.mkdir()
    command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "converted", "-o", str(out), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = out.glob("*.nii")
    return read_scan(made)


def files_of(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def headers_of(path: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(file) for file in files_of(path)]


def content_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in files_of(path)}
