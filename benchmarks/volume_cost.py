"""What volumes cost: seconds and memory a scan of a training step and of a 20-step sample, for each stem and grid.

    python -m benchmarks.volume_cost --out benchmarks/results/volume_cost.json

The UNet has 32, 64 and 96 channels and is the same for all stems; only what stands around it differs. Each cell runs in a process
of its own, so that its peak memory is its own; scans are random, which costs what real ones do. `latent` encodes the scans in
every step, as a training does, with the default autoencoder (not trained: the cost is the same). Seconds are the median over
repeats; without a GPU they are processor seconds on one thread, so that other work on the machine does not count. With a GPU,
use `--accelerator cuda --sizes 32,64,128`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine
from medsynth.config import AutoencoderOptions, GuidanceOptions, NetworkOptions, SolverOptions
from medsynth.diffusion import resolve_solver
from medsynth.files import write_json
from medsynth.networks import Condition, build_denoiser, build_stem, sample_scans

STEMS = {"pixel": ("pixel", 1), "haar": ("haar", 1), "haar, 2 levels": ("haar", 2), "latent": ("latent", 1)}
NETWORK = NetworkOptions(channels=(32, 64, 96), attention=(False, False, True))
_REPEATS = 3
_PARAMETERS = 13  # of the augmentation of volumes


def measure(stem: str, size: int, batch: int, accelerator: str) -> dict[str, Any]:
    """Return the figures of one cell; to be called once in a process."""
    device = torch.device(accelerator)
    if device.type == "cpu":
        torch.set_num_threads(1)
    kind, levels = STEMS[stem]
    options: NetworkOptions = replace(NETWORK, stem=kind, levels=levels)
    autoencoder = AutoencoderOptions() if kind == "latent" else None
    bands = build_stem(options).band_count(1 if autoencoder is None else autoencoder.latent_channels, 3)
    denoiser = build_denoiser(
        options,
        channels=1,
        size=(size,) * 3,
        classes=2,
        augmentation_parameters=_PARAMETERS,
        sigma_data=torch.full((bands,), 0.5),
        autoencoder=autoencoder,
    ).to(device)
    optimiser = torch.optim.AdamW([each for each in denoiser.parameters() if each.requires_grad])
    scans, sigma = torch.rand(batch, 1, size, size, size, device=device), torch.ones(batch, device=device)
    condition = Condition(
        label=torch.zeros(batch, dtype=torch.long, device=device),
        augmentation=torch.zeros(batch, _PARAMETERS, device=device),
    )
    resting = _memory(device)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            clean = denoiser.encode(scans)
            loss = (denoiser(clean + torch.randn_like(clean), sigma, condition) - clean).square().mean()
        loss.backward()
        optimiser.step()

    def sample() -> None:
        sample_scans(
            denoiser.eval(),
            torch.zeros(batch, dtype=torch.long, device=device),
            list(range(batch)),
            shape=(1, size, size, size),
            solver=resolve_solver(SolverOptions(steps=20)),
            guidance=GuidanceOptions(),
        )

    training = _seconds(step, device) / batch
    peak = _memory(device)
    return {
        "stem": stem,
        "size": size,
        "batch": batch,
        "parameters": sum(parameter.numel() for parameter in denoiser.parameters()),
        "training_s": training,
        "training_mib": (peak - resting) / batch / 2**20,
        "sampling_s": _seconds(sample, device) / batch,
    }


def _seconds(job: Any, device: torch.device) -> float:
    job()
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    found = []
    for _ in range(_REPEATS):
        began = clock()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(clock() - began)
    return statistics.median(found)


def _memory(device: torch.device) -> int:
    """Peak memory of this process so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure every cell, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="32,64")
    parser.add_argument("--stems", default=";".join(STEMS), help="separated by semicolons")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--cell", nargs=2, metavar=("STEM", "SIZE"), help="one cell as JSON; for the benchmark itself")
    arguments = parser.parse_args()
    if arguments.cell:
        stem, size = arguments.cell
        print(json.dumps(measure(stem, int(size), arguments.batch, arguments.accelerator)))
        return
    rows = []
    print("| grid | stem | training, s a scan | MiB a scan | 20-step sample, s a scan | time of pixel / this |")
    print("|---|---|---|---|---|---|")
    for size in arguments.sizes.split(","):
        for stem in arguments.stems.split(";"):
            options = ["--batch", str(arguments.batch), "--accelerator", arguments.accelerator, "--cell", stem, size]
            command = [sys.executable, "-m", "benchmarks.volume_cost", *options]
            row = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            rows.append(row)
            pixel = next((each for each in rows if each["size"] == row["size"] and each["stem"] == "pixel"), row)
            print(
                f"| {size}³ | {stem} | {row['training_s']:.2f} | {row['training_mib']:.0f} | {row['sampling_s']:.2f} | "
                f"{pixel['training_s'] / row['training_s']:.1f} |",
                flush=True,
            )
    if arguments.out:
        write_json(arguments.out, describe_machine() | {"repeats": _REPEATS, "cells": rows})


if __name__ == "__main__":
    main()
