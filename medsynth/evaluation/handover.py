"""The hand-over: real training scans and the accepted scans of a synthetic set as one cohort, behind the privacy gate."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.errors import ConfigError, DataError, GateError
from medsynth.evaluation.inputs import check_patients, check_run, generator_of, open_real, open_synthetic
from medsynth.evaluation.reports import check_sets, read_report
from medsynth.runs import Run


@dataclass(frozen=True, kw_only=True)
class Handover:
    """The augmented cohort, the file it was written to, and what its user should know."""

    cohort: Cohort
    file: Path
    dropped: int
    notes: tuple[str, ...]

    def summary(self) -> str:
        """Return what was written, class by class, and the notes."""
        kinds = Counter((row.label, row.attributes["synthetic"]) for row in self.cohort.rows)
        lines = [
            f"{label}: {kinds[label, '0']} real and {kinds[label, '1']} synthetic scans"
            for label in self.cohort.classes
        ]
        if self.dropped:
            lines.append(f"{self.dropped} copies of real scans were left out")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), f"cohort: {self.file}"])


def augment_cohort(
    real: Path,
    synthetic: Path,
    report: Path,
    out: Path,
    *,
    run: Run | None = None,
    splits: Sequence[str] = ("train",),
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Handover:
    """Write the cohort that a classifier is trained on: real scans of `splits`, and the synthetic scans that passed.

    `report` is the `report.json` (or its folder) of an evaluation of just these scans: its hashes are compared. Every row
    says in the column `synthetic` what it is (`1` or `0`); files stay where they are, as roots of the new cohort. Copies
    that the evaluation set aside stay out.

    Raises `GateError` if the privacy gate did not pass, or was not judged; `DataError` if the report is about other scans, or
    if the generator saw patients of the test split; `ConfigError` if that cannot be told without `run`.
    """
    try:
        content = read_report(report)
    except DataError as error:
        raise GateError(str(error)) from error  # without a report there is no gate that passed
    real_cohort = open_real(real)
    made = open_synthetic(synthetic, real_cohort)
    check_sets(content, report, {"real": real_cohort, "synthetic": made}, cache_dir=cache_dir, progress=progress)
    _check_gate(content, report)
    if run is not None:
        check_run(made, run)
        check_patients(real_cohort, run)
    elif (maker := generator_of(made)) and (content["settings"].get("run") or "") != maker[:16]:
        raise ConfigError(
            f"run: need the run that made {synthetic}, to compare its patients with the test split, got none; try --run"
        )
    privacy = content["privacy"]
    dropped = {copy["synthetic_row"] for copy in privacy["copies"]} if privacy["options"]["drop_copies"] else set()
    roots: dict[str, Path] = {}
    rows = [
        root_row(row, real_cohort, "real", "0", roots, row.split) for row in real_cohort.rows if row.split in splits
    ] + [
        root_row(row, made, "synthetic", "1", roots, "train")
        for number, row in enumerate(made.rows)
        if number not in dropped
    ]
    cohort = Cohort(folder=out.absolute().parent, rows=tuple(rows), roots=roots)
    write_cohort(cohort, out)
    return Handover(cohort=cohort, file=out, dropped=len(dropped), notes=tuple(_notes(content)))


def _check_gate(content: Mapping[str, Any], report: Path) -> None:
    verdict = content["verdict"]["privacy"]
    if verdict is None:
        raise GateError(f"{report}: need a privacy gate that passed, got none; try medsynth evaluate --parts privacy")
    if verdict["reading"] != "pass":
        raise GateError(
            f"{report}: need a privacy gate that passed, got {verdict['reading']!r}: {verdict['sentence']} "
            "Try medsynth evaluate --drop_copies, a generator trained for fewer steps, or more held-out patients"
        )


def root_row(row: Row, cohort: Cohort, name: str, synthetic: str, roots: dict[str, Path], split: str) -> Row:
    """Return a row that names its root in `roots`, where the folder of its files is entered under a free name.

    `synthetic` (`1` or `0`) becomes its column of that name.
    """
    folder = cohort.base_of(row)
    wanted = row.root or name
    chosen, number = wanted, 2
    while chosen in roots and os.path.realpath(roots[chosen]) != os.path.realpath(folder):
        chosen, number = f"{wanted}_{number}", number + 1
    roots[chosen] = folder
    return replace(row, root=chosen, split=split, attributes={**row.attributes, "synthetic": synthetic})


def _notes(content: Mapping[str, Any]) -> list[str]:
    notes = []
    downstream = content["verdict"]["downstream"]
    if downstream is None:
        notes.append("whether a classifier gains from the synthetic scans was not measured")
    elif downstream["reading"] != "gain":
        notes.append(f"downstream: {downstream['sentence']}")
    return notes
