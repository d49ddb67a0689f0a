"""DICOM in: the files of a picture or a series become one scan, and what scans a folder holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel import orientations
from pydicom.uid import SecondaryCaptureImageStorage

from medsynth.config import Loading
from medsynth.errors import DataError, one_line
from medsynth.scans.dicom.header import Instance
from medsynth.scans.dicom.pixels import read_frames
from medsynth.scans.dicom.series import SERIES, find_scan, group_scans, read_folder
from medsynth.scans.dicom.volume import Stack, picture_affine, stack_slices
from medsynth.scans.limits import check_size
from medsynth.scans.scan import PICTURE_AFFINE, Scan, ScanHeader, voxel_size

# The terms of the standard for grey pictures; other values of Modality are not passed on.
_MODALITIES = ("CT", "MR", "CR", "DX", "MG", "XA", "RF", "PT", "NM", "US", "OT")
_UID = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How the frames of some files become one array; `shape` and `affine` are those of the returned array.

    `stack` is None for a picture. `turn` is the orientation that a volume is turned to (in nibabel's form).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    stack: Stack | None = None
    turn: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class DicomScan:
    """One scan of a folder.

    `file` is the name of its file in the folder if a single file is the scan; `item` is that of the series (`series/` and its
    SeriesInstanceUID) if the folder holds several scans; a scan without either is the whole folder. `shape` is `(1, *spatial)`
    and `spacing` in millimetres, `()` if they are not known. `members` are the SOPInstanceUIDs of its files. `localizer` and
    `derived` (a single picture that was made from others) are what the header says; `is_slices` means slices of a volume, not
    pictures or whole volumes; `problem` says why the scan cannot be read.
    """

    folder: Path
    file: str | None = None
    item: str | None = None
    study: str = ""
    series: str = ""
    patient: str = ""
    modality: str = ""
    instances: int = 1
    members: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    burned_in: bool = False
    localizer: bool = False
    derived: bool = False
    is_slices: bool = False
    problem: str | None = None

    @property
    def path(self) -> str:
        """What `read_scan` takes."""
        return f"{self.folder / (self.file or '')}" + (f"#{self.item}" if self.item else "")


def read_header(path: Path, item: str | None, name: str, loading: Loading) -> ScanHeader:
    """Return the header of a scan after all checks that need no pixels."""
    instances = find_scan(path, item, name)
    layout, modality = _arrange(name, instances, loading), instances[0].modality
    return ScanHeader(
        shape=(1, *layout.shape),
        dtype=layout.dtype.name,
        spacing=voxel_size(layout.affine, len(layout.shape)),
        modality=modality if modality in _MODALITIES else None,
    )


def read(path: Path, item: str | None, name: str, loading: Loading) -> Scan:
    """Return a DICOM scan: a picture as (row, column), slices as a volume with the axes that dcm2niix gives it.

    These are (column, row from the last to the first, slice along the normal); those of a three-dimensional acquisition are
    turned to the order and direction nearest to right, anterior, superior. Stored integers keep their type; with a rescale
    slope or intercept they become float32 (float64 above 24 bits). MONOCHROME1 is inverted, except for CT, whose values are HU.
    Windows are not applied. Padding (`PixelPaddingValue`) is kept like any other value. Nothing else of the header, nor the
    preamble of a file, is kept.
    """
    instances = find_scan(path, item, name)
    layout = _arrange(name, instances, loading)
    stack = layout.stack
    if stack is None:
        array = next(read_frames(instances[0]))
    else:
        volume = np.empty((len(stack.order), instances[0].rows, instances[0].columns), dtype=layout.dtype)
        places = iter(np.argsort(stack.order))  # of each frame, in the order of files
        for one in instances:
            for frame in read_frames(one):
                volume[next(places)] = frame
        array = volume.transpose(2, 1, 0)[:, ::-1]
        if layout.turn is not None:
            array = orientations.apply_orientation(array, layout.turn)
    return Scan(array=np.ascontiguousarray(array)[np.newaxis], affine=layout.affine)


def list_dicom(
    folder: Path, *, loading: Loading, on_file: Callable[[], object] = lambda: None
) -> tuple[list[DicomScan], Counter[str]]:
    """Return the scans in a folder (not below it), sorted by their first files, and how many files of what kinds are not images.

    No pixel is read. A file that is too damaged to say what it belongs to is a scan with a problem. `on_file` is called for
    each file that is read.
    """
    found = read_folder(folder, on_file=on_file)
    groups = group_scans(found.instances)
    alone = len(groups) == 1 and not found.problems
    scans = [_describe(folder, group, loading, alone=alone) for group in groups]
    scans += [DicomScan(folder=folder, file=file.name, problem=problem) for file, problem in found.problems]
    return scans, Counter(one.kind for one in found.instances if not one.is_image)


def _arrange(name: str, instances: Sequence[Instance], loading: Loading) -> _Layout:
    """Return how files become one scan; `DataError` for what prevents it, or for a scan above the budget."""
    if problems := [one.problem for one in instances if one.problem is not None]:
        raise DataError(problems[0])
    first = instances[0]
    dtype = np.result_type(*{one.dtype for one in instances})
    if len(instances) == first.frames == 1:
        check_size(name, (first.rows, first.columns), dtype, loading)
        plane = first.planes[0]
        affine = PICTURE_AFFINE @ np.diag([*(plane.spacing or (1.0, 1.0)), 1, 1])
        if plane.is_placed:
            affine = picture_affine(name, plane, first.thickness)
        return _Layout(shape=(first.rows, first.columns), dtype=dtype, affine=affine)
    # Checked before anything is made of each frame: a header may announce any number of them.
    check_size(name, (first.columns, first.rows, sum(one.frames for one in instances)), dtype, loading)
    stack = stack_slices(name, instances)
    if not first.acquired_3d:
        return _Layout(shape=stack.shape, dtype=dtype, affine=stack.affine, stack=stack)
    turn = orientations.io_orientation(stack.affine)
    shape = tuple(stack.shape[int(axis)] for axis in np.argsort(turn[:, 0]))
    affine = stack.affine @ orientations.inv_ornt_aff(turn, stack.shape)
    return _Layout(shape=shape, dtype=dtype, affine=affine, stack=stack, turn=turn)


def _describe(folder: Path, group: Sequence[Instance], loading: Loading, *, alone: bool) -> DicomScan:
    first = group[0]
    file = first.source.file.name if len(group) == 1 else None
    item = None if file or alone else f"{SERIES}{first.series}"
    problem = None
    if item and not _UID.fullmatch(first.series):
        file, item = first.source.file.name, None
        problem = f"{first.name}: need a SeriesInstanceUID of digits and dots, got {first.series[:80]!r}"
    path = one_line(folder / (file or "")) + (f"#{item}" if item else "")
    try:
        layout = _arrange(path, group, loading)
        shape, spacing = (1, *layout.shape), voxel_size(layout.affine, len(layout.shape))
    except DataError as error:
        problem = problem or str(error)
        # What the header of the first file says, with the number of slices.
        count, (shape, spacing) = max(first.frames, len(group)), ((), ())
        if first.rows:
            shape = (1, first.columns, first.rows, count) if count > 1 else (1, first.rows, first.columns)
    patients = {one.patient for one in group}
    if len(patients) > 1:
        problem = problem or f"{path}: need one PatientID in a series, got {len(patients)}"
    made = {"DERIVED", "SECONDARY"} & set(first.image_type[:2]) or first.sop_class == SecondaryCaptureImageStorage
    return DicomScan(
        folder=folder,
        file=file,
        item=item,
        study=first.study,
        series=first.series,
        patient=first.patient,
        modality=first.modality,
        instances=len(group),
        members=tuple(one.sop_instance for one in group),
        shape=shape,
        spacing=spacing,
        burned_in=any(one.burned_in for one in group),
        localizer=any("LOCALIZER" in one.image_type for one in group),
        derived=len(group) == first.frames == 1 and bool(made),
        is_slices=first.is_slice,
        problem=problem,
    )
