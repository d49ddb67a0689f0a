"""DICOM: files, series and what a folder holds in; synthetic scans and their masks out."""
