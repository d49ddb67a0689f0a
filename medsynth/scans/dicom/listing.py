"""What a folder of DICOM files holds, from headers alone: its scans, and why some of them cannot be trusted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.uid import SecondaryCaptureImageStorage

from medsynth.config import ReadingOptions
from medsynth.errors import DataError
from medsynth.scans.dicom.instance import Instance
from medsynth.scans.dicom.reading import arrange
from medsynth.scans.dicom.series import SERIES, group_scans, read_folder
from medsynth.scans.limits import one_line

_UID = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class DicomScan:
    """One scan of a folder.

    `file` is the name of its file in the folder where that alone is the scan; `item` is that of the series (`series/` and its
    SeriesInstanceUID) where the folder holds several scans; a scan without either is its folder. `shape` is `(1, *spatial)`
    and `spacing` in millimetres, `()` where they are not known. `members` are the SOPInstanceUIDs of its files. `localizer`
    and `derived` (a single picture that was made of others) are what the header says; `is_slices` tells slices of a volume
    from pictures and whole volumes; `problem` says why the scan cannot be read.
    """

    folder: Path
    file: str | None = None
    item: str | None = None
    study: str
    series: str
    patient: str
    modality: str
    instances: int
    members: tuple[str, ...]
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
        return str(self.folder if self.file is None else self.folder / self.file) + (
            f"#{self.item}" if self.item else ""
        )


def list_dicom(
    folder: Path, *, reading: ReadingOptions, on_file: Callable[[], object] = lambda: None
) -> tuple[list[DicomScan], Counter[str]]:
    """Return the scans right in a folder, sorted by their first files, and how many files of what kinds are no images.

    No pixel is read. A file that is too damaged to say what it belongs to is a scan with a problem. `on_file` is called for
    each file that is read.
    """
    found = read_folder(folder, on_file=on_file)
    groups = group_scans(found.instances)
    alone = len(groups) == 1 and not found.problems
    scans = [_describe(folder, group, reading, alone=alone) for group in groups]
    scans += [
        DicomScan(
            folder=folder,
            file=file.name,
            study="",
            series="",
            patient="",
            modality="",
            instances=1,
            members=(),
            problem=problem,
        )
        for file, problem in found.problems
    ]
    return scans, Counter(one.kind for one in found.instances if not one.is_image)


def _describe(folder: Path, group: Sequence[Instance], reading: ReadingOptions, *, alone: bool) -> DicomScan:
    first = group[0]
    file = first.source.file.name if len(group) == 1 else None
    item = None if file or alone else f"{SERIES}{first.series}"
    problem = None
    if item and not _UID.fullmatch(first.series):
        file, item = first.source.file.name, None
        problem = (
            f"{first.name}: need a SeriesInstanceUID of digits and dots, got {one_line(first.series)[:80]!r}; "
            "try another copy"
        )
    path = one_line(folder if file is None else folder / file) + (f"#{item}" if item else "")
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    try:
        layout = arrange(path, group, reading)
        shape = (1, *layout.shape)
        spacing = tuple(float(size) for size in np.linalg.norm(layout.affine[:3, : len(layout.shape)], axis=0))
    except DataError as error:
        problem = problem or str(error)
    patients = {one.patient for one in group}
    if len(patients) > 1:
        problem = problem or f"{path}: need one PatientID in a series, got {len(patients)}; try another copy"
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
        shape=shape or _told_shape(group),
        spacing=spacing or _told_spacing(group),
        burned_in=any(one.burned_in for one in group),
        localizer=any("LOCALIZER" in one.image_type for one in group),
        derived=len(group) == first.frames == 1 and _is_derived(first),
        is_slices=first.is_slice,
        problem=problem,
    )


def _told_shape(group: Sequence[Instance]) -> tuple[int, ...]:
    """Return the size that the first file of something that is no volume tells, with the number of slices."""
    first, count = group[0], max(group[0].frames, len(group))
    if not first.rows:
        return ()
    return (1, first.columns, first.rows, count) if count > 1 else (1, first.rows, first.columns)


def _told_spacing(group: Sequence[Instance]) -> tuple[float, ...]:
    spacing = group[0].planes[0].spacing if group[0].planes else None
    if spacing is None:
        return ()
    return spacing if max(group[0].frames, len(group)) == 1 else spacing[::-1]


def _is_derived(one: Instance) -> bool:
    return {"DERIVED", "SECONDARY"} & set(one.image_type[:2]) != set() or one.sop_class == SecondaryCaptureImageStorage
