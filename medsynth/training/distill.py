"""`medsynth distill`: from a trained run to one that needs 1 to 4 network evaluations a scan, by either of two methods."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from medsynth import processes
from medsynth.cohorts import Cohort, PreparedCohort, prepare_cohort
from medsynth.cohorts.attributes import AttributeTable, read_attributes
from medsynth.config import (
    AugmentOptions,
    AutoencoderOptions,
    BalanceOptions,
    ConditionOptions,
    ConsistencyOptions,
    IntensityOptions,
    MonitorOptions,
    NoiseOptions,
    OptimiserOptions,
    RareOptions,
    ReadingOptions,
    ReconstructionOptions,
    SolverOptions,
    StartOptions,
    TrainingPlan,
    TrajectoryOptions,
)
from medsynth.diffusion import check_consistency, student_solver
from medsynth.errors import ConfigError, DataError
from medsynth.files import remove_partial, write_text
from medsynth.networks import Denoiser, checkpoint_activations
from medsynth.runs import RUN_FILE, Run, RunSpec, load_run, save_run, write_attributes, write_patients
from medsynth.runs.values import as_tuples
from medsynth.training.callbacks import Previews, StopOnSignal
from medsynth.training.distillation import DistillationModule
from medsynth.training.fitting import (
    CHECKPOINT,
    check_folder,
    clear_partial,
    fit,
    make_loaders,
    make_trainer,
    plain_options,
)
from medsynth.training.module import DiffusionModule
from medsynth.training.preflight import check_memory
from medsynth.training.space import check_training_space
from medsynth.training.train import check_plan, check_world
from medsynth.training.trajectories import (
    FOLDER,
    DrawTrajectories,
    TrajectoryModule,
    plan_trajectories,
    trajectory_loaders,
)

_Group = TypeVar("_Group")


@dataclass(frozen=True, kw_only=True)
class DistillationPlan:
    """All options of one distillation; `medsynth distill` has them flat. See `medsynth.distill` for what each means."""

    method: Literal["trajectories", "consistency"]
    max_steps: int
    batch_size: int
    accumulate: int
    activation_checkpointing: bool
    accelerator: str
    devices: int
    num_nodes: int
    num_workers: int
    deterministic: bool
    seed: int
    trajectories: TrajectoryOptions
    consistency: ConsistencyOptions
    optimiser: OptimiserOptions
    monitor: MonitorOptions
    reading: ReadingOptions


def distill_run(
    teacher: Run,
    cohort: Cohort,
    out: Path,
    wanted: DistillationPlan,
    *,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Run:
    """Tune the weights of `teacher` to a model of few steps, and return its run.

    A student that follows trajectories sees what the teacher draws for the classes and attributes of the training split of
    `cohort`, a consistency model its scans. Either is told of them what the teacher was told, on the same grid; a distillation
    that `out` holds is continued. The run knows the patients of teacher and cohort.

    Raises `ConfigError` for a teacher that is distilled itself, `DataError` for a cohort that lacks training scans of one of its
    classes, and what `check_method` and `train_run` do.
    """
    plan = training_plan(teacher, wanted)
    solver = check_method(teacher, wanted)
    check_world(plan)
    check_plan(plan)
    cohort = _select(cohort, teacher.spec)
    table = read_attributes(cohort, plan.condition, reading=plan.reading)
    _check_attributes(table, teacher.spec)
    check_training_space(cohort, out, plan, teacher.spec.classes)
    previous = load_run(out) if (out / RUN_FILE).is_file() else None
    if processes.is_first_process() and (previous is None or previous.steps < plan.max_steps):
        # The gradient passes through all evaluations of a scan.
        passes = solver.steps or 1
        line = check_memory(cohort, replace(plan, batch_size=plan.batch_size * passes), teacher.spec.classes)
        if progress:
            print(line, file=sys.stderr, flush=True)
    prepared = prepare_cohort(
        cohort,
        grid=plan.grid,
        intensity=teacher.spec.intensity,
        reading=plan.reading,
        classes=teacher.spec.classes,
        mask=teacher.spec.mask,
        cache_dir=cache_dir,
        progress=progress,
    )
    if prepared.scans.shape[1:] != teacher.spec.shape:
        raise ConfigError(
            f"cohort: need scans of {teacher.spec.shape[0]} channels as the run was trained with, got {prepared.scans.shape[1]}; "
            "try the cohort that it was trained on"
        )
    options = _options(plan, teacher, wanted, solver) | {"cohort": prepared.key}
    if table is not None:
        prepared = replace(prepared, attributes=table.encode())
        options |= {"attributes": hashlib.sha256(json.dumps(table.as_dict()).encode()).hexdigest()}
    resumed = check_folder(out, options, previous)
    if previous is not None and previous.steps >= plan.max_steps:
        remove_partial(out)
        return previous
    spec = _spec(teacher.spec, prepared)
    assemble = _assemble_trajectories if wanted.method == "trajectories" else _assemble_consistency
    trainer, module, loaders, stop = assemble(
        _Parts(prepared, spec, out, plan, wanted, options, teacher, solver, progress)
    )
    clear_partial(out, trainer)
    if trainer.is_global_zero:
        described = json.loads(json.dumps(dataclasses.asdict(wanted)))
        write_text(out / "config.yaml", yaml.safe_dump(described, sort_keys=False))
        if not resumed:
            patients = {
                split: [row.patient_id for row in cohort.select(split=split).rows] for split in ("train", "val")
            }
            write_patients(out, patients, start=teacher)
            if table is not None:
                write_attributes(out, table.select(prepared.indices(split="train")))
        if progress:
            print(_describe(spec, teacher, plan, wanted), file=sys.stderr, flush=True)
    fit(trainer, module, loaders, stop, out / CHECKPOINT if resumed else None)
    if trainer.is_global_zero:
        shutil.rmtree(out / FOLDER, ignore_errors=True)
    return load_run(out)


def check_method(teacher: Run, wanted: DistillationPlan) -> SolverOptions:
    """Return the solver of the result, steps and noise levels open for a consistency model.

    Raises `ConfigError` for options of the method that cannot work, or that this teacher cannot take.
    """
    if wanted.method == "consistency":
        check_consistency(wanted.consistency)
        return SolverOptions(name="consistency")
    solver = student_solver(wanted.trajectories, voxels=teacher.spec.voxels)
    if teacher.spec.given:
        raise ConfigError(
            f"method: need consistency for a run that can be given channels, got {wanted.method}; try --method consistency"
        )
    if wanted.trajectories.guidance != 1 and teacher.early is None:
        raise ConfigError(
            "trajectories.guidance: need a run that kept the weights it had early on (monitor.early_share), got none; try 1"
        )
    return solver


def training_plan(teacher: Run, wanted: DistillationPlan) -> TrainingPlan:
    """Return the training that this distillation is: grid, network, condition and balance of the teacher, the rest as wanted.

    Raises `ConfigError` for a distilled teacher and `DataError` for one whose options cannot be read.
    """
    if teacher.distilled:
        raise ConfigError(
            f"{teacher.folder}: need a run of medsynth train to distill, got one that is distilled; try the run it came from"
        )
    options, spec = teacher.options, teacher.spec
    follows = wanted.method == "trajectories"
    try:
        return TrainingPlan(
            max_steps=wanted.max_steps,
            batch_size=wanted.batch_size,
            accumulate=wanted.accumulate,
            # Guidance is in the trajectories, and the student of none is no denoiser that could be guided.
            label_dropout=0.0 if follows else float(options["label_dropout"]),
            leave_out="",
            # Student and target of a consistency model differ by less than bfloat16 resolves.
            precision=options["precision"] if follows else "32-true",
            activation_checkpointing=wanted.activation_checkpointing,
            accelerator=wanted.accelerator,
            devices=wanted.devices,
            num_nodes=wanted.num_nodes,
            num_workers=wanted.num_workers,
            deterministic=wanted.deterministic,
            seed=wanted.seed,
            grid=teacher.grid,
            intensity=_group(IntensityOptions, options),
            network=spec.network,
            autoencoder=spec.autoencoder or AutoencoderOptions(),
            reconstruction=ReconstructionOptions(),
            noise=NoiseOptions(mean=wanted.consistency.mean, std=wanted.consistency.std),
            balance=_group(BalanceOptions, options),
            condition=_group(ConditionOptions, options),
            rare=_group(RareOptions, options),
            start=StartOptions(),
            augment=_group(AugmentOptions, options),
            optimiser=wanted.optimiser,
            monitor=wanted.monitor,
            reading=wanted.reading,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{teacher.folder / RUN_FILE}: need the options of its training, got damaged content ({error}); try training again"
        ) from error


def _group(kind: type[_Group], options: Mapping[str, Any]) -> _Group:
    """Options of one kind as the teacher had them; those that came later have their defaults."""
    name = kind.__name__.removesuffix("Options").lower()
    return kind(**{key: as_tuples(value) for key, value in options.get(name, {}).items()})


def _select(cohort: Cohort, spec: RunSpec) -> Cohort:
    """The scans of the teacher's classes; `DataError` where one of them has none to train on."""
    known = cohort.select(split="train").classes
    if missing := [label for label in spec.classes if label not in known]:
        raise DataError(
            f"cohort: need training scans of all classes of the run, got none of {', '.join(missing)}; try the cohort that it "
            "was trained on"
        )
    return replace(cohort, rows=tuple(row for row in cohort.rows if row.label in spec.classes))


