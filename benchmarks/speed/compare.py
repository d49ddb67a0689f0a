"""medsynth and its peers side by side: the same scans, weights, batch, optimiser and machine.

    python -m benchmarks.speed.compare --out benchmarks/results/speed.json

Measured are seconds and memory of a training step and of drawing, FD-Lite0 against held-out scans after growing budgets of
training time, and seconds a scan at equal FD-Lite0. Each cell of the tables runs in a process of its own and is a JSON file in
`--folder`; the same command completes what was interrupted. On one thread of a processor seconds are those that the process
computed, so that other jobs on the machine do not count. Without `--cohort`, scans are those of the phantom (`medsynth demo`).

The peers come with the extra `benchmarks`; `pip install --no-deps denoising-diffusion-pytorch` adds the one that asks for
torchvision. A peer that is missing leaves a row that says so. `--device cuda` was never tried.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import medsynth
from benchmarks.machine import describe_machine
from benchmarks.speed.tables import TITLES, claims, cost_table, drawing_table, time_table
from medsynth.files import write_json

_PEERS = ("diffusers", "denoising-diffusion-pytorch", "accelerate", "ema-pytorch", "torchvision")
_FREE = ("folder", "cohort")  # where files lie does not change a measurement


def numbers(text: str) -> list[int]:
    """Return whole numbers separated by commas."""
    return [int(part) for part in text.split(",") if part.strip()]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, help="cohort CSV of 2D scans; by default a phantom of 2000")
    parser.add_argument("--config", default="phantom_2d", help="configuration with network and optimiser for all")
    parser.add_argument("--methods", default=",".join(TITLES))
    parser.add_argument("--sizes", type=numbers, default=[32, 64], help="2D grids whose cost is measured")
    parser.add_argument("--quality_sizes", type=numbers, default=[32], help="2D grids on which methods are trained")
    parser.add_argument("--volume_sizes", type=numbers, default=[32], help="3D grids whose cost is measured")
    parser.add_argument("--budgets", type=numbers, default=[30, 120, 360], help="seconds of training")
    parser.add_argument("--scans", type=int, default=128, help="scans behind FD-Lite0")
    parser.add_argument("--slow_scans", type=int, default=32, help="scans of the 1000-step solver; 0 leaves it out")
    parser.add_argument("--batch_size", type=int, default=16, help="scans of a training step (2 in 3D)")
    parser.add_argument("--draw_batch", type=int, default=32, help="scans drawn together (2 in 3D)")
    parser.add_argument("--rounds", type=int, default=2, help="alternating measurements of costs at the quality sizes")
    parser.add_argument("--cost_steps", type=int, default=10, help="training steps behind a cost")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("work/speed"), help="cells, runs and the phantom")
    parser.add_argument("--table", action="store_true", help="measure nothing more; make the tables of what is there")
    parser.add_argument("--out", type=Path, help="JSON to write")
    return parser


def plan_costs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the requests of all costs; rounds alternate over methods."""
    common = {"kind": "cost", "cost_steps": arguments.cost_steps}
    planned = [
        {**common, "rank": 2, "size": size, "round": round_, "method": method}
        for size in dict.fromkeys([*arguments.quality_sizes, *arguments.sizes])
        for round_ in range(arguments.rounds if size in arguments.quality_sizes else 1)
        for method in arguments.methods.split(",")
    ]
    return planned + [
        {**common, "rank": 3, "size": size, "round": 0, "method": method, "cost_steps": 4}
        for size in arguments.volume_sizes
        for method in arguments.methods.split(",")
    ]


