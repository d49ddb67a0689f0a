"""DICOM: files, folders of one series, and what a folder of mixed series holds."""

from medsynth.scans.dicom.listing import DicomScan, list_dicom
from medsynth.scans.dicom.reading import read, read_header
from medsynth.scans.dicom.series import SERIES, may_be_dicom
from medsynth.scans.dicom.source import is_dicom

__all__ = ["SERIES", "DicomScan", "is_dicom", "list_dicom", "may_be_dicom", "read", "read_header"]
