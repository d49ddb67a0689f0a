"""What a training needs, known before it begins: memory of a step, the largest batch that fits, time, and room on the disk.

Memory is counted by following the tensors of a forward and a backward pass; large passes are not computed for it.
"""

from __future__ import annotations

import copy
import os
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from medsynth.config import TrainOptions
from medsynth.errors import ConfigError
from medsynth.files import check_space
from medsynth.networks import Denoiser, checkpoint_activations
from medsynth.runs import EARLY_FILE, WEIGHTS_FILE
from medsynth.training.augmentation import Augmentation
from medsynth.training.batches import Options, scans_at_a_time
from medsynth.training.module import denoising_errors

_MIB, _GIB = 1 << 20, 1 << 30
_CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")
_UNSURE = 1.3  # the largest factor between estimated and real memory, either way
_WASTE = 1.15  # allocated over requested memory on a CPU, measured for several networks
_SMALL = 2**23  # scans times voxels times channels up to which a pass is computed
_PATIENCE = 3.0  # seconds of a timed pass of more than one scan
# Bytes of a parameter: in a checkpoint weights, their average and Adam's two moments; in a file of weights. And all other files.
_CHECKPOINT_BYTES, _WEIGHT_BYTES, _OTHER_BYTES = 16, 4, 16 << 20

# Limit, use and cached files of a control group, in version 2 (no controllers) and version 1.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Estimated bytes of a training step: `fixed`, and `scan` for each scan in memory at a time."""

    fixed: int
    scan: int

    def of(self, scans: int) -> int:
        return self.fixed + scans * self.scan

    def largest(self, free: int) -> int:
        """Return how many scans at a time fit into `free` bytes."""
        return max(0, (free - self.fixed) // max(1, self.scan))


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What each process of a training needs, with `part` scans in memory at a time; all but the counts are estimates.

    `free` is the free memory of the device in bytes (None if unknown), `frugal` the memory with activation checkpointing, and
    `seconds` the time of a step; the last two are None in a quick preflight.
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
        """How many scans at a time fit into memory; None if the free memory is unknown."""
        return None if self.free is None else self.memory.largest(self.free)

    def check(self) -> None:
        """Raise `ConfigError`, with the ways out, if a step certainly needs more memory than there is."""
        needed = self.memory.of(self.part)
        if self.free is None or needed <= self.free * _UNSURE:
            return
        ways = f"--accumulate_grad_batches with at most {self.largest} scans at a time, " if self.largest else ""
        raise ConfigError(
            f"batch_size: {self.part} scans at a time need about {_bytes(needed)} of memory, and {_bytes(self.free)} are free on "
            f"the {self.device}; try {ways}--activation_checkpointing true, --network.levels 2 or a smaller grid.size "
            "(--preflight only shows the figures)"
        )

    def line(self) -> str:
        """Return one line for the start of a training."""
        needed = self.memory.of(self.part)
        text = f"memory: about {_bytes(needed)} on the {self.device} for {self.part} scans at a time ({_describe(self.memory)})"
        if self.free is None:
            return text
        text += f"; {_bytes(self.free)} free, enough for {_describe(self.memory, self.free)}"
        return text + (
            "; this may not fit: --accumulate_grad_batches reduces it" if needed * _UNSURE > self.free else ""
        )

    def summary(self) -> str:
        """Return a table, and the command that follows."""
        size = " x ".join(map(str, self.shape[1:]))
        rows = {
            "parameters": f"{self.parameters / 1e6:.1f} million",
            "scans at a time": f"{self.part} of {size} in each process, {self.batch_size} per step",
            "memory of a step": f"{_bytes(self.memory.of(self.part))} ({_describe(self.memory)})",
            "free memory": "unknown" if self.free is None else f"{_bytes(self.free)} on the {self.device}",
        }
        if self.free is not None:
            rows["largest part"] = _describe(self.memory, self.free)
        if self.frugal is not None:
            rows["checkpointing"] = _describe(self.frugal, self.free)
        if self.seconds is not None:
            total = self.seconds * self.max_steps
            units = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))
            unit, length = next((each for each in units if total >= 2 * each[1]), units[-1])
            rows["time of a step"] = f"{self.seconds:.3g} s at the present load of this machine"
            rows["total time"] = (
                f"{total / length:.3g} {unit} for {self.max_steps} steps, without validation and previews"
            )
        table = "\n".join(f"{name:<18} {value}" for name, value in rows.items())
        return f"{table}\nMemory is estimated to about 30 %. Nothing was written: train by the same command without --preflight."


