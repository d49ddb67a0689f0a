"""`medsynth distill`: from a trained run to one that makes a scan in 1 to 4 network evaluations.

The teacher draws trajectories from noise to scans once; they stay on the disk while a student of few steps learns to follow them.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
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

from medsynth.cohorts import Cohort, PreparedCohort
from medsynth.config import ConditionOptions, DistillOptions, GuidanceOptions, build_options
from medsynth.diffusion import (
    Solver,
    autoguide,
    noise_levels,
    student_solver,
    trace_trajectory,
    trajectory_levels,
    trajectory_losses,
)
from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path, check_space
from medsynth.networks import Condition, Denoiser, checkpoint_activations, draw_noise
from medsynth.runs import RUN_FILE, Run, load_run
from medsynth.seeds import derive_seed, numpy_generator
from medsynth.training.batches import VALIDATION_SCANS, TrainingData, scans_at_a_time
from medsynth.training.callbacks import SamplePreviews
from medsynth.training.fitting import Training, check_options
from medsynth.training.module import TrainingModule, batch_parts
from medsynth.training.spec import Conditions, count_training, read_conditions

_FOLDER = "trajectories"
# At most so many trajectories and bytes in a file, and so many files open.
_PART, _PART_BYTES, _OPEN = 256, 64 << 20, 64


def distill_run(teacher: Run, cohort: Cohort, options: DistillOptions) -> Run:
    """Train a student that follows the solver of `teacher` in few steps, and return its run; continue what `options.out` holds.

    The student begins with the weights of the teacher. Trajectories are drawn for its classes, with attributes and texts of the
    training split of `cohort`. The run knows the patients of teacher and cohort.

    Raises `ConfigError` for a teacher that is distilled itself, generates observed channels or has no early weights for guidance,
    `DataError` for a cohort without training scans of one of its classes, and else as `train_run` does.
    """
    check_options(options)
    solver = _check_teacher(teacher, options)
    cohort, conditions = _read_cohort(teacher, cohort, options)
    student = teacher.load_denoiser().train().requires_grad_(True)
    if student.codec is not None:
        student.codec.requires_grad_(False)
    ends = {"steps": solver.steps, "sigma_min": solver.sigma_min, "sigma_max": solver.sigma_max}
    origin = {"run": teacher.fingerprint[:16], "steps": teacher.steps, "solver": ends}
    training = Training(
        options=options,
        cohort=cohort,
        classes=teacher.classes,
        grid=teacher.grid,
        intensity=teacher.spec.intensity,
        mask=teacher.spec.mask,
        conditions=conditions,
        before=teacher,
        # Guidance is part of the trajectories, and a student cannot be guided.
        inherited=dict(teacher.options) | {"label_dropout": 0.0, "distilled": origin},
    )
    # The gradient passes through all evaluations of a scan.
    training.check_needs(student, teacher.spec.shape, passes=solver.steps)
    prepared = training.prepare()
    if prepared.scans.shape[1:] != teacher.spec.shape:
        raise ConfigError(
            f"cohort: need scans of shape {teacher.spec.shape} as in the training of the run, got {prepared.scans.shape[1:]}; "
            "try the cohort that it was trained on"
        )
    if training.finished:
        return load_run(training.out)

    counts, patients = count_training(prepared)
    spec = replace(teacher.spec, class_counts=counts, class_patients=patients)
    planned = plan_trajectories(prepared, options, solver, student.noise_shape(spec.shape))
    if options.activation_checkpointing:
        checkpoint_activations(student)
    line = (
        f"run {teacher.fingerprint[:16]} of {teacher.steps} steps to a student of {solver.steps} network evaluations; "
        f"{options.trajectories} trajectories of {options.teacher_steps} evaluations; {options.max_steps} steps of "
        f"{options.batch_size} scans"
    )
    trainer = training.fit(
        TrajectoryModule(student, options, solver, classes=spec.classes),
        spec,
        planned.data(),
        SamplePreviews(prepared, options, solver),
        callbacks=[DrawTrajectories(planned, teacher)],
        lines=[line],
    )
    if trainer.is_global_zero:
        shutil.rmtree(planned.folder, ignore_errors=True)
    return load_run(training.out)


def _check_teacher(teacher: Run, options: DistillOptions) -> Solver:
    """Return the solver of the student; `ConfigError` for options that cannot work with this teacher."""
    if teacher.distilled or teacher.options.get("stage") == "autoencoder":
        raise ConfigError(
            f"{teacher.folder}: need a diffusion run of medsynth train to distill, got another one; try the run it came from"
        )
    if teacher.spec.observed:
        raise ConfigError(
            f"{teacher.folder}: runs with observed channels cannot be distilled; try a run trained with condition.observed 0"
        )
    if options.teacher_guidance != 1 and teacher.early is None:
        raise ConfigError(
            "teacher_guidance: the run kept no early weights (monitor.early_share) to guide it; try --teacher_guidance 1"
        )
    return student_solver(options, voxels=teacher.spec.voxels)


def _read_cohort(teacher: Run, cohort: Cohort, options: DistillOptions) -> tuple[Cohort, Conditions]:
    """Return the scans of the teacher's classes, and their attributes and texts, encoded as for the teacher."""
    known = cohort.select(split="train").classes
    if missing := [label for label in teacher.classes if label not in known]:
        raise DataError(
            f"cohort: need training scans of all classes of the run, got none of {', '.join(missing)}; try the cohort that it "
            "was trained on"
        )
    cohort = replace(cohort, rows=tuple(row for row in cohort.rows if row.label in teacher.classes))
    try:
        condition = build_options(ConditionOptions, teacher.options["condition"])
    except (KeyError, TypeError, ConfigError) as error:
        raise DataError(
            f"{teacher.folder / RUN_FILE}: need the options of its training, got damaged content ({error}); try training again"
        ) from error
    encoding = teacher.text_encoding() if teacher.spec.text else None
    conditions = read_conditions(cohort, condition, loading=options, encoding=encoding)
    if (conditions.attributes, conditions.text) != (teacher.spec.attributes, teacher.spec.text):
        raise ConfigError(
            "cohort: need the attributes that the run was trained with, got other values or ranges; try the cohort that it was "
            "trained on"
        )
    return cohort, conditions


