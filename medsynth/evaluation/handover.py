"""The hand-over: real training scans and the accepted scans of a synthetic set as one cohort, behind the privacy gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsynth.cohorts import Cohort
from medsynth.config import AugmentOptions
from medsynth.errors import ConfigError, DataError, GateError
from medsynth.evaluation.inputs import check_patients, check_run
from medsynth.evaluation.privacy import PrivacyResult
from medsynth.evaluation.reports import check_report, check_sets, read_report
from medsynth.evaluation.verdict import edits_sentence, other_thresholds
from medsynth.runs import load_run
from medsynth.sets import generator_of, open_real, open_synthetic, write_augmented


@dataclass(frozen=True, kw_only=True)
class Handover:
    """The augmented cohort, the file it was written to, what its user should know, and the command that follows."""

    cohort: Cohort
    file: Path
    dropped: int
    notes: tuple[str, ...]
    following: str

    def summary(self) -> str:
        """Return what was written, class by class, and the notes."""
        kinds = Counter((row.label, row.attributes["synthetic"]) for row in self.cohort.rows)
        lines = [
            f"{label}: {kinds[label, '0']} real and {kinds[label, '1']} synthetic scans"
            for label in self.cohort.classes
        ]
        if self.dropped:
            lines.append(f"{self.dropped} copies of real scans were left out")
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, *notes, f"cohort: {self.file}", f"next: {self.following}"])


def augment_cohort(options: AugmentOptions) -> Handover:
    """Write the cohort that a classifier is trained on: real scans of `splits`, and the synthetic scans that passed.

    Nothing that came with the set or the report is believed. The report's verdict is judged anew from its figures, at the
    thresholds that ship; it must be about exactly these scans, whose files are read and hashed again. Every row says in the
    column `synthetic` what it is (`1` or `0`); files stay where they are, as roots of the new cohort. Copies that the evaluation
    set aside are left out.

    Raises `GateError` if the privacy gate did not pass, was not run, or was judged at other thresholds, and for a report that was
    changed; `DataError` if the report is about other scans, or if the generator saw patients of the test split; `ConfigError` if
    that cannot be checked without `run`.
    """
    report = Path(options.report)
    try:
        content = read_report(report)
    except DataError as error:
        raise GateError(str(error)) from error  # without a report there is no gate that passed
    gate = check_report(content, report)
    real = open_real(options.real, loading=options)
    made = open_synthetic(options.synthetic, real, loading=options)
    check_sets(content, report, {"real": real, "synthetic": made}, loading=options)
    check_passed(gate, content, report)
    assert gate is not None
    if options.run is not None:
        run = load_run(options.run)
        check_run(made, run)
        check_patients(real, run)
    elif (maker := generator_of(made)) and (content["settings"].get("run") or "") != maker[:16]:
        raise ConfigError(
            f"run: need the run that made {options.synthetic}, to compare its patients with the test split; try --run"
        )
    dropped = {copy.synthetic_row for copy in gate.copies} if gate.drop_copies else set()
    gain, notes = content["verdict"]["downstream"], []
    if gate.edits:
        notes.append(edits_sentence(gate.edits))
    if options.run is None and generator_of(made) is None:
        notes.append("the generator is unknown, so nothing shows that it saw no patient of the test split")
    if gain is None:
        notes.append("whether a classifier gains from the synthetic scans was not measured")
    elif gain["verdict"] != "gain":
        notes.append(f"downstream: {gain['sentence']}")
    return Handover(
        cohort=write_augmented(real, made, Path(options.out), splits=options.splits, dropped=dropped),
        file=Path(options.out),
        dropped=len(dropped),
        notes=tuple(notes),
        following=f"medsynth card --synthetic {options.synthetic} --report {options.report}",
    )


def check_passed(gate: PrivacyResult | None, content: Mapping[str, Any], report: Path) -> None:
    """Raise `GateError` unless the gate of a report passed at the thresholds that ship, and no scan is a real one."""
    if gate is None:
        raise GateError(f"{report}: need a privacy gate that passed, got none; try medsynth evaluate --parts privacy")
    if changed := other_thresholds(gate.settings):
        raise GateError(
            f"{report}: need a privacy gate judged at the thresholds that ship, got {changed}; try medsynth evaluate again"
        )
    found = gate.verdict()
    if found["verdict"] != "pass" or content["identical"]:
        sentence = found["sentence"] if found["verdict"] != "pass" else content["verdict"]["headline"]["sentence"]
        raise GateError(
            f"{report}: need a privacy gate that passed, got {found['verdict']!r}: {sentence} "
            "Try medsynth evaluate --drop_copies, a generator trained for fewer steps, or more held-out patients"
        )