def estimate_needs(
    denoiser: Denoiser, shape: tuple[int, ...], options: Options, *, quick: bool, passes: int = 1
) -> Preflight:
    """Return what a training of `denoiser` on scans of `shape` `(C, *spatial)` needs; `denoiser` itself is not changed.

    A scan goes through the network `passes` times before the gradient is computed. Unless `quick`, a step is also timed on the
    device, if one fits, and estimated with activation checkpointing.
    """
    device, part = planned_device(options), scans_at_a_time(options)
    free, memory = free_memory(device), TrialStep(denoiser, shape, options).memory()
    if free is not None and device.type == "cpu":
        free //= options.devices  # shared by the processes of a machine
    found = Preflight(
        parameters=sum(parameter.numel() for parameter in denoiser.unet.parameters()),
        shape=shape,
        batch_size=options.batch_size,
        part=part,
        max_steps=options.max_steps,
        device={"cpu": "CPU", "cuda": f"GPU ({device})"}.get(device.type, device.type),
        free=free,
        memory=replace(memory, scan=passes * memory.scan),
    )
    if quick:
        return found
    found = replace(found, frugal=TrialStep(denoiser, shape, replace(options, activation_checkpointing=True)).memory())
    if free is None or found.memory.of(1) * _UNSURE < free:
        most = part if free is None else min(part, max(1, found.memory.largest(int(free / _UNSURE))))
        seconds = TrialStep(denoiser, shape, options).seconds(most)
        found = replace(found, seconds=seconds * part * options.accumulate_grad_batches)
    return found


def check_memory(denoiser: Denoiser, shape: tuple[int, ...], options: Options, *, passes: int = 1) -> str:
    """Return a line on the memory of the training; `ConfigError` if a step certainly needs more than there is."""
    try:
        found = estimate_needs(denoiser, shape, options, quick=True, passes=passes)
    # The count relies on parts of torch that may change, and no training should fail for lack of an estimate.
    except Exception as error:
        return f"memory: no estimate ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
    found.check()
    return found.line()