def _check_attributes(table: AttributeTable | None, spec: RunSpec) -> None:
    if (() if table is None else table.attributes) != spec.attributes:
        raise ConfigError(
            "cohort: need the attributes that the run was trained with, got other values or ranges; try the cohort that it was "
            "trained on"
        )


def _spec(spec: RunSpec, prepared: PreparedCohort) -> RunSpec:
    """What the teacher says of itself, with the scans and patients that the student sees."""
    groups = [prepared.indices(split="train", label=number) for number in range(len(prepared.classes))]
    return replace(
        spec,
        class_counts=tuple(len(group) for group in groups),
        class_patients=tuple(len(np.unique(prepared.patients[group])) for group in groups),
    )


def _options(plan: TrainingPlan, teacher: Run, wanted: DistillationPlan, solver: SolverOptions) -> dict[str, Any]:
    """Options as plain values, as a run of `medsynth train` has them, and from what and how it was distilled."""
    options = plain_options(plan)
    del options["reconstruction"]
    if plan.network.stem != "latent":
        del options["autoencoder"]
    told = {"run": teacher.fingerprint[:16], "steps": teacher.steps}
    if wanted.method == "consistency":
        return options | {"distilled": told | {"consistency": dataclasses.asdict(wanted.consistency)}}
    ends = {"steps": solver.steps, "sigma_min": solver.sigma_min, "sigma_max": solver.sigma_max}
    return options | {"distilled": told | {"trajectories": dataclasses.asdict(wanted.trajectories), "solver": ends}}


