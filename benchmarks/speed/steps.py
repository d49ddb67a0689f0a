"""Likeness against network evaluations: a run by several solvers, and the runs that were distilled from it.

    python -m benchmarks.speed.steps --run teacher --distilled student1 student2 student4 --real fresh/cohort.csv \
        --splits train,val,test --work work/steps --out benchmarks/results/speed_steps.json \
        --figure docs/images/speed_steps.png

A distilled run is sampled by its own solver. The claim is that two evaluations of a distilled run are no worse than 20 steps of
DPM-Solver++ by more than half the width of real against real. Real scans must be new to all runs. Every candidate makes as many
scans of each class as a half of them has, with the same seeds; its KID and Fréchet distance (EfficientNet-Lite0, principal axes)
are those of the fidelity table, beside the two halves. Finished parts are kept in `--work`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import medsynth
from benchmarks.machine import describe_machine
from medsynth.cohorts import prepare_cohort
from medsynth.config import FeatureOptions, GuidanceOptions, Loading, SolverOptions
from medsynth.diffusion import Solver, resolve_solver
from medsynth.evaluation.fidelity.comparison import (
    DISTANCE,
    Measured,
    as_indicators,
    disjoint_halves,
    half_size,
    random_picks,
)
from medsynth.files import atomic_path, write_json
from medsynth.measures.distances import Kernels, Projection, frechet_distance, projected_dims
from medsynth.measures.extractors import open_extractor
from medsynth.measures.features import Extractor, extract_features
from medsynth.networks import sample_scans
from medsynth.runs import Run
from medsynth.seeds import derive_seed, numpy_generator

AXES, REPEATS = 64, 100
# What says most comes first: each takes its time, and the result is written after each.
SOLVERS = [
    *(SolverOptions(name="dpmpp_2m", steps=steps) for steps in (20, 2, 4, 7, 1, 5)),
    *(SolverOptions(name="heun", steps=steps) for steps in (18, 4, 2)),
]
TITLES = {"dpmpp_2m": "DPM-Solver++(2M)", "heun": "Heun", "euler": "distilled"}
COLOURS = {"dpmpp_2m": "#0072B2", "heun": "#009E73", "euler": "#D55E00"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Reals:
    """Real scans: features `(N, D)`, and draws of two halves without a common patient.

    `sizes` is how many scans of each class a half has, `draws` positions `(REPEATS, sum of sizes)` twice, class by class; `power`
    is the `radial_power` of pictures with the classes in the shares of `sizes`.
    """

    features: np.ndarray
    sizes: list[int]
    draws: tuple[np.ndarray, np.ndarray]
    power: np.ndarray | None


def evaluations(solver: Solver) -> int:
    """Network evaluations of a solver; Heun's last step to 0 takes one."""
    return 2 * solver.steps - 1 if solver.name == "heun" else solver.steps


