"""`medsynth distill`: from a trained run to one that needs 1 to 4 network evaluations a scan."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
import yaml

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
)
from medsynth.diffusion import check_consistency
from medsynth.errors import ConfigError, DataError
from medsynth.files import remove_partial, write_text
from medsynth.networks import checkpoint_activations
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
from medsynth.training.preflight import check_memory
from medsynth.training.space import check_training_space
from medsynth.training.train import check_plan, check_world

_Group = TypeVar("_Group")


@dataclass(frozen=True, kw_only=True)
class DistillationPlan:
    """All options of one distillation; `medsynth distill` has them flat. See `medsynth.distill` for what each means."""

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
    """Tune the weights of `teacher` to a consistency model on the training split of `cohort`, and return its run.

    It is told of scans what the teacher was told, on the same grid; a distillation that `out` holds is continued. The run knows
    the patients of both. Raises `ConfigError` for a teacher that is distilled itself, `DataError` for a cohort that lacks
    training scans of one of its classes, else what `train_run` raises.
    """
    check_consistency(wanted.consistency)
    plan = training_plan(teacher, wanted)
    check_world(plan)
    check_plan(plan)
    cohort = _select(cohort, teacher.spec)
    table = read_attributes(cohort, plan.condition, reading=plan.reading)
    _check_attributes(table, teacher.spec)
    check_training_space(cohort, out, plan, teacher.spec.classes)
    previous = load_run(out) if (out / RUN_FILE).is_file() else None
    if processes.is_first_process() and (previous is None or previous.steps < plan.max_steps):
        line = check_memory(cohort, plan, teacher.spec.classes)
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
    options = _options(plan, teacher, wanted) | {"cohort": prepared.key}
    if table is not None:
        prepared = replace(prepared, attributes=table.encode())
        options |= {"attributes": hashlib.sha256(json.dumps(table.as_dict()).encode()).hexdigest()}
    resumed = check_folder(out, options, previous)
    if previous is not None and previous.steps >= plan.max_steps:
        remove_partial(out)
        return previous
    spec = _spec(teacher.spec, prepared)
    trainer, module, stop = _assemble(prepared, spec, out, plan, wanted, options, teacher, progress=progress)
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
            print(_describe(spec, teacher, plan, wanted.consistency), file=sys.stderr, flush=True)
    fit(trainer, module, make_loaders(prepared, trainer, plan), stop, out / CHECKPOINT if resumed else None)
    return load_run(out)


def training_plan(teacher: Run, wanted: DistillationPlan) -> TrainingPlan:
    """Return the training that this distillation is: grid, network, condition and balance of the teacher, the rest as wanted.

    Raises `ConfigError` for a distilled teacher and `DataError` for one whose options cannot be read.
    """
    if teacher.distilled:
        raise ConfigError(
            f"{teacher.folder}: need a run of medsynth train to distill, got one that is distilled; try the run it came from"
        )
    options, spec = teacher.options, teacher.spec
    try:
        return TrainingPlan(
            max_steps=wanted.max_steps,
            batch_size=wanted.batch_size,
            accumulate=wanted.accumulate,
            label_dropout=float(options["label_dropout"]),
            leave_out="",
            # Student and target differ by less than bfloat16 resolves.
            precision="32-true",
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


def _options(plan: TrainingPlan, teacher: Run, wanted: DistillationPlan) -> dict[str, Any]:
    """Options as plain values, as a run of `medsynth train` has them, and from what and how it was distilled."""
    options = plain_options(plan)
    del options["reconstruction"]
    if plan.network.stem != "latent":
        del options["autoencoder"]
    return options | {
        "distilled": {
            "run": teacher.fingerprint[:16],
            "steps": teacher.steps,
            "consistency": dataclasses.asdict(wanted.consistency),
        }
    }


def _assemble(
    prepared: PreparedCohort,
    spec: RunSpec,
    out: Path,
    plan: TrainingPlan,
    wanted: DistillationPlan,
    options: dict[str, Any],
    teacher: Run,
    *,
    progress: bool,
) -> tuple[pl.Trainer, DistillationModule, StopOnSignal]:
    torch.manual_seed(plan.seed)
    denoiser, known = spec.build(), teacher.load_denoiser()
    denoiser.load_state_dict(known.state_dict())
    if plan.activation_checkpointing:
        checkpoint_activations(denoiser)
    module = DistillationModule(
        denoiser,
        classes=spec.classes,
        total_steps=plan.max_steps,
        consistency=wanted.consistency,
        teacher=known if wanted.consistency.teacher else None,
        optimiser=plan.optimiser,
        augment=plan.augment,
        condition=plan.condition,
        label_dropout=plan.label_dropout,
        accumulate=plan.accumulate,
        seed=plan.seed,
    )
    monitor = plan.monitor
    previews = Previews(
        prepared,
        monitor,
        out / "previews",
        seed=plan.seed,
        last_step=plan.max_steps,
        solver=SolverOptions(name="consistency"),
    )

    def keep(trained: DistillationModule, step: int) -> None:
        save_run(out, spec, trained.averaged, options=options, steps=step)

    trainer, stop = make_trainer(
        out,
        plan,
        keep,
        previews=previews if monitor.preview_every > 0 else None,
        validate=monitor.validate_every > 0 and len(prepared.indices(split="val")) > 0,
        progress=progress,
    )
    return trainer, module, stop


def _describe(spec: RunSpec, teacher: Run, plan: TrainingPlan, consistency: ConsistencyOptions) -> str:
    """One line on what is about to be distilled."""
    classes = ", ".join(f"{label} {count} scans" for label, count in zip(spec.classes, spec.class_counts, strict=True))
    stages = f"{consistency.stages} stages, {plan.max_steps} steps of {plan.batch_size} scans"
    return f"run {teacher.fingerprint[:16]} of {teacher.steps} steps to a consistency model; {classes}; {stages}"
