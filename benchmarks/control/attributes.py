"""Do scans have what was asked for? Attributes and classes, measured on synthetic scans beside real ones.

    python -m benchmarks.control.attributes --run RUN --cohort COHORT.csv --synthetic SET --attribute diameter_mm \
        --cache CACHE --result R.json

What measures has seen real scans only: a segmentation network (MONAI's UNet), trained on the training split, finds the lesion,
and linear models, fitted on the validation split, turn what it finds (sizes at three levels of certainty, mean intensity inside
and around) into the logarithm of the attribute and into the class. On real test scans its readings are compared with the truth,
on synthetic scans with what was asked for: the first row shows how far they can be trusted. Intervals are bootstraps over
patients, of synthetic scans over scans.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_dilation
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import medsynth
from benchmarks.control.networks import predict, read_scans, train_network, with_lesion
from benchmarks.machine import describe_machine
from medsynth.cohorts import Cohort
from medsynth.files import write_json
from medsynth.seeds import numpy_generator

_RESAMPLES = 2000


def find_lesions(network: torch.nn.Module, scans: np.ndarray) -> np.ndarray:
    """Return what the network finds in scans `(N, C + 1, *spatial)`, whose masks it does not see: five numbers a scan."""
    found = []
    for number, shares in enumerate(predict(network, scans)):
        scan, inside = np.asarray(scans[number, 0], dtype=np.float32), shares > 0.5
        if not inside.any():
            inside = shares >= shares.max()
        ring = binary_dilation(inside, iterations=2) & ~inside
        within, around = float(scan[inside].mean()), float(scan[ring].mean())
        sizes = [np.log(max(float((shares > level).sum()), 0.5)) for level in (0.2, 0.5, 0.8)]
        found.append([*sizes, within, around])
    return np.array(found)


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


def fit_value(found: np.ndarray, values: np.ndarray) -> Any:
    """Return a regression of the logarithm of positive values."""
    model = make_pipeline(StandardScaler(), PolynomialFeatures(2), RidgeCV(np.logspace(-2, 3, 11)))
    return model.fit(found, np.log(values))


def fit_class(found: np.ndarray, labels: np.ndarray) -> Any:
    """Return a balanced logistic regression."""
    model = make_pipeline(
        StandardScaler(), PolynomialFeatures(2), LogisticRegression(max_iter=2000, class_weight="balanced")
    )
    return model.fit(found, labels)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, nargs="+", required=True, help="one or several sets of the run")
    parser.add_argument("--attribute", required=True, help="a continuous attribute on which the run is conditioned")
    parser.add_argument("--steps", type=int, default=600, help="training steps of the segmentation network")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    run = medsynth.load_run(arguments.run)
    real = medsynth.read_cohort(arguments.cohort)
    prepared = read_scans(arguments.cohort, run, arguments.cache)
    values = known_values(real, arguments.attribute)
    labels = np.array([row.label for row in real.rows])
    patients = np.array([row.patient_id for row in real.rows])
    splits = np.array([row.split for row in real.rows])
    lesions = with_lesion(prepared.scans, np.flatnonzero(splits == "train"))
    network = train_network([(prepared.scans, lesions)], steps=arguments.steps, batch=8, seed=0)
    # The linear models learn from scans that the network did not see: what it finds in its own is too good.
    known, fit, test = np.isfinite(values), splits == "val", splits == "test"
    found = np.full((len(real.rows), 5), np.nan)
    for chosen in (fit, test):
        found[chosen] = find_lesions(network, prepared.scans[chosen])
    reader, judge = fit_value(found[fit & known], values[fit & known]), fit_class(found[fit], labels[fit])

    def report(which: np.ndarray, truth: np.ndarray, names: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
        stated = np.isfinite(truth)
        read = np.exp(reader.predict(which[stated]))
        guessed = judge.predict(which)
        return {
            "scans": len(which),
            "r_squared": interval(r_squared, groups[stated], truth[stated], read),
            "mean_absolute_error": interval(mean_error, groups[stated], truth[stated], read),
            "balanced_accuracy": interval(accuracy, groups, names, guessed),
        }

    result: dict[str, Any] = {
        "machine": describe_machine(),
        "attribute": arguments.attribute,
        "run": {"fingerprint": run.fingerprint[:16], "steps": run.steps, "shape": run.spec.shape},
        "real": report(found[test], values[test], labels[test], patients[test]),
        "synthetic": {},
    }
    for folder in arguments.synthetic:
        made = medsynth.read_cohort(folder / "cohort.csv")
        names = np.array([row.label for row in made.rows])
        result["synthetic"][folder.name] = report(
            find_lesions(network, read_scans(folder / "cohort.csv", run, arguments.cache).scans),
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
