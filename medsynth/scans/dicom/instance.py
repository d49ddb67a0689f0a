"""What the header of one DICOM file says: who it is, what its pixels are, and where each of its frames lies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from medsynth.errors import DataError
from medsynth.scans.dicom.codecs import check_codec
from medsynth.scans.dicom.elements import integer, number, quiet, text, vector, words
from medsynth.scans.dicom.source import Source, read_elements
from medsynth.scans.limits import check_spacing, damage_as_data_error, one_line

_PLAUSIBLE = 1 << 26  # a deflated file of more bytes that shrank more than so many fold holds no scan
_RATIO = 200
_MAX_TAIL = 1 << 16  # bytes that may follow the pixels (some writers pad)

_SLICES = {uid.CTImageStorage, uid.MRImageStorage, uid.PositronEmissionTomographyImageStorage}
# They have pixels, but those of a result or a plan.
_NO_SCANS = {uid.SegmentationStorage, uid.RTDoseStorage, "1.2.840.10008.5.1.4.1.1.66.7"}  # the last: label maps
_KEYWORDS = (
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "PatientID",
    "BurnedInAnnotation",
    "MRAcquisitionType",
    "SliceThickness",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "InConcatenationTotalNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ModalityLUTSequence",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Where a frame lies (LPS, mm), and the line from its stored values to physical ones.

    `position` is that of the centre of its first pixel, `orientation` the directions in which columns and rows are counted
    (three cosines each), `spacing` the distance between rows and that between columns.
    """

    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float
    intercept: float

    @property
    def lies(self) -> bool:
        """Whether it is known where the frame lies."""
        return None not in (self.position, self.orientation, self.spacing)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One DICOM file, without its pixels. `name` is what an error calls it; `problem` says why it cannot be read.

    `kind` is the name of what it holds, such as `CT Image Storage`; `is_image` is False for reports, plans, segmentations and
    the like. `inverted` says that larger stored values are darker (MONOCHROME1) and are no physical quantity; `thickness` is
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
        return self.frames <= 1 and (self.sop_class in _SLICES or (bool(self.planes) and self.planes[0].lies))

    @property
    def dtype(self) -> np.dtype:
        """The type of the values as they are returned, wide enough to be exact."""
        if all(plane.slope == 1 and plane.intercept == 0 for plane in self.planes):
            return np.dtype(f"{'i' if self.signed else 'u'}{self.bits // 8}")
        return np.dtype(np.float32 if self.bits_stored <= 24 else np.float64)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return self.rows * self.columns * self.bits // 8


def read_instance(file: Path) -> Instance:
    """Return what the header of a file says; what makes its pixels unreadable is the instance's `problem`.

    Raises `DataError` for a file that is no DICOM, or too damaged to say who it is.
    """
    name = one_line(file)
    with damage_as_data_error(name, "DICOM"), quiet():
        found, source = read_elements(file, name, _KEYWORDS)
        instance = _identify(found, source, name)
        if instance is None:
            raise DataError(f"{name}: need a DICOM file, got none that says what it is; try another copy")
    if not instance.is_image:
        return replace(
            instance, problem=f"{name}: need an image, got {instance.kind}; try the images that it belongs to"
        )
    for step in (_describe_pixels, _check_kind, _describe_planes, _check_pixels):
        try:
            with damage_as_data_error(name, "DICOM"), quiet():
                instance = step(instance, found)
        except DataError as error:
            return replace(instance, problem=str(error))
    return instance


def _identify(found: Dataset, source: Source, name: str) -> Instance | None:
    sop_class, pixels = text(found, "SOPClassUID") or source.kind, bool(words(found, "Rows"))
    if not sop_class and not pixels:
        return None
    kind = one_line(uid.UID(sop_class).name)[:80] or "an object without SOPClassUID"
    return Instance(
        source=source,
        name=name,
        kind=kind,
        sop_class=sop_class,
        sop_instance=text(found, "SOPInstanceUID"),
        study=text(found, "StudyInstanceUID"),
        series=text(found, "SeriesInstanceUID"),
        patient=text(found, "PatientID"),
        modality=text(found, "Modality"),
        image_type=words(found, "ImageType"),
        burned_in=text(found, "BurnedInAnnotation").upper() == "YES",
        acquired_3d=text(found, "MRAcquisitionType") == "3D",
        is_image=(pixels or kind.endswith("Image Storage")) and sop_class not in _NO_SCANS,
    )