@dataclass(frozen=True, kw_only=True, eq=False)
class TrajectorySet:
    """The trajectories of a distillation; those after the first `options.trajectories` are held out for validation.

    `labels` `(N,)`, `attributes` `(N, attributes)` and `text` `(N, dimensions)` are their conditions, `shape` is that of a point,
    `(C, *spatial)`. Files are float16 `(trajectories, points * C, *spatial)`; the initial noise is drawn again from seeds.
    """

    options: DistillOptions
    solver: Solver
    shape: tuple[int, ...]
    labels: np.ndarray
    attributes: np.ndarray | None = None
    text: np.ndarray | None = None

    @property
    def folder(self) -> Path:
        return Path(self.options.out) / _FOLDER

    @property
    def bytes_each(self) -> int:
        """Bytes of a trajectory on the disk."""
        return 2 * self.solver.steps * math.prod(self.shape)

    @property
    def part_size(self) -> int:
        """Trajectories in each file except the last."""
        return min(_PART, max(1, _PART_BYTES // self.bytes_each))

    @property
    def parts(self) -> int:
        return -(-len(self.labels) // self.part_size)

    def rows(self, part: int) -> range:
        return range(part * self.part_size, min(len(self.labels), (part + 1) * self.part_size))

    def file(self, part: int) -> Path:
        """Return the path of a file; the last one of a longer set has another name."""
        return self.folder / f"part_{self.rows(part).start:08d}_{self.rows(part).stop:08d}.npy"

    def noise(self, rows: range | list[int]) -> Tensor:
        """Return the standard normal noise at the beginning of trajectories, `(N, C, *spatial)` on the CPU."""
        return draw_noise([derive_seed(self.options.seed, "trajectory", row) for row in rows], self.shape)

    def condition(self, denoiser: Denoiser, rows: range) -> Condition:
        """Return the condition of some trajectories for a denoiser, on its device."""
        label, attributes, text = (
            None if values is None else torch.from_numpy(values[rows.start : rows.stop]).to(denoiser.device)
            for values in (self.labels, self.attributes, self.text)
        )
        assert label is not None
        return denoiser.embedding.make(label, attributes, text=text)

    def check_space(self) -> None:
        """Raise `ConfigError` if the disk has no room for what is missing."""
        missing = sum(len(self.rows(part)) for part in range(self.parts) if not self.file(part).is_file())
        check_space(self.folder, missing * self.bytes_each, purpose="trajectories", option="--out or --trajectories")

    def data(self) -> TrainingData:
        """Return the trajectories as training data, every class equally often."""
        training, held_out = np.split(np.arange(len(self.labels)), [self.options.trajectories])
        labels, classes = self.labels[training], int(self.labels.max()) + 1
        scans, shares = TrajectoryDataset(self), np.full(classes, 1 / classes)
        return TrainingData(scans=scans, training=training, validation=held_out, labels=labels, shares=shares)


def plan_trajectories(
    prepared: PreparedCohort, options: DistillOptions, solver: Solver, shape: tuple[int, ...]
) -> TrajectorySet:
    """Return a set with equal shares of the classes, and attributes and texts of training scans if there are any.

    Raises `ConfigError` if the disk has no room for it.
    """
    total = options.trajectories + VALIDATION_SCANS[len(shape) - 1]
    labels = np.arange(total) % len(prepared.classes)
    planned = TrajectorySet(options=options, solver=solver, shape=shape, labels=labels)
    planned.check_space()
    if prepared.attributes is None and prepared.text is None:
        return planned
    random = numpy_generator(options.seed, "trajectory attributes")
    groups = [prepared.indices(split="train", label=number) for number in range(len(prepared.classes))]
    rows = [groups[label][random.integers(len(groups[label]))] for label in labels]
    attributes, text = (None if known is None else known[rows] for known in (prepared.attributes, prepared.text))
    return replace(planned, attributes=attributes, text=text)


class DrawTrajectories(Callback):
    """Draws the missing files of a set before training, divided among the processes."""

    def __init__(self, planned: TrajectorySet, teacher: Run) -> None:
        self._planned, self._teacher = planned, teacher

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        planned, options = self._planned, self._planned.options
        mine = range(trainer.global_rank, planned.parts, trainer.world_size)
        missing = [part for part in mine if not planned.file(part).is_file()]
        diverged = False
        if missing:
            planned.folder.mkdir(parents=True, exist_ok=True)
            device = trainer.strategy.root_device
            denoiser = self._teacher.load_denoiser(device)
            weak = self._teacher.load_early(device) if options.teacher_guidance != 1 else None
            # Without gradients, this needs less memory than a part of a training step.
            size = scans_at_a_time(options)
            total = sum(len(planned.rows(part)) for part in missing)
            hidden = not options.progress or not trainer.is_global_zero
            with tqdm(total=total, desc="drawing trajectories", unit="scan", disable=hidden) as bar:
                for part in missing:
                    rows, points = planned.rows(part), []
                    for first in range(0, len(rows), size):
                        points.append(self._draw(rows[first : first + size], denoiser, weak))
                        bar.update(len(points[-1]))
                    if diverged := not all(np.isfinite(each).all() for each in points):
                        break
                    with atomic_path(planned.file(part)) as temporary, temporary.open("wb") as stream:
                        np.save(stream, np.concatenate(points))
        if trainer.strategy.reduce_boolean_decision(diverged, all=False):
            raise ConfigError(
                "trajectories: need finite scans from the teacher, got NaN or infinity; try --precision 32-true and a smaller "
                "--teacher_guidance"
            )

    @torch.inference_mode()
    def _draw(self, rows: range, denoiser: Denoiser, weak: Denoiser | None) -> np.ndarray:
        planned, options, device = self._planned, self._planned.options, denoiser.device
        levels, stops = trajectory_levels(planned.solver, options.teacher_steps)
        denoise: Any = partial(denoiser, condition=planned.condition(denoiser, rows))
        if weak is not None:
            guidance = GuidanceOptions(scale=options.teacher_guidance, weak="early")
            denoise = autoguide(denoise, partial(weak, condition=planned.condition(weak, rows)), guidance)
        noise = denoiser.initial_noise(planned.noise(rows), float(levels[0])).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            points = trace_trajectory(denoise, noise, levels, stops)
        return torch.cat(points, dim=1).float().cpu().numpy().astype(np.float16)


class TrajectoryDataset(Dataset[dict[str, Any]]):
    """Items: `"scan"` float32 `(points * C, *spatial)`, `"noise"` `(C, *spatial)`, the condition, and `"index"`."""

    def __init__(self, planned: TrajectorySet) -> None:
        self._planned = planned
        self._files: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._planned.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        planned = self._planned
        part, place = divmod(row, planned.part_size)
        if part not in self._files:
            if len(self._files) >= _OPEN:
                self._files.clear()
            self._files[part] = np.load(planned.file(part), mmap_mode="r")
        scan = torch.from_numpy(np.array(self._files[part][place], dtype=np.float32))
        item = {"scan": scan, "noise": planned.noise([row])[0], "label": int(planned.labels[row]), "index": row}
        for name, values in (("attributes", planned.attributes), ("text", planned.text)):
            if values is not None:
                item[name] = torch.from_numpy(values[row])
        return item


class TrajectoryModule(TrainingModule[Denoiser]):
    """Trains a denoiser to follow trajectories in few steps; batches are those of `TrajectoryDataset`.

    The loss is that of `trajectory_losses`, without dropout: a trajectory leads to one scan.
    """

    def __init__(
        self, denoiser: Denoiser, options: DistillOptions, solver: Solver, *, classes: tuple[str, ...]
    ) -> None:
        levels = noise_levels(solver)
        super().__init__(
            denoiser,
            classes=classes,
            validated=[*(f"sigma_{float(level):g}" for level in levels[1:-1]), "end"],
            total_steps=options.max_steps,
            optimiser=options.optimiser,
            accumulate_grad_batches=options.accumulate_grad_batches,
            seed=options.seed,
        )
        self._levels = levels
        for module in denoiser.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        count = len(batch["label"])
        mean = torch.zeros((), device=self.device)
        for part in batch_parts(count, self._accumulate):
            loss = self._follow(self.network, batch, part).sum() / count
            mean += loss.detach()
            if part.stop < count:
                self.add_gradient(loss)
        self.log("train_loss", mean, prog_bar=True, batch_size=count)
        return loss  # of the last part, for the trainer's own backward pass

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add the averaged student's differences from held-out trajectories for each class and noise level."""
        losses = self._follow(self.averaged, batch, slice(None))
        for column in range(len(self._levels) - 1):
            self.count_losses(batch, column, losses[:, column])

    def _follow(self, student: Denoiser, batch: Mapping[str, Any], part: slice) -> Tensor:
        """Return the differences of some rows of a batch after each of the student's steps, `(N, steps)`."""
        condition = student.embedding.make(batch["label"], batch.get("attributes"), text=batch.get("text")).rows(part)
        noise = student.initial_noise(batch["noise"][part], float(self._levels[0]))
        points = batch["scan"][part].chunk(len(self._levels) - 1, dim=1)
        return trajectory_losses(partial(student, condition=condition), noise, list(points), self._levels)
