"""What the header of one DICOM file says: what it is, how its pixels are stored, and where each of its frames lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder

from medsynth.errors import DataError, one_line
from medsynth.scans.dicom.elements import Source, integer, number, quiet, read_elements, text, vector, words
from medsynth.scans.limits import check_spacing, damage_as_data_error

INSTALL = "pip install 'medsynth-diffusion[dicom]'"

_MAX_TAIL = 1 << 16  # bytes that may follow the pixels (some writers pad)

_SLICES = {uid.CTImageStorage, uid.MRImageStorage, uid.PositronEmissionTomographyImageStorage}
# Their pixels are a result or a plan. The last are label maps.
_NO_SCANS = {uid.SegmentationStorage, uid.RTDoseStorage, "1.2.840.10008.5.1.4.1.1.66.7"}
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_KEYWORDS = (
    *("ImageType", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "Modality"),
    *("BurnedInAnnotation", "MRAcquisitionType", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient"),
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", *_SPACINGS),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "InConcatenationTotalNumber"),
    *("ModalityLUTSequence", "RescaleIntercept", "RescaleSlope", "RescaleType"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Where a frame lies (LPS, mm), and how its stored values become physical ones.

    `position` is that of the centre of its first pixel, `orientation` the directions in which columns and rows are counted
    (three cosines each), `spacing` the distance between rows and that between columns.
    """

    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float
    intercept: float

    @property
    def is_placed(self) -> bool:
        """Whether it is known where the frame lies."""
        return None not in (self.position, self.orientation, self.spacing)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One DICOM file, without its pixels. `name` is its name in errors; `problem` says why it cannot be read.

    `kind` is the name of what it holds, such as `CT Image Storage`; `is_image` is False for reports, plans, segmentations and
    the like. `inverted` means that larger stored values are darker (MONOCHROME1) and not a physical quantity; `thickness` is
    that of a single slice in millimetres.
    """

    source: Source
    name: str
    kind: str
    sop_class: str
    sop_instance: str
    study: str
    series: str
    patient: str
    modality: str
    image_type: tuple[str, ...]
    burned_in: bool
    acquired_3d: bool
    is_image: bool
    rows: int = 0
    columns: int = 0
    frames: int = 0
    bits: int = 0
    bits_stored: int = 0
    signed: bool = False
    inverted: bool = False
    planes: tuple[Plane, ...] = ()
    thickness: float = 1.0
    problem: str | None = None

    @property
    def is_slice(self) -> bool:
        """Whether the file holds one slice of a volume, rather than a picture or a volume of its own."""
        return self.frames <= 1 and (self.sop_class in _SLICES or (bool(self.planes) and self.planes[0].is_placed))

    @property
    def dtype(self) -> np.dtype:
        """The type of the returned values, wide enough to be exact."""
        if all(plane.slope == 1 and plane.intercept == 0 for plane in self.planes):
            return np.dtype(f"{'i' if self.signed else 'u'}{self.bits // 8}")
        return np.dtype(np.float32 if self.bits_stored <= 24 else np.float64)


def read_instance(file: Path) -> Instance:
    """Return what the header of a file says; what makes its pixels unreadable is the instance's `problem`.

    Raises `DataError` for a file that is not DICOM, or too damaged to say what it is.
    """
    name = one_line(file)
    with damage_as_data_error(name, "DICOM"), quiet():
        found, source = read_elements(file, name, _KEYWORDS)
        facts = _identify(found, source, name)
    if not facts["is_image"]:
        kind = facts["kind"]
        return Instance(
            source=source,
            name=name,
            problem=f"{name}: need an image, got {kind}; try the images it belongs to",
            **facts,
        )
    reason: str | None = None
    try:
        with damage_as_data_error(name, "DICOM"), quiet():
            facts |= _describe_pixels(found, facts["modality"])
            _check_values(found, name, facts)
            facts["planes"] = _read_planes(found, name, facts["frames"])
            _check_pixels(Instance(source=source, name=name, **facts))
    except DataError as error:
        reason = str(error)
    return Instance(source=source, name=name, problem=reason, **facts)


def _identify(found: Dataset, source: Source, name: str) -> dict[str, Any]:
    sop_class, has_pixels = text(found, "SOPClassUID") or source.sop_class, bool(words(found, "Rows"))
    if not sop_class and not has_pixels:
        raise DataError(f"{name}: need a DICOM file, got one that does not say what it is")
    kind = one_line(uid.UID(sop_class).name)[:80] or "an object without SOPClassUID"
    return {
        "kind": kind,
        "sop_class": sop_class,
        "sop_instance": text(found, "SOPInstanceUID"),
        "study": text(found, "StudyInstanceUID"),
        "series": text(found, "SeriesInstanceUID"),
        "patient": text(found, "PatientID"),
        "modality": text(found, "Modality"),
        "image_type": words(found, "ImageType"),
        "burned_in": text(found, "BurnedInAnnotation").upper() == "YES",
        "acquired_3d": text(found, "MRAcquisitionType") == "3D",
        "is_image": (has_pixels or kind.endswith("Image Storage")) and sop_class not in _NO_SCANS,
    }


def _describe_pixels(found: Dataset, modality: str) -> dict[str, Any]:
    bits = integer(found, "BitsAllocated", 0)
    return {
        "rows": integer(found, "Rows", 0),
        "columns": integer(found, "Columns", 0),
        "frames": integer(found, "NumberOfFrames", 1),
        "bits": bits,
        "bits_stored": integer(found, "BitsStored", bits),
        "signed": bool(integer(found, "PixelRepresentation", 0)),
        # Hounsfield units have no polarity: MONOCHROME1 concerns other values only.
        "inverted": text(found, "PhotometricInterpretation") == "MONOCHROME1"
        and modality != "CT"
        and text(found, "RescaleType") != "HU",
        "thickness": number(found, "SliceThickness", 1.0) or 1.0,
    }


def _check_values(found: Dataset, name: str, facts: dict[str, Any]) -> None:
    """Refuse (`DataError`) pixels that are not grey values on a linear scale."""
    colour, bits, stored = text(found, "PhotometricInterpretation"), facts["bits"], facts["bits_stored"]
    frames, rows, columns = facts["frames"], facts["rows"], facts["columns"]
    high = integer(found, "HighBit", stored - 1)
    grey = integer(found, "SamplesPerPixel", 1) == 1 and colour in ("MONOCHROME1", "MONOCHROME2")
    for sound, need, got in (
        (grey, "one grey value per pixel", colour or "none"),
        (bits in (8, 16, 32) and 1 <= stored <= bits, "8, 16 or 32 bits per pixel", f"{stored} of {bits}"),
        (high == stored - 1, "values in the lowest bits", f"HighBit {high}"),
        (min(frames, rows, columns) >= 1, "at least one pixel", f"{frames} frames of {rows} x {columns}"),
        (not words(found, "ModalityLUTSequence"), "values on a linear scale", "a Modality LUT"),
        (integer(found, "InConcatenationTotalNumber", 1) == 1, "all frames in one file", "a part of a concatenation"),
    ):
        if not sound:
            raise DataError(f"{name}: need {need}, got {got}; try converting it")


def _read_planes(found: Dataset, name: str, frames: int) -> tuple[Plane, ...]:
    """Return a plane for each frame."""
    if "PerFrameFunctionalGroupsSequence" in found:
        items = found.PerFrameFunctionalGroupsSequence
        if len(items) != frames:
            raise DataError(f"{name}: need a description of each of {frames} frames, got {len(items)}")
        shared = [*(found.get("SharedFunctionalGroupsSequence") or ()), Dataset()][0]
        planes = tuple(_functional_plane(item, shared) for item in items)
    elif frames > 1:
        got = f"{frames} frames without; try splitting it into pictures"
        raise DataError(f"{name}: need one frame, or a position for every frame, got {got}")
    else:
        spacing = next((vector(found, key, 2) for key in _SPACINGS if words(found, key)), None)
        planes = (_plane(found, found, spacing, found),)
    for plane in planes:
        if plane.spacing is not None:
            check_spacing(name, plane.spacing)
        if plane.slope == 0:
            raise DataError(f"{name}: need a RescaleSlope other than 0, got 0")
    return planes


def _functional_plane(item: Dataset, shared: Dataset) -> Plane:
    def group(keyword: str) -> Dataset:
        holder = next((one for one in (item, shared) if one.get(keyword)), None)
        return Dataset() if holder is None else holder[keyword].value[0]

    spacing = vector(group("PixelMeasuresSequence"), "PixelSpacing", 2)
    values = group("PixelValueTransformationSequence")
    return _plane(group("PlanePositionSequence"), group("PlaneOrientationSequence"), spacing, values)


def _plane(position: Dataset, orientation: Dataset, spacing: tuple[float, ...] | None, values: Dataset) -> Plane:
    return Plane(
        position=vector(position, "ImagePositionPatient", 3),
        orientation=vector(orientation, "ImageOrientationPatient", 6),
        spacing=spacing,
        slope=number(values, "RescaleSlope", 1.0),
        intercept=number(values, "RescaleIntercept", 0.0),
    )


def _check_pixels(instance: Instance) -> None:
    """Refuse (`DataError`) pixels that are missing, that no decoder reads, or of another size than announced."""
    name, source = instance.name, instance.source
    needed = instance.frames * instance.rows * instance.columns * instance.bits // 8
    if source.pixels != "PixelData":
        raise DataError(f"{name}: need PixelData, got {source.pixels or 'none'}")
    try:
        available = get_decoder(source.syntax).is_available
    except NotImplementedError:
        hint = "converting it to Explicit VR Little Endian"
        said = f"{name}: need a transfer syntax that can be decoded, got {source.syntax.name}; try {hint}"
        raise DataError(said) from None
    if not available:
        raise DataError(f"{name}: need a decoder of {source.syntax.name}, got none installed; try {INSTALL}")
    if source.syntax.is_encapsulated:
        if source.length is not None:
            raise DataError(f"{name}: need pixels in fragments for {source.syntax.name}, got one block")
        return
    if source.length is None or not needed <= source.length <= needed + _MAX_TAIL:
        said = f"{instance.frames} x {instance.rows} x {instance.columns}"
        got = "fragments" if source.length is None else source.length
        raise DataError(f"{name}: need {needed} bytes of pixels for {said}, got {got}")
    if (lacking := source.offset + needed - source.size) > 0:
        raise DataError(f"{name}: need {needed} bytes of pixels, got a file that lacks {lacking}")