def _describe_pixels(instance: Instance, found: Dataset) -> Instance:
    """Return the instance with the layout of its pixels."""
    return replace(
        instance,
        rows=integer(found, "Rows", 0),
        columns=integer(found, "Columns", 0),
        frames=integer(found, "NumberOfFrames", 1),
        bits=integer(found, "BitsAllocated", 0),
        bits_stored=integer(found, "BitsStored", integer(found, "BitsAllocated", 0)),
        signed=bool(integer(found, "PixelRepresentation", 0)),
        # Hounsfield units are what they are; only of other values MONOCHROME1 tells which end is bright.
        inverted=text(found, "PhotometricInterpretation") == "MONOCHROME1"
        and instance.modality != "CT"
        and text(found, "RescaleType") != "HU",
        thickness=number(found, "SliceThickness", 1.0) or 1.0,
    )


def _check_kind(instance: Instance, found: Dataset) -> Instance:
    """Refuse (`DataError`) pixels that are no grey values on a straight line."""
    name, colour = instance.name, text(found, "PhotometricInterpretation")
    if integer(found, "SamplesPerPixel", 1) != 1 or colour not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(f"{name}: need one grey value a pixel, got {one_line(colour) or 'none'}; try converting it")
    if instance.bits not in (8, 16, 32) or not 1 <= instance.bits_stored <= instance.bits:
        raise DataError(
            f"{name}: need 8, 16 or 32 bits a pixel, got {instance.bits_stored} of {instance.bits}; try converting it"
        )
    if integer(found, "HighBit", instance.bits_stored - 1) != instance.bits_stored - 1:
        raise DataError(f"{name}: need values in the lowest bits, got HighBit {found.HighBit}; try converting it")
    if min(instance.rows, instance.columns, instance.frames) < 1:
        raise DataError(
            f"{name}: need at least one pixel, got {instance.frames} frames of {instance.rows} x {instance.columns}; "
            "try another copy"
        )
    if words(found, "ModalityLUTSequence"):
        raise DataError(f"{name}: need values on a straight line, got a Modality LUT; try converting it")
    if integer(found, "InConcatenationTotalNumber", 1) != 1:
        raise DataError(f"{name}: need all frames in one file, got a part of a concatenation; try joining the parts")
    return instance


def _describe_planes(instance: Instance, found: Dataset) -> Instance:
    """Return the instance with a plane for each frame."""
    name = instance.name
    if "PerFrameFunctionalGroupsSequence" in found:
        items = found.PerFrameFunctionalGroupsSequence
        if len(items) != instance.frames:
            raise DataError(
                f"{name}: need a description of each of {instance.frames} frames, got {len(items)}; try another copy"
            )
        shared = [*(found.get("SharedFunctionalGroupsSequence") or ()), Dataset()][0]
        planes = tuple(_functional_plane(item, shared) for item in items)
    elif instance.frames > 1:
        raise DataError(
            f"{name}: need one frame, or frames that say where they lie, got {instance.frames} that do not; "
            "try splitting it into pictures"
        )
    else:
        spacings = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
        planes = (
            _plane(found, found, next((vector(found, key, 2) for key in spacings if words(found, key)), None), found),
        )
    for plane in planes:
        if plane.spacing is not None:
            check_spacing(name, plane.spacing)
        if plane.slope == 0:
            raise DataError(f"{name}: need a RescaleSlope other than 0, got 0; try another copy")
    return replace(instance, planes=planes)


def _functional_plane(item: Dataset, shared: Dataset) -> Plane:
    def group(keyword: str) -> Dataset:
        for holder in (item, shared):
            if holder.get(keyword):
                return holder[keyword].value[0]
        return Dataset()

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


def _check_pixels(instance: Instance, found: Dataset) -> Instance:
    """Refuse (`DataError`) pixels that are not there, that no decoder reads, or of another size than announced."""
    name, source, needed = instance.name, instance.source, instance.frames * instance.frame_bytes
    if source.pixels is None or source.pixels.keyword != "PixelData":
        got = "none" if source.pixels is None else source.pixels.keyword
        raise DataError(f"{name}: need PixelData, got {got}; try another copy")
    check_codec(name, source.syntax)
    if source.syntax.is_encapsulated:
        if source.pixels.length is not None:
            raise DataError(
                f"{name}: need pixels in fragments for {source.syntax.name}, got a single block; try another copy"
            )
        return instance
    got_bytes = source.pixels.length
    if got_bytes is None or not needed <= got_bytes <= needed + _MAX_TAIL:
        raise DataError(
            f"{name}: need {needed} bytes of pixels for {instance.frames} x {instance.rows} x {instance.columns}, "
            f"got {'fragments' if got_bytes is None else got_bytes}; try another copy"
        )
    if source.syntax == uid.DeflatedExplicitVRLittleEndian:
        if needed > _PLAUSIBLE and needed > _RATIO * source.size:
            raise DataError(
                f"{name}: need a scan, got {needed} bytes of pixels deflated to {source.size}, which no scan does; "
                "try another copy"
            )
    elif source.pixels.offset + needed > source.size:
        lacking = source.pixels.offset + needed - source.size
        raise DataError(f"{name}: need {needed} bytes of pixels, got a file that lacks {lacking}; try another copy")
    return instance
