"""Distillation along trajectories: they are drawn from the teacher once, then a student of few steps follows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from medsynth.cohorts import PreparedCohort
from medsynth.config import GuidanceOptions, SolverOptions, TrainingPlan, TrajectoryOptions
from medsynth.diffusion import (
    autoguide,
    noise_levels,
    trace_trajectory,
    trajectory_levels,
    trajectory_losses,
)
from medsynth.files import atomic_path, check_space
from medsynth.networks import Condition, Denoiser
from medsynth.networks.sampling import draw_noise
from medsynth.runs import Run
from medsynth.seeds import derive_seed, numpy_generator
from medsynth.training.fitting import rank_loaders, scans_together
from medsynth.training.module import DiffusionModule
from medsynth.training.parts import part_slices

FOLDER = "trajectories"
# What a file holds at the most, trajectories and bytes, and how many files are open.
_PART, _PART_BYTES, _OPEN = 256, 64 << 20, 64


@dataclass(frozen=True, kw_only=True, eq=False)
class TrajectorySet:
    """Which trajectories there are, and the files that hold them.

    `labels` `(N,)` and `attributes` `(N, attributes)`, if any, are their conditions; `shape` is that of a point, `(C, *spatial)`.
    Those after the first `options.count` are never trained on. Files are float16 `(trajectories, points * C, *spatial)`; the
    noise where a trajectory begins is drawn again from its seed.
    """

    folder: Path
    solver: SolverOptions
    options: TrajectoryOptions
    seed: int
    labels: np.ndarray
    attributes: np.ndarray | None
    shape: tuple[int, ...]

    @property
    def bytes_each(self) -> int:
        """What a trajectory takes on the disk."""
        return 2 * self.options.evaluations * math.prod(self.shape)

    @property
    def part_size(self) -> int:
        """How many trajectories a file holds, but for the last."""
        return min(_PART, max(1, _PART_BYTES // self.bytes_each))

    @property
    def parts(self) -> int:
        """How many files there are."""
        return -(-len(self.labels) // self.part_size)

    def rows(self, part: int) -> range:
        """The trajectories that a file holds."""
        return range(part * self.part_size, min(len(self.labels), (part + 1) * self.part_size))

    def file(self, part: int) -> Path:
        """Where they are; the last file of a set with more that are held out has another name."""
        rows = self.rows(part)
        return self.folder / f"part_{rows.start:08d}_{rows.stop:08d}.npy"

    def noise(self, rows: range | list[int]) -> Tensor:
        """Return the standard normal noise where trajectories begin, `(N, C, *spatial)` on the CPU."""
        return draw_noise([derive_seed(self.seed, "trajectory", row) for row in rows], self.shape)

    def check_space(self) -> None:
        """Raise `ConfigError` where the disk has no room for what is missing."""
        missing = sum(len(self.rows(part)) for part in range(self.parts) if not self.file(part).exists())
        check_space(
            self.folder, missing * self.bytes_each, purpose="trajectories", option="--out or --trajectories.count"
        )


def plan_trajectories(
    out: Path,
    prepared: PreparedCohort,
    options: TrajectoryOptions,
    solver: SolverOptions,
    *,
    shape: tuple[int, ...],
    held: int,
    seed: int,
) -> TrajectorySet:
    """Return a set with equal shares of the classes and, where there are any, the attributes of training scans."""
    total = options.count + held
    labels = np.arange(total) % len(prepared.classes)
    attributes = None
    if prepared.attributes is not None:
        random = numpy_generator(seed, "trajectory attributes")
        groups = [prepared.indices(split="train", label=number) for number in range(len(prepared.classes))]
        rows = [groups[label][random.integers(len(groups[label]))] for label in labels]
        attributes = prepared.attributes[rows]
    return TrajectorySet(
        folder=out / FOLDER,
        solver=solver,
        options=options,
        seed=seed,
        labels=labels,
        attributes=attributes,
        shape=shape,
    )


class DrawTrajectories(Callback):
    """Draws what is missing of a set before training, every process its share; files that are there are kept."""

    def __init__(self, planned: TrajectorySet, teacher: Run, plan: TrainingPlan, *, progress: bool) -> None:
        self._planned, self._teacher, self._plan, self._progress = planned, teacher, plan, progress

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Draw, and wait for the others."""
        planned = self._planned
        mine = range(trainer.global_rank, planned.parts, trainer.world_size)
        missing = [part for part in mine if not planned.file(part).exists()]
        if missing:
            planned.folder.mkdir(parents=True, exist_ok=True)
            device = trainer.strategy.root_device
            denoiser = self._teacher.load_denoiser(device)
            weak = self._teacher.load_early(device) if planned.options.guidance != 1 else None
            # Without a gradient, so in less memory than a part of a training step.
            size = scans_together(trainer, self._plan)
            total = sum(len(planned.rows(part)) for part in missing)
            shown = self._progress and trainer.is_global_zero
            with tqdm(total=total, desc="drawing trajectories", unit="scan", disable=not shown) as bar:
                for part in missing:
                    rows = planned.rows(part)
                    pieces = [rows[first : first + size] for first in range(0, len(rows), size)]
                    points = [self._draw(piece, denoiser, weak, bar) for piece in pieces]
                    with atomic_path(planned.file(part)) as temporary, temporary.open("wb") as stream:
                        np.save(stream, np.concatenate(points))
        trainer.strategy.barrier()

    @torch.inference_mode()
    def _draw(self, rows: range, denoiser: Denoiser, weak: Denoiser | None, bar: Any) -> np.ndarray:
        planned, device = self._planned, denoiser.sigma_data.device
        levels, stops = trajectory_levels(planned.solver, planned.options.steps)
        labels = torch.from_numpy(planned.labels[rows.start : rows.stop]).to(device)
        told = planned.attributes
        attributes = None if told is None else torch.from_numpy(told[rows.start : rows.stop]).to(device)
        denoise = partial(denoiser, condition=denoiser.embedding.make(labels, attributes))
        if weak is not None:
            guidance = GuidanceOptions(scale=planned.options.guidance, weak="early")
            condition = weak.embedding.make(labels, attributes)
            denoise = autoguide(denoise, partial(weak, condition=condition), guidance)  # type: ignore[assignment]
        noise = denoiser.start(planned.noise(rows), float(levels[0])).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._plan.precision == "bf16-mixed"):
            points = trace_trajectory(denoise, noise, levels, stops)
        bar.update(len(rows))
        return torch.cat(points, dim=1).float().cpu().numpy().astype(np.float16)


