"""The cohorts of the experiment: draws of the few rare patients, and development scans on which candidates are screened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import medsynth
from medsynth.cohorts import Cohort, Row, write_cohort


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One draw of the rare patients that are known, as cohort CSVs.

    `few` is the cohort as a user would have it; `development` has the same training scans, but its test split holds no test
    patient: rare scans that the draw left out, and common scans of validation patients. `everything` has all rare scans.
    """

    few: Path
    development: Path
    everything: Path


def make_draw(scans: Path, rare: str, patients: int, number: int, out: Path) -> Draw:
    """Index what is not there yet; the draw `number` keeps `patients` training and 10 validation patients of the rare class."""
    everything, few = out / "all" / "cohort.csv", out / f"{patients}_{number}" / "cohort.csv"
    labels = scans / "labels.csv"
    if not everything.is_file():
        medsynth.index(scans=scans, labels=labels, out=everything)
    if not few.is_file():
        medsynth.index(scans=scans, labels=labels, out=few, keep=f"{rare}={patients}/10", seed=number)
    development = few.parent / "development" / "cohort.csv"
    if not development.is_file():
        write_development(medsynth.read_cohort(everything), medsynth.read_cohort(few), rare, development)
    return Draw(few=few, development=development, everything=everything)


def write_development(everything: Cohort, few: Cohort, rare: str, path: Path) -> None:
    """Write the development cohort.

    Common scans of every second validation patient go to its test split, and with them the rare scans that `few` lacks, but for
    those of patients who are in its training or validation split with another scan.
    """
    train = few.select(split="train").rows
    known = {row.path for row in few.rows}
    validation = few.select(split="val").rows
    common = sorted(
        {row.patient_id for row in validation} - {row.patient_id for row in validation if row.label == rare}
    )
    moved = set(common[1::2])
    kept = [row for row in validation if row.patient_id not in moved]
    taken = {row.patient_id for row in (*train, *kept)}
    spare = [
        row
        for row in everything.select(split=("train", "val"), label=rare).rows
        if row.path not in known and row.patient_id not in taken
    ]
    tested = [replace(row, split="test") for row in (*spare, *(row for row in validation if row.patient_id in moved))]
    base = {row.root or "scans": everything.base_of(row) for row in everything.rows}

    def rooted(row: Row) -> Row:
        return replace(row, root=row.root or "scans")

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = tuple(rooted(row) for row in (*train, *kept, *tested))
    write_cohort(Cohort(folder=path.parent, rows=rows, roots=base), path)
