"""Scans in memory and on disk: PNG, NPZ, NIfTI and DICOM, with exact values, bounded memory and one intensity conversion."""

from medsynth.scans.dicom.elements import is_dicom
from medsynth.scans.dicom.reading import DicomScan, list_dicom
from medsynth.scans.dicom.segmentation import write_segmentation
from medsynth.scans.dicom.series import may_be_dicom
from medsynth.scans.dicom.writing import DICOM_MODALITIES, check_dicom, write_dicom
from medsynth.scans.formats import (
    SUFFIXES,
    list_files,
    list_items,
    read_header,
    read_scan,
    scan_suffix,
    split_item,
    write_scan,
)
from medsynth.scans.intensity import Intensity, measure_intensity
from medsynth.scans.scan import PICTURE_AFFINE, VOLUME_AFFINE, Scan, ScanHeader

__all__ = [
    "DICOM_MODALITIES",
    "PICTURE_AFFINE",
    "SUFFIXES",
    "VOLUME_AFFINE",
    "DicomScan",
    "Intensity",
    "Scan",
    "ScanHeader",
    "check_dicom",
    "is_dicom",
    "list_dicom",
    "list_files",
    "list_items",
    "may_be_dicom",
    "measure_intensity",
    "read_header",
    "read_scan",
    "scan_suffix",
    "split_item",
    "write_dicom",
    "write_scan",
    "write_segmentation",
]
