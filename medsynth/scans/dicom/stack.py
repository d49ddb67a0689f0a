"""The geometry of slices: their order, the affine of their volume, and what keeps them from being one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medsynth.errors import DataError
from medsynth.scans.dicom.instance import Plane
from medsynth.scans.limits import check_affine

_SAME_COSINE = 1e-3
_SAME_SPACING = 1e-3  # of the voxel size
_EVEN = 0.01  # of the distance between slices ...
_ROUNDED = 0.02  # ... or millimetres, as headers round
_SAME_DEPTH = 1e-3  # millimetres
_CROOKED = 5e-3  # of directions whose lengths should be 1, at right angles
_TILT = 0.1  # degrees
_MOST_TILT = 45.0
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One slice of a volume; `name` is what an error calls it."""

    name: str
    rows: int
    columns: int
    plane: Plane


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices as a volume.

    `order` numbers the slices as they follow each other along the normal of rows and columns (right-handed in LPS), and
    `drift` is how far each lies off the normal through the one before, in rows and columns: (0, 0) unless the gantry was tilted
    by `tilt` degrees. `shape` is `(columns, rows, slices)` and `affine` (RAS, mm) that of the array of this shape whose
    second axis runs from the last row to the first.
    """

    order: tuple[int, ...]
    drift: tuple[float, float]
    tilt: float
    shape: tuple[int, int, int]
    affine: np.ndarray


def stack_slices(name: str, slices: Sequence[Slice], *, allow_tilt: bool) -> Stack:
    """Return the volume of at least two slices.

    Raises `DataError` for slices of several sizes, orientations or spacings, two at one position, uneven distances (a missing
    slice), and slices that are shifted against each other: evenly, by a tilted gantry, is allowed with `allow_tilt`.
    """
    across, along = _check_alike(name, slices)
    normal = np.cross(across, along)
    positions = np.array([one.plane.position for one in slices], dtype=np.float64)
    depths = (positions - positions[0]) @ normal
    order = np.argsort(depths, kind="stable")
    names = [slices[index].name for index in order]
    _check_distances(name, names, depths[order])
    positions = positions[order]
    spacing = slices[0].plane.spacing
    assert spacing is not None
    vector = (positions[-1] - positions[0]) / (len(slices) - 1)
    line = positions[0] + np.arange(len(slices))[:, np.newaxis] * vector
    aside = (positions - line) @ np.stack([along, across], axis=1)
    worst = int(np.abs(aside).max(axis=1).argmax())
    if np.abs(aside[worst]).max() > 0.1 * min(spacing) + _ROUNDED:
        raise DataError(
            f"{name}: need slices behind each other, got {names[worst]} {np.abs(aside[worst]).max():.3g} mm beside the others; "
            "try splitting the series"
        )
    step, shift = float(vector @ normal), np.array([vector @ along, vector @ across])
    angle = float(np.degrees(np.arctan2(np.linalg.norm(shift), step)))
    tilted = angle > _TILT and np.linalg.norm(shift) * (len(slices) - 1) > 0.1 * min(spacing)
    if tilted and not (allow_tilt and angle <= _MOST_TILT):
        advice = "--reading.tilt resample" if angle <= _MOST_TILT else "splitting the series"
        raise DataError(
            f"{name}: need slices stacked at right angles, got a gantry tilt of {angle:.1f} degrees; try {advice}"
        )
    rows, columns = slices[0].rows, slices[0].columns
    matrix = np.eye(4)
    matrix[:3, 0] = across * spacing[1]
    matrix[:3, 1] = -along * spacing[0]
    matrix[:3, 2] = normal * step if tilted else vector
    matrix[:3, 3] = positions[0] + along * spacing[0] * (rows - 1)
    return Stack(
        order=tuple(int(index) for index in order),
        drift=(float(shift[0] / spacing[0]), float(shift[1] / spacing[1])) if tilted else (0.0, 0.0),
        tilt=angle if tilted else 0.0,
        shape=(columns, rows, len(slices)),
        affine=check_affine(name, LPS_TO_RAS @ matrix),
    )


def picture_affine(name: str, plane: Plane, thickness: float) -> np.ndarray:
    """Return the affine (RAS, mm) of a single slice as an array (row, column)."""
    across, along = _directions(name, plane)
    assert plane.spacing is not None
    assert plane.position is not None
    matrix = np.eye(4)
    matrix[:3, 0] = along * plane.spacing[0]
    matrix[:3, 1] = across * plane.spacing[1]
    matrix[:3, 2] = np.cross(across, along) * thickness
    matrix[:3, 3] = plane.position
    return check_affine(name, LPS_TO_RAS @ matrix)


def straightened(stack: Stack) -> Stack:
    """Return the upright grid that holds all of a tilted stack: as many slices, more rows or columns."""
    columns, rows, count = stack.shape
    more_rows, more_columns = _growth(stack)
    affine = stack.affine.copy()
    # The array begins at the last row and the first column of the first slice.
    affine[:3, 3] -= affine[:3, 1] * (more_rows if stack.drift[0] > 0 else 0)
    affine[:3, 3] -= affine[:3, 0] * (more_columns if stack.drift[1] < 0 else 0)
    return replace(stack, shape=(columns + more_columns, rows + more_rows, count), affine=affine)


def straighten(volume: np.ndarray, stack: Stack) -> np.ndarray:
    """Return the slices `(slice, row, column)` of a tilted stack on its upright grid.

    Each is moved within its plane, linearly between its pixels; what none of them covers gets the lowest value of all.
    """
    from scipy import ndimage  # which takes a while to load, and few series need it

    more_rows, more_columns = _growth(stack)
    count, rows, columns = volume.shape
    upright = np.empty((count, rows + more_rows, columns + more_columns), dtype=volume.dtype)
    first = (-more_rows if stack.drift[0] < 0 else 0, -more_columns if stack.drift[1] < 0 else 0)
    lowest = volume.min()
    for index in range(count):
        offset = [start - index * drift for start, drift in zip(first, stack.drift, strict=True)]
        ndimage.affine_transform(volume[index], (1.0, 1.0), offset, output=upright[index], order=1, mode="nearest")
        for axis, length in enumerate((rows, columns)):
            at = np.arange(upright.shape[axis + 1]) + offset[axis]
            # Headers round: what lies a hundredth of a pixel outside is still the edge.
            outside = (at < -0.01) | (at > length - 0.99)
            upright[index][outside if axis == 0 else (slice(None), outside)] = lowest
    return upright


def _growth(stack: Stack) -> tuple[int, int]:
    """Return by how many rows and columns the slices lie apart."""
    rows, columns = (int(np.ceil(abs(drift) * (stack.shape[2] - 1) - 1e-6)) for drift in stack.drift)
    return rows, columns


def _check_alike(name: str, slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions in which columns and rows are counted; `DataError` unless all slices agree."""
    first = slices[0]
    for one in slices:
        if not one.plane.lies:
            raise DataError(
                f"{name}: need ImagePositionPatient, ImageOrientationPatient and PixelSpacing of every slice, got {one.name} "
                "without; try another copy"
            )
        if (one.rows, one.columns) != (first.rows, first.columns):
            raise DataError(
                f"{name}: need slices of one size, got {first.rows} x {first.columns} and {one.rows} x {one.columns} "
                f"({one.name}); try splitting the series"
            )
        if not np.allclose(one.plane.spacing or 0, first.plane.spacing or 0, rtol=_SAME_SPACING, atol=0):
            raise DataError(
                f"{name}: need slices of one pixel spacing, got {first.plane.spacing} and {one.plane.spacing} mm "
                f"({one.name}); try splitting the series"
            )
    orientations = np.array([one.plane.orientation for one in slices])
    other = np.abs(orientations - orientations[0]).max(axis=1) > _SAME_COSINE
    if other.any():
        count = len(np.unique(np.round(orientations, 2), axis=0))
        raise DataError(
            f"{name}: need slices of one orientation, got {max(count, 2)} (a localizer?), such as that of "
            f"{slices[int(other.argmax())].name}; try splitting the series"
        )
    return _directions(name, first.plane)


def _directions(name: str, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    across, along = np.array(plane.orientation, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm([across, along], axis=1)
    if np.abs(lengths - 1).max() > _CROOKED or abs(across @ along) > _CROOKED:
        raise DataError(
            f"{name}: need rows and columns at right angles, got the orientation "
            f"{' '.join(f'{cosine:g}' for cosine in plane.orientation or ())}; try another copy"
        )
    return across / lengths[0], along / lengths[1]


def _check_distances(name: str, names: Sequence[str], depths: np.ndarray) -> None:
    """Refuse (`DataError`) sorted depths in millimetres of which two are the same, or whose distances differ."""
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
