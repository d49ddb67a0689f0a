"""The probe's learning rate and number of axes: which are best for the cheap baselines, on validation scans alone.

    python -m benchmarks.probe_settings --cohort cohort.csv --rare viral_pneumonia --out benchmarks/results/probe_settings.json

Each repeat keeps 40 rare training patients of the cohort, drawn anew, and all of its validation scans; test scans are not used.
The figure is the mean of AUROC and AUPRC on validation, over repeats and over the ways of balancing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.null_gain import NAMES, Drawn, Source
from medsynth.evaluation.downstream import Settings, make_task
from medsynth.evaluation.downstream.arms import Table, baseline_arms
from medsynth.evaluation.downstream.experiment import ProbeSettings
from medsynth.evaluation.downstream.judging import validation_figures
from medsynth.evaluation.downstream.probe import ProbeData, train_probe
from medsynth.files import user_folder, write_json

RATES = (0.0005, 0.002, 0.008, 0.02)
AXES = (32, 64, 128, 256)


def criterion(drawn: Drawn, settings: Settings, repeat: int) -> float:
    """Return the validation criterion of the ways of balancing, without augmentation, on average."""
    # A task has synthetic scans; no arm here draws them.
    made = SimpleNamespace(labels=np.zeros(1, dtype=np.int64), classes=NAMES)
    task = make_task(drawn.as_scans(), made, rare_class="rare")  # type: ignore[arg-type]
    table = Table.of(task)
    features = [drawn.features, drawn.features[:1]]
    data = ProbeData.of(task, table, features, components=settings.probe.components)
    found = []
    for arm in baseline_arms(augment=False):
        if not arm.recipe.mixup:
            scores, _ = train_probe(task, table, data, arm, seed=repeat, repeats=range(2), settings=settings)
            found.append(validation_figures(task.validation, scores)["criterion"])
    return float(np.mean(found))


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--rare", required=True)
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--features", type=Path, default=user_folder("cache"))
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    source = Source.of(chosen.cohort, chosen.rare, chosen.features, max(AXES))
    draws = [source.draw(repeat, chosen.patients, 0) for repeat in range(chosen.repeats)]
    rows = []
    print("| peak learning rate | " + " | ".join(f"{axes} axes" for axes in AXES) + " |")
    print("|---|" + "---|" * len(AXES))
    for rate in RATES:
        cells = []
        for axes in AXES:
            settings = Settings(probe=ProbeSettings(learning_rate=rate, components=axes))
            values = [criterion(drawn, settings, repeat) for repeat, drawn in enumerate(draws)]
            error = float(np.std(values, ddof=1) / len(values) ** 0.5)
            rows.append(
                {"learning_rate": rate, "components": axes, "criterion": float(np.mean(values)), "error": error}
            )
            cells.append(f"{np.mean(values):.3f} ± {error:.3f}")
        print(f"| {rate:g} | " + " | ".join(cells) + " |", flush=True)
    write_json(chosen.out, describe_machine() | {"patients": chosen.patients, "repeats": chosen.repeats, "rows": rows})


if __name__ == "__main__":
    main()
