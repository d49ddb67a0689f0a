"""How much room on the disk a training takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from medsynth.cohorts import Cohort
from medsynth.cohorts.channels import count_channels
from medsynth.cohorts.grid import grid_size
from medsynth.config import TrainingPlan
from medsynth.files import check_space
from medsynth.networks import Denoiser, build_denoiser
from medsynth.runs import EARLY_FILE, WEIGHTS_FILE
from medsynth.scans import read_header
from medsynth.training.augmentation import Augmentation

_CHECKPOINT = 4 * 4  # bytes a parameter: weights, their average and Adam's two moments, in float32
_WEIGHTS = 4
_LOGS = 16 << 20  # previews, metrics, everything small


def check_training_space(cohort: Cohort, out: Path, plan: TrainingPlan, classes: Sequence[str]) -> None:
    """Raise `ConfigError` where the disk of `out` cannot hold what the training writes there; before any scan is prepared."""
    check_run_space(out, training_bytes(cohort, plan, classes))


def check_run_space(out: Path, needed: int) -> None:
    """Raise `ConfigError` where the disk of `out` has no room for a run folder of `needed` bytes, as `run_bytes` gives them.

    At the most these are three checkpoints (the last, the one before and the one being written), the weights twice and those of
    an early step; what the run folder holds of them already is not counted again.
    """
    there = [*(out / "checkpoints").glob("*.ckpt"), out / WEIGHTS_FILE, out / EARLY_FILE]
    held = sum(file.stat().st_size for file in there if file.is_file())
    check_space(out, max(0, needed - held), purpose="checkpoints and weights", option="--out")


def training_bytes(cohort: Cohort, plan: TrainingPlan, classes: Sequence[str]) -> int:
    """Return about how many bytes a run folder grows to.

    Raises `ConfigError` as `build_denoiser` does, and `DataError` for a first training scan that cannot be read.
    """
    denoiser, _ = plan_denoiser(cohort, plan, classes)
    return run_bytes(sum(parameter.numel() for parameter in denoiser.parameters()))


def run_bytes(parameters: int) -> int:
    """Return about how many bytes the run folder of a network with so many parameters grows to."""
    return parameters * (3 * _CHECKPOINT + 3 * _WEIGHTS) + _LOGS


def plan_denoiser(cohort: Cohort, plan: TrainingPlan, classes: Sequence[str]) -> tuple[Denoiser, tuple[int, ...]]:
    """Return an untrained denoiser as planned and the shape `(C, *spatial)` of its scans; only one scan's headers are read.

    Raises as `training_bytes` does.
    """
    rows = cohort.select(split="train").rows
    rank = len(read_header(cohort.file_of(rows[0]), reading=plan.reading).shape) - 1
    channels = count_channels(cohort, rows[0], mask=plan.condition.mask, reading=plan.reading)
    size = grid_size(plan.grid, rank)
    with torch.random.fork_rng(devices=[]):
        denoiser = build_denoiser(
            plan.network,
            channels=channels,
            size=size,
            classes=len(classes),
            augmentation_parameters=Augmentation(plan.augment, rank).parameters,
            sigma_data=1.0,
            given=plan.condition.given > 0,
            autoencoder=plan.autoencoder if plan.network.stem == "latent" else None,
        )
    return denoiser, (channels, *size)