def radial_power(pictures: np.ndarray) -> np.ndarray:
    """Mean power of square pictures `(N, H, H)` at each distance from frequency 0, up to the Nyquist frequency."""
    size = pictures.shape[-1]
    centred = pictures - pictures.mean((1, 2), keepdims=True)
    power = np.abs(np.fft.fftshift(np.fft.fft2(centred), axes=(1, 2))) ** 2
    places = np.indices((size, size)) - size // 2
    radius = np.hypot(*places).astype(int).ravel()
    return (np.bincount(radius, power.mean(0).ravel()) / np.bincount(radius))[: size // 2]


def read_reals(run: Run, path: Path, splits: list[str], extractor: Extractor, work: Path) -> Reals:
    """Return the real scans of a cohort on the grid of a run."""
    cohort = medsynth.read_cohort(path)
    cohort = dataclasses.replace(
        cohort, rows=tuple(row for row in cohort.rows if row.split in splits and row.label in run.spec.classes)
    )
    prepared = prepare_cohort(
        cohort,
        grid=run.grid,
        intensity=run.spec.intensity,
        loading=Loading(cache_dir=work, progress=False),
        classes=run.classes,
    )
    file = work / f"real-{prepared.key[:16]}.npy"
    if not file.exists():
        with atomic_path(file) as temporary:
            np.save(temporary, extract_features(extractor, prepared.scans))
    sizes, halves = [], []
    for number in range(len(run.spec.classes)):
        rows = prepared.indices(label=number)
        sizes.append(half_size(prepared.patients[rows]))
        pair = disjoint_halves(prepared.patients[rows], sizes[-1], REPEATS, numpy_generator(0, "steps halves", number))
        halves.append([rows[half] for half in pair])
    one, other = (np.concatenate([pair[side] for pair in halves], axis=1) for side in (0, 1))
    power = None
    if len(run.spec.shape) == 3:
        by_class = [
            radial_power(np.asarray(prepared.scans[prepared.indices(label=number), 0], dtype=np.float32))
            for number in range(len(sizes))
        ]
        power = np.average(by_class, axis=0, weights=sizes)
    return Reals(features=np.load(file), sizes=sizes, draws=(one, other), power=power)


def make_features(
    run: Run, solver: Solver, sizes: list[int], extractor: Extractor, work: Path, *, batch_size: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the features of new scans, `sizes` of each class, and facts: the seconds that a scan took, and their power.

    The power is that of `radial_power`, of the first channel of pictures; volumes have none.
    """
    name = f"{run.fingerprint[:16]}-{solver.name}-{solver.steps}-{'-'.join(map(str, sizes))}-"
    name += f"{solver.sigma_max:.4g}-{solver.sigma_min:.4g}"
    file, facts = work / f"{name}.npy", work / f"{name}.json"
    if not facts.exists():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        denoiser = run.load_denoiser(device)
        labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        numbers = torch.cat([torch.arange(size) for size in sizes])
        parts, drawn, seconds = [], [], 0.0
        for chosen in torch.arange(len(labels)).split(batch_size):
            seeds = [derive_seed(0, "steps", int(labels[row]), int(numbers[row])) for row in chosen]
            began = time.perf_counter()
            scans = sample_scans(
                denoiser, labels[chosen], seeds, shape=run.spec.shape, solver=solver, guidance=GuidanceOptions()
            ).cpu()
            seconds += time.perf_counter() - began
            parts.append(extract_features(extractor, scans.numpy()))
            drawn.append(scans[:, 0].numpy())
        with atomic_path(file) as temporary:
            np.save(temporary, np.concatenate(parts))
        pictures = np.concatenate(drawn)
        power = radial_power(pictures).tolist() if pictures.ndim == 3 else None
        write_json(facts, {"seconds_per_scan": seconds / len(labels), "power": power})
    known: dict[str, Any] = json.loads(facts.read_text())
    return np.load(file), known


def compare(reals: Reals, made: np.ndarray) -> dict[str, Measured]:
    """Return KID and the Fréchet distance of the new scans from real halves, beside those of the other halves.

    Each draw takes the same three quarters of places in both halves and in the new scans, all of which lie class by class.
    """
    one, other = reals.draws
    total = sum(reals.sizes)
    kept = max(2, total * 3 // 4)
    picked = random_picks(total, kept, REPEATS, numpy_generator(0, "steps picks"))
    one, other = (np.take_along_axis(half, picked, axis=1) for half in (one, other))
    kernels = Kernels.of(reals.features, made)
    indicators = [as_indicators(half, len(reals.features)) for half in (one, other)]
    across = kernels.across(indicators[0], as_indicators(picked, total))
    dims = projected_dims(AXES, kept)
    # As the fidelity table does it: the axes of half A, in the span of the leading axes of all real scans.
    span = Projection.fit(reals.features, 256)
    real, new = span.project(reals.features), span.project(made)

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        axes = Projection.fit(first, dims)
        return frechet_distance(axes.project(first), axes.project(second))

    rows = list(zip(one, other, picked, strict=True))
    fd = [np.array([distance(real[half], new[draw]) for half, _, draw in rows])]
    fd.append(np.array([distance(real[half], real[rest]) for half, rest, _ in rows]))
    return {
        "kid": Measured.of_draws(across, kernels.inside(*indicators), DISTANCE),
        "fd": Measured.of_draws(fd[0], fd[1], DISTANCE),
    }


def candidates(run: Run, distilled: Sequence[Run]) -> Iterator[tuple[Run, Solver]]:
    """Yield what is compared, the distilled runs first."""
    for each in distilled:
        yield each, resolve_solver(SolverOptions(), own=each.solver)
    yield from ((run, resolve_solver(solver, voxels=run.spec.voxels)) for solver in SOLVERS)


def read_claim(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return whether two evaluations of a distilled run are as good as 20 steps, None while either is missing."""
    many = [row for row in rows if row["solver"] == "dpmpp_2m" and row["steps"] == 20]
    two = [row for row in rows if row["distilled"] and row["evaluations"] == 2]
    if not many or not two:
        return None
    best, long = min(two, key=lambda row: float(row["fd"]["value"])), many[0]["fd"]
    margin = (long["real_high"] - long["real_low"]) / 2
    return {
        "two_evaluations": best["fd"]["value"],
        "of": best["distilled"],
        "twenty_steps": long["value"],
        "margin": margin,
        "held": best["fd"]["value"] <= long["value"] + margin,
    }


def draw_figure(result: dict[str, Any], path: Path) -> None:
    """Write the curves, with the interval of real against real as a band."""
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    titles = {"fd": "Fréchet distance, Lite0", "kid": "KID, Lite0"}
    for axes, measure in zip(figure.subplots(1, 2), titles, strict=True):
        real = result["rows"][0][measure]
        # KID is unbiased, so its lower end may lie below 0, which no logarithmic axis has.
        bottom = max(real["real_low"], real["real_high"] / 5)
        axes.axhspan(bottom, real["real_high"], color="#dddddd", label="real against real")
        for name, title in TITLES.items():
            rows = sorted(
                (row for row in result["rows"] if row["solver"] == name), key=lambda row: int(row["evaluations"])
            )
            if not rows:
                continue
            axes.plot(
                [row["evaluations"] for row in rows],
                [row[measure]["value"] for row in rows],
                marker="o", markersize=4, linewidth=1.2, color=COLOURS[name], label=title,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([1, 2, 4, 10, 20, 40], ["1", "2", "4", "10", "20", "40"])
        axes.minorticks_off()
        if measure == "fd":
            axes.set_yticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
            axes.minorticks_off()
        axes.set_xlabel("network evaluations a scan")
        axes.set_ylabel(titles[measure])
        axes.grid(color="#dddddd", linewidth=0.5)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside upper center", ncols=len(labels))
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure what is missing and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--distilled", type=Path, nargs="+", required=True)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--splits", default="test")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    run, distilled = medsynth.load_run(arguments.run), [medsynth.load_run(path) for path in arguments.distilled]
    for each in distilled:
        if not each.distilled or each.options["distilled"]["run"] != run.fingerprint[:16]:
            raise SystemExit(f"{each.folder}: need a run that was distilled from {arguments.run}")
    arguments.work.mkdir(parents=True, exist_ok=True)
    extractor = open_extractor(FeatureOptions(), device="cuda" if torch.cuda.is_available() else "cpu")
    reals = read_reals(run, arguments.real, arguments.splits.split(","), extractor, arguments.work)
    rows: list[dict[str, Any]] = []
    for chosen, solver in candidates(run, distilled):
        made, known = make_features(
            chosen, solver, reals.sizes, extractor, arguments.work, batch_size=arguments.batch_size
        )
        seconds = known["seconds_per_scan"]
        found = {name: dataclasses.asdict(figure) for name, figure in compare(reals, made).items()}
        facts = {"solver": solver.name, "steps": solver.steps, "evaluations": evaluations(solver)}
        facts["distilled"] = chosen.fingerprint[:16] if chosen.distilled else None
        rows.append(facts | found | {"seconds_per_scan": seconds})
        print(
            f"{TITLES[solver.name]:<23} {evaluations(solver):>3} evaluations: FD {found['fd']['value']:.2f} "
            f"[{found['fd']['low']:.2f}, {found['fd']['high']:.2f}], KID {found['kid']['value']:.5f}; real "
            f"FD {found['fd']['real_median']:.2f}, KID {found['kid']['real_median']:.5f}; {1000 * seconds:.1f} ms",
            flush=True,
        )
        result = describe_machine() | {
            "run": {"fingerprint": run.fingerprint[:16], "steps": run.steps, "training_scans": run.spec.class_counts},
            "distilled": [
                {"fingerprint": each.fingerprint[:16], "steps": each.steps}
                | {name: each.options[name] for name in ("batch_size", "optimiser", "distilled")}
                for each in distilled
            ],
            "shape": run.spec.shape,
            "scans_a_side": sum(reals.sizes),
            "claim": read_claim(rows),
            "rows": rows,
        }
        write_json(arguments.out, result)
    if arguments.figure:
        draw_figure(result, arguments.figure)


if __name__ == "__main__":
    main()
