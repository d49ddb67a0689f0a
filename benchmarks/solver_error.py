"""Error of few-step solvers on a trained run: RMSE in [-1, 1] against Heun with 200 steps, same seeds.

    OMP_NUM_THREADS=1 python -m benchmarks.solver_error --run run --scans 32 --out benchmarks/results/solver_error.json

On one thread, seconds are processor seconds, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import medsynth
from benchmarks.machine import describe_machine
from medsynth.config import GuidanceOptions, SolverOptions
from medsynth.diffusion import Solver, resolve_solver
from medsynth.files import write_json
from medsynth.networks import sample_scans
from medsynth.seeds import derive_seed

REFERENCE = resolve_solver(SolverOptions(name="heun", steps=200))
CANDIDATES = [
    resolve_solver(SolverOptions(name="dpmpp_2m", steps=20), precision="bf16-mixed"),
    *(
        resolve_solver(SolverOptions(name=name, steps=steps))
        for name, steps in (
            ("dpmpp_2m", 10), ("dpmpp_2m", 20), ("dpmpp_2m", 40), ("heun", 10), ("heun", 18), ("euler", 20), ("euler", 40),
        )
    ),
]  # fmt: skip


def evaluations(solver: Solver) -> int:
    """Network evaluations of a solver; Heun's last step to 0 takes one."""
    return 2 * solver.steps - 1 if solver.name == "heun" else solver.steps


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    run = medsynth.load_run(arguments.run)
    gpu = torch.cuda.is_available()
    denoiser = run.load_denoiser("cuda" if gpu else "cpu")
    clock = time.process_time if torch.get_num_threads() == 1 and not gpu else time.perf_counter

    def draw(solver: Solver) -> tuple[torch.Tensor, float]:
        parts, began = [], clock()
        for start in range(0, arguments.scans, arguments.batch_size):
            numbers = range(start, min(start + arguments.batch_size, arguments.scans))
            labels = torch.tensor([number % len(run.spec.classes) for number in numbers])
            seeds = [derive_seed(0, "solver error", number) for number in numbers]
            scans = sample_scans(
                denoiser, labels, seeds, shape=run.spec.shape, solver=solver, guidance=GuidanceOptions()
            )
            parts.append(scans.cpu())
        return torch.cat(parts), (clock() - began) / arguments.scans

    reference, seconds = draw(REFERENCE)
    print(f"heun 200 steps (399 evaluations): {seconds:.2f} s a scan", flush=True)
    rows = []
    for solver in CANDIDATES:
        scans, seconds = draw(solver)
        rows.append(
            {
                "solver": solver.name,
                "steps": solver.steps,
                "precision": solver.precision,
                "evaluations": evaluations(solver),
                "rmse": float((scans - reference).square().mean().sqrt()),
                "seconds_per_scan": seconds,
            }
        )
        print(rows[-1], flush=True)
    result = describe_machine() | {"run": run.fingerprint[:16], "steps_trained": run.steps, "scans": arguments.scans}
    if arguments.out:
        write_json(arguments.out, result | {"reference": "heun, 200 steps", "rows": rows})


if __name__ == "__main__":
    main()
