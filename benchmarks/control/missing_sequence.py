"""How well is a missing sequence generated from the others? On the phantom, where the missing one is known.

    python -m benchmarks.control.missing_sequence --work work/missing --result benchmarks/results/control_missing_sequence.json

A model of three contrasts is trained with condition.observed; of each test scan two are observed and the third is generated.
One sample, and the mean of eight, are compared with the true one, beside two baselines: the mean training scan of the class, and
boosted trees that predict each pixel from the observed contrasts in the 3 x 3 pixels around it. Peak signal-to-noise ratio and
SSIM are those of the model's range; intervals are bootstraps over test patients.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import shift
from skimage.metrics import structural_similarity
from sklearn.ensemble import HistGradientBoostingRegressor

import medsynth
from benchmarks.machine import describe_machine
from medsynth.cohorts import PreparedCohort, prepare_cohort
from medsynth.config import GuidanceOptions, SolverOptions
from medsynth.diffusion import resolve_solver
from medsynth.files import write_json
from medsynth.networks import observe_channels, sample_scans
from medsynth.runs import Run
from medsynth.scans.picture import captioned_rows, write_picture
from medsynth.seeds import derive_seed, numpy_generator

_RANGE = 2.0  # of the model
_SAMPLES = 8
_BATCH = 40
_RESAMPLES = 2000
_PIXELS = 120_000  # that the trees learn from
_SHOWN = 8


def train(work: Path, *, scans: int, steps: int) -> tuple[Run, PreparedCohort]:
    """Return a run of three contrasts and its cohort on the run's grid."""
    medsynth.demo(out=work / "phantom", scans=scans, size=64, contrasts=True, rare_share=0.2)
    run = medsynth.train(
        cohort=work / "phantom" / "cohort.csv",
        out=work / "run",
        max_steps=steps,
        batch_size=32,
        grid={"size": 32},
        network={"channels": [32, 64, 96], "attention": [False, False, True], "dropout": 0.0},
        condition={"observed": 0.5},
        monitor={"preview_every": 0, "validate_every": 0},
        accelerator="cpu",
    )
    cohort = medsynth.read_cohort(work / "phantom" / "cohort.csv")
    prepared = prepare_cohort(cohort, grid=run.grid, intensity=run.spec.intensity, classes=run.spec.classes)
    return run, prepared


def complete(run: Run, prepared: PreparedCohort, rows: np.ndarray, missing: int) -> np.ndarray:
    """Return `_SAMPLES` of the missing contrast of each row, `(samples, N, *spatial)`."""
    denoiser, solver = run.load_denoiser(), resolve_solver(SolverOptions(steps=16))
    scans = torch.from_numpy(np.asarray(prepared.scans[rows], dtype=np.float32))
    labels = torch.from_numpy(prepared.labels[rows])
    known = torch.ones(scans.shape[:2], dtype=torch.bool)
    known[:, missing] = False
    made = np.empty((_SAMPLES, len(rows), *scans.shape[2:]), dtype=np.float32)
    for number in range(_SAMPLES):
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            condition = denoiser.embedding.make(labels[part], observed=observe_channels(scans[part], known[part]))
            seeds = [derive_seed(0, "missing", missing, number, int(row)) for row in rows[part]]
            found = sample_scans(
                denoiser, condition, seeds, shape=run.spec.shape, solver=solver, guidance=GuidanceOptions()
            )
            made[number, part] = found[:, missing].numpy()
    return made


def of_class(prepared: PreparedCohort, rows: np.ndarray, missing: int) -> np.ndarray:
    """Return the mean training scan of each row's class."""
    means = [
        prepared.scans[prepared.indices("train", label), missing].astype(np.float32).mean(0)
        for label in range(len(prepared.classes))
    ]
    return np.stack([means[prepared.labels[row]] for row in rows])


def of_pixels(prepared: PreparedCohort, rows: np.ndarray, missing: int) -> np.ndarray:
    """Return what boosted trees predict of each pixel from the observed contrasts around it."""
    train_rows = prepared.indices("train")
    values = np.asarray(prepared.scans[train_rows, missing], dtype=np.float32).ravel()
    seen = _neighbourhoods(prepared, train_rows, missing)
    some = numpy_generator(0, "missing pixels").permutation(len(values))[:_PIXELS]
    trees = HistGradientBoostingRegressor(max_iter=300, random_state=0).fit(seen[some], values[some])
    found = trees.predict(_neighbourhoods(prepared, rows, missing))
    return np.clip(found.reshape(len(rows), *prepared.scans.shape[2:]), -1, 1)