def check_precision(denoiser: Denoiser, shape: Sequence[int], options: Options) -> None:
    """Raise `ConfigError` for bfloat16 on a CPU if volumes are 2 voxels thick at the coarsest resolution.

    There, oneDNN (torch 2.13, CPU with AVX512-BF16) computes gradients of weights from uninitialised memory.
    """
    if options.precision != "bf16-mixed" or planned_device(options).type != "cpu" or len(shape) != 4:
        return
    factor = denoiser.stem.factor() * 2 ** (len(denoiser.unet.block_out_channels) - 1)
    coarsest = [length // factor for length in denoiser.noise_shape(shape)[1:]]
    if coarsest[0] == 2:
        raise ConfigError(
            f"precision: bf16-mixed is not reliable on a CPU for volumes of {' x '.join(map(str, coarsest))} at the coarsest of "
            "network.channels; try --precision 32-true, or one resolution more or less"
        )


def check_disk(out: Path, network: nn.Module) -> None:
    """Raise `ConfigError` if the disk of `out` has no room for what the training of `network` has yet to write there."""
    there = [*(out / "checkpoints").glob("*.ckpt"), out / WEIGHTS_FILE, out / EARLY_FILE]
    held = sum(file.stat().st_size for file in there if file.is_file())
    check_space(out, max(0, run_bytes(network) - held), purpose="checkpoints and weights", option="--out")


def run_bytes(network: nn.Module) -> int:
    """Return about how many bytes a run folder grows to: up to three checkpoints, the weights twice, and early weights."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return parameters * (3 * _CHECKPOINT_BYTES + 3 * _WEIGHT_BYTES) + _OTHER_BYTES


class TrialStep:
    """The forward and backward pass of a training step on random scans, with a copy of the denoiser, to be measured once."""

    def __init__(self, denoiser: Denoiser, shape: tuple[int, ...], options: Options) -> None:
        self.device = planned_device(options)
        self._shape, self._options = shape, options
        self._network = copy.deepcopy(denoiser).train()
        if options.activation_checkpointing:
            checkpoint_activations(self._network)

    def memory(self) -> Memory:
        """Return the memory of a step."""
        network, shape, options = self._network, self._shape, self._options
        world = options.devices * options.num_nodes
        part = max(2, scans_at_a_time(options))
        weights = sum(each.nbytes for each in (*network.parameters(), *network.buffers()))
        trained = sum(each.nbytes for each in network.parameters() if each.requires_grad)
        small = part * prod(shape) * network.unet.block_out_channels[0] <= _SMALL
        peaks = []
        with nullcontext() if small else FakeTensorMode(allow_non_fake_inputs=True), self._fork_random():
            network.to(self.device) if small else network.to_empty(device=self.device)
            for count in (1, part):
                with PeakBytes() as counted:
                    # The second part of a batch meets the gradients of the first.
                    for _ in range(min(2, options.accumulate_grad_batches)):
                        self._pass(count)
                network.zero_grad()
                peaks.append(counted.peak)
        scan = max(1, (peaks[1] - peaks[0]) // (part - 1))
        if self.device.type == "cpu":
            peaks, scan = [int(each * _WASTE) for each in peaks], int(scan * _WASTE)
        fixed = 2 * weights + 2 * trained  # weights and their average, and the optimiser's moments
        fixed += trained if world > 1 else 0  # buffers of the gradients that processes exchange
        fixed += 2 * options.batch_size // world * prod(shape) * 4  # the loader prepares the next batch during a step
        return Memory(fixed=fixed + max(0, peaks[0] - scan), scan=scan)

    def seconds(self, most: int) -> float:
        """Return the seconds that a scan takes on this device, with up to `most` scans at a time."""
        self._network.to(self.device)
        with self._fork_random():
            self._timed(1)  # the first pass chooses algorithms and fills caches
            single = self._timed(1)
            count = max(1, min(most, int(_PATIENCE / single)))
            return single if count == 1 else min(self._timed(count), self._timed(count)) / count

    def _timed(self, count: int) -> float:
        began = time.perf_counter()
        self._pass(count)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def _pass(self, count: int) -> None:
        """Run both passes of `count` scans, as `DiffusionModule` does."""
        options, device, embedding = self._options, self.device, self._network.embedding
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            scans = torch.randn(count, *self._shape, device=device)
            condition = embedding.make(torch.zeros(count, dtype=torch.long, device=device))
            if isinstance(options, TrainOptions):
                augmentation = Augmentation(options.augment, len(self._shape) - 1, mask=options.condition.mask)
                scans = augmentation.apply(scans, condition.augmentation)
            clean = self._network.encode(scans)
            noise, sigma = torch.randn_like(clean), torch.ones(count, device=device)
            loss = denoising_errors(self._network, clean, noise, sigma, condition).mean()
        loss.backward()

    def _fork_random(self) -> AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])


def planned_device(options: Options) -> torch.device:
    """Return the device that Lightning will use for this process."""
    if options.accelerator in ("gpu", "auto") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if options.accelerator in ("gpu", "auto") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def free_memory(device: torch.device, *, root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still use on a device; None if the system does not say.

    On a CPU this is the least of what the machine has and what control groups allow (containers, SLURM).
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    available = _read_table(root / "proc" / "meminfo").get("MemAvailable:", 0) * 1024
    known = [*([available] if available else []), *_free_in_groups(root)]
    return max(0, min(known)) if known else None


class PeakBytes(TorchDispatchMode):
    """Follows the tensors that operations make; `peak` is the largest number of bytes of theirs alive at once.

    On a CPU, the copies that convolutions work on (oneDNN has a layout of its own) count while they run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._alive = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        made = _tensors(results if isinstance(results, tuple | list) else [results])
        for each in made:
            storage = each.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self._alive += storage.nbytes()
                weakref.finalize(storage, self._forget, key)
        copied = func._schema.name in _CONVOLUTIONS and made[0].device.type == "cpu"
        copies = sum(each.nbytes for each in _tensors((*args[: len(made)], *made))) if copied else 0
        self.peak = max(self.peak, self._alive + copies)
        return results

    def _forget(self, key: int) -> None:
        self._alive -= self._sizes.pop(key)


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    return [each for each in values if isinstance(each, torch.Tensor)]


def _free_in_groups(root: Path) -> Iterator[int]:
    """Yield the free memory of each control group of this process and those above it; cached files can be dropped."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        version = "memory" if "memory" in controllers.split(",") else controllers
        if version not in _GROUP_FILES:
            continue
        limit, used, caches = _GROUP_FILES[version]
        base = root / "sys" / "fs" / "cgroup" / version
        # In a container the group has the name that the host gives it, and may be absent; the top one always exists.
        for folder in (base / group.strip("/"), *(base / group.strip("/")).parents):
            most, taken = _read_number(folder / limit), _read_number(folder / used)
            if most is not None and taken is not None:
                table = _read_table(folder / "memory.stat")
                yield most - taken + sum(table.get(name, 0) for name in caches)
            if folder == base:
                break


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" means no limit
        return None


def _read_table(path: Path) -> dict[str, int]:
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) > 1}
    except (OSError, ValueError):
        return {}


def _bytes(size: int) -> str:
    if size > _GIB / 10:
        return f"{size / _GIB:.1f} GiB"
    return f"{size / _MIB:.0f} MiB" if size > 10 * _MIB else f"{size / _MIB:.1f} MiB"


def _describe(memory: Memory, free: int | None = None) -> str:
    """Return how many scans at a time fit into the free memory, in two digits; what they need, if it is not known."""
    if free is None:
        return f"{_bytes(memory.scan)} per scan, {_bytes(memory.fixed)} fixed"
    count = memory.largest(free)
    step = 10 ** max(0, len(str(count)) - 2)
    return f"about {count // step * step} scans at a time"
