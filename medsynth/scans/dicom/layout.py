"""Where the slices of a scan lie in the patient, as DICOM says it: the inverse of `stack`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel import orientations
from pydicom.valuerep import format_number_as_ds

from medsynth.errors import ConfigError
from medsynth.scans.dicom.stack import LPS_TO_RAS
from medsynth.scans.scan import Scan

# Slice, row and column of sagittal, coronal and axial slices as radiologists look at them, slices along the normal.
_DISPLAY = ("RIP", "PIL", "SPL")
_THICK = 1.5  # times the other two spacings: slices that were no cubes stay slices
_ASKEW = 1e-3  # cosine of the angle between two axes


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceLayout:
    """A scan as slices: `pixels` is `(slice, row, column)`, `matrix` 4x4 leads from these indices to LPS millimetres."""

    pixels: np.ndarray
    matrix: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between slices, rows and columns."""
        step, row, column = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return float(step), float(row), float(column)

    @property
    def orientation(self) -> list[str]:
        """ImageOrientationPatient: the directions in which columns, then rows are counted."""
        _, row, column = (self.matrix[:3, :3] / np.linalg.norm(self.matrix[:3, :3], axis=0)).T
        return decimals([*column, *row])

    def position(self, number: int) -> list[str]:
        """ImagePositionPatient of a slice: the centre of its first pixel."""
        return decimals((self.matrix @ (number, 0, 0, 1))[:3].tolist())


def lay_out(scan: Scan, name: str) -> SliceLayout:
    """Return the slices of a scan of one channel.

    Those of a volume are cut along the axis whose spacing is far the largest, else along that nearest to the patient's height,
    and turned as radiologists look at such slices: axial ones with rows towards the back and columns towards the left. A
    picture stays as it is. Raises `ConfigError` for axes that are not at right angles, and a volume of one slice.
    """
    axes = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    askew = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if len(scan.spatial_shape) == 2:
        askew = float(abs(axes[:, 0] @ axes[:, 1]))
    if askew > _ASKEW:
        angle = np.degrees(np.arccos(askew))
        raise ConfigError(f"{name}: need axes at right angles for DICOM, got {angle:.1f} degrees; try NIfTI")
    if len(scan.spatial_shape) == 2:
        matrix = scan.affine[:, [2, 0, 1, 3]]
        return SliceLayout(pixels=scan.array, matrix=LPS_TO_RAS @ matrix)
    now = orientations.io_orientation(scan.affine)
    wanted = orientations.axcodes2ornt(_DISPLAY[_slice_direction(scan.spacing, now)])
    change = orientations.ornt_transform(now, wanted)
    pixels = orientations.apply_orientation(scan.array[0], change)
    if len(pixels) < 2:
        raise ConfigError(f"{name}: need at least 2 slices in a volume, got 1; try a picture (1, row, column)")
    matrix = scan.affine @ orientations.inv_ornt_aff(change, scan.spatial_shape)
    return SliceLayout(pixels=pixels, matrix=LPS_TO_RAS @ matrix)


def decimals(values: Sequence[float]) -> list[str]:
    """Return numbers as decimals of at most 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]


def _slice_direction(spacing: Sequence[float], now: np.ndarray) -> int:
    """Return the world axis (0 right, 1 front, 2 head) nearest to which slices follow each other."""
    thickest = int(np.argmax(spacing))
    others = [size for axis, size in enumerate(spacing) if axis != thickest]
    return int(now[thickest, 0]) if spacing[thickest] > _THICK * max(others) else 2
