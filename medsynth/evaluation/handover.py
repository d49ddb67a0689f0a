"""The hand-over: real training scans and the accepted scans of a synthetic set as one cohort, behind the privacy gate."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from medsynth.cohorts import Cohort
from medsynth.config import AugmentOptions
from medsynth.errors import ConfigError, DataError, GateError
from medsynth.evaluation.inputs import check_patients, check_run
from medsynth.evaluation.reports import check_sets, read_report
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

    The report must be about exactly these scans: its hashes are compared. Every row says in the column `synthetic` what it is
    (`1` or `0`); files stay where they are, as roots of the new cohort. Copies that the evaluation set aside are left out.

    Raises `GateError` if the privacy gate did not pass, or was not run; `DataError` if the report is about other scans, or
    if the generator saw patients of the test split; `ConfigError` if that cannot be checked without `run`.
    """
    report = Path(options.report)
    try:
        content = read_report(report)
    except DataError as error:
        raise GateError(str(error)) from error  # without a report there is no gate that passed
    real = open_real(options.real, loading=options)
    made = open_synthetic(options.synthetic, real, loading=options)
    check_sets(content, report, {"real": real, "synthetic": made}, loading=options)
    gate, gain = content["verdict"]["privacy"], content["verdict"]["downstream"]
    if gate is None:
        raise GateError(f"{report}: need a privacy gate that passed, got none; try medsynth evaluate --parts privacy")
    if gate["verdict"] != "pass":
        raise GateError(
            f"{report}: need a privacy gate that passed, got {gate['verdict']!r}: {gate['sentence']} "
            "Try medsynth evaluate --drop_copies, a generator trained for fewer steps, or more held-out patients"
        )
    if options.run is not None:
        run = load_run(options.run)
        check_run(made, run)
        check_patients(real, run)
    elif (maker := generator_of(made)) and (content["settings"].get("run") or "") != maker[:16]:
        raise ConfigError(
            f"run: need the run that made {options.synthetic}, to compare its patients with the test split; try --run"
        )
    privacy = content["privacy"]
    dropped = {copy["synthetic_row"] for copy in privacy["copies"]} if privacy["drop_copies"] else set()
    notes: tuple[str, ...] = ()
    if gain is None:
        notes = ("whether a classifier gains from the synthetic scans was not measured",)
    elif gain["verdict"] != "gain":
        notes = (f"downstream: {gain['sentence']}",)
    return Handover(
        cohort=write_augmented(real, made, Path(options.out), splits=options.splits, dropped=dropped),
        file=Path(options.out),
        dropped=len(dropped),
        notes=notes,
        following=f"medsynth card --synthetic {options.synthetic} --report {options.report}",
    )
