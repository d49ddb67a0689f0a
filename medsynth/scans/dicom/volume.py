"""The geometry of slices: their order, the affine of their volume, and what keeps them from being one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medsynth.errors import DataError
from medsynth.scans.dicom.header import Instance, Plane
from medsynth.scans.limits import check_affine

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_SAME_COSINE = 1e-3
_SAME_SPACING = 1e-3  # of the voxel size
_EVEN = 0.01  # of the distance between slices ...
_ROUNDED = 0.02  # ... or millimetres, as headers round
_SAME_DEPTH = 1e-3  # millimetres
_SKEW = 5e-3  # of directions that should have length 1 and be at right angles
_TILT = 0.1  # degrees
_MOST_TILT = 45.0


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices as a volume.

    `order` numbers the slices as they follow each other along the normal of rows and columns (right-handed in LPS). `shape` is
    `(columns, rows, slices)`, and `affine` (RAS, mm) that of the array of this shape whose second axis runs from the last row
    to the first.
    """

    order: tuple[int, ...]
    shape: tuple[int, int, int]
    affine: np.ndarray


def stack_slices(name: str, instances: Sequence[Instance]) -> Stack:
    """Return the volume of at least two slices: all frames of some files.

    Raises `DataError` for slices of several sizes, orientations or spacings, two at one position, uneven distances (a missing
    slice), and slices that are shifted against each other, as by a tilted gantry.
    """
    planes = [plane for one in instances for plane in one.planes]
    names = []
    for one in instances:
        names += [f"frame {number + 1}" for number in range(one.frames)] if one.frames > 1 else [one.source.file.name]
    across, along = _check_alike(name, instances, planes, names)
    normal = np.cross(across, along)
    positions = np.array([plane.position for plane in planes], dtype=np.float64)
    depths = (positions - positions[0]) @ normal
    order = np.argsort(depths, kind="stable")
    names = [names[index] for index in order]
    _check_distances(name, names, depths[order])
    positions = positions[order]
    rows, columns, count, spacing = instances[0].rows, instances[0].columns, len(planes), planes[0].spacing
    assert spacing is not None
    vector = (positions[-1] - positions[0]) / (count - 1)
    line = positions[0] + np.arange(count)[:, np.newaxis] * vector
    aside = np.abs((positions - line) @ np.stack([along, across], axis=1)).max(axis=1)
    if aside.max() > 0.1 * min(spacing) + _ROUNDED:
        got = f"{names[int(aside.argmax())]} {aside.max():.3g} mm beside the others"
        raise DataError(f"{name}: need slices behind each other, got {got}; try splitting the series")
    step, shift = float(vector @ normal), np.array([vector @ along, vector @ across])
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(shift), step)))
    if tilt > _TILT and np.linalg.norm(shift) * (count - 1) > 0.1 * min(spacing):
        way = "correcting it with dcm2niix" if tilt <= _MOST_TILT else "splitting the series"
        raise DataError(f"{name}: need slices at right angles, got a gantry tilt of {tilt:.1f} degrees; try {way}")
    # The array begins at the last row and the first column of the first slice.
    origin = positions[0] + along * spacing[0] * (rows - 1)
    return Stack(
        order=tuple(int(index) for index in order),
        shape=(columns, rows, count),
        affine=_affine(name, (across * spacing[1], -along * spacing[0], vector), origin),
    )


def picture_affine(name: str, plane: Plane, thickness: float) -> np.ndarray:
    """Return the affine (RAS, mm) of a single slice as an array (row, column)."""
    across, along = _directions(name, plane)
    assert plane.spacing is not None
    third = np.cross(across, along) * thickness
    return _affine(name, (along * plane.spacing[0], across * plane.spacing[1], third), np.array(plane.position))


def _affine(name: str, axes: tuple[np.ndarray, ...], origin: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3] = np.stack([*axes, origin], axis=1)
    return check_affine(name, LPS_TO_RAS @ matrix)


def _check_alike(
    name: str, instances: Sequence[Instance], planes: Sequence[Plane], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions in which columns and rows are counted; `DataError` unless all slices agree."""
    sizes = {(one.rows, one.columns): one.source.file.name for one in instances}
    if len(sizes) > 1:
        got = " and ".join(f"{rows} x {columns} ({file})" for (rows, columns), file in sizes.items())
        raise DataError(f"{name}: need slices of one size, got {got}; try splitting the series")
    for plane, slice_name in zip(planes, names, strict=True):
        if not plane.is_placed:
            needed = "ImagePositionPatient, ImageOrientationPatient and PixelSpacing of every slice"
            raise DataError(f"{name}: need {needed}, got {slice_name} without")
        if not np.allclose(plane.spacing or 0, planes[0].spacing or 0, rtol=_SAME_SPACING, atol=0):
            got = f"{planes[0].spacing} and {plane.spacing} mm ({slice_name})"
            raise DataError(f"{name}: need slices of one pixel spacing, got {got}; try splitting the series")
    orientations = np.array([plane.orientation for plane in planes])
    other = np.abs(orientations - orientations[0]).max(axis=1) > _SAME_COSINE
    if other.any():
        count = max(len(np.unique(np.round(orientations, 2), axis=0)), 2)
        got = f"{count} (a localizer?), such as that of {names[int(other.argmax())]}"
        raise DataError(f"{name}: need slices of one orientation, got {got}; try splitting the series")
    return _directions(name, planes[0])


def _directions(name: str, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    across, along = np.array(plane.orientation, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm([across, along], axis=1)
    if np.abs(lengths - 1).max() > _SKEW or abs(across @ along) > _SKEW:
        got = " ".join(f"{cosine:g}" for cosine in plane.orientation or ())
        raise DataError(f"{name}: need rows and columns at right angles, got the orientation {got}")
    return across / lengths[0], along / lengths[1]


def _check_distances(name: str, names: Sequence[str], depths: np.ndarray) -> None:
    """Refuse (`DataError`) sorted depths in millimetres of which two are equal, or whose distances differ."""
    steps = np.diff(depths)
    same = steps < _SAME_DEPTH
    if same.any():
        at = int(same.argmax())
        raise DataError(
            f"{name}: need one slice at each position, got {len(depths)} slices at {len(depths) - int(same.sum())} positions, "
            f"such as {names[at]} and {names[at + 1]} (copies, or several times, echoes or b-values?); try splitting the series"
        )
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])
    off = np.abs(steps - usual)
    if off.max() > max(_EVEN * usual, min(_ROUNDED, 0.1 * usual)):
        at = int(off.argmax())
        raise DataError(
            f"{name}: need slices at even distances, got {steps[at]:.4g} mm between {names[at]} and {names[at + 1]} where "
            f"others are {usual:.4g} mm (a missing slice?); try exporting the series again"
        )
