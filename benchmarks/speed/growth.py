"""How cost grows with the size of a scan and with the number of scans, as power laws: seconds ~ size ** exponent.

    python -m benchmarks.speed.growth --out benchmarks/results/growth.json

By size: a training step, a step of the solver, and memory, for the method of `configs/phantom_2d.yaml` (cells of
`benchmarks.speed.compare`). By scans: `write_cohort`, `read_cohort`, `prepare_cohort` the first time and once cached, the
sampler, and the loader's batches, each in a process of its own; the files are links to 256 small pictures. Seconds are of one
thread of a processor.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import medsynth
from benchmarks.machine import describe_machine
from benchmarks.speed import compare
from benchmarks.speed.methods import Clock
from medsynth.cohorts import Cohort, Row, ScanDataset, prepare_cohort, write_cohort
from medsynth.config import GridOptions, IntensityOptions, Loading, TrainOptions
from medsynth.files import write_json
from medsynth.scans import Scan, write_scan
from medsynth.training import StepSampler, class_shares
from medsynth.training.batches import make_loader

_FILES = 256
_SIDE = 32
_BATCH = 32
_BATCHES = 200
FIGURES = {
    "write_s": "write_cohort, s",
    "read_s": "read_cohort, s",
    "prepare_s": "prepare, s",
    "cached_s": "prepare, cached, s",
    "sampler_ms": "sampler, first batch, ms",
    "loader_ms": "loader, ms a batch of 32",
    "memory_mib": "memory, MiB",
}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Return b of the least-squares fit ln(value) = a + b ln(size); None below two points, or where a value is not positive."""
    if len(sizes) < 2 or min(values) <= 0:
        return None
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def write_links(folder: Path, scans: int) -> Path:
    """Write a cohort of so many scans, links to a few pictures, two of each patient and three classes; return its CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(min(scans, _FILES)):
        write_scan(Scan(array=random.integers(0, 256, (1, _SIDE, _SIDE), dtype=np.uint8)), folder / f"0_{number}.png")
    rows = []
    for number in range(scans):
        copy, picture = divmod(number, _FILES)
        if copy:
            os.link(folder / f"0_{picture}.png", folder / f"{copy}_{picture}.png")
        patient = number // 2
        split = "train" if patient % 10 < 7 else "val" if patient % 10 == 7 else "test"
        label = "rare" if patient % 20 == 0 else "common" if patient % 3 else "other"
        rows.append(Row(path=f"{copy}_{picture}.png", label=label, patient_id=f"p{patient}", split=split))
    path = folder / "cohort.csv"
    write_cohort(Cohort(folder=folder, rows=tuple(rows)), path)
    return path


def measure_scans(scans: int, folder: Path) -> dict[str, Any]:
    """Return the figures of one cohort; to be called once in a process."""
    path = write_links(folder, scans)
    time.sleep(2.5)  # a cache hashes files again that changed within the last two seconds
    clock = Clock("cpu")
    options: dict[str, Any] = {
        "grid": GridOptions(size=_SIDE),
        "intensity": IntensityOptions(method="range", low=0, high=255),
        "loading": Loading(cache_dir=folder / "cache", progress=False),
    }
    resting = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reading = clock.seconds(lambda: medsynth.read_cohort(path))
    cohort = medsynth.read_cohort(path)
    writing = clock.seconds(lambda: write_cohort(cohort, folder / "again.csv"))
    preparing = clock.seconds(lambda: prepare_cohort(cohort, **options))
    cached = clock.seconds(lambda: prepare_cohort(cohort, **options))
    prepared = prepare_cohort(cohort, **options)
    rows = prepared.indices(split="train")
    labels = prepared.labels[rows]

    def sampler() -> StepSampler:
        shares = class_shares(np.bincount(labels, minlength=len(prepared.classes)), TrainOptions.balance)
        return StepSampler(labels, shares=shares, batch_size=_BATCH, total_steps=_BATCHES, seed=0)

    return {
        "scans": scans,
        "write_s": writing,
        "read_s": reading,
        "prepare_s": preparing,
        "cached_s": cached,
        "sampler_ms": 1000 * clock.seconds(lambda: sampler().global_batch(0)),
        "loader_ms": 1000
        * clock.seconds(lambda: list(make_loader(ScanDataset(prepared, rows), sampler(), num_workers=0)))
        / _BATCHES,
        "memory_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resting) / 2**10,
    }


def by_scans(counts: Sequence[int]) -> list[dict[str, Any]]:
    """Return the figures of a cohort of each size, measured in processes of their own."""
    found = []
    for count in counts:
        command = [sys.executable, "-m", "benchmarks.speed.growth", "--cell", str(count)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    return found


def by_size(sizes: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Return what steps cost on each grid."""
    text = ",".join(map(str, sizes))
    options = ["--methods", "medsynth", "--quality_sizes", text, "--sizes", "", "--volume_sizes", "", "--rounds", "1"]
    arguments = compare.make_parser().parse_args([*options, "--draw_batch", "16", "--folder", str(folder.resolve())])
    cells = compare.measure(arguments, compare.plan_costs(arguments))
    return [
        {
            "size": cell["request"]["size"],
            "training_scans_a_s": 1 / cell["training_s_a_scan"],
            "training_s_a_scan": cell["training_s_a_scan"],
            "training_mib": cell["training_mib"],
            "drawing_s_a_scan_a_step": next(iter(cell["drawing_s_a_scan_a_step"].values())),
        }
        for cell in cells
    ]


def table(rows: Sequence[dict[str, Any]], key: str, titles: dict[str, str]) -> tuple[str, dict[str, float | None]]:
    """Return the rows as Markdown, with the exponents of every figure in `key` as the last, and these exponents."""
    exponents = {name: exponent([row[key] for row in rows], [row[name] for row in rows]) for name in titles}
    lines = [[key, *titles.values()], ["---"] * (len(titles) + 1)]
    lines += [[str(row[key]), *(f"{row[name]:.3g}" for name in titles)] for row in rows]
    lines.append(["exponent", *("–" if each is None else f"{each:.2f}" for each in exponents.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines), exponents


def main() -> None:
    """Measure, print both tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=compare.numbers, default=[1000, 10000, 100000])
    parser.add_argument("--sizes", type=compare.numbers, default=[32, 64, 128])
    parser.add_argument("--folder", type=Path, default=Path("work/growth"), help="cells of the sizes")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--cell", type=int, help="one cohort as JSON; for the benchmark itself")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.cell:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure_scans(arguments.cell, Path(folder) / "cohort")))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    if arguments.scans:
        rows = by_scans(arguments.scans)
        text, exponents = table(rows, "scans", FIGURES)
        result["by_scans"] = {"rows": rows, "exponents": exponents}
        print(f"\n{text}\n")
    if arguments.sizes:
        rows = by_size(arguments.sizes, arguments.folder)
        for row in rows:
            row["pixels"] = row["size"] ** 2
        titles = {
            "training_s_a_scan": "training, s a scan",
            "training_scans_a_s": "training, scans a s",
            "training_mib": "training, MiB",
            "drawing_s_a_scan_a_step": "drawing, s a scan and step",
        }
        text, exponents = table(rows, "pixels", titles)
        result["by_size"] = {"rows": rows, "exponents": exponents}
        print(f"\n{text}")
    if arguments.out:
        write_json(arguments.out, describe_machine() | result)


if __name__ == "__main__":
    main()
