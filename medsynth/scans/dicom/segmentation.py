"""Masks of synthetic volumes as DICOM SEG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from medsynth.errors import ConfigError, one_line
from medsynth.files import write_bytes
from medsynth.scans.dicom.elements import quiet
from medsynth.scans.dicom.header import INSTALL
from medsynth.scans.dicom.series import may_be_dicom
from medsynth.scans.dicom.writing import Identity, SliceLayout, encode, identify, lay_out, line, mark_synthetic
from medsynth.scans.limits import check_affine
from medsynth.scans.scan import Scan

_NO_DATE, _NO_TIME = "19000101", "000000"  # the standard requires a date; this one stands for none
_SAME_PLACE = 1e-3  # millimetres, and cosines


def write_segmentation(mask: Scan, path: Path | str, *, images: Path | str, label: str = "lesion") -> None:
    """Write a mask as a DICOM SEG file with one binary segment, called `label`, of type lesion.

    `images` is the folder (or the file of one slice) that `write_dicom` wrote as CT or MR of the scan on whose grid the mask
    lies. Patient, study, frame of reference and origin are taken from it, so `mask.provenance` may be empty. Every voxel other
    than 0 belongs to the segment. The file is complete or absent, equal masks give equal bytes, and its date is always
    1900-01-01, since the standard requires one. Needs highdicom (`pip install 'medsynth-diffusion[dicom]'`).

    Raises `ConfigError` for images that are not synthetic CT or MR, a mask on another grid, or without highdicom.
    """
    name = one_line(path)
    sources = _read_images(Path(images))
    check_affine(name, mask.affine)
    if mask.array.shape[0] != 1 or mask.array.dtype.kind not in "buif":
        raise ConfigError(f"{name}: need a mask of one channel of numbers, got {mask.array.shape} {mask.array.dtype}")
    layout = lay_out(mask, name)
    _check_grid(layout, sources, name)
    identity = identify(mask, f"SEG {line(label)} {sources[0].SeriesInstanceUID}", str(sources[0].PatientID))
    with quiet():
        made = _segment(layout.pixels != 0, sources, line(label) or "lesion", identity)
        write_bytes(Path(path), encode(made))


def _read_images(images: Path) -> list[Dataset]:
    """Return the headers of the slices, in their order."""
    name, files = one_line(images), sorted(images.iterdir()) if images.is_dir() else [images]
    if not all(file.is_file() for file in files):
        raise ConfigError(f"{name}: need the DICOM that write_dicom wrote, got none; try another path")
    with quiet():
        found = [dcmread(file, stop_before_pixels=True) for file in files if may_be_dicom(file.name)]
    for one in found:
        if one.get("SyntheticData") != "YES" or not str(one.get("PatientID", "")).startswith("SYNTH-"):
            raise ConfigError(f"{name}: need synthetic images, got some that do not say so; try write_dicom")
        if one.get("Modality") not in ("CT", "MR"):
            raise ConfigError(f"{name}: need CT or MR for a SEG, got {one_line(one.get('Modality'))}")
    if not found:
        raise ConfigError(f"{name}: need the slices of a series, got none; try another folder")
    return sorted(found, key=lambda one: int(one.InstanceNumber))


def _check_grid(layout: SliceLayout, sources: list[Dataset], name: str) -> None:
    shape = (len(sources), sources[0].Rows, sources[0].Columns)
    same = layout.pixels.shape == shape and all(
        np.allclose(
            [*map(float, layout.position(number)), *map(float, layout.orientation)],
            [*one.ImagePositionPatient, *one.ImageOrientationPatient],
            rtol=0,
            atol=_SAME_PLACE,
        )
        for number, one in enumerate(sources)
    )
    if not same or not np.allclose(layout.spacing[1:], list(sources[0].PixelSpacing), rtol=_SAME_PLACE):
        raise ConfigError(
            f"{name}: need a mask on the grid of the images, {' x '.join(map(str, shape))}, got one of "
            f"{' x '.join(map(str, layout.pixels.shape))} or at another place; try the scan's own affine"
        )


def _segment(mask: np.ndarray, sources: list[Dataset], label: str, identity: Identity) -> Dataset:
    try:
        import highdicom  # takes most of a second to load, and only masks need it
        import highdicom.seg
    except ImportError as error:
        raise ConfigError(f"segmentation: need highdicom for DICOM SEG, got none installed; try {INSTALL}") from error
    from pydicom.sr.codedict import codes

    equipment = sources[0].ContributingEquipmentSequence[0]
    generator = str(equipment.ManufacturerModelName)
    described = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=label,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=generator, version=generator.rpartition(" ")[2], family=codes.DCM.ArtificialIntelligence
        ),
        tracking_uid=identity.uid("tracking"),
        tracking_id=label,
    )
    made: Any = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=mask,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[described],
        series_instance_uid=identity.uid("segmentation series"),
        series_number=2,
        sop_instance_uid=identity.uid("segmentation"),
        instance_number=1,
        manufacturer=str(sources[0].Manufacturer),
        manufacturer_model_name=generator,
        software_versions=generator,
        device_serial_number="SYNTH",
        content_label="SYNTHETIC",
        content_description="SYNTHETIC mask",
        omit_empty_frames=False,
    )
    organization = identity.uid("dimensions")
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    mark_synthetic(made, {"generator": generator})
    made.DerivationDescription = sources[0].DerivationDescription
    made.ContributingEquipmentSequence = [equipment]
    made.SeriesDescription = line(f"SYNTHETIC SEG {label}")
    made.ContentDate, made.ContentTime = _NO_DATE, _NO_TIME
    for keyword in ("InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime"):
        if keyword in made:
            delattr(made, keyword)
    return made
