"""Ways to make a training step faster, each beside the step as it is: memory layout, compilation, attention kernels.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.step_options --out benchmarks/results/speed_step_options.json

The network is that of a configuration, in bfloat16 as it trains; scans are random, which costs what real ones do. Rounds
alternate over the ways, each in processor seconds on one thread (on a GPU in seconds), so that other work does not count. Printed
are milliseconds a scan, the ratio to the step as it is, what a way costs once before its first step, and the arithmetic rate:
operations that `torch.utils.flop_counter` counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import medsynth
from benchmarks.machine import describe_machine
from benchmarks.speed.methods import Clock
from medsynth.api.parser import parse_values
from medsynth.config import TrainOptions
from medsynth.files import write_json
from medsynth.networks import Condition, Denoiser, build_denoiser, build_stem
from medsynth.training import Augmentation
from medsynth.training.module import make_optimiser

_CASES = {"chest_xray_2d": (2, 16), "lung_nodule_3d": (3, 8)}  # configuration: spatial axes, scans of a step


@dataclass(frozen=True, kw_only=True)
class Way:
    """What is done differently from the step as it is."""

    channels_last: bool = False
    compiled: bool = False
    plain_attention: bool = False


WAYS = {
    "as it is": Way(),
    "channels_last": Way(channels_last=True),
    "attention as matrix products (SDPBackend.MATH)": Way(plain_attention=True),
    "torch.compile": Way(compiled=True),
}


def make_step(config: str, way: Way, device: str) -> Callable[[], None]:
    """Return one optimiser step of a configuration, done in a way."""
    rank, batch = _CASES[config]
    options: TrainOptions = parse_values("train", medsynth.load_config(config) | {"cohort": "", "out": ""})
    network, size = options.network, options.grid.size
    assert isinstance(size, int)
    bands = build_stem(network).band_count(1, rank)
    parameters = Augmentation(options.augment, rank).parameters
    torch.manual_seed(0)
    denoiser: Denoiser = build_denoiser(
        network,
        channels=1,
        size=(size,) * rank,
        classes=2,
        augmentation_parameters=parameters,
        sigma_data=torch.full((bands,), 0.5),
    ).to(device)
    layout = torch.contiguous_format
    if way.channels_last:
        layout = torch.channels_last if rank == 2 else torch.channels_last_3d
        denoiser.to(memory_format=layout)  # type: ignore[call-overload]
    called: Any = torch.compile(denoiser, dynamic=False) if way.compiled else denoiser
    optimiser = make_optimiser(denoiser.parameters(), options.optimiser, 1000)["optimizer"]
    scans = torch.rand(batch, 1, *[size] * rank, device=device).contiguous(memory_format=layout)
    sigma = torch.ones(batch, device=device)
    condition = Condition(
        torch.zeros(batch, dtype=torch.long, device=device), torch.zeros(batch, parameters, device=device)
    )

    def step() -> None:
        with sdpa_kernel(SDPBackend.MATH) if way.plain_attention else nullcontext():
            with torch.autocast(device, torch.bfloat16):
                loss = (called(scans, sigma, condition) - scans).square().mean()
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def measure(config: str, ways: list[str], rounds: int, device: str) -> dict[str, Any]:
    """Return the figures of a configuration; a way that fails says how."""
    clock, batch = Clock(device), _CASES[config][1]
    steps: dict[str, Callable[[], None]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in ways:
        began = time.perf_counter()
        try:
            step = make_step(config, WAYS[name], device)
            step()
            step()
        except Exception as error:  # whatever a compiler raises is its answer
            found[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
            continue
        steps[name] = step
        found[name] = {"before_s": time.perf_counter() - began}
    with FlopCounterMode(display=False) as counter:
        make_step(config, Way(), device)()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(clock.seconds(step) / batch)
    for name, values in seconds.items():
        found[name] |= {"s_a_scan": statistics.median(values), "least": min(values), "most": max(values)}
    operations = counter.get_total_flops() / batch
    base = found["as it is"]["s_a_scan"]
    return {"batch": batch, "gflop_a_scan": operations / 1e9, "gflop_a_s": operations / 1e9 / base, "ways": found}


def main() -> None:
    """Measure, print a table for each configuration, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default=",".join(_CASES))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    for config in arguments.configs.split(","):
        cell = result[config] = measure(config, arguments.ways.split(","), arguments.rounds, arguments.device)
        print(f"\n{config}: {cell['gflop_a_scan']:.1f} GFLOP a scan, {cell['gflop_a_s']:.0f} GFLOP/s\n")
        print("| step | ms a scan | ratio | before the first step, s |\n|---|---|---|---|")
        base = cell["ways"]["as it is"]["s_a_scan"]
        for name, way in cell["ways"].items():
            if "failed" in way:
                print(f"| {name} | {way['failed']} | – | – |")
            else:
                seconds = way["s_a_scan"]
                print(f"| {name} | {1000 * seconds:.1f} | {seconds / base:.2f} | {way['before_s']:.0f} |", flush=True)
    if arguments.out:
        write_json(arguments.out, describe_machine() | {"rounds": arguments.rounds, "configs": result})


if __name__ == "__main__":
    main()
