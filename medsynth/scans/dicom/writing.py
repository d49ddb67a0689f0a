"""DICOM out: a synthetic scan becomes a folder of slices, one file each, or one file with a picture."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel import orientations
from pydicom import dcmwrite, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.valuerep import format_number_as_ds

from medsynth.errors import ConfigError, DataError, one_line
from medsynth.files import write_bytes
from medsynth.scans.dicom.volume import LPS_TO_RAS
from medsynth.scans.limits import check_affine, check_voxels
from medsynth.scans.scan import Scan

DICOM_MODALITIES = ("CT", "MR", "CR", "OT")

_IN_PATIENT = ("CT", "MR")
_LONGEST = 65535  # rows, and columns
_LEVELS = 65535  # steps between the ends of 16 bits
_PATIENT = re.compile(r"SYNTH-[\w.-]{1,58}", re.ASCII)
_MANUFACTURER = "Synthetic"  # no name that readers associate with a vendor and its private habits
# Slice, row and column of sagittal, coronal and axial slices as radiologists look at them, slices along the normal.
_DISPLAY = ("RIP", "PIL", "SPL")
_THICK = 1.5  # times the other two spacings: an axis of thick slices stays the slice axis
_ASKEW = 1e-3  # cosine of the angle between two axes
_CLASSES = {
    "CT": uid.CTImageStorage,
    "MR": uid.MRImageStorage,
    "CR": uid.ComputedRadiographyImageStorage,
    "OT": uid.SecondaryCaptureImageStorage,
}
# What each kind of image must state beyond what all state; None where the standard allows an empty value.
_OWN: Mapping[str, Mapping[str, object]] = {
    "CT": {"KVP": None, "AcquisitionNumber": None, "PatientPosition": "HFS"},
    "MR": {
        "PatientPosition": "HFS",
        "ScanningSequence": "RM",  # research mode: no sequence made it
        "SequenceVariant": "NONE",
        "ScanOptions": None,
        "MRAcquisitionType": "3D",  # a model makes the volume as a whole
        "EchoTime": None,
        "EchoTrainLength": None,
        "RepetitionTime": None,
    },
    "CR": {"BodyPartExamined": None, "ViewPosition": None, "PatientOrientation": None},
    "OT": {"ConversionType": "SYN", "PatientOrientation": None},
}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose a written scan is: a patient that does not exist, and UIDs that follow from the scan alone."""

    patient: str
    digest: str

    def uid(self, *words: str) -> uid.UID:
        """Return the UID that belongs to the scan and to `words`."""
        return uid.generate_uid(entropy_srcs=["medsynth", self.patient, self.digest, *words])


@dataclass(frozen=True, kw_only=True, eq=False)
class SliceLayout:
    """A scan as slices: `pixels` is `(slice, row, column)`, `matrix` 4x4 maps these indices to LPS millimetres."""

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
        return _decimals([*column, *row])

    def position(self, number: int) -> list[str]:
        """ImagePositionPatient of a slice: the centre of its first pixel."""
        return _decimals((self.matrix @ (number, 0, 0, 1))[:3].tolist())


