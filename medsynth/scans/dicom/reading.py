"""DICOM in: a file, a folder of one series, or one series of a folder becomes a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel import orientations

from medsynth.config import ReadingOptions
from medsynth.errors import DataError
from medsynth.scans.dicom.frames import read_frames
from medsynth.scans.dicom.instance import Instance
from medsynth.scans.dicom.series import find_scan
from medsynth.scans.dicom.stack import Slice, Stack, picture_affine, stack_slices, straighten, straightened
from medsynth.scans.limits import check_size, clean_voxels
from medsynth.scans.scan import PICTURE_AFFINE, Scan, ScanHeader

# Of the terms of the standard those of grey pictures; whatever else stands there is nobody's business.
KNOWN_MODALITIES = ("CT", "MR", "CR", "DX", "MG", "XA", "RF", "PT", "NM", "US", "OT")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the frames of some files become one array; `shape` and `affine` are those of the array as it is returned.

    `stack` is None for a picture. `turn` is the orientation that a volume is brought to (nibabel's form).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    stack: Stack | None = None
    turn: np.ndarray | None = None


def read_header(path: Path, item: str | None, name: str, reading: ReadingOptions) -> ScanHeader:
    """Return the header of a scan after all checks that need no pixels."""
    instances = find_scan(path, item, name)
    layout = arrange(name, instances, reading)
    spacing = np.linalg.norm(layout.affine[:3, :3], axis=0)[: len(layout.shape)]
    modality = instances[0].modality
    return ScanHeader(
        shape=(1, *layout.shape),
        dtype=layout.dtype.name,
        spacing=tuple(float(size) for size in spacing),
        modality=modality if modality in KNOWN_MODALITIES else None,
    )


def read(path: Path, item: str | None, name: str, reading: ReadingOptions) -> Scan:
    """Return a DICOM scan: a picture as (row, column), slices as a volume with the axes that dcm2niix gives it.

    These are (column, row from the last to the first, slice along the normal); those of a three-dimensional acquisition are
    turned to the order and direction nearest to right, anterior, superior. Stored integers keep their type; with a rescale
    slope or intercept they become float32 (float64 above 24 bits). MONOCHROME1 is inverted, but for CT, whose values are HU.
    Windows are not applied. Padding (`PixelPaddingValue`) is kept as it is stored, like any other value. Nothing else of the
    header, nor the preamble of a file, is kept.
    """
    instances = find_scan(path, item, name)
    layout = arrange(name, instances, reading)
    stack = layout.stack
    if stack is None:
        array = next(read_frames(instances[0], [0]))
        array, attributes = clean_voxels(name, array[np.newaxis], reading)
        return Scan(array=array, affine=layout.affine, attributes=attributes)
    volume = _read_volume(instances, stack, layout.dtype)
    if stack.tilt:
        volume = straighten(volume, stack)
    array = volume.transpose(2, 1, 0)[:, ::-1]
    if layout.turn is not None:
        array = orientations.apply_orientation(array, layout.turn)
    array, attributes = clean_voxels(name, np.ascontiguousarray(array)[np.newaxis], reading)
    return Scan(
        array=array,
        affine=layout.affine,
        attributes=attributes | ({"tilt_degrees": round(stack.tilt, 3)} if stack.tilt else {}),
    )


def arrange(name: str, instances: Sequence[Instance], reading: ReadingOptions) -> Layout:
    """Return how files become one scan; `DataError` for what keeps them from it, or a scan above the budget."""
    for one in instances:
        if one.problem is not None:
            raise DataError(one.problem)
    first = instances[0]
    dtype = np.result_type(*{one.dtype for one in instances})
    if len(instances) == first.frames == 1:
        plane, spacing = first.planes[0], first.planes[0].spacing or (1.0, 1.0)
        check_size(name, (first.rows, first.columns), dtype, reading)
        affine = (
            picture_affine(name, plane, first.thickness) if plane.lies else PICTURE_AFFINE @ np.diag([*spacing, 1, 1])
        )
        return Layout(shape=(first.rows, first.columns), dtype=dtype, affine=affine)
    # Before anything is made of each frame: a header may announce any number of them.
    check_size(name, (first.columns, first.rows, sum(one.frames for one in instances)), dtype, reading)
    stack = stack_slices(name, _slices(instances), allow_tilt=reading.tilt == "resample")
    if stack.tilt:
        dtype = np.result_type(dtype, np.float32)
        stack_shape, affine = (upright := straightened(stack)).shape, upright.affine
        check_size(name, stack_shape, dtype, reading)
    else:
        stack_shape, affine = stack.shape, stack.affine
    if not first.acquired_3d:
        return Layout(shape=stack_shape, dtype=dtype, affine=affine, stack=stack)
    turn = orientations.io_orientation(affine)
    shape = tuple(stack_shape[int(axis)] for axis in np.argsort(turn[:, 0]))
    return Layout(
        shape=shape, dtype=dtype, affine=affine @ orientations.inv_ornt_aff(turn, stack_shape), stack=stack, turn=turn
    )


def _slices(instances: Sequence[Instance]) -> list[Slice]:
    return [
        Slice(
            name=one.source.file.name if one.frames == 1 else f"frame {number + 1}",
            rows=one.rows,
            columns=one.columns,
            plane=plane,
        )
        for one in instances
        for number, plane in enumerate(one.planes)
    ]


def _read_volume(instances: Sequence[Instance], stack: Stack, dtype: np.dtype) -> np.ndarray:
    """Return all frames as `(slice, row, column)`, in the order of the stack."""
    volume = np.empty((len(stack.order), instances[0].rows, instances[0].columns), dtype=dtype)
    place = np.argsort(stack.order)  # of each frame, in the order of files
    done = 0
    for one in instances:
        for frame in read_frames(one, range(one.frames)):
            volume[place[done]] = frame
            done += 1
    return volume
