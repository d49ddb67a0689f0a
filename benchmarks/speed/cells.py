"""One cell of the comparison, measured in a process of its own: `python -m benchmarks.speed.cells REQUEST OUT`.

REQUEST is JSON: `kind` (`cost` or `quality`), `method`, the fields of `Setting`, and what the kind needs. OUT is the JSON file to
write; a method that cannot be used writes why as `missing`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.methods import Clock, Method, Setting, Solver
from benchmarks.speed.peers import METHODS
from benchmarks.speed.score import Features, class_counts, score
from medsynth.files import write_json
from medsynth.measures.features import EfficientNetLite0, extract_features
from medsynth.seeds import derive_seed

_COST_STEPS = 10  # of a solver whose seconds a step are measured
HELD_OUT = ("val", "test")  # no method sees these, or chooses anything by them


def setting_of(request: dict[str, Any]) -> Setting:
    """Return the setting of a request."""
    names = ("config", "size", "rank", "batch_size", "device", "seed")
    return Setting(
        cohort=Path(request["cohort"]),
        folder=Path(request["folder"]),
        **{name: request[name] for name in names},
    )


def measure_cost(method: Method, request: dict[str, Any]) -> dict[str, Any]:
    """Return seconds and memory of a training step and of a step of each solver, a scan.

    What a training costs to start is taken away: a short training is subtracted from a longer one.
    """
    clock, steps, batch = Clock(request["device"]), request["cost_steps"], request["draw_batch"]
    resting = _forget_peak(request["device"])
    method.train(2)
    short, long = (clock.seconds(method.train, count) for count in (2, 2 + steps))
    training_peak = _peak(request["device"])
    labels = np.zeros(batch, dtype=np.int64)
    drawing: dict[str, float] = {}
    resting_drawing = _forget_peak(request["device"])
    for solver in (*method.solvers, *method.slow_solvers):
        if solver.name in drawing:
            continue
        # As with training: the difference of two solvers is what steps cost, without loading and start.
        few, many = (
            min(clock.seconds(method.draw, labels, Solver(solver.name, count), batch) for _ in range(2))
            for count in (2, 2 + _COST_STEPS)
        )
        drawing[solver.name] = (many - few) / _COST_STEPS / batch
    return {
        "parameters": method.parameters,
        "training_s_a_scan": (long - short) / steps / request["batch_size"],
        "start_s": short,
        "training_mib": (training_peak - resting) / 2**20,
        "drawing_s_a_scan_a_step": drawing,
        "drawing_mib": (_peak(request["device"]) - resting_drawing) / 2**20,
        "clock": clock.kind,
    }


def measure_quality(method: Method, request: dict[str, Any]) -> dict[str, Any]:
    """Return what a training of `steps` steps leads to: FD-Lite0 and seconds a scan of each solver.

    After the longest training all solvers are drawn from (`ladder`), after others the first alone. Slow ones draw `slow_scans`
    scans; all others are scored with that many, too.
    """
    setting, clock = setting_of(request), Clock(request["device"])
    wall = time.perf_counter()
    training = clock.seconds(method.train, request["steps"])
    wall = time.perf_counter() - wall
    prepared = setting.prepare()
    held_out = prepared.indices(split=HELD_OUT)
    extractor = EfficientNetLite0(request["device"])
    real = Features(
        values=_real_features(extractor, prepared, held_out, setting.folder.parent),
        labels=prepared.labels[held_out],
        patients=prepared.patients[held_out],
    )
    slow = method.slow_solvers if request["slow_scans"] else ()
    jobs = [(solver, request["scans"]) for solver in (method.solvers if request["ladder"] else method.solvers[:1])]
    jobs += [(solver, request["slow_scans"]) for solver in (slow if request["ladder"] else ())]
    rows: list[dict[str, Any]] = []
    for solver, scans in jobs:
        counts = class_counts(real.labels, real.patients, scans)
        labels = np.repeat(list(counts), list(counts.values()))
        torch.manual_seed(derive_seed(setting.seed, "speed", "draw"))
        began = clock.now()
        made = method.draw(labels, solver, request["draw_batch"])
        seconds = clock.now() - began
        features = Features(values=extract_features(extractor, made), labels=labels, patients=np.arange(len(labels)))
        np.save(setting.folder / f"{len(rows)}.npy", made.astype(np.float16))
        sizes = sorted({scans, request["slow_scans"] or scans}, reverse=True)
        row = {
            "solver": solver.name,
            "steps": solver.steps,
            "scans": len(labels),
            "seconds_a_scan": seconds / len(labels),
            "scores": [score(real, features, size).as_dict() for size in sizes if size <= scans],
        }
        print(f"{request['method']}: {solver}, {row['seconds_a_scan']:.3f} s a scan", flush=True)
        rows.append(row)
    return {
        "parameters": method.parameters,
        "steps": request["steps"],
        "training_s": training,
        "training_wall_s": wall,
        "clock": clock.kind,
        "draws": rows,
    }


def _real_features(extractor: EfficientNetLite0, prepared: Any, rows: np.ndarray, folder: Path) -> np.ndarray:
    path = folder / f"real_{prepared.key[:16]}.npy"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.npy")
        np.save(temporary, extract_features(extractor, prepared.scans, rows))
        temporary.replace(path)
    known: np.ndarray = np.load(path)
    return known


def _forget_peak(device: str) -> int:
    """Begin to watch memory anew and return what is in use, in bytes."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed still counts as in use
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Measure the cell that the command line asks for."""
    request, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(request["threads"])
    measure = {"cost": measure_cost, "quality": measure_quality}[request["kind"]]
    Path(request["folder"]).mkdir(parents=True, exist_ok=True)
    try:
        method = METHODS[request["method"]](setting_of(request))
    except ImportError as error:
        result: dict[str, Any] = {"missing": str(error)}
    else:
        result = measure(method, request)
    write_json(out, {"request": request} | result)


if __name__ == "__main__":
    main()
