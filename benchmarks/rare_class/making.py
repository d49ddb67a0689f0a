"""From a candidate to its synthetic set: both stages of the training, and sampling; finished parts are kept."""

from __future__ import annotations

from pathlib import Path

import medsynth
from benchmarks.rare_class.candidates import Candidate, Setting, common_stage, rare_stage
from medsynth.evaluation.downstream.experiment import content_key
from medsynth.runs import Run


def train_common(setting: Setting, few: Path, seed: int, out: Path) -> Run:
    """Return the run on the common classes, which no draw of the rare patients changes."""
    return medsynth.train(**common_stage(setting, seed), cohort=few, out=out / "generators" / f"common_{seed}")


def train_rare(setting: Setting, candidate: Candidate, few: Path, common: Run, seed: int, out: Path) -> Run:
    """Return the run of a candidate's rare stage; candidates with the same training share it."""
    options = rare_stage(setting, common.folder, seed, candidate.training)
    trained = {name: value for name, value in options.items() if name not in ("start", "monitor")}
    key = content_key(trained, common.fingerprint)[:12]
    return medsynth.train(**options, cohort=few, out=out / "generators" / f"{few.parent.name}_{key}")


def make_set(setting: Setting, candidate: Candidate, run: Run, seed: int, out: Path) -> Path:
    """Return the CSV of the synthetic set; common scans are sampled by the same run, so that looks do not tell the class."""
    counts = {label: setting.rare_scans if label == setting.rare else setting.common_scans for label in run.classes}
    name = f"{run.folder.name}_{run.fingerprint[:8]}_{candidate.name.replace(' ', '_')}_{seed}"
    sampled = medsynth.sample(
        run=run.folder,
        count=counts,
        out=out / "sets" / name / "sampled",
        seed=seed,
        solver=candidate.solver,
        guidance=candidate.guidance,
    )
    return sampled.folder / "cohort.csv"
