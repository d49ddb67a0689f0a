"""DICOM files for tests, written by pydicom alone: series of slices, pictures and enhanced multi-frame files."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

AXIAL = (1.0, 0, 0, 0, 1, 0)
SAGITTAL = (0.0, 1, 0, 0, 0, -1)
CORONAL = (1.0, 0, 0, 0, 0, -1)
CLASSES = {
    "CT": uid.CTImageStorage,
    "MR": uid.MRImageStorage,
    "PT": uid.PositronEmissionTomographyImageStorage,
    "CR": uid.ComputedRadiographyImageStorage,
    "OT": uid.SecondaryCaptureImageStorage,
}


def oblique(*angles: float) -> tuple[float, ...]:
    """Return the orientation of an axial slice turned by `angles` (degrees) about the x, y and z axes, one after the other."""
    turned = np.eye(3)
    for axis, angle in enumerate(np.radians(angles)):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[one, one, other, other], [one, other, one, other]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        turned = turn @ turned
    return (*turned[:, 0], *turned[:, 1])


def normal_of(orientation: Sequence[float]) -> np.ndarray:
    return np.cross(orientation[:3], orientation[3:])


def new_uid(*words: object) -> str:
    """Return the UID that belongs to `words`."""
    return uid.generate_uid(entropy_srcs=[repr(words)])


def dataset(
    pixels: np.ndarray, *, modality: str = "CT", series: str = "one", number: int = 1, signed: bool | None = None
) -> Dataset:
    """Return an image of one frame, without a place: `pixels` (rows, columns) are the stored values."""
    made = Dataset()
    made.SOPClassUID = CLASSES[modality]
    made.SOPInstanceUID = new_uid(series, number)
    made.StudyInstanceUID = new_uid("study", series)
    made.SeriesInstanceUID = new_uid("series", series)
    made.PatientID = f"patient-{series}"
    made.PatientName = f"Secret^{series}"
    made.Modality = modality
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.InstanceNumber = number
    made.Rows, made.Columns = pixels.shape[-2:]
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i" if signed is None else signed)
    content = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    made.PixelData = content + b"\0" * (len(content) % 2)
    made["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return made


def write(made: Dataset, path: Path, *, syntax: str = uid.ExplicitVRLittleEndian, preamble: bytes = b"") -> Path:
    """Write a data set as a DICOM file; pixels must be in the form of the transfer syntax."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.UID(syntax)
    file = pydicom.FileDataset(
        str(path),
        made,
        preamble=preamble.ljust(128, b"\0")[:128],
        file_meta=made.file_meta,
        is_implicit_VR=syntax == uid.ImplicitVRLittleEndian,
        is_little_endian=syntax != uid.ExplicitVRBigEndian,
    )
    file.save_as(path, enforce_file_format=True)
    return path


def series_of(
    volume: np.ndarray,
    *,
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-30.0, -20.0, 10.0),
    spacing: Sequence[float] = (0.8, 0.7),
    step: Sequence[float] | float = 2.5,
    modality: str = "CT",
    series: str = "one",
    slope: float | None = None,
    intercept: float | None = None,
    **elements: Any,
) -> list[Dataset]:
    """Return the slices `volume` (slice, row, column) of a series.

    `step` leads from one slice to the next: a vector in LPS millimetres, or a length along the normal. `elements` are set on
    every slice.
    """
    vector = np.array(step if np.ndim(step) else normal_of(orientation) * step, dtype=np.float64)
    made = []
    for number, pixels in enumerate(volume):
        one = dataset(pixels, modality=modality, series=series, number=number + 1)
        position = np.array(origin) + number * vector
        one.ImagePositionPatient = [f"{value:.9f}"[:16] for value in position]
        one.ImageOrientationPatient = [f"{value:.12f}"[:16] for value in orientation]
        one.FrameOfReferenceUID = new_uid("frame", series)
        one.PixelSpacing = list(spacing)
        one.SliceThickness = float(np.linalg.norm(vector))
        if slope is not None:
            one.RescaleSlope, one.RescaleIntercept = slope, intercept
        for keyword, value in elements.items():
            setattr(one, keyword, value)
        made.append(one)
    return made


