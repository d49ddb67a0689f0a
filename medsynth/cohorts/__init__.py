"""Cohorts: the manifest CSV, patient-level splits, indexing, the preprocessing cache and the torch Dataset."""

from __future__ import annotations

from medsynth.cohorts.cache import PreparedCohort, hash_cohort, prepare_cohort
from medsynth.cohorts.dataset import ScanDataset
from medsynth.cohorts.index import IndexResult, index_scans
from medsynth.cohorts.manifest import SPLITS, Cohort, Row, read_cohort, write_cohort
from medsynth.cohorts.phantom import write_phantom

__all__ = [
    "SPLITS",
    "Cohort",
    "IndexResult",
    "PreparedCohort",
    "Row",
    "ScanDataset",
    "hash_cohort",
    "index_scans",
    "prepare_cohort",
    "read_cohort",
    "write_cohort",
    "write_phantom",
]
