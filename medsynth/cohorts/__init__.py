"""Cohorts: the manifest CSV, patient-level splits, indexing, the preprocessing cache and the torch Dataset."""

from __future__ import annotations

from medsynth.cohorts.cache import PreparedCohort, ScanDataset, hash_cohort, hash_scans, prepare_cohort
from medsynth.cohorts.index import IndexResult, index_folder, index_scans
from medsynth.cohorts.manifest import SPLITS, Cohort, Row, read_cohort, write_cohort
from medsynth.cohorts.phantom import write_phantom
from medsynth.cohorts.text import TextEncoding, fit_text

__all__ = [
    "SPLITS",
    "Cohort",
    "IndexResult",
    "PreparedCohort",
    "Row",
    "ScanDataset",
    "TextEncoding",
    "fit_text",
    "hash_cohort",
    "hash_scans",
    "index_folder",
    "index_scans",
    "prepare_cohort",
    "read_cohort",
    "write_cohort",
    "write_phantom",
]