def write_dicom(scan: Scan, path: Path | str, *, modality: str, patient_id: str | None = None) -> None:
    """Write a synthetic scan as DICOM: a volume as a new folder of slices (`0001.dcm`, ...), a picture as one `.dcm` file.

    `modality` is CT (values in HU), MR, CR (an X-ray) or OT (Secondary Capture: any other picture). Folder or file is complete
    or absent, and equal scans give equal bytes: UIDs follow from the scan, and no date, time, name or birth date is written.
    Every file says in `SyntheticData`, `ContributingEquipmentSequence` and `SeriesDescription` that it is synthetic; how it
    was made is in `DerivationDescription`. PatientID is `patient_id`, which begins with `SYNTH-`, else made from the scan.

    Whole numbers that fit 16 bits are exact. Others are rounded to 1/65535 of the range of the scan and get a rescale slope and
    intercept; the MR standard does not know these two, so give MR as whole numbers if you can. CT and MR keep the affine, CR
    and OT only the pixel size. `read_scan` returns a volume with the axes that it gives any series: the same voxels at the same
    places. Volumes are cut across the patient's height, or across an axis of more than 1.5 times the spacing of the others.

    Raises `ConfigError` for a scan without provenance (only synthetic scans are written as DICOM), of several channels, with
    axes that are not at right angles, a volume as CR or OT, or a folder that exists; `DataError` for an invalid scan.
    """
    name, path = one_line(path), Path(path)
    check_dicom(np.shape(scan.array), modality, name)
    check_voxels(name, scan.array)
    check_affine(name, scan.affine)
    if not scan.provenance:
        hint = 'provenance={"generator": "what made it"}, or NIfTI for a real scan'
        raise ConfigError(
            f"{name}: need a scan with provenance, since DICOM is marked as synthetic, got none; try {hint}"
        )
    if patient_id is not None and not _PATIENT.fullmatch(patient_id):
        raise ConfigError(f"{name}: need a patient_id of SYNTH- and letters or digits, got {patient_id[:80]!r}")
    layout = lay_out(scan, name)
    identity = identify(scan, modality, patient_id)
    made = _describe(scan, modality, identity)
    stored, slope, intercept = _to_stored(layout.pixels, modality, name)
    if slope is not None or modality == "CT":
        made.RescaleSlope, made.RescaleIntercept = slope or "1", intercept or "0"
        made.RescaleType = "HU" if modality == "CT" else "US"
    _describe_place(made, layout, identity)
    slices = []
    for number, pixels in enumerate(stored):
        made.SOPInstanceUID, made.InstanceNumber = identity.uid("instance", str(number)), number + 1
        if modality in _IN_PATIENT:
            made.ImagePositionPatient = layout.position(number)
        made.set_pixel_data(pixels, "MONOCHROME2", 8 * pixels.dtype.itemsize, generate_instance_uid=False)
        slices.append(encode(made))
    if scan.array.ndim == 3:
        write_bytes(path, slices[0])
        return
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"{name}: need a new folder for a series, got one that exists; try another path")
    # Its name is the same each time, so whoever writes the folder again clears away what a killed process left.
    temporary = path.parent / f".unfinished-{path.name[-80:]}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for number, content in enumerate(slices, start=1):
            write_bytes(temporary / f"{number:04d}.dcm", content)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_dicom(shape: tuple[int, ...], modality: str, name: str) -> None:
    """Raise `ConfigError` unless a scan of `shape` `(channel, *spatial)` can be written as this modality."""
    if modality not in DICOM_MODALITIES:
        raise ConfigError(f"{name}: need modality {', '.join(DICOM_MODALITIES)}, got {modality!r}")
    if len(shape) not in (3, 4) or 0 in shape:
        raise DataError(f"{name}: need a scan (channel, *spatial) in 2D or 3D, got shape {shape}")
    if shape[0] != 1:
        raise ConfigError(f"{name}: need a scan of one channel for DICOM, got {shape[0]}; try NPZ")
    if len(shape) == 4 and modality not in _IN_PATIENT:
        raise ConfigError(f"{name}: need modality CT or MR for a volume, got {modality}")
    if max(shape) > _LONGEST:
        raise ConfigError(f"{name}: need at most {_LONGEST} voxels along an axis for DICOM, got {shape[1:]}")


def lay_out(scan: Scan, name: str) -> SliceLayout:
    """Return the slices of a scan of one channel.

    A volume is cut along the axis whose spacing is by far the largest, else along the one nearest to the patient's height, and
    its slices are turned as radiologists look at them: axial ones with rows towards the back and columns towards the left. A
    picture stays as it is. Raises `ConfigError` for axes that are not at right angles, and a volume of one slice.
    """
    flat = len(scan.spatial_shape) == 2
    axes = (scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0))[:, : 2 if flat else 3]
    askew = float(np.abs(axes.T @ axes - np.eye(axes.shape[1])).max())
    if askew > _ASKEW:
        angle = np.degrees(np.arccos(askew))
        raise ConfigError(f"{name}: need axes at right angles for DICOM, got {angle:.1f} degrees; try NIfTI")
    if flat:
        return SliceLayout(pixels=scan.array, matrix=LPS_TO_RAS @ scan.affine[:, [2, 0, 1, 3]])
    now = orientations.io_orientation(scan.affine)
    thickest = int(np.argmax(scan.spacing))
    thin = max(size for axis, size in enumerate(scan.spacing) if axis != thickest)
    # The world axis (0 right, 1 front, 2 head) nearest to which slices follow each other.
    direction = int(now[thickest, 0]) if scan.spacing[thickest] > _THICK * thin else 2
    change = orientations.ornt_transform(now, orientations.axcodes2ornt(_DISPLAY[direction]))
    pixels = orientations.apply_orientation(scan.array[0], change)
    if len(pixels) < 2:
        raise ConfigError(f"{name}: need at least 2 slices in a volume, got 1; try a picture (1, row, column)")
    matrix = scan.affine @ orientations.inv_ornt_aff(change, scan.spatial_shape)
    return SliceLayout(pixels=pixels, matrix=LPS_TO_RAS @ matrix)