def write_series(slices: Sequence[Dataset], folder: Path, *, syntax: str = uid.ExplicitVRLittleEndian) -> Path:
    """Write slices as `IM1`, `IM2`, ... in an order that is not theirs, and return the folder."""
    for number, one in enumerate(np.random.default_rng(0).permutation(len(slices))):
        write(slices[one], folder / f"IM{number + 1}", syntax=syntax)
    return folder


def enhanced_of(slices: Sequence[Dataset], *, per_frame: bool = True) -> Dataset:
    """Return the slices of a series as one enhanced multi-frame file, frames in the order given.

    `per_frame` puts spacing and rescaling into each frame, else those of the first slice are shared.
    """
    first = slices[0]
    made = dataset(np.stack([one.pixel_array for one in map(with_meta, slices)]), series=first.SeriesInstanceUID)
    made.SOPClassUID = uid.EnhancedCTImageStorage if first.Modality == "CT" else uid.EnhancedMRImageStorage
    for keyword in ("Modality", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "PixelRepresentation"):
        setattr(made, keyword, getattr(first, keyword))
    made.NumberOfFrames = len(slices)
    groups = []
    for one in slices:
        group = Dataset()
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = one.ImagePositionPatient
        groups.append(group)
    shared = Dataset()
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = first.ImageOrientationPatient
    for one, group in zip(slices, groups, strict=True) if per_frame else [(first, shared)]:
        group.PixelMeasuresSequence = [Dataset()]
        group.PixelMeasuresSequence[0].PixelSpacing = one.PixelSpacing
        group.PixelMeasuresSequence[0].SliceThickness = one.SliceThickness
        if "RescaleSlope" in one:
            group.PixelValueTransformationSequence = [Dataset()]
            values = group.PixelValueTransformationSequence[0]
            values.RescaleSlope, values.RescaleIntercept = one.RescaleSlope, one.RescaleIntercept
            values.RescaleType = "HU"
    made.SharedFunctionalGroupsSequence = [shared]
    made.PerFrameFunctionalGroupsSequence = groups
    return made


def with_meta(made: Dataset) -> Dataset:
    """Return a data set that pydicom can decode without it being written."""
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return made


def place_of(
    index: tuple[int, int, int],
    *,
    orientation: Sequence[float],
    origin: Sequence[float],
    spacing: Sequence[float],
    step: Sequence[float] | float,
) -> np.ndarray:
    """Return where the pixel `(slice, row, column)` of such a series lies, in RAS millimetres (PS3.3, C.7.6.2.1.1)."""
    vector = np.array(step if np.ndim(step) else normal_of(orientation) * step, dtype=np.float64)
    place = (
        np.array(origin)
        + index[0] * vector
        + index[1] * spacing[0] * np.array(orientation[3:])
        + index[2] * spacing[1] * np.array(orientation[:3])
    )
    return place * (-1, -1, 1)


def noise(*shape: int, dtype: str = "int16") -> np.ndarray:
    """Return whole numbers from 0 to 199, the same for every call of one shape."""
    return np.random.default_rng(1).integers(0, 200, size=shape).astype(dtype)


def picture(**elements: object) -> Dataset:
    """Return a picture of 6 x 8 `noise`, with elements set on it."""
    made = dataset(noise(6, 8), modality="MR")
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def compressed(made: Dataset, frames: list[bytes], path: Path, syntax: str) -> Path:
    """Write a data set with frames in the place of its pixels."""
    made.PixelData = encapsulate(frames)
    made["PixelData"].is_undefined_length = True
    made["PixelData"].VR = "OB"
    return write(made, path, syntax=syntax)


def runs(pixels: np.ndarray) -> bytes:
    """Return 8-bit pixels as an RLE frame of runs of one byte each."""
    body = b"".join(bytes((0, value)) for value in pixels.tobytes())
    return struct.pack("<16I", 1, 64, *[0] * 14) + body
