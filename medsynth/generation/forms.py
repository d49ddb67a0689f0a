"""The file format of a synthetic set: by option, else that of the training scans."""

from __future__ import annotations

import math

import numpy as np

from medsynth.errors import ConfigError
from medsynth.runs import RunSpec
from medsynth.scans import DICOM_MODALITIES, check_dicom

SUFFIXES = {"nifti": ".nii.gz", "png": ".png", "npz": ".npz"}
_PICTURE = ".dcm"  # a DICOM volume is a folder, whose name has no suffix
_HEAD = 4096  # bytes of a file beside its voxels: header, provenance, and the rest of a block on the disk
# A radiograph is written as CR whatever detector took the real ones: DX says too much about the detector.
_SEGMENTED = ("CT", "MR")
_WRITTEN_AS = {"CT": "CT", "MR": "MR", "CR": "CR", "DX": "CR", "OT": "OT"}


def choose_form(spec: RunSpec, file_format: str, modality: str) -> tuple[str, str | None]:
    """Return the suffix of a set's scans and the modality that is written, None for other formats than DICOM.

    `auto` is what the training scans were. Raises `ConfigError` for a modality that is not known or has no use, and for scans
    that DICOM cannot hold.
    """
    if file_format != "dicom" and not (file_format == "auto" and spec.suffix == _PICTURE):
        if modality != "auto":
            raise ConfigError(f"modality: need format dicom for a modality, got {modality} and {file_format}")
        return (spec.suffix if file_format == "auto" else SUFFIXES[file_format]), None
    written = _WRITTEN_AS.get(spec.modality or "") if modality == "auto" else modality
    if written is None:
        was = f"{spec.modality} training scans" if spec.modality else "a run that does not know that of its scans"
        raise ConfigError(
            f"modality: need one of {', '.join(DICOM_MODALITIES)} to write, got {was}; "
            "try --modality CT if values are HU, or --format nifti"
        )
    if len(spec.files) > 1:
        raise ConfigError(
            f"format: need nifti, png or npz for {len(spec.files)} sequences of a scan, got DICOM; try nifti"
        )
    check_dicom(_image_shape(spec), written, "modality")
    if spec.mask and written not in _SEGMENTED:
        raise ConfigError(
            f"modality: need CT or MR for scans with masks (DICOM SEG), got {written}; try --format nifti"
        )
    return (_PICTURE if len(spec.shape) == 3 else ""), written


def scan_bytes(spec: RunSpec, modality: str | None) -> int:
    """Return about how many bytes a scan takes on the disk, as if it were not compressed."""
    voxels = math.prod(spec.shape[1:])
    mask = voxels + _HEAD if spec.mask else 0
    if modality is None:
        return mask + sum(
            (channels.stop - channels.start) * voxels * _item_bytes(dtype) + _HEAD
            for channels, dtype in spec.files.values()
        )
    volume = len(spec.shape) == 4
    files = max(spec.shape[1:]) if volume else 1
    return mask + voxels * (1 if _item_bytes(spec.dtype) == 1 and not volume else 2) + files * _HEAD


def _image_shape(spec: RunSpec) -> tuple[int, ...]:
    return (spec.shape[0] - spec.mask, *spec.shape[1:])


def _item_bytes(name: str) -> int:
    """Return the bytes of a voxel as it is written."""
    dtype = np.dtype(name)
    return dtype.itemsize if dtype.kind in "iu" else 4
