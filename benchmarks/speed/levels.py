"""Likeness and fine detail against the noise levels of DPM-Solver++: where to begin, and where to take the last step.

    python -m benchmarks.speed.levels --run run --real fresh/cohort.csv --splits train,val,test \\
        --levels 20:80:0.002,20:80:0.02 --work work/levels --out benchmarks/results/noise_levels.json --name "phantom, Haar stem"

`--levels` are steps, first and last level. The Fréchet distance is that of `benchmarks.speed.steps`. *Detail* is the power of the
new scans over that of real ones in the upper quarter of frequencies below the Nyquist frequency: a large last level removes
what is finer than it. Results of several runs share the file; one of the same name is replaced.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import medsynth
from benchmarks.machine import describe_machine
from benchmarks.markdown import head_of, row_of
from benchmarks.speed.steps import compare, make_features, read_reals
from medsynth.config import FeatureOptions
from medsynth.diffusion import Solver
from medsynth.files import write_json
from medsynth.measures.extractors import open_extractor


def levels(text: str) -> list[Solver]:
    """Return the solvers of `steps:first:last` separated by commas."""
    found = []
    for part in text.split(","):
        steps, first, last = part.split(":")
        found.append(Solver(name="dpmpp_2m", steps=int(steps), sigma_max=float(first), sigma_min=float(last)))
    return found


def main() -> None:
    """Measure what is missing, print a row for each, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of these rows in the result")
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--splits", default="val")
    parser.add_argument("--levels", type=levels, required=True)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    run = medsynth.load_run(arguments.run)
    arguments.work.mkdir(parents=True, exist_ok=True)
    extractor = open_extractor(FeatureOptions())
    reals = read_reals(run, arguments.real, arguments.splits.split(","), extractor, arguments.work)
    rows: list[dict[str, Any]] = []
    print(head_of(["steps", "sigma", "FD-Lite0", "detail"]))
    for solver in arguments.levels:
        made, facts = make_features(
            run, solver, reals.sizes, extractor, arguments.work, batch_size=arguments.batch_size
        )
        distance = compare(reals, made)["fd"]
        detail = None
        if reals.power is not None:
            upper = slice(len(reals.power) * 3 // 4, None)
            detail = float((facts["power"] / reals.power)[upper].mean())
        chosen = {"steps": solver.steps, "sigma_max": solver.sigma_max, "sigma_min": solver.sigma_min}
        rows.append(chosen | {"fd": dataclasses.asdict(distance), "detail": detail})
        interval = f"{distance.value:.1f} ({distance.low:.1f} to {distance.high:.1f})"
        levels_used = f"{solver.sigma_max:g} to {solver.sigma_min:g}"
        print(
            row_of([str(solver.steps), levels_used, interval, "–" if detail is None else f"{detail:.2f}"]), flush=True
        )
    known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"runs": {}}
    known["runs"][arguments.name] = describe_machine() | {
        "steps_trained": run.steps,
        "shape": run.spec.shape,
        "splits": arguments.splits,
        "scans_a_side": sum(reals.sizes),
        "rows": rows,
    }
    write_json(arguments.out, known)


if __name__ == "__main__":
    main()
