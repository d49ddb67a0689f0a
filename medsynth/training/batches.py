"""Which scans are in which batch: a function of (seed, step), so that a resumed training sees the same batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from medsynth.cohorts import PreparedCohort, ScanDataset
from medsynth.config import DistillOptions, TrainOptions
from medsynth.errors import ConfigError
from medsynth.seeds import numpy_generator

Options = TrainOptions | DistillOptions

# Validation scans at most, by the number of spatial axes.
VALIDATION_SCANS = {2: 256, 3: 48}


class Draw(NamedTuple):
    """One place in a batch: the number of the scan and the place within the global batch."""

    scan: int
    position: int


def class_shares(counts: np.ndarray, balance: float) -> np.ndarray:
    """Return the share of the draws of each class: proportional to counts ** balance, 0 for empty classes."""
    tempered = np.where(counts > 0, np.asarray(counts, dtype=np.float64) ** balance, 0.0)
    return tempered / tempered.sum()


class StepSampler(Sampler[list[Draw]]):
    """Batches of `Draw`s, one batch for each optimiser step, from the current step to `total_steps`.

    A global batch is a stratified sample: its places divide the class shares evenly, so the number of scans of a class differs by
    less than two from its expectation. Rank r takes the places r, r + world, ... `first_step` is called when iteration begins;
    the length is always `total_steps`, as Lightning's resume expects.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        shares: np.ndarray,
        batch_size: int,
        total_steps: int,
        seed: int,
        first_step: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise ConfigError(f"batch_size: need a multiple of the {world} processes, got {batch_size}")
        order = np.argsort(labels, kind="stable")
        weights = (shares / np.maximum(np.bincount(labels, minlength=len(shares)), 1))[labels[order]]
        self._order, self._cumulative = order, np.cumsum(weights) / weights.sum()
        self._batch_size, self._total_steps, self._seed = batch_size, total_steps, seed
        self._first_step, self._rank, self._world = first_step, rank, world

    def global_batch(self, step: int) -> np.ndarray:
        """Return the `(batch_size,)` scan numbers of a step, for all ranks together."""
        random = numpy_generator(self._seed, "batch", step)
        places = (random.permutation(self._batch_size) + random.random(self._batch_size)) / self._batch_size
        found = np.searchsorted(self._cumulative, places, side="right")
        return self._order[np.minimum(found, len(self._order) - 1)]

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self._first_step(), self._total_steps):
            scans = self.global_batch(step)
            positions = range(self._rank, self._batch_size, self._world)
            yield [Draw(int(scans[position]), position) for position in positions]

    def __len__(self) -> int:
        return self._total_steps


class DrawnScans(Dataset[dict[str, Any]]):
    """A dataset indexed by `Draw`: the scan's item with its position."""

    def __init__(self, scans: Dataset[dict[str, Any]]) -> None:
        self._scans = scans

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return {**self._scans[draw.scan], "position": draw.position}


class ValidationScans(Dataset[dict[str, Any]]):
    """A rank's share of the scans `numbers`, as many for each: one without would miss the collective calls of validation.

    Where they do not divide evenly, the last items repeat a scan, with `"counted"` 0 instead of 1.
    """

    def __init__(self, scans: Dataset[dict[str, Any]], numbers: np.ndarray, *, rank: int, world: int) -> None:
        places = np.arange(rank, -(-len(numbers) // world) * world, world)
        self._scans, self._numbers = scans, numbers[places % max(1, len(numbers))]
        self._counted = places < len(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self._scans[int(self._numbers[place])], "counted": float(self._counted[place])}


class ResumableLoader(DataLoader[dict[str, Any]]):
    """A loader whose sampler knows where to begin; the two methods show Lightning that it can resume within an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the step is the state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""


def make_loader(scans: Dataset[dict[str, Any]], sampler: StepSampler, *, num_workers: int) -> ResumableLoader:
    """Return the training loader, with pinned memory if there is a GPU and workers that stay alive."""
    return ResumableLoader(
        DrawnScans(scans),
        batch_sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """Which of `scans` are for training and validation, the class numbers of the former, and the shares of the draws."""

    scans: Dataset[dict[str, Any]]
    training: np.ndarray
    validation: np.ndarray
    labels: np.ndarray
    shares: np.ndarray

    def loaders(self, trainer: pl.Trainer, options: Options) -> tuple[Any, Any]:
        """Return this rank's loaders of training batches and of validation scans (None without any)."""
        sampler = StepSampler(
            self.labels,
            shares=self.shares,
            batch_size=options.batch_size,
            total_steps=options.max_steps,
            seed=options.seed,
            first_step=lambda: trainer.global_step,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        loader = make_loader(Subset(self.scans, self.training.tolist()), sampler, num_workers=options.num_workers)
        own = ValidationScans(self.scans, self.validation, rank=trainer.global_rank, world=trainer.world_size)
        return loader, DataLoader(own, batch_size=scans_at_a_time(options)) if len(own) else None


def scan_data(prepared: PreparedCohort, options: TrainOptions) -> TrainingData:
    """Return the training scans of a cohort, drawn as `balance` says, and validation scans, evenly over the classes."""
    train = prepared.indices(split="train")
    labels = prepared.labels[train]
    groups = [prepared.indices(split="val", label=number) for number in range(len(prepared.classes))]
    most = math.ceil(VALIDATION_SCANS[prepared.scans.ndim - 2] / max(1, sum(len(group) > 0 for group in groups)))
    chosen = [
        numpy_generator(options.seed, "validation", number).permutation(group)[:most]
        for number, group in enumerate(groups)
    ]
    return TrainingData(
        scans=ScanDataset(prepared),
        training=train,
        validation=np.sort(np.concatenate(chosen)),
        labels=labels,
        shares=class_shares(np.bincount(labels, minlength=len(prepared.classes)), options.balance),
    )


def scans_at_a_time(options: Options) -> int:
    """Return how many scans of a step a process has in memory at once."""
    return max(1, options.batch_size // (options.devices * options.num_nodes) // options.accumulate_grad_batches)
