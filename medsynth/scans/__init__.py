"""Scans in memory and on disk: PNG, NPZ and NIfTI, with exact values, bounded memory and one intensity conversion."""

from medsynth.scans.formats import SUFFIXES, list_items, read_header, read_scan, scan_suffix, split_item, write_scan
from medsynth.scans.intensity import Intensity, measure_intensity
from medsynth.scans.scan import PICTURE_AFFINE, Scan, ScanHeader

__all__ = [
    "PICTURE_AFFINE",
    "SUFFIXES",
    "Intensity",
    "Scan",
    "ScanHeader",
    "list_items",
    "measure_intensity",
    "read_header",
    "read_scan",
    "scan_suffix",
    "split_item",
    "write_scan",
]