@dataclass(frozen=True, eq=False)
class _Parts:
    """What a distillation is assembled from."""

    prepared: PreparedCohort
    spec: RunSpec
    out: Path
    plan: TrainingPlan
    wanted: DistillationPlan
    options: dict[str, Any]
    teacher: Run
    solver: SolverOptions
    progress: bool

    def student(self) -> Denoiser:
        """Return the student as it begins, with the teacher's weights."""
        torch.manual_seed(self.plan.seed)
        student = self.spec.build()
        student.load_state_dict(self.teacher.load_denoiser().state_dict())
        if self.plan.activation_checkpointing:
            checkpoint_activations(student)
        return student

    def shared(self) -> dict[str, Any]:
        """What the modules of both methods are told."""
        plan = self.plan
        return {
            "classes": self.spec.classes,
            "total_steps": plan.max_steps,
            "optimiser": plan.optimiser,
            "accumulate": plan.accumulate,
            "seed": plan.seed,
        }

    def trainer(self, *, validate: bool, before: Sequence[Callback] = ()) -> tuple[pl.Trainer, StopOnSignal]:
        """Return what `make_trainer` does, with previews by the student's own solver."""
        monitor = self.plan.monitor
        previews = Previews(
            self.prepared,
            monitor,
            self.out / "previews",
            seed=self.plan.seed,
            last_step=self.plan.max_steps,
            solver=self.solver,
        )

        def keep(trained: DiffusionModule, step: int) -> None:
            save_run(self.out, self.spec, trained.averaged, options=self.options, steps=step)

        return make_trainer(
            self.out,
            self.plan,
            keep,
            previews=previews if monitor.preview_every > 0 else None,
            validate=monitor.validate_every > 0 and validate,
            progress=self.progress,
            before=before,
        )


_Assembled = tuple[pl.Trainer, DiffusionModule, tuple[Any, Any], StopOnSignal]


def _assemble_trajectories(parts: _Parts) -> _Assembled:
    plan, held = parts.plan, parts.plan.monitor.validation_scans
    student = parts.student()
    planned = plan_trajectories(
        parts.out,
        parts.prepared,
        parts.wanted.trajectories,
        parts.solver,
        shape=student.noise_shape(parts.spec.shape),
        held=held,
        seed=plan.seed,
    )
    planned.check_space()
    drawing = DrawTrajectories(planned, parts.teacher, plan, progress=parts.progress)
    module = TrajectoryModule(student, solver=parts.solver, **parts.shared())
    trainer, stop = parts.trainer(validate=held > 0, before=[drawing])
    return trainer, module, trajectory_loaders(planned, trainer, plan), stop


def _assemble_consistency(parts: _Parts) -> _Assembled:
    plan, consistency = parts.plan, parts.wanted.consistency
    module = DistillationModule(
        parts.student(),
        consistency=consistency,
        teacher=parts.teacher.load_denoiser() if consistency.teacher else None,
        augment=plan.augment,
        condition=plan.condition,
        label_dropout=plan.label_dropout,
        **parts.shared(),
    )
    trainer, stop = parts.trainer(validate=len(parts.prepared.indices(split="val")) > 0)
    return trainer, module, make_loaders(parts.prepared, trainer, plan), stop


def _describe(spec: RunSpec, teacher: Run, plan: TrainingPlan, wanted: DistillationPlan) -> str:
    """One line on what is about to be distilled."""
    origin = f"run {teacher.fingerprint[:16]} of {teacher.steps} steps to a"
    if wanted.method == "trajectories":
        options = wanted.trajectories
        return (
            f"{origin} student of {options.evaluations} network evaluations; {options.count} trajectories of {options.steps} "
            f"evaluations, {plan.max_steps} steps of {plan.batch_size}"
        )
    classes = ", ".join(f"{label} {count} scans" for label, count in zip(spec.classes, spec.class_counts, strict=True))
    stages = f"{wanted.consistency.stages} stages, {plan.max_steps} steps of {plan.batch_size} scans"
    return f"{origin} consistency model; {classes}; {stages}"
