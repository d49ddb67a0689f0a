"""Time of a training step through medsynth's Lightning path against a bare loop of the same network and batches.

    python -m benchmarks.step_overhead --config chest_xray_2d --out benchmarks/results/step_overhead.json

Both do the same arithmetic: noise, augmentation, forward, backward, clipping, AdamW, EMA. The Lightning path adds the
sampler, the loader, logging, the progress bar and the trainer. Rounds alternate, so that a machine whose speed drifts does
not favour one side; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import medsynth
from benchmarks.machine import describe_machine
from medsynth.api.parser import parse_values
from medsynth.cohorts import PreparedCohort, prepare_cohort
from medsynth.config import Loading, TrainOptions
from medsynth.diffusion import draw_sigma, loss_weight, match_rank
from medsynth.files import write_json
from medsynth.networks import Condition
from medsynth.runs import RunSpec
from medsynth.seeds import torch_generator
from medsynth.training import DiffusionModule, train_run

_LARGEST_GRADIENT = 1.0  # as in training


def lightning_seconds(options: TrainOptions, out: Path, steps: int) -> float:
    """Seconds of a step, over `steps` steps after as many to warm up."""
    monitor = replace(options.monitor, log_every=steps, validate_every=0, preview_every=0, checkpoint_every=10 * steps)
    run = train_run(
        medsynth.read_cohort(options.cohort), replace(options, out=out, max_steps=2 * steps, monitor=monitor)
    )
    return options.batch_size / float(run.read_metrics()["scans_per_s"][1][-1])


def bare_seconds(options: TrainOptions, prepared: PreparedCohort, spec: RunSpec, steps: int) -> float:
    """Seconds of a step of a plain loop, over `steps` steps after as many to warm up."""
    module = DiffusionModule(
        spec.build(), classes=spec.classes, total_steps=2 * steps, noise=options.noise, augment=options.augment,
        optimiser=options.optimiser,
    )  # fmt: skip
    denoiser, size = module.network.train(), options.batch_size
    optimiser = module.configure_optimizers()["optimizer"]
    sigma_data = float(denoiser.sigma_data.square().mean().sqrt())
    began = 0.0
    for step in range(2 * steps):
        if step == steps:
            began = time.perf_counter()
        rows = [(step * size + place) % len(prepared.scans) for place in range(size)]
        scans = torch.from_numpy(prepared.scans[rows].astype("float32"))
        generator = torch_generator(0, step)
        sigma = draw_sigma(size, mean=options.noise.mean, std=options.noise.std, generator=generator)
        parameters = module.augmentation.draw(size, generator)
        noise = torch.randn(scans.shape, generator=generator)
        clean = module.augmentation.apply(scans, parameters)
        withheld = torch.rand(size, generator=generator) < options.label_dropout
        condition = denoiser.embedding.withhold(
            Condition(torch.from_numpy(prepared.labels[rows]), parameters), withheld
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            denoised = denoiser(clean + match_rank(sigma, clean) * noise, sigma, condition)
            error = (denoised - clean).square().flatten(1).mean(1)
            loss = (loss_weight(sigma, sigma_data) * error).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), _LARGEST_GRADIENT)
        optimiser.step()
        module.ema.update_parameters(denoiser)
    return (time.perf_counter() - began) / steps


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="chest_xray_2d")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        medsynth.demo(out=folder / "phantom", scans=100, progress=False)
        values = {"cohort": str(folder / "phantom" / "cohort.csv"), "out": str(folder), "accelerator": "cpu"}
        options: TrainOptions = parse_values("train", medsynth.load_config(arguments.config) | values)
        prepared = prepare_cohort(
            medsynth.read_cohort(options.cohort),
            grid=options.grid,
            intensity=options.intensity,
            loading=Loading(progress=False),
        )
        for number in range(arguments.rounds):
            ours = lightning_seconds(options, folder / f"run{number}", arguments.steps)
            bare = bare_seconds(options, prepared, medsynth.load_run(folder / f"run{number}").spec, arguments.steps)
            rounds.append({"lightning_s": ours, "bare_s": bare, "ratio": ours / bare})
            print(rounds[-1], flush=True)
    result = describe_machine() | {
        "config": arguments.config,
        "batch_size": options.batch_size,
        "rounds": rounds,
        "median_ratio": statistics.median(entry["ratio"] for entry in rounds),
    }
    print(f"median ratio {result['median_ratio']:.3f}")
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
