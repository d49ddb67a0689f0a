"""From a candidate to its synthetic set: both stages of the training, sampling or editing; finished parts are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import medsynth
from benchmarks.rare_class.candidates import Candidate, Setting, common_stage, rare_stage
from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.evaluation.downstream.scoring import content_key
from medsynth.runs import Run


def train_common(setting: Setting, few: Path, seed: int, out: Path) -> Run:
    """Return the run on the common classes, which no draw of the rare patients changes."""
    return medsynth.train(**common_stage(setting, seed), cohort=few, out=out / "generators" / f"common_{seed}")


def train_rare(setting: Setting, candidate: Candidate, few: Path, common: Run, seed: int, out: Path) -> Run:
    """Return the run of a candidate's rare stage; candidates with the same training share it."""
    options = rare_stage(setting, str(common.folder), seed, candidate.training)
    plain = {name: str(value) for name, value in options.items() if name not in ("start", "monitor")}
    key = content_key(plain, options["start"].trainable, common.fingerprint)[:12]
    return medsynth.train(**options, cohort=few, out=out / "generators" / f"{few.parent.name}_{key}")


def make_set(setting: Setting, candidate: Candidate, few: Path, run: Run, seed: int, out: Path) -> Path:
    """Return the CSV of the synthetic set.

    Common scans are made as the rare ones are, so that what gives a scan away as synthetic does not tell its class: sampled by
    the same run, or edited from donors of their own class.
    """
    folder = out / "sets" / f"{few.parent.name}_{run.fingerprint[:8]}_{candidate.name.replace(' ', '_')}_{seed}"
    counts = {
        label: setting.rare_scans if label == setting.rare else setting.common_scans for label in run.spec.classes
    }
    if candidate.strength is None:
        sampled = medsynth.sample(
            run=run.folder,
            count=counts,
            out=folder / "sampled",
            seed=seed,
            solver=candidate.solver,
            guidance=candidate.guidance,
        )
        return sampled.folder / "cohort.csv"
    for label, count in counts.items():
        medsynth.edit(
            run=run.folder,
            cohort=few,
            donor_class=setting.parent if label == setting.rare else label,
            target_class=label,
            count=count,
            strength=candidate.strength,
            solver=candidate.solver,
            out=folder / label,
            seed=seed,
        )
    return join_sets([folder / label for label in counts], folder / "cohort.csv")


def join_sets(folders: Sequence[Path], path: Path) -> Path:
    """Write one cohort of several synthetic sets and return its CSV."""
    rows: list[Row] = []
    roots: dict[str, Path] = {}
    for number, folder in enumerate(folders):
        cohort = medsynth.read_cohort(folder / "cohort.csv")
        roots[f"part{number}"] = cohort.folder.resolve()
        rows += [replace(row, root=f"part{number}") for row in cohort.rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_cohort(Cohort(folder=path.parent, rows=tuple(rows), roots=roots), path)
    return path
