"""Networks at equal time: validation loss after the same processor seconds of training, on the same cohort, batches and noise.

    OMP_NUM_THREADS=1 python -m benchmarks.network_variants --cohort cohort.csv --config lung_nodule_3d \
        --variants "without shrinkage,with shrinkage" --seconds 300 --out runs/variants

`shrinkage` changes that option of the configuration alone; `pixel`, `haar` and `haar, 2 levels` put the UNet of
`benchmarks.volume_cost` (32, 64 and 96 channels) behind each stem. A step is timed first, in processor seconds on one thread, so
that other work on the machine does not count; then each variant trains for as many steps as the seconds allow, with its own
schedule of the learning rate. Losses of all variants are weighted alike. Finished parts are kept.
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
from benchmarks.volume_cost import NETWORK, STEMS
from medsynth.config import MonitorOptions, NetworkOptions
from medsynth.files import write_json

_SHORT, _LONG = 2, 8  # steps of the two trainings that time one


def network_of(name: str, configured: NetworkOptions) -> NetworkOptions:
    """Return the options of a variant."""
    if name.endswith(" shrinkage"):
        return replace(configured, shrinkage=name == "with shrinkage")
    stem, levels = STEMS[name]
    return replace(NETWORK, stem=stem, levels=levels)


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
        "optimiser": replace(options["optimiser"], warmup_steps=min(50, steps)),
        "monitor": MonitorOptions(
            validate_every=steps if validate else 0,
            validation_scans=arguments.scans,
            preview_every=0,
            checkpoint_every=max(steps, 1),
            early_share=0.0,
        ),
    }
    began = time.process_time()
    run = medsynth.train(**options, cohort=arguments.cohort, out=folder)
    return run, time.process_time() - began


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return steps, seconds of one, and losses of a variant."""
    folder = arguments.out / name.replace(", ", "_").replace(" ", "_")
    kept = folder / "result.json"
    if kept.is_file():
        known: dict[str, Any] = json.loads(kept.read_text())
        return known
    train_for(arguments, name, _SHORT, folder / "warm", validate=False)
    short, long = (
        train_for(arguments, name, steps, folder / f"{steps}", validate=False)[1] for steps in (_SHORT, _LONG)
    )
    one = (long - short) / (_LONG - _SHORT)
    steps = max(1, round(arguments.seconds / one))
    run, _ = train_for(arguments, name, steps, folder / "run", validate=True)
    metrics = run.read_metrics()
    levels: dict[str, list[float]] = {}
    for metric, (_, values) in metrics.items():
        if "/sigma_" in metric:
            levels.setdefault(metric.rpartition("_")[2], []).append(float(values[-1]))
    made = {
        "steps": steps,
        "seconds_a_step": one,
        "val_loss": float(metrics["val_loss"][1][-1]),
        "levels": {level: sum(values) / len(values) for level, values in levels.items()},
    }
    write_json(kept, made)
    return made


def main() -> None:
    """Train what is missing; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--config", default="lung_nodule_3d")
    parser.add_argument(
        "--variants",
        default="without shrinkage,with shrinkage",
        help="separated by commas, or by semicolons where a name has one",
    )
    parser.add_argument("--seconds", type=float, default=300, help="processor seconds of training for each")
    parser.add_argument("--scans", type=int, default=48, help="validation scans of a class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.variants.split(";" if ";" in arguments.variants else ",")]
    found: dict[str, Any] = {}
    for name in names:
        found[name] = measure(arguments, name)
        if len(found) == 1:
            levels = list(found[name]["levels"])
            print(f"| network | s a step | steps | loss | {' | '.join(f'sigma {level}' for level in levels)} |")
            print("|---" * (len(levels) + 4) + "|")
        row = found[name]
        values = " | ".join(f"{row['levels'][level]:.3f}" for level in levels)
        print(
            f"| {name} | {row['seconds_a_step']:.2f} | {row['steps']} | {row['val_loss']:.3f} | {values} |", flush=True
        )
    if arguments.result:
        chosen = {name: getattr(arguments, name) for name in ("config", "seconds", "scans", "seed")}
        write_json(arguments.result, describe_machine() | chosen | {"variants": found})


if __name__ == "__main__":
    main()
