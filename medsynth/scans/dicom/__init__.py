"""DICOM: files, folders of one series, what a folder of mixed series holds, and synthetic scans and masks out."""

from medsynth.scans.dicom.listing import DicomScan, list_dicom
from medsynth.scans.dicom.reading import read, read_header
from medsynth.scans.dicom.segmentation import write_segmentation
from medsynth.scans.dicom.series import SERIES, may_be_dicom
from medsynth.scans.dicom.source import is_dicom
from medsynth.scans.dicom.writing import DICOM_MODALITIES, check_dicom, write_dicom

__all__ = [
    "DICOM_MODALITIES",
    "SERIES",
    "DicomScan",
    "check_dicom",
    "is_dicom",
    "list_dicom",
    "may_be_dicom",
    "read",
    "read_header",
    "write_dicom",
    "write_segmentation",
]
