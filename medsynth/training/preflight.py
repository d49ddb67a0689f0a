"""What a training will take, known before it begins: memory of a step, the largest batch that fits, time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import prod

import torch

from medsynth.cohorts import Cohort
from medsynth.config import TrainingPlan
from medsynth.errors import ConfigError, MedsynthError
from medsynth.networks import Denoiser, checkpoint_activations
from medsynth.training.augmentation import Augmentation
from medsynth.training.memory import PeakBytes, free_memory, without_computing
from medsynth.training.module import denoising_errors
from medsynth.training.space import plan_denoiser
from medsynth.training.start import freeze

_MIB, _GIB = 1 << 20, 1 << 30
# How far real memory was from the estimate at the most, either way.
_UNSURE = 1.3
_WASTE = 1.15  # what the processor's allocator takes for what is asked of it, measured over some networks
_SMALL = 2**23  # scans times voxels times channels, up to which a pass is computed
_PATIENCE = 3.0  # seconds that a timed pass may take, where more than one scan goes in


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Estimated bytes of a training step: `fixed`, and `scan` for each scan that is worked off at a time."""

    fixed: int
    scan: int

    def of(self, scans: int) -> int:
        """Return the bytes of a step with so many scans at a time."""
        return self.fixed + scans * self.scan

    def largest(self, free: int) -> int:
        """Return how many scans at a time `free` bytes are enough for."""
        return max(0, (free - self.fixed) // max(1, self.scan))


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What each process of a training takes. All but the counts are estimates.

    `part` scans are worked off at a time, `free` is the memory of the device in bytes (None where nothing says), `frugal` the
    memory with activation checkpointing, and `seconds` the time of an optimiser step; the last two are None where they were not
    asked for.
    """

    parameters: int
    shape: tuple[int, ...]
    batch_size: int
    part: int
    max_steps: int
    device: str
    free: int | None
    memory: Memory
    frugal: Memory | None = None
    seconds: float | None = None

    @property
    def largest(self) -> int | None:
        """How many scans can be worked off at a time; None where the free memory is not known."""
        return None if self.free is None else self.memory.largest(self.free)

    def check(self) -> None:
        """Raise `ConfigError`, with the ways out, where a step surely takes more memory than there is."""
        needed = self.memory.of(self.part)
        if self.free is None or needed <= self.free * _UNSURE:
            return
        ways = f"--accumulate with parts of at most {self.largest} scans, " if self.largest else ""
        raise ConfigError(
            f"batch_size: need memory for {self.part} scans at a time, about {_gib(needed)}, got {_gib(self.free)} free on the "
            f"{self.device}; try {ways}--activation_checkpointing true, --network.levels 2, a smaller grid.size, or "
            "--preflight only for the figures"
        )

    def line(self) -> str:
        """Return one line for the start of a training."""
        text = (
            f"memory: about {_gib(self.memory.of(self.part))} a step on the {self.device}, for {self.part} scans at a time "
            f"({_mib(self.memory.scan)} each, {_mib(self.memory.fixed)} fixed)"
        )
        if self.free is None:
            return text
        text += f"; {_gib(self.free)} free, enough for about {_rounded(self.largest or 0)} at a time"
        if self.memory.of(self.part) * _UNSURE > self.free:
            text += "; this is close, and it may not fit: --accumulate takes less memory"
        return text

    def summary(self) -> str:
        """Return a table for reading."""
        shape = " x ".join(map(str, self.shape[1:]))
        rows = [
            ("parameters", f"{self.parameters / 1e6:.1f} million"),
            ("scans at a time", f"{self.part} of {shape} on each process, of {self.batch_size} in a step"),
            ("memory, fixed", _mib(self.memory.fixed)),
            ("memory, each scan", _mib(self.memory.scan)),
            ("memory of a step", _gib(self.memory.of(self.part))),
            ("memory free", "unknown" if self.free is None else f"{_gib(self.free)} on the {self.device}"),
        ]
        if self.free is not None:
            rows.append(("largest part", f"about {_rounded(self.largest or 0)} scans at a time"))
        if self.frugal is not None:
            text = f"{_mib(self.frugal.scan)} each scan, {_mib(self.frugal.fixed)} fixed"
            if self.free is not None:
                text += f": about {_rounded(self.frugal.largest(self.free))} scans at a time"
            rows.append(("checkpointing", text))
        if self.seconds is not None:
            total = self.seconds * self.max_steps
            rows.append(("time of a step", f"{self.seconds:.3g} s, at the speed that this machine has now"))
            rows.append(
                ("time in all", f"{_duration(total)} for {self.max_steps} steps, without validation and previews")
            )
        table = "\n".join(f"{name:<18} {value}" for name, value in rows)
        return f"{table}\nMemory is estimated to about 30 %, by counting what a step keeps; nothing was written."


def preflight_training(cohort: Cohort, plan: TrainingPlan, classes: Sequence[str], *, whole: bool = True) -> Preflight:
    """Return what the training takes, from the header of one scan; nothing is prepared or written.

    The `whole` preflight also times a step on the device, where one fits, and looks at activation checkpointing. Raises as
    `plan_denoiser` does.
    """
    device = planned_device(plan)
    world = plan.devices * plan.num_nodes
    part = plan.batch_size // world // plan.accumulate
    free = free_memory(device)
    if free is not None and device.type == "cpu":
        free //= plan.devices  # processes of one machine share it
    denoiser, shape = plan_denoiser(cohort, plan, classes)
    check_precision(denoiser, shape, plan)
    parameters = sum(parameter.numel() for parameter in denoiser.unet.parameters())
    found = Preflight(
        parameters=parameters,
        shape=shape,
        batch_size=plan.batch_size,
        part=part,
        max_steps=plan.max_steps,
        device="processor" if device.type == "cpu" else f"GPU ({device})" if device.type == "cuda" else device.type,
        free=free,
        memory=estimate_memory(denoiser, shape, plan, device),
    )
    if not whole:
        return found
    frugal = replace(plan, activation_checkpointing=True)
    denoiser, _ = plan_denoiser(cohort, plan, classes)
    found = replace(found, frugal=estimate_memory(denoiser, shape, frugal, device))
    if free is None or found.memory.of(1) * _UNSURE < free:
        denoiser, _ = plan_denoiser(cohort, plan, classes)
        most = part if free is None else min(part, max(1, found.memory.largest(int(free / _UNSURE))))
        seconds = time_scans(denoiser, shape, plan, device, most=most)
        found = replace(found, seconds=seconds * part * plan.accumulate)
    return found


def estimate_memory(denoiser: Denoiser, shape: tuple[int, ...], plan: TrainingPlan, device: torch.device) -> Memory:
    """Return the memory of a training step for scans of `shape` (C, *spatial), counted over its forward and backward pass.

    That is the most that is alive at a time, of activations, gradients and what comes and goes, beside weights, their average,
    two moments of the optimiser and the batch. Passes that would take long are counted without being computed. The denoiser is
    of no use afterwards.
    """
    world = plan.devices * plan.num_nodes
    part = max(2, plan.batch_size // world // plan.accumulate)
    _prepare(denoiser, plan)
    weights = sum(each.nbytes for each in (*denoiser.parameters(), *denoiser.buffers()))
    trained = sum(each.nbytes for each in denoiser.parameters() if each.requires_grad)
    small = part * prod(shape) * plan.network.channels[0] <= _SMALL
    peaks = []
    with nullcontext() if small else without_computing(), _own_random_numbers(device):
        denoiser.to(device) if small else denoiser.to_empty(device=device)
        for count in (1, part):
            with PeakBytes() as counted:
                # The second part of a batch meets the gradients of the first.
                for _ in range(min(2, plan.accumulate)):
                    _pass(denoiser, shape, plan, device, count)
            denoiser.zero_grad()
            peaks.append(counted.peak)
    scan = max(1, (peaks[1] - peaks[0]) // (part - 1))
    if device.type == "cpu":
        peaks, scan = [int(each * _WASTE) for each in peaks], int(scan * _WASTE)
    # The loader has the next batch ready while this one is worked off.
    batches = 2 * plan.batch_size // world * prod(shape) * 4
    copies = trained if world > 1 else 0  # in which the processes exchange gradients
    return Memory(fixed=2 * weights + 2 * trained + copies + batches + max(0, peaks[0] - scan), scan=scan)


def time_scans(
    denoiser: Denoiser, shape: tuple[int, ...], plan: TrainingPlan, device: torch.device, *, most: int
) -> float:
    """Return the seconds that a scan takes in training on this device, working off up to `most` at a time."""
    _prepare(denoiser, plan)
    denoiser.to(device)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        _pass(denoiser, shape, plan, device, count)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    with _own_random_numbers(device):
        seconds(1)  # the first pass finds algorithms and fills caches
        single = seconds(1)
        count = max(1, min(most, int(_PATIENCE / single)))
        found = single if count == 1 else min(seconds(count), seconds(count)) / count
    denoiser.to("cpu")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def check_precision(denoiser: Denoiser, shape: tuple[int, ...], plan: TrainingPlan) -> None:
    """Raise `ConfigError` for bfloat16 on a processor where the coarsest resolution of volumes is 2 voxels thick.

    There oneDNN (of torch 2.13, on a processor with AVX512-BF16) takes gradients of weights from memory that nobody wrote.
    """
    if plan.precision != "bf16-mixed" or planned_device(plan).type != "cpu" or len(shape) != 4:
        return
    factor = denoiser.stem.factor() * 2 ** (len(plan.network.channels) - 1)
    coarsest = [length // factor for length in denoiser.noise_shape(shape)[1:]]
    if coarsest[0] == 2:
        raise ConfigError(
            f"precision: need 32-true on a processor for volumes 2 voxels thick at the coarsest of network.channels, got "
            f"{plan.precision} with {' x '.join(map(str, coarsest))}; try --precision 32-true, or one resolution more or less"
        )


def check_memory(cohort: Cohort, plan: TrainingPlan, classes: Sequence[str]) -> str:
    """Return a line on the memory of the training; `ConfigError` where a step surely takes more than there is."""
    try:
        found = preflight_training(cohort, plan, classes, whole=False)
    except MedsynthError:
        raise
    # The count leans on parts of torch that may change, and no training should fail for want of an estimate.
    except Exception as error:
        return f"memory: no estimate ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
    found.check()
    return found.line()


def _prepare(denoiser: Denoiser, plan: TrainingPlan) -> None:
    freeze(denoiser, plan.start)
    if plan.activation_checkpointing:
        checkpoint_activations(denoiser)
    denoiser.train()


def _own_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """A block whose draws change nothing for those that follow."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _pass(denoiser: Denoiser, shape: tuple[int, ...], plan: TrainingPlan, device: torch.device, count: int) -> None:
    """The forward and backward pass of `count` scans, as `DiffusionModule` has it."""
    augmentation = Augmentation(plan.augment, len(shape) - 1, mask=plan.condition.mask)
    with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16-mixed"):
        scans = torch.randn(count, *shape, device=device)
        condition = denoiser.embedding.make(torch.zeros(count, dtype=torch.long, device=device))
        parameters = torch.zeros(count, augmentation.parameters, device=device)
        clean = denoiser.encode(augmentation.apply(scans, parameters))
        noise, sigma = torch.randn_like(clean), torch.ones(count, device=device)
        loss = denoising_errors(denoiser, clean, noise, sigma, condition).mean()
    loss.backward()


def planned_device(plan: TrainingPlan) -> torch.device:
    """Return the device that Lightning takes for this process."""
    if plan.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if plan.accelerator in ("gpu", "mps", "auto") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size > _GIB / 10 else _mib(size)


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB" if size > 10 * _MIB else f"{size / _MIB:.1f} MiB"


def _rounded(count: int) -> int:
    """Two figures, rounded down, of what is no better known."""
    step = 10 ** max(0, len(str(count)) - 2)
    return count // step * step


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
