"""Options that several verbs share: how scans are loaded, and on which processes a verb runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from medsynth.config.bounds import Bounds, Processes, Written
from medsynth.errors import ConfigError
from medsynth.files import PathLike, user_folder


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How scans are loaded, where prepared scans are kept, and whether progress is shown.

    Every verb that reads scans has these options; functions take them as one value, `loading`.

    Args:
        max_mib: Largest decoded size of one scan in MiB, checked from the header before any pixel is read.
        nan: `refuse` a scan with NaN or infinite voxels, or replace them by `zero` and count them.
        cache_dir: Folder for prepared scans and features. [default: ~/.cache/medsynth]
        progress: Show progress bars.
    """

    max_mib: Annotated[int, Bounds(1, 1 << 20)] = 512
    nan: Literal["refuse", "zero"] = "refuse"
    cache_dir: Annotated[PathLike | None, Written()] = None
    progress: bool = True

    def cache_folder(self) -> Path:
        """Return the folder for prepared scans and features: `cache_dir`, or the user's own, which is private.

        It never comes with a cohort: what is found there is believed. `ConfigError` if the user has none.
        """
        if self.cache_dir is not None:
            return Path(self.cache_dir)
        try:
            return user_folder("cache")
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(
                f"{error.filename}: need a private folder for prepared scans, got {why}; try --cache_dir"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Processes on one machine.

    Args:
        devices: Processes (GPUs) on each node; results do not depend on it, or only by rounding.
    """

    devices: Processes = 1


@dataclass(frozen=True, kw_only=True)
class Compute(Devices):
    """Processes, devices and precision.

    Args:
        accelerator: Where networks run; `auto` takes a GPU if there is one.
        num_nodes: Nodes, each started by `torchrun` or SLURM.
        precision: `bf16-mixed` runs the network in bfloat16, up to twice as fast where the hardware supports it.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    num_nodes: Processes = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"


@dataclass(frozen=True, kw_only=True)
class TrainingCompute(Compute):
    """Processes, precision and memory of a training.

    Args:
        accumulate_grad_batches: Split each step into this many smaller batches to save memory; gradients are
            accumulated.
        activation_checkpointing: Store about half of the activations and recompute the rest in the backward pass: less
            memory, about a third more time, the same result.
        num_workers: Processes that load scans; 0 loads in the training process, which is fast enough in 2D.
        deterministic: Use deterministic algorithms only; slower on a GPU.
    """

    accumulate_grad_batches: Annotated[int, Bounds(1, 1 << 16)] = 1
    activation_checkpointing: bool = False
    num_workers: Annotated[int, Bounds(0, 1024)] = 0
    deterministic: bool = False
