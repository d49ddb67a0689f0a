"""Validation loss with and without `network.shrinkage`: the same cohort, weights at the start, batches, noise and steps.

    python -m benchmarks.shrinkage --cohort cohort.csv --config lung_nodule_3d --steps 600 --out runs/shrinkage

Prints the loss of held-out scans at each noise level, a mean over classes, for both, and the processor seconds of each
training. Finished trainings are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import medsynth
from benchmarks.machine import describe_machine
from medsynth.config import MonitorOptions
from medsynth.files import write_json


def train_one(arguments: argparse.Namespace, shrinkage: bool) -> dict[str, Any]:
    """Return losses and seconds of one training."""
    name = "with" if shrinkage else "without"
    kept = arguments.out / f"{name}.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    options = medsynth.load_config(arguments.config)
    options |= {
        "max_steps": arguments.steps,
        "seed": arguments.seed,
        "network": replace(options["network"], shrinkage=shrinkage),
        "optimiser": replace(options["optimiser"], warmup_steps=min(50, arguments.steps)),
        "monitor": MonitorOptions(
            validate_every=arguments.steps, validation_scans=arguments.scans, preview_every=0, memorisation_scans=2
        ),
    }
    began = time.process_time()
    run = medsynth.train(**options, cohort=arguments.cohort, out=arguments.out / name)
    seconds = time.process_time() - began
    metrics = run.read_metrics()
    levels: dict[str, list[float]] = {}
    for metric, (_, values) in metrics.items():
        if "/sigma_" in metric:
            levels.setdefault(metric.rpartition("_")[2], []).append(float(values[-1]))
    made = {
        "val_loss": float(metrics["val_loss"][1][-1]),
        "levels": {level: sum(values) / len(values) for level, values in levels.items()},
        "seconds": seconds,
    }
    write_json(kept, made)
    return made


def main() -> None:
    """Train what is missing; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--config", default="lung_nodule_3d")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--scans", type=int, default=48, help="validation scans of a class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    found = {name: train_one(arguments, name == "with") for name in ("without", "with")}
    levels = list(found["with"]["levels"])
    print(f"| shrinkage | all | {' | '.join(f'sigma {level}' for level in levels)} | processor seconds |")
    print("|---" * (len(levels) + 3) + "|")
    for name, row in found.items():
        values = " | ".join(f"{row['levels'][level]:.3f}" for level in levels)
        print(f"| {name} | {row['val_loss']:.3f} | {values} | {row['seconds']:.0f} |")
    if arguments.result:
        chosen = {name: getattr(arguments, name) for name in ("config", "steps", "scans", "seed")}
        write_json(arguments.result, describe_machine() | chosen | found)


if __name__ == "__main__":
    main()