def plan_quality(arguments: argparse.Namespace, costs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the requests of all trainings: as many steps as fit into a budget by the measured cost of one."""
    planned = []
    for size in arguments.quality_sizes:
        for budget in sorted(arguments.budgets):
            for method in arguments.methods.split(","):
                measured = [
                    cell["training_s_a_scan"]
                    for cell in costs
                    if (cell["request"]["rank"], cell["request"]["size"], cell["request"]["method"])
                    == (2, size, method)
                    and "training_s_a_scan" in cell
                ]
                if measured:
                    steps = max(2, round(budget / statistics.median(measured) / arguments.batch_size))
                    planned.append(
                        {
                            "kind": "quality",
                            "rank": 2,
                            "size": size,
                            "budget": budget,
                            "steps": steps,
                            "method": method,
                            "scans": arguments.scans,
                            "slow_scans": arguments.slow_scans,
                            "ladder": budget == max(arguments.budgets),
                        }
                    )
    return planned


def measure(arguments: argparse.Namespace, planned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cells of the requests, from their files where these are there."""
    cells = []
    for request in planned:
        volumes = request["rank"] == 3
        last = request["round"] if request["kind"] == "cost" else f"{request['budget']}s"
        name = f"{request['kind']}_{request['method']}_{request['rank']}d{request['size']}_{last}"
        full = {
            **request,
            "cohort": str(_cohort(arguments, volumes=volumes)),
            "config": "phantom_3d" if volumes else arguments.config,
            "batch_size": 2 if volumes else arguments.batch_size,
            "draw_batch": 2 if volumes else arguments.draw_batch,
            "device": arguments.device,
            "threads": arguments.threads,
            "seed": arguments.seed,
            "folder": str(arguments.folder / name),
        }
        file = arguments.folder / f"{name}.json"
        known = json.loads(file.read_text()) if file.exists() else None
        if known is None or _differs(known["request"], full):
            if arguments.table:
                continue
            print(f"{name} ...", flush=True)
            command = [sys.executable, "-m", "benchmarks.speed.cells", json.dumps(full), str(file)]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            known = json.loads(file.read_text())
        cells.append(known)
    return cells


def _differs(known: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Return whether a cell answers another request; one with all solvers also answers for the first alone."""
    enough = known.get("ladder", False) or not wanted.get("ladder", False)
    return not enough or any(
        known.get(key) != wanted.get(key) for key in known.keys() | wanted.keys() if key not in (*_FREE, "ladder")
    )


def _cohort(arguments: argparse.Namespace, *, volumes: bool) -> Path:
    if arguments.cohort and not volumes:
        chosen: Path = arguments.cohort
        return chosen
    folder: Path = arguments.folder / ("phantom_3d" if volumes else "phantom")
    if not (folder / "cohort.csv").exists():
        medsynth.demo(
            out=folder, scans=60 if volumes else 2000, size=None if volumes else 64, volumes=volumes, progress=False
        )
    return folder / "cohort.csv"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PEERS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    """Measure every cell that is missing, print the tables, write the result."""
    arguments = make_parser().parse_args()
    arguments.folder = arguments.folder.resolve()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    planned = plan_costs(arguments)
    first = [each for each in planned if each["rank"] == 2 and each["size"] in arguments.quality_sizes]
    costs = measure(arguments, first)
    quality = measure(arguments, plan_quality(arguments, costs))
    costs += measure(arguments, [each for each in planned if each not in first])
    cells = costs + quality
    print("\n" + cost_table(cells))
    found = {}
    for size in arguments.quality_sizes:
        print(f"\nFD-Lite0 at {size}², by training time:\n\n{time_table(cells, size)}")
        print(f"\nFD-Lite0 at {size}², by solver, after the longest training:\n\n{drawing_table(cells, size)}\n")
        found[str(size)] = [claim.as_dict() for claim in claims(cells, size)]
        for claim in claims(cells, size):
            ratio = "–" if claim.ratio is None else f"{claim.ratio:.1f}"
            print(f"- {'held' if claim.held else 'NOT held'}: {claim.text}: measured {ratio} ({claim.measured})")
    if arguments.out:
        options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
        for name in ("folder", "cohort", "out", "table"):
            del options[name]
        shown = [
            {**cell, "request": {key: value for key, value in cell["request"].items() if key not in _FREE}}
            for cell in cells
        ]
        machine = describe_machine()
        machine["versions"] |= _versions()
        machine["threads"] = arguments.threads
        write_json(arguments.out, machine | {"options": options, "claims": found, "cells": shown})


if __name__ == "__main__":
    main()
