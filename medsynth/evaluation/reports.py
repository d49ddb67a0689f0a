"""The report of an evaluation, read back: whether it is one, and whether it is about these very scans."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsynth.cohorts import Cohort, hash_cohort
from medsynth.config import Loading
from medsynth.errors import DataError
from medsynth.evaluation.verdict import SCHEMA

REPORT_FILE = "report.json"


def read_report(path: Path) -> Mapping[str, Any]:
    """Return the content of a `report.json`, given as the file or its folder; `DataError` if there is none of our schema."""
    file = path / REPORT_FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: need the report of an evaluation, got none; try medsynth evaluate --real ... --synthetic ... --out ..."
        ) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema == "medsynth-report/1":
        raise DataError(f"{file}: written by medsynth 0.1; run medsynth evaluate again")
    if schema != SCHEMA:
        raise DataError(f"{file}: need a report of schema {SCHEMA}, got another; try medsynth evaluate again")
    return dict(content)


def check_sets(
    content: Mapping[str, Any], report: Path, cohorts: Mapping[str, Cohort], *, loading: Loading = Loading()
) -> None:
    """Raise `DataError` unless the report is about the `cohorts`, which are named `real` and `synthetic`."""
    sets = content.get("sets") or {}
    for name, cohort in cohorts.items():
        if sets.get(name) != hash_cohort(cohort, loading=loading):
            raise DataError(
                f"{report}: need a report about these {name} scans, got one about others; try medsynth evaluate again"
            )
