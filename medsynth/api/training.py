"""The verb that trains a model. `medsynth.api` says why annotations are not postponed."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medsynth.config import (
    AugmentOptions,
    AutoencoderOptions,
    BalanceOptions,
    ConditionOptions,
    GridOptions,
    IntensityOptions,
    MonitorOptions,
    NetworkOptions,
    NoiseOptions,
    OptimiserOptions,
    RareOptions,
    ReadingOptions,
    ReconstructionOptions,
    StartOptions,
    TrainingPlan,
)
from medsynth.errors import ConfigError
from medsynth.files import PathLike

if TYPE_CHECKING:
    from medsynth.runs import Run
    from medsynth.training import AutoencoderRun, Preflight


def train(
    *,
    cohort: PathLike,
    out: PathLike,
    stage: Literal["diffusion", "autoencoder"] = "diffusion",
    max_steps: int = 6000,
    batch_size: int = 32,
    accumulate: int = 1,
    label_dropout: float = 0.1,
    leave_out: str = "",
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    activation_checkpointing: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    num_workers: int = 0,
    deterministic: bool = False,
    seed: int = 0,
    cache_dir: PathLike | None = None,
    grid: GridOptions = GridOptions(),
    intensity: IntensityOptions = IntensityOptions(),
    network: NetworkOptions = NetworkOptions(),
    autoencoder: AutoencoderOptions = AutoencoderOptions(),
    reconstruction: ReconstructionOptions = ReconstructionOptions(),
    noise: NoiseOptions = NoiseOptions(),
    balance: BalanceOptions = BalanceOptions(),
    condition: ConditionOptions = ConditionOptions(),
    rare: RareOptions = RareOptions(),
    start: StartOptions = StartOptions(),
    augment: AugmentOptions = AugmentOptions(),
    optimiser: OptimiserOptions = OptimiserOptions(),
    monitor: MonitorOptions = MonitorOptions(),
    reading: ReadingOptions = ReadingOptions(),
    preflight: Literal["check", "only", "off"] = "check",
    progress: bool = True,
) -> "Run | AutoencoderRun | Preflight":
    """Train a class-conditional diffusion model on the training split of a cohort.

    One joint model learns all classes. Ctrl-C saves; the same command continues. While it trains, the run folder receives
    previews of every class, losses by noise level and class, and the memorisation curve of the rarest class.

    Args:
        cohort: The cohort CSV.
        out: Run folder; a training that was interrupted there is continued.
        stage: `diffusion` trains the model that makes scans. `autoencoder` trains the one on whose latents `network.stem latent`
            works, and holds it against the limits of `reconstruction`: outside them the exit code is 4, and nothing can be
            built on it. Its previews show real scans: keep the folder where the scans may lie.
        max_steps: Optimiser steps.
        batch_size: Scans of a step over all processes together.
        accumulate: Parts in which each process works its scans of a step off, one after the other, in so many times less memory;
            the result is the same but for rounding and dropout masks.
        label_dropout: Probability with which a scan's class is withheld in training; guidance needs it above 0.
        leave_out: Classes to train without, separated by commas: a first stage on common classes, from which a second one, with
            the rare class, begins (`--start.run`).
        precision: `bf16-mixed` computes the network in bfloat16, about twice as fast where the processor supports it.
        activation_checkpointing: Keep about half of what a scan leaves in memory during a step and compute the rest again for the
            gradient, for about a third more time; the result is the same.
        accelerator: `auto`, `cpu` or `gpu`.
        devices: Processes (GPUs) on each node.
        num_nodes: Nodes.
        num_workers: Processes that load scans; 0 loads in the training process, which is fast enough in 2D.
        deterministic: Use deterministic algorithms only (slower on a GPU).
        seed: Decides initial weights, batches, noise, augmentation and dropout.
        cache_dir: Folder for the prepared scans, by default `.medsynth_cache` beside the cohort.
        grid: Pixel grid of the model.
        intensity: Conversion between physical units and [-1, 1].
        network: The denoising UNet.
        autoencoder: The autoencoder of `network.stem latent`.
        reconstruction: Limits of the gate that an autoencoder has to pass.
        noise: Noise levels in training.
        balance: How often each class is drawn.
        condition: Attributes, masks and given channels.
        rare: What a rare class borrows from one that it resembles.
        start: Begin from the weights of another run.
        augment: Conditioned augmentation.
        optimiser: Optimiser and schedule.
        monitor: Logging, validation, previews, checkpoints.
        reading: Limits on what a scan file may be.
        preflight: `check` before training whether a step fits into memory; `only` says what a training would take (parameters,
            memory of a scan, the largest batch that fits, time), writes nothing, and returns these figures instead of a run.
        progress: Show a progress bar.
    """
    from medsynth.cohorts import read_cohort
    from medsynth.processes import is_first_process
    from medsynth.training import preflight_run, train_autoencoder, train_run

    plan = TrainingPlan(
        max_steps=max_steps,
        batch_size=batch_size,
        accumulate=accumulate,
        label_dropout=label_dropout,
        leave_out=leave_out,
        precision=precision,
        activation_checkpointing=activation_checkpointing,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        num_workers=num_workers,
        deterministic=deterministic,
        seed=seed,
        grid=grid,
        intensity=intensity,
        network=network,
        autoencoder=autoencoder,
        reconstruction=reconstruction,
        noise=noise,
        balance=balance,
        condition=condition,
        rare=rare,
        start=start,
        augment=augment,
        optimiser=optimiser,
        monitor=monitor,
        reading=reading,
    )
    cache = Path(cache_dir) if cache_dir is not None else None
    progress = progress and is_first_process()
    if stage == "autoencoder":
        if preflight == "only":
            raise ConfigError("preflight: need stage diffusion for it, got autoencoder; try a training of a few steps")
        return train_autoencoder(read_cohort(cohort), Path(out), plan, cache_dir=cache, progress=progress)
    if preflight == "only":
        return preflight_run(read_cohort(cohort), plan)
    check = preflight == "check"
    return train_run(read_cohort(cohort), Path(out), plan, cache_dir=cache, preflight=check, progress=progress)
