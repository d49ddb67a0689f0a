"""`medsynth train --stage autoencoder`: from a cohort to an autoencoder that has been judged."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from medsynth.cohorts import Cohort, PreparedCohort, prepare_cohort
from medsynth.cohorts.channels import count_channels
from medsynth.cohorts.grid import grid_size
from medsynth.config import TrainingPlan
from medsynth.errors import ConfigError
from medsynth.files import remove_partial, write_text
from medsynth.networks.autoencoder import PatchCritic, build_autoencoder
from medsynth.runs import RUN_FILE, write_patients
from medsynth.scans import read_header
from medsynth.training.autoencoder import AutoencoderModule, ReconstructionPreviews
from medsynth.training.autoencoder_run import (
    AutoencoderRun,
    AutoencoderSpec,
    load_autoencoder,
    save_autoencoder,
    save_reconstruction,
)
from medsynth.training.fitting import (
    CHECKPOINT,
    check_folder,
    clear_partial,
    fit,
    make_loaders,
    make_trainer,
    plain_options,
)
from medsynth.training.reconstruction import measure_reconstruction
from medsynth.training.space import check_run_space, run_bytes
from medsynth.training.spec import trained_classes
from medsynth.training.train import check_plan, check_world

# Options that say nothing about an autoencoder.
_OTHERS = ("label_dropout", "network", "noise", "rare", "start")


def train_autoencoder(
    cohort: Cohort, out: Path, plan: TrainingPlan, *, cache_dir: Path | None = None, progress: bool = True
) -> AutoencoderRun:
    """Train an autoencoder on the training split of `cohort`, judge it, and return its run; continue what `out` holds.

    A finished one is judged anew where the limits are others. Raises `GateError` for one that misses a limit (its run stays,
    and says so), else what `train_run` raises.
    """
    check_world(plan)
    check_plan(plan)
    for name, value in (("autoencoder.run", plan.autoencoder.run), ("start.run", plan.start.run)):
        if value:
            raise ConfigError(f"{name}: need none to train an autoencoder, got {value}; try --stage diffusion")
    classes = trained_classes(cohort, plan)
    cohort = replace(cohort, rows=tuple(row for row in cohort.rows if row.label in classes))
    _check_space(cohort, out, plan)
    prepared = prepare_cohort(
        cohort,
        grid=plan.grid,
        intensity=plan.intensity,
        reading=plan.reading,
        classes=classes,
        cache_dir=cache_dir,
        progress=progress,
    )
    described = _options(plan)
    options = described | {"cohort": prepared.key}
    previous = load_autoencoder(out) if (out / RUN_FILE).is_file() else None
    resumed = check_folder(out, options, previous, free=("reconstruction",))
    if previous is None or previous.steps < plan.max_steps:
        run = _train(cohort, prepared, out, plan, described, options, resumed=resumed, progress=progress)
    else:
        remove_partial(out)
        run = _judge(previous, cohort, prepared, plan, progress=progress)
    run.check_gate()
    return run


def _train(
    cohort: Cohort,
    prepared: PreparedCohort,
    out: Path,
    plan: TrainingPlan,
    described: dict[str, Any],
    options: dict[str, Any],
    *,
    resumed: bool,
    progress: bool,
) -> AutoencoderRun:
    train = prepared.indices(split="train")
    spec = AutoencoderSpec(
        classes=prepared.classes,
        class_counts=tuple(int((prepared.labels[train] == number).sum()) for number in range(len(prepared.classes))),
        shape=tuple(int(length) for length in prepared.scans.shape[1:]),
        intensity=prepared.intensity,
        autoencoder=plan.autoencoder,
    )
    torch.manual_seed(plan.seed)
    codec = spec.build()
    codec.autoencoder.use_checkpoint = plan.activation_checkpointing
    module = AutoencoderModule(
        codec,
        plan.autoencoder,
        shape=spec.shape,
        classes=spec.classes,
        total_steps=plan.max_steps,
        optimiser=plan.optimiser,
        augment=plan.augment,
        accumulate=plan.accumulate,
        seed=plan.seed,
    )
    monitor = plan.monitor
    shown = ReconstructionPreviews(prepared, monitor, out / "previews", last_step=plan.max_steps)
    trainer, stop = make_trainer(
        out,
        plan,
        lambda trained, step: save_autoencoder(out, spec, trained.averaged, options=options, steps=step),
        previews=shown if monitor.preview_every else None,
        validate=monitor.validate_every > 0 and len(prepared.indices(split="val")) > 0,
        progress=progress,
    )
    clear_partial(out, trainer)
    if trainer.is_global_zero:
        write_text(out / "config.yaml", yaml.safe_dump(described, sort_keys=False))
        if not resumed:
            splits = ("train", "val")
            write_patients(out, {each: [row.patient_id for row in cohort.select(split=each).rows] for each in splits})
        if progress:
            print(_describe(spec, codec.shape(spec.shape), plan), file=sys.stderr, flush=True)
    fit(trainer, module, make_loaders(prepared, trainer, plan), stop, out / CHECKPOINT if resumed else None)
    if trainer.is_global_zero:
        _judge(load_autoencoder(out), cohort, prepared, plan, progress=progress)
    trainer.strategy.barrier()
    return load_autoencoder(out)


def _judge(
    run: AutoencoderRun, cohort: Cohort, prepared: PreparedCohort, plan: TrainingPlan, *, progress: bool
) -> AutoencoderRun:
    """The run with a verdict by the limits of the plan; what was measured before is not measured again."""
    found = run.reconstruction
    if found is None:
        gpu = plan.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        found = measure_reconstruction(
            run.load_codec("cuda" if gpu else "cpu"),
            prepared,
            cohort,
            grid=plan.grid,
            reading=plan.reading,
            limits=plan.reconstruction,
            progress=progress,
        )
    found = replace(found, limits=plan.reconstruction)
    if progress and found.failures():
        print(found.table(), file=sys.stderr, flush=True)
    return run if found == run.reconstruction else save_reconstruction(run, found)


def _check_space(cohort: Cohort, out: Path, plan: TrainingPlan) -> None:
    """Raise `ConfigError` for options that no autoencoder can be built of, or a disk too small for its run."""
    first = cohort.select(split="train").rows[0]
    size = grid_size(plan.grid, len(read_header(cohort.file_of(first), reading=plan.reading).shape) - 1)
    channels = count_channels(cohort, first, mask=False, reading=plan.reading)
    with torch.random.fork_rng(devices=[]):
        networks: list[nn.Module] = [build_autoencoder(plan.autoencoder, channels=channels, size=size)]
        if plan.autoencoder.adversarial_weight:
            networks.append(PatchCritic(channels=channels, size=size))
    parameters = sum(parameter.numel() for network in networks for parameter in network.parameters())
    check_run_space(out, run_bytes(parameters))


def _describe(spec: AutoencoderSpec, latents: tuple[int, ...], plan: TrainingPlan) -> str:
    """One line on what is about to be trained."""
    classes = ", ".join(f"{label} {count} scans" for label, count in zip(spec.classes, spec.class_counts, strict=True))
    parameters = sum(parameter.numel() for parameter in spec.build().parameters())
    scans, inner = (" x ".join(map(str, shape)) for shape in (spec.shape, latents))
    return (
        f"autoencoder of {classes}; {scans} to latents {inner}; {parameters / 1e6:.1f} million parameters; "
        f"{plan.max_steps} steps of {plan.batch_size} scans"
    )


def _options(plan: TrainingPlan) -> dict[str, Any]:
    """Options as plain values, without those that decide nothing here."""
    options = plain_options(plan)
    return {"stage": "autoencoder"} | {name: value for name, value in options.items() if name not in _OTHERS}
