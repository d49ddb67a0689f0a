"""Guidance: how far sets lie from held-out real scans, at equal numbers, beside real scans.

    python -m benchmarks.control.guidance --run RUN --cohort COHORT.csv --work FOLDER --result RESULT.json

Each row is one way to make as many scans of every class: no guidance, classifier-free guidance, autoguidance by the weights that
the run had early on. Figures are means over classes, of features of EfficientNet-Lite0 against held-out (val and test) scans:
KID, the Fréchet distance along principal axes extrapolated to infinitely many scans, precision (scans where real ones lie) and
recall (how much of the real scans is covered). Intervals of KID are random halves of both sides. The first row draws as many
training scans, several times: its range is what equals real. `own_class` is the mean probability of a scan's class by a
logistic regression on real training scans. Sets in the work folder are used again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

import medsynth
from benchmarks.machine import describe_machine
from medsynth.cohorts import Cohort, PreparedCohort
from medsynth.config import FeatureOptions, GuidanceOptions, Loading
from medsynth.evaluation.features import cached_features
from medsynth.files import write_json
from medsynth.measures.distances import (
    Kernels,
    Projection,
    extrapolated_frechet_distance,
    frechet_distance,
    projected_dims,
)
from medsynth.measures.extractors import open_extractor
from medsynth.measures.neighbours import Spacings
from medsynth.seeds import numpy_generator

DRAWS, REPEATS, DIMS, NEIGHBOURS, AXES = 200, 10, 32, 5, 128
WAYS = {
    "no guidance": GuidanceOptions(),
    "classifier-free, scale 1.5": GuidanceOptions(scale=1.5),
    "classifier-free, scale 2": GuidanceOptions(scale=2.0),
    "autoguidance, scale 1.5": GuidanceOptions(scale=1.5, weak="early"),
    "autoguidance, scale 2": GuidanceOptions(scale=2.0, weak="early"),
    "autoguidance, scale 3": GuidanceOptions(scale=3.0, weak="early"),
}


def compare(held: Mapping[int, np.ndarray], made: Mapping[int, np.ndarray]) -> dict[str, Any]:
    """Return the figures of scans against held-out ones, each the mean over the classes; features `(n, D)` by class."""
    draws = np.zeros((len(held), DRAWS))
    figures = []
    for place, label in enumerate(held):
        random = numpy_generator(0, "guidance", label)
        kernels = Kernels.of(held[label], made[label])
        halves = [
            np.stack([random.permutation(np.arange(size) < size // 2) for _ in range(DRAWS)]).astype(float)
            for size in (len(held[label]), len(made[label]))
        ]
        draws[place] = kernels.across(*halves)
        whole = [np.ones((1, len(each))) for each in (held[label], made[label])]
        infinite = extrapolated_frechet_distance(held[label], made[label], dims=DIMS, generator=random)
        # As many axes as the extrapolation has, whose smallest subsets are halves.
        axes = Projection.fit(held[label], projected_dims(DIMS, min(len(held[label]), len(made[label])) // 2))
        observed = frechet_distance(axes.project(held[label]), axes.project(made[label]))
        everything = [np.arange(len(each)) for each in (held[label], made[label])]
        lie = Spacings.of(held[label], made[label]).across(*everything, neighbours=NEIGHBOURS)
        figures.append([kernels.across(*whole)[0], infinite, observed, lie.precision, lie.recall])
    low, high = np.quantile(draws.mean(axis=0), [0.025, 0.975])
    means = np.mean(figures, axis=0)
    names = ("kid", "frechet_infinite", "frechet", "precision", "recall")
    return {"kid_interval": [float(low), float(high)]} | {
        name: float(value) for name, value in zip(names, means, strict=True)
    }


def main() -> None:
    """Make the sets, measure them, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=128, help="scans of each class on either side of a figure")
    options = parser.parse_args()
    run, count = medsynth.load_run(options.run), options.scans
    extractor, cache = open_extractor(FeatureOptions()), options.work / "cache"

    def features(cohort: Cohort) -> tuple[PreparedCohort, np.ndarray]:
        prepared = medsynth.prepare_cohort(
            cohort, grid=run.grid, intensity=run.spec.image_intensity, loading=Loading(cache_dir=cache)
        )
        return prepared, cached_features(prepared, extractor, folder=cache)

    real, of_real = features(medsynth.read_cohort(options.cohort))
    train = real.indices("train")
    axes = Projection.fit(of_real[train], min(AXES, *of_real[train].shape))
    classifier = LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced")
    classifier.fit(axes.project(of_real[train]), real.labels[train])
    held, drawn = {}, []
    for label in range(len(real.classes)):
        rows = numpy_generator(0, "held out", label).permutation(real.indices(("val", "test"), label))
        if len(rows) < count:
            parser.error(f"--scans: need at most {len(rows)}, the held-out scans of {real.classes[label]}")
        held[label] = of_real[rows[:count]]
    for repeat in range(REPEATS):
        random = numpy_generator(0, "real", repeat)
        chosen = {label: random.permutation(real.indices("train", label))[:count] for label in held}
        drawn.append(compare(held, {label: of_real[rows] for label, rows in chosen.items()}))
    rows: list[dict[str, Any]] = [
        {"way": "real training scans"}
        | {
            name: float(np.median([each[name] for each in drawn]))
            for name in ("kid", "frechet_infinite", "frechet", "precision", "recall")
        }
        | {f"{name}_range": _range(drawn, name) for name in ("kid", "frechet_infinite", "precision", "recall")}
    ]
    for number, (way, guidance) in enumerate(WAYS.items()):
        made = medsynth.sample(
            run=options.run, count=count, out=options.work / f"set_{number}", guidance=guidance, format="npz", batch_size=64,
        )  # fmt: skip
        prepared, found = features(made)
        assert prepared.classes == real.classes
        own = classifier.predict_proba(axes.project(found))[np.arange(len(found)), prepared.labels]
        figures = compare(held, {label: found[prepared.indices(label=label)] for label in held})
        rows.append({"way": way, **figures, "own_class": float(own.mean())})
        print(rows[-1], flush=True)
    write_json(
        options.result,
        {
            "steps_trained": run.steps,
            "early_share": run.options["monitor"]["early_share"],
            "training_scans": dict(zip(run.spec.classes, run.spec.class_counts, strict=True)),
            "grid": list(run.spec.shape),
            "scans_of_each_class": count,
            "rows": rows,
            "machine": describe_machine(),
        },
    )


def _range(drawn: list[dict[str, Any]], name: str) -> list[float]:
    values = [each[name] for each in drawn]
    return [float(min(values)), float(max(values))]


if __name__ == "__main__":
    main()