def _neighbourhoods(prepared: PreparedCohort, rows: np.ndarray, missing: int) -> np.ndarray:
    """Return `(pixels, features)`: the observed contrasts at each pixel and its eight neighbours, and where it lies."""
    observed = [channel for channel in range(prepared.scans.shape[1]) if channel != missing]
    scans = np.asarray(prepared.scans[rows], dtype=np.float32)[:, observed]
    moved = [shift(scans, (0, 0, down, right), order=0, mode="nearest") for down in (-1, 0, 1) for right in (-1, 0, 1)]
    columns = [each[:, channel].ravel() for each in moved for channel in range(len(observed))]
    place = np.indices(scans.shape[2:]).reshape(2, -1)
    return np.stack([*columns, *(np.tile(axis, len(rows)) for axis in place)], axis=1)


def score(made: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return peak signal-to-noise ratio and SSIM of each scan, `(N, 2)`."""
    errors = ((made - true) ** 2).reshape(len(true), -1).mean(1)
    alike = [structural_similarity(one, other, data_range=_RANGE) for one, other in zip(made, true, strict=True)]
    return np.stack([10 * np.log10(_RANGE**2 / errors), np.array(alike)], axis=1)


def intervals(scores: np.ndarray, patients: np.ndarray) -> list[dict[str, float]]:
    """Return mean and 95 % interval over resampled patients of each column."""
    names, numbers = np.unique(patients, return_inverse=True)
    weights = numpy_generator(0, "missing bootstrap").multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=_RESAMPLES
    )[:, numbers]
    means = weights @ scores / weights.sum(1, keepdims=True)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    whole = zip(scores.mean(0), low, high, strict=True)
    return [{"mean": round(float(a), 4), "low": round(float(b), 4), "high": round(float(c), 4)} for a, b, c in whole]


def show(path: Path, true: np.ndarray, arms: dict[str, np.ndarray], places: Sequence[int]) -> None:
    """Write a row of pictures for the truth and for each arm."""
    rows = [("true", true[places][:, None])] + [(name, made[places][:, None]) for name, made in arms.items()]
    picture = captioned_rows([(name, np.kron(each, np.ones((1, 1, 3, 3)))) for name, each in rows])
    write_picture(path, picture)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=600)
    parser.add_argument("--steps", type=int, default=1500)
    arguments = parser.parse_args()
    run, prepared = train(arguments.work, scans=arguments.scans, steps=arguments.steps)
    rows = prepared.indices("test")
    patients = prepared.patients[rows]
    result: dict[str, Any] = {}
    for missing, name in enumerate(prepared.channels):
        true = np.asarray(prepared.scans[rows, missing], dtype=np.float32)
        samples = complete(run, prepared, rows, missing)
        arms = {
            "mean of the class": of_class(prepared, rows, missing),
            "boosted trees": of_pixels(prepared, rows, missing),
            "one sample": samples[0],
            "mean of eight samples": samples.mean(0),
        }
        scores = {arm: score(made, true) for arm, made in arms.items()}
        result[name] = {
            arm: dict(zip(("psnr", "ssim"), intervals(values, patients), strict=True)) for arm, values in scores.items()
        }
        for arm in ("one sample", "mean of eight samples"):
            for other in ("mean of the class", "boosted trees"):
                both = intervals(scores[arm] - scores[other], patients)
                result[name][f"{arm} against {other}"] = dict(zip(("psnr", "ssim"), both, strict=True))
        show(arguments.work / f"{name}.png", true, arms, np.linspace(0, len(rows) - 1, _SHOWN).astype(int).tolist())
    counts = {split: len(prepared.indices(split)) for split in ("train", "val", "test")}
    write_json(
        arguments.result,
        {
            "what": "a missing contrast of the phantom, made from the two others; higher is better",
            "missing": result,
            "scans": counts,
            "test_patients": len(np.unique(patients)),
            "steps": run.steps,
            "grid": list(run.spec.shape[1:]),
            "machine": describe_machine(),
        },
    )


if __name__ == "__main__":
    main()
