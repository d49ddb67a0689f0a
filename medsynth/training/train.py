"""`medsynth train`: from a cohort to a run folder."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from medsynth.cohorts import Cohort, PreparedCohort, ScanDataset, prepare_cohort
from medsynth.config import TrainingPlan, changed_options
from medsynth.errors import ConfigError
from medsynth.files import remove_partial, write_text
from medsynth.runs import (
    METRICS_FILE,
    PATIENTS_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    Run,
    RunSpec,
    load_run,
    save_run,
    write_patients,
)
from medsynth.seeds import numpy_generator
from medsynth.training.batches import StepSampler, class_shares, make_loader
from medsynth.training.callbacks import Previews, Progress, RunKeeper, StopOnSignal, Throughput
from medsynth.training.checkpoints import AtomicCheckpointIO, MetricsLog, check_checkpoint
from medsynth.training.module import DiffusionModule
from medsynth.training.space import check_training_space
from medsynth.training.spec import make_spec, trained_classes
from medsynth.training.start import freeze, load_start, parse_parents

CHECKPOINT = Path("checkpoints") / "last.ckpt"
# Files of a run that was killed before its first run.json.
_OWN = (WEIGHTS_FILE, PATIENTS_FILE, METRICS_FILE, "config.yaml", "previews", "checkpoints", "tensorboard")
# What may change between two calls of the same training. The number of processes changes which dropout masks are drawn (and a
# GPU draws other noise than a CPU), so weights are the same to the last bit only where these stay.
_FREE = ("accelerator", "devices", "num_nodes", "num_workers", "monitor", "reading")


def train_run(
    cohort: Cohort, out: Path, plan: TrainingPlan, *, cache_dir: Path | None = None, progress: bool = True
) -> Run:
    """Train a denoiser on the training split of `cohort` and return its run; continue if `out` holds the same training.

    Raises `ConfigError` when `out` holds a training with other options (it names them), `DataError` when the cohort
    cannot be used, and `KeyboardInterrupt` after a signal stopped the training and a checkpoint was written.
    """
    check_world(plan)
    check_plan(plan)
    classes = trained_classes(cohort, plan)
    parents = parse_parents(plan.rare, classes)
    # A class without training scans cannot be learnt: leave its val and test scans out.
    cohort = replace(cohort, rows=tuple(row for row in cohort.rows if row.label in classes))
    start = load_run(plan.start.run) if plan.start.run else None
    check_training_space(cohort, out, plan, classes)
    prepared = prepare_cohort(
        cohort,
        grid=plan.grid,
        # What is measured over the training split was measured when the weights were trained.
        intensity=plan.intensity if start is None else start.spec.intensity,
        reading=plan.reading,
        classes=classes,
        cache_dir=cache_dir,
        progress=progress,
    )
    described = _options(plan, start)
    options = described | {"cohort": prepared.key}
    checkpoint = out / CHECKPOINT
    resumed = checkpoint.is_file()
    if (out / RUN_FILE).is_file():
        previous = load_run(out)
        if changed := changed_options(previous.options, options, free=_FREE):
            raise ConfigError(
                f"{out}: need the options that this run was started with, got {'; '.join(changed)}; try another --out"
            )
        if previous.steps >= plan.max_steps:
            remove_partial(out)
            return previous
    elif resumed:
        raise ConfigError(f"{out}: need {RUN_FILE} beside the checkpoint, got none; try another --out")
    elif out.is_dir() and not all(_is_own(path.name) for path in out.iterdir()):
        raise ConfigError(
            f"{out}: need a new folder or a run to continue, got a folder with other files; try another --out"
        )
    if resumed:
        check_checkpoint(checkpoint, checkpoint.parent)
    spec = make_spec(cohort, prepared, plan, parents=parents, start=start)

    trainer, module, stop = _assemble(prepared, spec, out, plan, options, start=start, progress=progress)
    if trainer.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        remove_partial(out)
        write_text(out / "config.yaml", yaml.safe_dump(described, sort_keys=False))
        if not resumed:
            write_patients(
                out,
                {split: [row.patient_id for row in cohort.select(split=split).rows] for split in ("train", "val")},
                start=start,
            )
        if progress:
            print("\n".join([describe_training(spec, plan), *advice(spec)]), file=sys.stderr, flush=True)
    loaders = _loaders(prepared, trainer, plan)
    with warnings.catch_warnings():
        for text in (".*does not have many workers.*", ".*tensorboard.*", ".*Checkpoint directory.*", ".*LeafSpec.*"):
            warnings.filterwarnings("ignore", text)
        # Everything in a run's own checkpoint is plain tensors and numbers; nothing else is loaded.
        try:
            trainer.fit(module, *loaders, ckpt_path=checkpoint if resumed else None, weights_only=True)
        except SystemExit as error:  # Lightning's answer to a second Ctrl-C
            raise KeyboardInterrupt("at once; the same command continues from the last checkpoint") from error
        finally:
            stop.restore_signals()
    trainer.strategy.barrier()  # the first rank has written the run
    if stop.stopped:
        raise KeyboardInterrupt(f"stopped at step {trainer.global_step}; the same command continues from there")
    return load_run(out)


def check_world(plan: TrainingPlan) -> None:
    """Refuse a launcher whose number of processes differs from what the options say (`ConfigError`)."""
    world = os.environ.get("WORLD_SIZE")
    expected = plan.devices * plan.num_nodes
    if world is not None and int(world) != expected:
        raise ConfigError(
            f"WORLD_SIZE: need {expected} processes (devices={plan.devices} x num_nodes={plan.num_nodes}), got {world}; "
            "try --devices with the processes of one node and --num_nodes"
        )


def check_plan(plan: TrainingPlan) -> None:
    """Raise `ConfigError` for a number that no training can work with."""
    monitor = plan.monitor
    positive = {
        "max_steps": plan.max_steps,
        "batch_size": plan.batch_size,
        "devices": plan.devices,
        "num_nodes": plan.num_nodes,
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
        "network.dropout": plan.network.dropout,
        "augment.probability": plan.augment.probability,
        "optimiser.ema_decay": plan.optimiser.ema_decay,
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
    parameters = sum(parameter.numel() for parameter in spec.build().parameters())
    grid = " x ".join(map(str, spec.shape[1:]))
    return f"{classes}; grid {grid}; {parameters / 1e6:.1f} million parameters; {plan.max_steps} steps of {plan.batch_size} scans"


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
                "synthetic scans changed a classifier's AUROC by +.017 where 10 patients were known, +.009 with 40 and +.006 "
                "with 160: docs/rare_classes.md, `medsynth run rare_class_2d`"
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
    progress: bool,
) -> tuple[pl.Trainer, DiffusionModule, StopOnSignal]:
    torch.manual_seed(plan.seed)
    denoiser = spec.build()
    if start is not None:
        load_start(denoiser, spec, start)
    freeze(denoiser, plan.start)
    module = DiffusionModule(
        denoiser,
        classes=spec.classes,
        total_steps=plan.max_steps,
        noise=plan.noise,
        optimiser=plan.optimiser,
        augment=plan.augment,
        label_dropout=plan.label_dropout,
        seed=plan.seed,
    )
    monitor = plan.monitor
    keeper = RunKeeper(lambda trained, step: _keep(out, spec, trained, options, step), monitor.checkpoint_every)
    stop = StopOnSignal(out / CHECKPOINT, keeper)
    callbacks: list[Callback] = [stop, keeper]
    if progress:
        callbacks.append(Progress())
    if monitor.preview_every:
        callbacks.append(Previews(prepared, monitor, out / "previews", seed=plan.seed, last_step=plan.max_steps))
    callbacks.append(Throughput(monitor.log_every, plan.batch_size))  # last, so that previews do not count as waiting
    callbacks.append(
        ModelCheckpoint(
            dirpath=out / CHECKPOINT.parent,
            filename=CHECKPOINT.stem,
            every_n_train_steps=monitor.checkpoint_every,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
    )
    log = MetricsLog(out / METRICS_FILE)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    validate = monitor.validate_every and len(prepared.indices(split="val")) > 0
    try:
        trainer = pl.Trainer(
            accelerator=plan.accelerator,
            devices=plan.devices,
            num_nodes=plan.num_nodes,
            precision=plan.precision,
            max_steps=plan.max_steps,
            max_epochs=-1,
            deterministic=plan.deterministic,
            val_check_interval=min(monitor.validate_every, plan.max_steps) if validate else None,
            check_val_every_n_epoch=None,
            limit_val_batches=None if validate else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=min(monitor.log_every, plan.max_steps),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO(out / CHECKPOINT.parent), *_environment()],
            callbacks=callbacks,
            logger=[log, *_tensorboard(out, plan)],
            default_root_dir=out,
        )
    except MisconfigurationException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"accelerator: need devices that are there, got {plan.accelerator!r}: {reason}; try auto"
        ) from error
    return trainer, module, stop


def _loaders(prepared: PreparedCohort, trainer: pl.Trainer, plan: TrainingPlan) -> tuple[Any, Any]:
    train = prepared.indices(split="train")
    labels = prepared.labels[train]
    sampler = StepSampler(
        labels,
        shares=class_shares(np.bincount(labels, minlength=len(prepared.classes)), plan.balance),
        batch_size=plan.batch_size,
        total_steps=plan.max_steps,
        seed=plan.seed,
        first_step=lambda: trainer.global_step,
        rank=trainer.global_rank,
        world=trainer.world_size,
    )
    everyone = _validation_scans(prepared, plan)
    # As many for every rank: a rank without scans would miss the collective calls of validation.
    whole = len(everyone) // trainer.world_size * trainer.world_size
    chosen = everyone[:whole][trainer.global_rank :: trainer.world_size]
    validation = DataLoader(ScanDataset(prepared, chosen), batch_size=max(1, plan.batch_size // trainer.world_size))
    loader = make_loader(ScanDataset(prepared, train), sampler, num_workers=plan.num_workers)
    return loader, validation if len(chosen) else None


def _validation_scans(prepared: PreparedCohort, plan: TrainingPlan) -> np.ndarray:
    """Validation scans, as evenly over the classes as they allow, the same in every call."""
    groups = [prepared.indices(split="val", label=number) for number in range(len(prepared.classes))]
    share = math.ceil(plan.monitor.validation_scans / max(1, sum(len(group) > 0 for group in groups)))
    chosen = [
        numpy_generator(plan.seed, "validation", number).permutation(group)[:share]
        for number, group in enumerate(groups)
    ]
    return np.sort(np.concatenate(chosen))


def _keep(out: Path, spec: RunSpec, module: DiffusionModule, options: dict[str, Any], step: int) -> None:
    save_run(out, spec, module.averaged, options=options, steps=step)


def _options(plan: TrainingPlan, start: Run | None) -> dict[str, Any]:
    """Options as plain JSON and YAML values; a run to start from is named by its weights, not by its path."""
    options = json.loads(json.dumps(dataclasses.asdict(plan)))
    if start is not None:
        options["start"]["run"] = start.fingerprint[:16]
    return options


def _is_own(name: str) -> bool:
    return name in _OWN or name.startswith(".partial-")


def _environment() -> list[Any]:
    """Without a launcher in the environment, keep Lightning from probing clusters that only look alike."""
    launched = any(name in os.environ for name in ("WORLD_SIZE", "SLURM_NTASKS", "LOCAL_RANK"))
    return [] if launched else [LightningEnvironment()]


def _tensorboard(out: Path, plan: TrainingPlan) -> list[Any]:
    if not plan.monitor.tensorboard:
        return []
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return [TensorBoardLogger(save_dir=out, name="tensorboard", version="")]
    except ModuleNotFoundError as error:
        raise ConfigError(
            "monitor.tensorboard: need the package tensorboard, got none; try pip install 'medsynth-diffusion[tensorboard]'"
        ) from error
