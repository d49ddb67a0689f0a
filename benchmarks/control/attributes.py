"""Do scans have what was asked for? Attributes and classes, measured on synthetic scans beside real ones.

    python -m benchmarks.control.attributes --run RUN --cohort COHORT.csv --synthetic SET --attribute diameter_mm --result R.json

A support vector regression and a logistic regression on features (EfficientNet-Lite0, principal components) are trained on the
real training scans alone, their settings chosen by cross-validation over patients there. What they read from real test scans is
held against the truth, what they read from synthetic scans against what was asked for. Intervals are bootstraps over patients,
of synthetic scans over scans.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

import medsynth
from benchmarks.machine import describe_machine
from medsynth.cohorts import Cohort, prepare_cohort
from medsynth.evaluation.features import cached_features
from medsynth.files import write_json
from medsynth.measures.features import EfficientNetLite0
from medsynth.runs import Run
from medsynth.seeds import numpy_generator

_COMPONENTS = 48
_RESAMPLES = 2000


def read_features(cohort: Cohort, run: Run, cache: Path) -> np.ndarray:
    """Return the features of a cohort's scans on the run's grid and in its range, `(N, D)`."""
    images = tuple(name for name in run.spec.channels if name != "mask") or ("path",)
    intensity = replace(
        run.spec.intensity, low=run.spec.intensity.low[: len(images)], high=run.spec.intensity.high[: len(images)]
    )
    prepared = prepare_cohort(cohort, grid=run.grid, intensity=intensity, classes=run.spec.classes, cache_dir=cache)
    return np.asarray(cached_features(prepared, EfficientNetLite0(), folder=cache))


def known_values(cohort: Cohort, attribute: str) -> np.ndarray:
    """Return the attribute of every scan, `(N,)`, NaN where it is not known."""
    return np.array([float(row.attributes.get(attribute) or "nan") for row in cohort.rows])


def interval(measure: Any, groups: np.ndarray, *columns: np.ndarray) -> dict[str, float]:
    """Return a measure of the columns with its 95 % interval over resampled groups."""
    names, numbers = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(numbers == number) for number in range(len(names))]
    random = numpy_generator(0, "control")
    values = []
    for _ in range(_RESAMPLES):
        rows = np.concatenate([members[one] for one in random.integers(len(members), size=len(members))])
        values.append(measure(*(column[rows] for column in columns)))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return {"value": float(measure(*columns)), "low": float(low), "high": float(high)}


def r_squared(truth: np.ndarray, read: np.ndarray) -> float:
    """Return the share of the variance of the truth that is explained; 0 for its mean, below 0 for worse."""
    return float(1 - np.square(truth - read).sum() / np.square(truth - truth.mean()).sum())


def mean_error(truth: np.ndarray, read: np.ndarray) -> float:
    """Return the mean absolute error."""
    return float(np.abs(truth - read).mean())


def accuracy(truth: np.ndarray, read: np.ndarray) -> float:
    """Return the mean over classes of the share that is right."""
    return float(np.mean([(read[truth == label] == label).mean() for label in np.unique(truth)]))


def fit_value(features: np.ndarray, values: np.ndarray, patients: np.ndarray) -> Any:
    """Return a regression of the logarithm of positive values, chosen by cross-validation over patients."""
    model = make_pipeline(StandardScaler(), PCA(_COMPONENTS, whiten=True, random_state=0), SVR(epsilon=0.02))
    grid = {"svr__C": [0.3, 1.0, 3.0, 10.0], "svr__gamma": [0.003, 0.01, 0.03]}
    folds = list(GroupKFold(5).split(features, groups=patients))
    return GridSearchCV(model, grid, cv=folds, scoring="r2").fit(features, np.log(values))


def fit_class(features: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> Any:
    """Return a balanced logistic regression, chosen by cross-validation over patients."""
    model = make_pipeline(
        StandardScaler(), PCA(_COMPONENTS, random_state=0), LogisticRegression(max_iter=2000, class_weight="balanced")
    )
    folds = list(GroupKFold(5).split(features, groups=patients))
    grid = {"logisticregression__C": [0.001, 0.01, 0.1]}
    return GridSearchCV(model, grid, cv=folds, scoring="balanced_accuracy").fit(features, labels)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, nargs="+", required=True, help="one or several sets of the run")
    parser.add_argument("--attribute", required=True, help="a continuous attribute that the run was told")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    run = medsynth.load_run(arguments.run)
    real = medsynth.read_cohort(arguments.cohort)
    features = read_features(real, run, arguments.cache)
    values = known_values(real, arguments.attribute)
    labels = np.array([row.label for row in real.rows])
    patients = np.array([row.patient_id for row in real.rows])
    splits = np.array([row.split for row in real.rows])
    train, test = splits == "train", splits == "test"
    known = np.isfinite(values)
    reader = fit_value(features[train & known], values[train & known], patients[train & known])
    judge = fit_class(features[train], labels[train], patients[train])

    def report(which: np.ndarray, truth: np.ndarray, names: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
        told = np.isfinite(truth)
        read = np.exp(reader.predict(which[told]))
        guessed = judge.predict(which)
        return {
            "scans": len(which),
            "r_squared": interval(r_squared, groups[told], truth[told], read),
            "mean_absolute_error": interval(mean_error, groups[told], truth[told], read),
            "balanced_accuracy": interval(accuracy, groups, names, guessed),
        }

    result: dict[str, Any] = {
        "machine": describe_machine(),
        "attribute": arguments.attribute,
        "run": {"fingerprint": run.fingerprint[:16], "steps": run.steps, "shape": run.spec.shape},
        "real": report(features[test], values[test], labels[test], patients[test]),
        "synthetic": {},
    }
    for folder in arguments.synthetic:
        made = medsynth.read_cohort(folder / "cohort.csv")
        names = np.array([row.label for row in made.rows])
        result["synthetic"][folder.name] = report(
            read_features(made, run, arguments.cache),
            known_values(made, arguments.attribute),
            names,
            np.arange(len(names)),
        )
    write_json(arguments.result, result)
    for name, figures in {"real test": result["real"], **result["synthetic"]}.items():
        shown = {key: value for key, value in figures.items() if key != "scans"}
        text = ", ".join(
            f"{key} {one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for key, one in shown.items()
        )
        print(f"{name} (n = {figures['scans']}): {text}")


if __name__ == "__main__":
    main()
