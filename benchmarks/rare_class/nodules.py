"""Nodule-SS: subsolid against solid lung nodules in 3D, five-fold cross-validation by patient, by the chosen method.

    python -m benchmarks.rare_class.nodules --scans ../lung_nodules --out runs/nodules --result nodules.json

A fold's generator begins on solid nodules, learns both classes from there, and samples subsolid ones away from solid ones, as
`rare_class_2d` does with pictures; the set is evaluated as a whole (privacy gate, probe tier) with the synthetic arm and share
that were chosen on pictures. Nothing is chosen here. Prints a line for each fold, and the mean over folds with an interval over
test patients. Finished parts are kept; `--folds 0,1` runs only these.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

import medsynth
from benchmarks.machine import describe_machine
from benchmarks.markdown import head_of, row_of, shown
from benchmarks.rare_class.candidates import SOLVER
from benchmarks.rare_class.confirm import FIGURES, ranked, read_row, read_scores
from medsynth.cohorts import write_cohort
from medsynth.config import DownstreamOptions, GuidanceOptions
from medsynth.files import write_json
from medsynth.measures.statistics import Resamples
from medsynth.seeds import derive_seed, numpy_generator

RARE, COMMON = "subsolid", "solid"
CONFIG = "lung_nodule_3d"
FOLDS = 5
ARM, SHARE = "all", 0.25  # docs/rare_classes.md
_RESAMPLES = 2000


def fold_splits(labels: Sequence[str], patients: Sequence[str], fold: int) -> list[str]:
    """Return the split of each scan in one of five folds: of ten parts by patient two test, one chooses, seven train."""
    parts = StratifiedGroupKFold(2 * FOLDS, shuffle=True, random_state=derive_seed(0, "nodule folds") % 2**32)
    part_of = np.empty(len(labels), dtype=int)
    for number, (_, members) in enumerate(parts.split(np.zeros(len(labels)), labels, patients)):
        part_of[members] = number
    test, chooses = {2 * fold, 2 * fold + 1}, (2 * fold + 2) % (2 * FOLDS)
    return ["test" if part in test else "val" if part == chooses else "train" for part in part_of.tolist()]


def make_fold(scans: Path, fold: int, out: Path) -> Path:
    """Index once, and return the CSV of a fold."""
    whole, path = out / "cohort.csv", out / f"fold_{fold}" / "cohort.csv"
    if not whole.is_file():
        medsynth.index(
            scans=scans, labels=scans / "labels.csv", merge=f"{RARE}=ground_glass+part_solid", out=whole, progress=False
        )
    if not path.is_file():
        cohort = medsynth.read_cohort(whole)
        splits = fold_splits([row.label for row in cohort.rows], [row.patient_id for row in cohort.rows], fold)
        rows = [
            replace(row, split=split, root=row.root or "scans") for row, split in zip(cohort.rows, splits, strict=True)
        ]
        roots = {row.root or "scans": cohort.base_of(row) for row in cohort.rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_cohort(replace(cohort, folder=path.parent, rows=tuple(rows), roots=roots), path)
    return path


def run_fold(cohort: Path, arguments: argparse.Namespace) -> Path:
    """Train both stages, sample and evaluate one fold; return the report's folder."""
    folder, options, rare_steps = cohort.parent, medsynth.load_config(arguments.config), arguments.rare_steps
    common = medsynth.train(
        **options | {"max_steps": arguments.steps, "leave_out": RARE}, cohort=cohort, out=folder / "common"
    )
    second = options | {
        "max_steps": rare_steps,
        "start": common.folder,
        "balance": 0.0,
        "optimiser": options["optimiser"] | {"learning_rate": 3e-4, "warmup_steps": min(50, rare_steps)},
        "monitor": {"validate_every": 0, "preview_every": rare_steps, "checkpoint_every": 50},
    }
    run = medsynth.train(**second, cohort=cohort, out=folder / "run")
    guidance = GuidanceOptions(scale=2.5, sigma_low=0.5, sigma_high=20.0, against=f"{RARE}={COMMON},{COMMON}={RARE}")
    made = medsynth.sample(
        run=run.folder,
        count=arguments.count,
        out=folder / "synthetic",
        guidance=guidance,
        solver=SOLVER,
        precision=arguments.precision,
    )
    report = folder / "report"
    if not (report / "report.json").is_file():
        medsynth.evaluate(
            real=cohort,
            synthetic=made.folder / "cohort.csv",
            run=run.folder,
            out=report,
            parts=("privacy", "downstream"),
            downstream=DownstreamOptions(rare_class=RARE, shares=(SHARE,), arms=(ARM,)),
        )
    return report


