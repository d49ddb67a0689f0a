"""DICOM out: a synthetic scan becomes a folder of slices, one file each, or a file with a picture."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset

from medsynth.errors import ConfigError, DataError
from medsynth.files import write_bytes
from medsynth.scans.dicom.attributes import describe, identify, meta_of
from medsynth.scans.dicom.layout import SliceLayout, decimals, lay_out
from medsynth.scans.dicom.stored import Stored, to_stored
from medsynth.scans.limits import check_affine, one_line
from medsynth.scans.scan import Scan

Modality = Literal["CT", "MR", "CR", "OT"]
DICOM_MODALITIES: tuple[Modality, ...] = ("CT", "MR", "CR", "OT")

_IN_PATIENT = ("CT", "MR")
_LONGEST = 65535  # rows, and columns
_PATIENT = re.compile(r"SYNTH-[\w.-]{1,58}", re.ASCII)


def write_dicom(scan: Scan, path: Path | str, *, modality: str, patient_id: str | None = None) -> None:
    """Write a synthetic scan as DICOM: a volume as a new folder of slices (`0001.dcm`, ...), a picture as one `.dcm` file.

    `modality` is CT (values in HU), MR, CR (an X-ray) or OT (Secondary Capture: any other picture). Folder or file is whole or
    absent, and equal scans give equal bytes: UIDs follow from the scan, and no date, time, name or birth date is written.
    Every file says in `SyntheticData`, `ContributingEquipmentSequence` and `SeriesDescription` that it is synthetic; how it
    was made is in `DerivationDescription`. PatientID is `patient_id`, which begins with `SYNTH-`, else made from the scan.

    Whole numbers that fit 16 bits are exact. Others are rounded to 1/65535 of the range of the scan and get a rescale slope and
    intercept; the MR standard does not know these two, so MR is best given as whole numbers. CT and MR keep the affine, CR and
    OT the pixel size alone. `read_scan` returns a volume with the axes that it gives any series: the same voxels at the same
    places. Volumes are cut across the patient's height, or across an axis of more than 1.5 times the spacing of the others.

    Raises `ConfigError` for a scan without provenance (DICOM is for synthetic scans only), of several channels, with axes that
    are not at right angles, a volume as CR or OT, or a folder that exists; `DataError` for a scan that is not sound.
    """
    name, path = one_line(path), Path(path)
    check_dicom(np.shape(scan.array), modality, name)
    _check_scan(scan, name, patient_id)
    layout = lay_out(scan, name)
    identity = identify(scan, modality, patient_id)
    common = describe(scan, modality, identity)
    stored = to_stored(layout.pixels, modality, name)
    _describe_pixels(common, stored, modality)
    slices = []
    for number in range(len(layout.pixels)):
        common.SOPInstanceUID, common.InstanceNumber = identity.uid("instance", str(number)), number + 1
        if modality in _IN_PATIENT:
            common.FrameOfReferenceUID = identity.uid("frame of reference")
        _describe_place(common, layout, number, modality)
        common.PixelData = _pixel_bytes(stored.array[number])
        common["PixelData"].VR = "OB" if stored.array.dtype.itemsize == 1 else "OW"
        slices.append(encode(common))
    if scan.array.ndim == 3:
        write_bytes(path, slices[0])
        return
    with _whole_folder(path, name) as folder:
        for number, content in enumerate(slices, start=1):
            write_bytes(folder / f"{number:04d}.dcm", content)


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


def encode(made: Dataset) -> bytes:
    """Return the bytes of a DICOM file with this data set."""
    stream = io.BytesIO()
    made.file_meta = meta_of(made)
    dcmwrite(stream, made, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return stream.getvalue()


def _check_scan(scan: Scan, name: str, patient_id: str | None) -> None:
    array = scan.array
    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        raise DataError(f"{name}: need real numbers up to 64 bits, got {array.dtype}; try converting the array")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{name}: need finite voxels to write, got NaN or infinite ones")
    check_affine(name, scan.affine)
    if not scan.provenance:
        raise ConfigError(
            f"{name}: need a scan with provenance, since every DICOM written is marked as synthetic, got one without; "
            'try provenance={"generator": "what made it"}, or NIfTI for a real scan'
        )
    if patient_id is not None and not _PATIENT.fullmatch(patient_id):
        raise ConfigError(
            f"{name}: need a patient_id of SYNTH- and letters or digits, got {one_line(patient_id)[:80]!r}"
        )


def _describe_pixels(made: Dataset, stored: Stored, modality: str) -> None:
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = stored.array.shape[-2:]
    made.BitsAllocated = made.BitsStored = 8 * stored.array.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(stored.array.dtype.kind == "i")
    if stored.slope is not None or modality == "CT":
        made.RescaleSlope, made.RescaleIntercept = stored.slope or "1", stored.intercept or "0"
        made.RescaleType = "HU" if modality == "CT" else "US"


def _describe_place(made: Dataset, layout: SliceLayout, number: int, modality: str) -> None:
    step, *pixel = layout.spacing
    if modality in _IN_PATIENT:
        made.PixelSpacing = decimals(pixel)
        (made.SliceThickness,) = decimals([step])
        made.PositionReferenceIndicator = ""
        made.ImageOrientationPatient = layout.orientation
        made.ImagePositionPatient = layout.position(number)
        if modality == "MR" or len(layout.pixels) > 1:
            (made.SpacingBetweenSlices,) = decimals([step])
    elif modality == "CR":
        made.ImagerPixelSpacing = decimals(pixel)
    else:
        made.NominalScannedPixelSpacing = decimals(pixel)


def _pixel_bytes(pixels: np.ndarray) -> bytes:
    content = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
    return content + b"\0" * (len(content) % 2)


@contextmanager
def _whole_folder(folder: Path, name: str) -> Iterator[Path]:
    """Yield a hidden folder beside `folder`, which takes its place on success and goes when the block raises.

    Its name is the same each time, so that whoever writes the folder after a kill clears away what was left.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{name}: need a new folder for a series, got one that exists; try another path")
    temporary = folder.parent / f".unfinished-{folder.name[-80:]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