class TrajectoryDataset(Dataset[dict[str, Any]]):
    """Trajectories as training scans: `"scan"` float32 `(points * C, *spatial)`, `"noise"` `(C, *spatial)`, label and index."""

    def __init__(self, planned: TrajectorySet, rows: np.ndarray) -> None:
        self._planned, self._rows = planned, rows
        self._files: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        planned, row = self._planned, int(self._rows[position])
        part, place = divmod(row, planned.part_size)
        if part not in self._files:
            if len(self._files) >= _OPEN:
                self._files.clear()
            self._files[part] = np.load(planned.file(part), mmap_mode="r")
        item = {
            "scan": torch.from_numpy(np.array(self._files[part][place], dtype=np.float32)),
            "noise": planned.noise([row])[0],
            "label": int(planned.labels[row]),
            "index": row,
        }
        if planned.attributes is not None:
            item["attributes"] = torch.from_numpy(planned.attributes[row])
        return item


def trajectory_loaders(planned: TrajectorySet, trainer: pl.Trainer, plan: TrainingPlan) -> tuple[Any, Any]:
    """Return the loaders of this rank: its part of every training batch, and of what is held out (None without any)."""
    count, classes = planned.options.count, int(planned.labels.max()) + 1
    training, held = np.split(np.arange(len(planned.labels)), [count])
    shares = np.full(classes, 1 / classes)
    make = partial(TrajectoryDataset, planned)
    return rank_loaders(make, training, held, planned.labels[training], shares, trainer, plan)


class TrajectoryModule(DiffusionModule):
    """Tunes a denoiser to follow trajectories in few steps; optimiser and average are those of `DiffusionModule`.

    Batches are those of `TrajectoryDataset`. The loss is that of `trajectory_losses`, in validation that of the averaged student
    at each stop. There is no dropout: where a trajectory leads is no matter of chance. `averaged` is the student to use.
    """

    def __init__(self, denoiser: Denoiser, *, solver: SolverOptions, **others: Any) -> None:
        levels = noise_levels(solver)
        stops = [*(f"sigma_{float(level):g}" for level in levels[1:-1]), "end"]
        super().__init__(denoiser, validated=stops, **others)
        self._levels = levels
        for module in denoiser.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        count = len(batch["label"])
        condition = self.denoiser.embedding.make(batch["label"], batch.get("attributes"))
        mean = torch.zeros((), device=self.device)
        for part in part_slices(count, self._accumulate):
            loss = self._follow(self.denoiser, batch, condition.rows(part), part).sum() / count
            mean += loss.detach()
            if part.stop < count:
                self.add_gradient(loss)
        self.log("train_loss", mean, prog_bar=True, batch_size=count)
        return loss  # of the last part, for the trainer's own backward pass

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add up the averaged student's differences from what is held out, for each class and stop."""
        condition = self.averaged.embedding.make(batch["label"], batch.get("attributes"))
        losses = self._follow(self.averaged, batch, condition, slice(0, len(batch["label"])))
        for column in range(len(self._levels) - 1):
            self._count_losses(batch["label"], column, losses[:, column])

    def _follow(self, student: Denoiser, batch: Mapping[str, Any], condition: Condition, part: slice) -> Tensor:
        """Differences of some rows of a batch at every stop, `(N, stops)`."""
        noise = student.start(batch["noise"][part], float(self._levels[0]))
        points = batch["scan"][part].chunk(len(self._levels) - 1, dim=1)
        return trajectory_losses(partial(student, condition=condition), noise, list(points), self._levels)
