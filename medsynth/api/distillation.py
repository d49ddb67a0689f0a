"""The verb that makes a model of few steps. `medsynth.api` says why annotations are not postponed."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medsynth.config import (
    ConsistencyOptions,
    MonitorOptions,
    OptimiserOptions,
    ReadingOptions,
    TrajectoryOptions,
)
from medsynth.files import PathLike

if TYPE_CHECKING:
    from medsynth.runs import Run


def distill(
    *,
    run: PathLike,
    cohort: PathLike,
    out: PathLike,
    method: Literal["trajectories", "consistency"] = "trajectories",
    max_steps: int = 4000,
    batch_size: int = 32,
    accumulate: int = 1,
    activation_checkpointing: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    num_workers: int = 0,
    deterministic: bool = False,
    seed: int = 0,
    cache_dir: PathLike | None = None,
    trajectories: TrajectoryOptions = TrajectoryOptions(),
    consistency: ConsistencyOptions = ConsistencyOptions(),
    optimiser: OptimiserOptions = OptimiserOptions(learning_rate=2e-3, ema_decay=0.998),
    monitor: MonitorOptions = MonitorOptions(),
    reading: ReadingOptions = ReadingOptions(),
    progress: bool = True,
) -> "Run":
    """Tune a trained run to a model that makes a scan in 1 to 4 network evaluations instead of 20.

    The result is a run folder like any other for `medsynth sample`. What it makes may be less like real scans: compare the sets
    of both runs by `medsynth evaluate`. A student of trajectories makes new scans alone; for edits, and for channels that are
    given, there is the run that it came from. Ctrl-C saves; the same command goes on.

    Args:
        run: Run folder of `medsynth train`; its averaged weights are where tuning begins.
        cohort: The cohort CSV that it was trained on, or another with the same classes.
        out: Run folder of the result; a distillation that was interrupted there is continued.
        method: `trajectories`: follow the solver of the run, from its noise to its scans, in `--trajectories.evaluations` steps;
            `consistency`: become a consistency model, which can be sampled with any number of steps, and did worse.
        max_steps: Optimiser steps.
        batch_size: Scans of a step over all processes together.
        accumulate: Parts in which each process works its scans of a step off, one after the other, in so many times less memory;
            the result is the same but for rounding and dropout masks.
        activation_checkpointing: Keep about half of what a scan leaves in memory during a step and compute the rest again for the
            gradient; the result is the same.
        accelerator: `auto`, `cpu` or `gpu`.
        devices: Processes (GPUs) on each node.
        num_nodes: Nodes.
        num_workers: Processes that load scans; 0 loads in the training process.
        deterministic: Use deterministic algorithms only (slower on a GPU).
        seed: Decides batches, noise, augmentation and dropout.
        cache_dir: Folder for the prepared scans, by default `.medsynth_cache` beside the cohort.
        trajectories: How trajectories are drawn, and how often the student stops on them.
        consistency: How the denoiser becomes a consistency model.
        optimiser: Optimiser and schedule.
        monitor: Logging, validation, previews, checkpoints.
        reading: Limits on what a scan file may be.
        progress: Show a progress bar.
    """
    from medsynth.cohorts import read_cohort
    from medsynth.processes import is_first_process
    from medsynth.runs import load_run
    from medsynth.training.distill import DistillationPlan, distill_run

    plan = DistillationPlan(
        method=method,
        max_steps=max_steps,
        batch_size=batch_size,
        accumulate=accumulate,
        activation_checkpointing=activation_checkpointing,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        num_workers=num_workers,
        deterministic=deterministic,
        seed=seed,
        trajectories=trajectories,
        consistency=consistency,
        optimiser=optimiser,
        monitor=monitor,
        reading=reading,
    )
    cache = Path(cache_dir) if cache_dir is not None else None
    progress = progress and is_first_process()
    return distill_run(load_run(run), read_cohort(cohort), Path(out), plan, cache_dir=cache, progress=progress)
