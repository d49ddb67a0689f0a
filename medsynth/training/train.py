"""`medsynth train`: from a cohort to a run folder."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml

from medsynth import processes
from medsynth.cohorts import Cohort, PreparedCohort, prepare_cohort
from medsynth.cohorts.attributes import read_attributes
from medsynth.config import TrainingPlan
from medsynth.errors import ConfigError
from medsynth.files import remove_partial, write_text
from medsynth.networks import checkpoint_activations
from medsynth.runs import RUN_FILE, Run, RunSpec, load_run, save_run, write_attributes, write_patients
from medsynth.training.autoencoder_run import AutoencoderRun, check_scans, open_autoencoder, put_autoencoder
from medsynth.training.batches import class_shares
from medsynth.training.callbacks import EarlyWeights, Previews, StopOnSignal
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
from medsynth.training.preflight import Preflight, check_memory, check_precision, preflight_training
from medsynth.training.space import check_training_space
from medsynth.training.spec import make_spec, trained_classes
from medsynth.training.start import freeze, load_start, parse_parents


def train_run(
    cohort: Cohort,
    out: Path,
    plan: TrainingPlan,
    *,
    cache_dir: Path | None = None,
    preflight: bool = True,
    progress: bool = True,
) -> Run:
    """Train a denoiser on the training split of `cohort` and return its run; continue if `out` holds the same training.

    Raises `ConfigError` when `out` holds a training with other options (it names them), `DataError` when the cohort
    cannot be used, and `KeyboardInterrupt` after a signal stopped the training and a checkpoint was written. The `preflight`
    raises `ConfigError`, too, for a step that takes more memory than there is, before any scan is prepared.
    """
    check_world(plan)
    check_plan(plan)
    plan, autoencoder = open_autoencoder(plan)
    classes = trained_classes(cohort, plan)
    parents = parse_parents(plan.rare, classes)
    # A class without training scans cannot be learnt: leave its val and test scans out.
    cohort = replace(cohort, rows=tuple(row for row in cohort.rows if row.label in classes))
    start = load_run(plan.start.run) if plan.start.run else None
    before = start or autoencoder
    if plan.condition.mask and autoencoder is not None:
        raise ConfigError("condition.mask: need network.stem haar or pixel, got latent; try condition.mask false")
    if start is not None and start.spec.mask != plan.condition.mask:
        raise ConfigError(f"condition.mask: need {start.spec.mask} as in start.run, got {plan.condition.mask}")
    table = read_attributes(cohort, plan.condition, reading=plan.reading)
    check_training_space(cohort, out, plan, classes)
    previous = load_run(out) if (out / RUN_FILE).is_file() else None
    if preflight and processes.is_first_process() and (previous is None or previous.steps < plan.max_steps):
        line = check_memory(cohort, plan, classes)
        if progress:
            print(line, file=sys.stderr, flush=True)
    prepared = prepare_cohort(
        cohort,
        grid=plan.grid,
        # What is measured over the training split was measured when the weights were trained.
        intensity=plan.intensity if before is None else before.spec.intensity,
        reading=plan.reading,
        classes=classes,
        mask=plan.condition.mask,
        cache_dir=cache_dir,
        progress=progress,
    )
    if autoencoder is not None:
        check_scans(autoencoder, prepared)
    described = _options(plan, start)
    options = described | {"cohort": prepared.key}
    if table is not None:
        prepared = replace(prepared, attributes=table.encode())
        options |= {"attributes": hashlib.sha256(json.dumps(table.as_dict()).encode()).hexdigest()}
    resumed = check_folder(out, options, previous)
    if previous is not None and previous.steps >= plan.max_steps:
        remove_partial(out)
        return previous
    attributes = () if table is None else table.attributes
    spec = make_spec(cohort, prepared, plan, parents=parents, attributes=attributes, start=start)

    # A checkpoint holds the autoencoder, and so do the weights of another run.
    latent = None if resumed or start is not None else autoencoder
    trainer, module, stop = _assemble(
        prepared, spec, out, plan, options, start=start, autoencoder=latent, progress=progress
    )
    clear_partial(out, trainer)
    if trainer.is_global_zero:
        write_text(out / "config.yaml", yaml.safe_dump(described, sort_keys=False))
        if not resumed:
            write_patients(
                out,
                {split: [row.patient_id for row in cohort.select(split=split).rows] for split in ("train", "val")},
                start=before,
            )
            if table is not None:
                write_attributes(out, table.select(prepared.indices(split="train")))
        if progress:
            print("\n".join([describe_training(spec, plan), *advice(spec)]), file=sys.stderr, flush=True)
    loaders = make_loaders(prepared, trainer, plan)
    fit(trainer, module, loaders, stop, out / CHECKPOINT if resumed else None)
    return load_run(out)


def preflight_run(cohort: Cohort, plan: TrainingPlan) -> Preflight:
    """Return what `train_run` will take in memory and time; nothing is prepared or written. Raises as `train_run` does."""
    check_plan(plan)
    plan, _ = open_autoencoder(plan)
    return preflight_training(cohort, plan, trained_classes(cohort, plan))


def check_world(plan: TrainingPlan) -> None:
    """Refuse a launcher whose number of processes differs from what the options say (`ConfigError`)."""
    processes.check_world(devices=plan.devices, num_nodes=plan.num_nodes)


def check_plan(plan: TrainingPlan) -> None:
    """Raise `ConfigError` for a number that no training can work with."""
    monitor = plan.monitor
    positive = {
        "max_steps": plan.max_steps,
        "batch_size": plan.batch_size,
        "devices": plan.devices,
        "num_nodes": plan.num_nodes,
        "accumulate": plan.accumulate,
        "monitor.log_every": monitor.log_every,
        "monitor.checkpoint_every": monitor.checkpoint_every,
        "monitor.preview_scans": monitor.preview_scans,
        "monitor.memorisation_scans": monitor.memorisation_scans,
        "monitor.validation_scans": monitor.validation_scans,
        "network.residual_blocks": plan.network.residual_blocks,
        "noise.std": plan.noise.std,
    }
    for name, value in positive.items():
        if value <= 0:
            raise ConfigError(f"{name}: need a number above 0, got {value}")
    scans, rest = divmod(plan.batch_size, plan.devices * plan.num_nodes)
    if not rest and scans % plan.accumulate:
        better = max(parts for parts in range(1, plan.accumulate) if scans % parts == 0)
        raise ConfigError(
            f"accumulate: need a divisor of the {scans} scans of a step on each process, got {plan.accumulate}; try {better}"
        )
    not_negative = {
        "num_workers": plan.num_workers,
        "monitor.validate_every": monitor.validate_every,
        "monitor.preview_every": monitor.preview_every,
        "optimiser.learning_rate": plan.optimiser.learning_rate,
    }
    for name, value in not_negative.items():
        if value < 0:
            raise ConfigError(f"{name}: need 0 or more, got {value}")
    shares = {
        "label_dropout": plan.label_dropout,
        "condition.dropout": plan.condition.dropout,
        "condition.given": plan.condition.given,
        "network.dropout": plan.network.dropout,
        "augment.probability": plan.augment.probability,
        "optimiser.ema_decay": plan.optimiser.ema_decay,
        "monitor.early_share": monitor.early_share,
    }
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name}: need a number from 0 to 1, got {value}")
    if plan.start.trainable != "all" and not plan.start.run:
        raise ConfigError(
            f"start.trainable: need start.run to begin from, got {plan.start.trainable} without it; try --start.run"
        )


def describe_training(spec: RunSpec, plan: TrainingPlan) -> str:
    """Return one line on what is about to be trained: scans, shares of the draws, grid, size of the network."""
    shares = class_shares(np.array(spec.class_counts), plan.balance)
    classes = ", ".join(
        f"{label} {count} scans of {patients} patients ({share:.0%} of the draws)"
        for label, count, patients, share in zip(
            spec.classes, spec.class_counts, spec.class_patients, shares, strict=True
        )
    )
    denoiser = spec.build()
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    grid = " x ".join(map(str, spec.shape[1:]))
    if denoiser.codec is not None:
        grid += f", latents {' x '.join(map(str, denoiser.noise_shape(spec.shape)))}"
    world = plan.devices * plan.num_nodes
    steps = f"{plan.max_steps} steps of {plan.batch_size} scans"
    if world > 1:
        steps += f", {plan.batch_size // world} in each of {world} processes"
    return f"{classes}; grid {grid}; {parameters / 1e6:.1f} million parameters; {steps}"


def advice(spec: RunSpec) -> list[str]:
    """Return what the user should know about the cohort before training."""
    notes = []
    if len(spec.shape) == 4:
        notes.append(
            "volumes: the code is the same as for pictures, but tried on small ones only; begin with a small grid.size"
        )
    total = sum(spec.class_counts)
    for label, scans, patients in zip(spec.classes, spec.class_counts, spec.class_patients, strict=True):
        if patients < 10:
            notes.append(
                f"{label}: {scans} training scans of {patients} patients; fewer than 10 patients cannot show how a condition "
                "varies, expect copies: check the memorisation curve"
            )
        elif scans < 0.05 * total:
            notes.append(
                f"{label}: {scans} training scans of {patients} patients; watch its memorisation curve. In one experiment "
                "synthetic scans changed a classifier's AUROC by +.017 where 10 patients were known, +.007 (-.002 to +.017) with "
                "40 and +.006 with 160, real ones by far more: docs/rare_classes.md, `medsynth run rare_class_2d`"
            )
    return notes


def _assemble(
    prepared: PreparedCohort,
    spec: RunSpec,
    out: Path,
    plan: TrainingPlan,
    options: dict[str, Any],
    *,
    start: Run | None,
    autoencoder: AutoencoderRun | None,
    progress: bool,
) -> tuple[pl.Trainer, DiffusionModule, StopOnSignal]:
    torch.manual_seed(plan.seed)
    denoiser = spec.build()
    if autoencoder is not None:
        put_autoencoder(denoiser, autoencoder, prepared, plan)
    if start is not None:
        load_start(denoiser, spec, start)
    freeze(denoiser, plan.start)
    check_precision(denoiser, spec.shape, plan)
    if plan.activation_checkpointing:
        checkpoint_activations(denoiser)
    module = DiffusionModule(
        denoiser,
        classes=spec.classes,
        total_steps=plan.max_steps,
        noise=plan.noise,
        optimiser=plan.optimiser,
        augment=plan.augment,
        condition=plan.condition,
        label_dropout=plan.label_dropout,
        accumulate=plan.accumulate,
        seed=plan.seed,
    )
    monitor = plan.monitor
    scans = monitor.preview_every > 0
    trainer, stop = make_trainer(
        out,
        plan,
        lambda trained, step: _keep(out, spec, trained, options, step),
        previews=Previews(prepared, monitor, out / "previews", seed=plan.seed, last_step=plan.max_steps)
        if scans
        else None,
        validate=monitor.validate_every > 0 and len(prepared.indices(split="val")) > 0,
        progress=progress,
        before=[EarlyWeights(out, monitor.early_share)],
    )
    return trainer, module, stop


def _keep(out: Path, spec: RunSpec, module: DiffusionModule, options: dict[str, Any], step: int) -> None:
    save_run(out, spec, module.averaged, options=options, steps=step)


def _options(plan: TrainingPlan, start: Run | None) -> dict[str, Any]:
    """Options as plain JSON and YAML values; a run to start from is named by its weights, not by its path."""
    options = plain_options(plan)
    del options["reconstruction"]
    if plan.network.stem != "latent":
        del options["autoencoder"]
    if start is not None:
        options["start"]["run"] = start.fingerprint[:16]
    return options