def over_folds(folds: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Mean differences over folds with 95 % intervals of a bootstrap over the test patients of each.

    A fold is (synthetic scores, baseline scores `(trainings, N)`, truth, patients `(N,)`). Each fold has its own classifiers,
    so figures, not scores, are put together.
    """
    parts = []
    for number, (synthetic, baseline, truth, patients) in enumerate(folds):
        generator = numpy_generator(0, "rare_class", "over folds", number)
        redraws = Resamples.draw(patients, 1, generator=generator, resamples=_RESAMPLES)
        parts.append(ranked(truth, synthetic, redraws.scans) - ranked(truth, baseline, redraws.scans))
    mean = np.mean(parts, axis=0)
    found = {}
    for place, name in enumerate(FIGURES[:2]):
        low, high = np.quantile(mean[place, 1:], [0.025, 0.975])
        found[name] = {"value": float(mean[place, 0]), "low": float(low), "high": float(high)}
    return found | {"folds": len(parts)}


def main() -> None:
    """Make and evaluate what is missing; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True, help="folder with images, masks and labels.csv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", default=",".join(map(str, range(FOLDS))))
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--steps", type=int, default=1200, help="on solid nodules")
    parser.add_argument("--rare_steps", type=int, default=300, help="on both classes")
    parser.add_argument("--count", type=int, default=200, help="synthetic scans of each class")
    parser.add_argument("--precision", default="bf16-mixed", choices=("32-true", "bf16-mixed"), help="of sampling")
    parser.add_argument("--result", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    rows, folds = [], []
    columns = ["fold", "gate", "flagged", "baseline", "Δ AUROC", "Δ AUPRC", "Δ sensitivity", "verdict"]
    print(head_of(columns))
    for fold in [int(part) for part in arguments.folds.split(",")]:
        cohort = make_fold(arguments.scans, fold, arguments.out)
        report = run_fold(cohort, arguments)
        row = {"fold": fold} | read_row(report / "report.json")
        rows.append(row)
        trainings = report / "trainings"
        test = medsynth.read_cohort(cohort).select(split="test").rows
        folds.append(
            (
                read_scores(trainings, row["synthetic"]),
                read_scores(trainings, row["baseline"]),
                np.array([each.label == RARE for each in test]),
                np.array([each.patient_id for each in test]),
            )
        )
        gains = [shown(row["gain_ci"][name], sign=True) for name in FIGURES]
        flagged = "{} of {}".format(*row["flagged"])
        print(row_of([str(fold), row["privacy"], flagged, row["baseline"], *gains, row["verdict"]]), flush=True)
    whole = over_folds(folds)
    figures = ", ".join(f"Δ {name} {shown(whole[name], sign=True)}" for name in FIGURES[:2])
    print(f"over {whole['folds']} folds: {figures}")
    if arguments.result:
        chosen = {
            name: getattr(arguments, name) for name in ("folds", "config", "steps", "rare_steps", "count", "precision")
        }
        write_json(
            arguments.result, describe_machine() | chosen | {"arm": ARM, "share": SHARE, "gain_ci": whole, "rows": rows}
        )


if __name__ == "__main__":
    main()