def identify(scan: Scan, modality: str, patient_id: str | None) -> Identity:
    """Return the identity that follows from a scan; the patient is `patient_id`, else `SYNTH-` and 16 digits."""
    array = np.ascontiguousarray(scan.array)
    facts = [modality, str(array.dtype), list(array.shape), scan.affine.tolist(), scan.label, dict(scan.provenance)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(array.tobytes())
    return Identity(patient=patient_id or f"SYNTH-{digest.hexdigest()[:16]}", digest=digest.hexdigest())


def mark_synthetic(made: Dataset, provenance: Mapping[str, str]) -> None:
    """Say in the three ways of the standard that a data set was synthesized, and by what."""
    origin = " ".join(f"{key}={value}" for key, value in sorted(provenance.items()))
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109100", "DCM"
    purpose.CodeMeaning = "Synthesizing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    equipment.Manufacturer = _MANUFACTURER
    equipment.ManufacturerModelName = line(str(provenance.get("generator") or "")) or "unknown generator"
    equipment.ContributionDescription = line(origin, 1024)
    made.SyntheticData = "YES"
    made.Manufacturer = _MANUFACTURER
    made.DerivationDescription = line(f"SYNTHETIC, shows no patient: {origin}", 1024)
    made.ContributingEquipmentSequence = [equipment]


def encode(made: Dataset) -> bytes:
    """Return the bytes of a DICOM file with this data set: explicit, little endian, not compressed."""
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    stream = io.BytesIO()
    dcmwrite(stream, made, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return stream.getvalue()


def line(words: str, most: int = 64) -> str:
    """Return words as one value of at most so many bytes."""
    return one_line(words).replace("\\", "/").strip().encode()[:most].decode(errors="ignore").strip()


def _decimals(values: Sequence[float]) -> list[str]:
    """Return numbers as decimals of at most 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]


def _describe(scan: Scan, modality: str, identity: Identity) -> Dataset:
    """Return the elements that all files of a scan share, except those of its pixels and its place."""
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPClassUID = _CLASSES[modality]
    made.ImageType = ["DERIVED", "SECONDARY", *{"CT": ["AXIAL"], "MR": ["OTHER"]}.get(modality, [])]
    made.Modality = modality
    for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "Laterality"):
        setattr(made, keyword, "")
    made.PatientID, made.PatientName = identity.patient, identity.patient.replace("-", "^", 1)
    made.PatientBirthDate = made.PatientSex = ""
    made.StudyInstanceUID, made.SeriesInstanceUID = identity.uid("study"), identity.uid("series")
    made.StudyID, made.SeriesNumber = "SYNTH", 1
    mark_synthetic(made, scan.provenance)
    made.SeriesDescription = line(f"SYNTHETIC {modality} {scan.label or ''}")
    for keyword, value in _OWN[modality].items():
        setattr(made, keyword, value)
    return made


def _describe_place(made: Dataset, layout: SliceLayout, identity: Identity) -> None:
    """Add what all slices share of their place."""
    step, *pixel = layout.spacing
    if made.Modality in _IN_PATIENT:
        made.FrameOfReferenceUID = identity.uid("frame of reference")
        made.PixelSpacing = _decimals(pixel)
        (made.SliceThickness,) = _decimals([step])
        made.PositionReferenceIndicator = ""
        made.ImageOrientationPatient = layout.orientation
        if made.Modality == "MR" or len(layout.pixels) > 1:
            (made.SpacingBetweenSlices,) = _decimals([step])
    elif made.Modality == "CR":
        made.ImagerPixelSpacing = _decimals(pixel)
    else:
        made.NominalScannedPixelSpacing = _decimals(pixel)


def _to_stored(array: np.ndarray, modality: str, name: str) -> tuple[np.ndarray, str | None, str | None]:
    """Return finite values of any type as DICOM stores them, with slope and intercept, None if nothing is rescaled.

    Whole numbers stay what they are if they fit: CT in int16, MR in uint16 or int16, pictures in uint8 (if that is their
    type), uint16 or int16. Other whole numbers within 65535 of each other are shifted, and all else is rounded to 1/65535 of
    its range. Raises `ConfigError` for a range that is too large or too small to compute with.
    """
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype == np.uint8 and modality not in _IN_PATIENT:
        return array, None, None
    types = (np.int16,) if modality == "CT" else (np.uint16, np.int16)
    whole = array.dtype.kind in "ui" or bool((array == np.rint(array)).all())
    low, high = array.min(), array.max()
    if whole:
        low, high = int(low), int(high)
        for dtype in types:
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return array.astype(dtype), None, None
    limits = np.iinfo(types[0])
    with np.errstate(over="ignore"):
        spread = float(high) - float(low)
    if not np.isfinite(spread):
        raise ConfigError(f"{name}: need values whose range is a number, got {low:g} to {high:g}; try scaling them")
    slope = format_number_as_ds(1.0 if (whole and spread <= _LEVELS) or spread == 0 else spread / _LEVELS)
    if not float(slope):
        raise ConfigError(f"{name}: need values that differ by more than {spread:g} for DICOM; try scaling them")
    intercept = format_number_as_ds(float(low) - limits.min * float(slope))
    levels = np.rint((array.astype(np.float64) - float(intercept)) / float(slope))
    return levels.clip(limits.min, limits.max).astype(types[0]), slope, intercept
