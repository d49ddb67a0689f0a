"""Which scans are in which batch: a pure function of (seed, step), so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from medsynth.config import BalanceOptions
from medsynth.errors import ConfigError
from medsynth.seeds import numpy_generator


class Draw(NamedTuple):
    """One place in a batch: the number of the scan and the place within the global batch."""

    scan: int
    position: int


def class_shares(counts: np.ndarray, options: BalanceOptions) -> np.ndarray:
    """Return the share of the draws of each class: proportional to counts ** exponent, 0 for empty classes."""
    tempered = np.where(counts > 0, np.asarray(counts, dtype=np.float64) ** options.exponent, 0.0)
    return tempered / tempered.sum()


class StepSampler(Sampler[list[Draw]]):
    """Batches of `Draw`s, one batch an optimiser step, from the current step to `total_steps`.

    A global batch is a stratified sample: its places divide the tempered class distribution evenly, so the number of
    scans of a class differs by less than two from its expectation. Rank r takes the places r, r + world, ...
    `first_step` is asked when iteration begins; the length is always `total_steps`, as Lightning's resume expects.
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
        """Yield this rank's part of every batch that is still to come."""
        for step in range(self._first_step(), self._total_steps):
            scans = self.global_batch(step)
            positions = range(self._rank, self._batch_size, self._world)
            yield [Draw(int(scans[position]), position) for position in positions]

    def __len__(self) -> int:
        """Return the number of steps of the whole training."""
        return self._total_steps


class DrawnScans(Dataset[dict[str, Any]]):
    """A dataset indexed by `Draw`: the scan's item with its position."""

    def __init__(self, scans: Dataset[dict[str, Any]]) -> None:
        self._scans = scans

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Return the item of `draw.scan`."""
        return {**self._scans[draw.scan], "position": draw.position}


class ResumableLoader(DataLoader[dict[str, Any]]):
    """A loader whose sampler already knows where to begin; the two methods tell Lightning that it may resume mid-epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the step is the state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""


def make_loader(scans: Dataset[dict[str, Any]], sampler: StepSampler, *, num_workers: int) -> ResumableLoader:
    """Return the training loader: pinned memory where there is a GPU, workers that stay alive."""
    return ResumableLoader(
        DrawnScans(scans),
        batch_sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
