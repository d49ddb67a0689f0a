"""Options that several verbs share: how scans are loaded, and on which processes a verb runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medsynth.files import PathLike


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How scans are loaded, where prepared scans are kept, and whether progress is shown.

    Every verb that reads scans has these options; functions take them as one value, `loading`.

    Args:
        max_mib: Largest decoded size of one scan in MiB, checked from the header before any pixel is read.
        nan: `refuse` a scan with NaN or infinite voxels, or replace them by `zero` and count them.
        cache_dir: Folder for prepared scans and features. [default: `.medsynth_cache` beside the cohort]
        progress: Show progress bars.
    """

    max_mib: int = 512
    nan: Literal["refuse", "zero"] = "refuse"
    cache_dir: PathLike | None = None
    progress: bool = True

    def cache_folder(self, beside: Path) -> Path:
        """Return the folder for prepared scans: `cache_dir`, or `.medsynth_cache` in the folder `beside`."""
        return beside / ".medsynth_cache" if self.cache_dir is None else Path(self.cache_dir)


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Processes on one machine.

    Args:
        devices: Processes (GPUs) on each node; results do not depend on it, or only by rounding.
    """

    devices: int = 1


@dataclass(frozen=True, kw_only=True)
class Compute(Devices):
    """Processes, devices and precision.

    Args:
        accelerator: Where networks run; `auto` takes a GPU if there is one.
        num_nodes: Nodes, each started by `torchrun` or SLURM.
        precision: `bf16-mixed` runs the network in bfloat16, up to twice as fast where the hardware supports it.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    num_nodes: int = 1
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

    accumulate_grad_batches: int = 1
    activation_checkpointing: bool = False
    num_workers: int = 0
    deterministic: bool = False
