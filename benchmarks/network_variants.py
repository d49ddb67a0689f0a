"""Networks at equal time: errors after the same processor seconds of training, on the same cohort, batches and noise.

    OMP_NUM_THREADS=1 python -m benchmarks.network_variants --cohort cohort.csv --config lung_nodule_3d \
        --variants "shrinkage=false; shrinkage=true; pixel; haar; haar, 2 levels" --seconds 300 --out runs/variants

A variant is the network of the configuration with some options changed (`levels=1 channels=48/96/128 shrinkage=true`), or one of
`pixel`, `haar` and `haar, 2 levels`: the UNet of `benchmarks.volume_cost` (32, 64 and 96 channels) behind each stem. A step is
timed first, in processor seconds on one thread, so that other work on the machine does not count; then each variant trains for
as many steps as the seconds allow, with its own schedule of the learning rate. The errors are root mean squares over validation
scans in [-1, 1]; the loss weights them in the same way for all variants. Finished parts are kept.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

import medsynth
from benchmarks.machine import describe_machine
from benchmarks.volume_cost import NETWORK, STEMS
from medsynth.diffusion import loss_weight
from medsynth.files import write_json
from medsynth.runs import Run, load_run

_SHORT, _LONG = 2, 8  # steps of the two trainings that time one
_SPREAD = 0.5  # sigma_data behind the weights of the loss


def network_of(name: str, configured: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a variant."""
    if name in STEMS:
        stem, levels = STEMS[name]
        return asdict(NETWORK) | {"stem": stem, "levels": levels}
    changes: dict[str, Any] = {}
    for part in name.split():
        option, _, text = part.partition("=")
        values = [yaml.safe_load(value) for value in text.split("/")]
        changes[option] = values if len(values) > 1 else values[0]
    return configured | changes


def train_for(
    arguments: argparse.Namespace, name: str, steps: int, folder: Path, *, validate: bool
) -> tuple[Any, float]:
    """Return the run and the processor seconds of its making."""
    options = medsynth.load_config(arguments.config)
    options |= {
        "max_steps": steps,
        "seed": arguments.seed,
        "cache_dir": arguments.out / "cache",
        "network": network_of(name, options["network"]),
        "optimiser": options["optimiser"] | {"warmup_steps": min(50, steps)},
        "monitor": {
            "validate_every": steps if validate else 0,
            "preview_every": 0,
            "checkpoint_every": max(steps, 1),
            "early_share": 0.0,
        },
    }
    began = time.process_time()
    run = medsynth.train(**options, cohort=arguments.cohort, out=folder)
    return run, time.process_time() - began


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return steps, seconds of one, and errors of a variant."""
    folder = arguments.out / re.sub(r"[^\w=.]+", "_", name)
    kept = folder / "result.json"
    if not kept.is_file():
        train_for(arguments, name, _SHORT, folder / "warm", validate=False)
        short, long = (
            train_for(arguments, name, steps, folder / f"{steps}", validate=False)[1] for steps in (_SHORT, _LONG)
        )
        one = (long - short) / (_LONG - _SHORT)
        steps = max(1, round(arguments.seconds / one))
        train_for(arguments, name, steps, folder / "run", validate=True)
        write_json(kept, {"steps": steps, "seconds_a_step": one})
    known: dict[str, Any] = json.loads(kept.read_text())
    errors = read_errors(load_run(folder / "run"))
    loss = sum(float(loss_weight(torch.tensor(float(level)), _SPREAD)) * error**2 for level, error in errors.items())
    return known | {"loss": loss / len(errors), "errors": errors}


def read_errors(run: Run) -> dict[str, float]:
    """Return the root mean square error at each noise level, over classes alike.

    The training logs losses weighted by its own sigma_data, which differs between networks.
    """
    spread = (sum(value**2 for value in run.spec.sigma_data) / len(run.spec.sigma_data)) ** 0.5
    found: dict[str, list[float]] = {}
    for metric, (_, values) in run.read_metrics().items():
        if "/sigma_" in metric:
            level = metric.rpartition("_")[2]
            found.setdefault(level, []).append(
                float(values[-1]) / float(loss_weight(torch.tensor(float(level)), spread))
            )
    return {level: (sum(squares) / len(squares)) ** 0.5 for level, squares in found.items()}


def main() -> None:
    """Train what is missing; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--config", default="lung_nodule_3d")
    parser.add_argument(
        "--variants",
        default="shrinkage=false; shrinkage=true",
        help="separated by semicolons",
    )
    parser.add_argument("--seconds", type=float, default=300, help="processor seconds of training for each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.variants.split(";")]
    found: dict[str, Any] = {}
    for name in names:
        found[name] = measure(arguments, name)
        if len(found) == 1:
            levels = list(found[name]["errors"])
            print(f"| network | s a step | steps | loss | {' | '.join(f'sigma {level}' for level in levels)} |")
            print("|---" * (len(levels) + 4) + "|")
        row = found[name]
        values = " | ".join(f"{row['errors'][level]:.3f}" for level in levels)
        print(f"| {name} | {row['seconds_a_step']:.2f} | {row['steps']} | {row['loss']:.3f} | {values} |", flush=True)
    if arguments.result:
        chosen = {name: getattr(arguments, name) for name in ("config", "seconds", "seed")}
        write_json(arguments.result, describe_machine() | chosen | {"variants": found})


if __name__ == "__main__":
    main()
