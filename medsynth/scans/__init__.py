"""Scans in memory and on disk: PNG, NPZ, NIfTI and DICOM, with exact values, bounded memory and one intensity conversion."""

from medsynth.scans.dicom import (
    DICOM_MODALITIES,
    DicomScan,
    check_dicom,
    is_dicom,
    list_dicom,
    may_be_dicom,
    write_dicom,
    write_segmentation,
)
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
from medsynth.scans.scan import PICTURE_AFFINE, Scan, ScanHeader

__all__ = [
    "DICOM_MODALITIES",
    "PICTURE_AFFINE",
    "SUFFIXES",
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
