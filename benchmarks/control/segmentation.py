"""Does a set with masks train segmentation? Dice on real test scans of networks trained on real, synthetic, and both.

    python -m benchmarks.control.segmentation --run RUN --cohort COHORT.csv --synthetic SET --cache CACHE --result OUT.json

MONAI's UNet, Dice and cross-entropy loss, equal steps for every arm, several seeds; scans on the run's grid, only those with a
lesion. The mean Dice of a scan over the seeds is compared in pairs; intervals are bootstraps over test patients.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import medsynth
from benchmarks.control.attributes import interval
from benchmarks.control.networks import predict, read_scans, train_network, with_lesion
from benchmarks.machine import describe_machine
from medsynth.files import write_json
from medsynth.seeds import numpy_generator

ARMS = ("real", "synthetic", "both")


def dice_of(network: torch.nn.Module, scans: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the Dice overlap of each scan, `(rows,)`."""
    found, truth = predict(network, scans[rows]) > 0.5, scans[rows][:, -1] > 0
    axes = tuple(range(1, found.ndim))
    return np.asarray(2 * (found & truth).sum(axes) / (found.sum(axes) + truth.sum(axes)))


def main() -> None:
    """Train the arms, print and write their Dice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, required=True, help="a set of the run with masks")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--scarce", type=int, default=0, help="real training scans at most; 0 for all")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    run = medsynth.load_run(arguments.run)
    real = read_scans(arguments.cohort, run, arguments.cache)
    made = read_scans(arguments.synthetic / "cohort.csv", run, arguments.cache)
    train = with_lesion(real.scans, real.indices(split="train"))
    if arguments.scarce:
        train = numpy_generator(0, "scarce").permutation(train)[: arguments.scarce]
    test = with_lesion(real.scans, real.indices(split="test"))
    new = with_lesion(made.scans, np.arange(len(made.scans)))
    own, synthetic = (real.scans, train), (made.scans, new)
    parts = {"real": [own], "synthetic": [synthetic], "both": [own, synthetic]}
    dice = {}
    with tqdm(total=len(ARMS) * arguments.seeds, unit="network") as bar:
        for arm in ARMS:
            values = []
            for seed in range(arguments.seeds):
                network = train_network(parts[arm], steps=arguments.steps, batch=arguments.batch, seed=seed)
                values.append(dice_of(network, real.scans, test))
                bar.update()
            dice[arm] = np.mean(values, axis=0)
    patients = real.patients[test]
    mean = lambda values: float(np.mean(values))  # noqa: E731
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "scans": {"real": len(train), "synthetic": len(new), "synthetic_without_mask": len(made.scans) - len(new)},
        "test": {"scans": len(test), "patients": len(np.unique(patients))},
        "steps": arguments.steps,
        "seeds": arguments.seeds,
        "dice": {arm: interval(mean, patients, dice[arm]) for arm in ARMS},
        "against_real": {arm: interval(mean, patients, dice[arm] - dice["real"]) for arm in ARMS[1:]},
    }
    write_json(arguments.result, result)
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=2))


if __name__ == "__main__":
    main()
