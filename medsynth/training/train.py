"""`medsynth train`: from a cohort to a run folder."""

from __future__ import annotations

import numpy as np

from medsynth.cohorts import Cohort
from medsynth.config import SolverOptions, TrainOptions
from medsynth.diffusion import resolve_solver
from medsynth.networks import Denoiser, checkpoint_activations
from medsynth.runs import Run, RunSpec, load_run
from medsynth.training.autoencoder import open_autoencoder, put_autoencoder
from medsynth.training.batches import class_shares, scan_data
from medsynth.training.callbacks import SamplePreviews
from medsynth.training.checkpoints import EarlyWeights
from medsynth.training.fitting import Training, check_options, open_previous
from medsynth.training.module import DiffusionModule
from medsynth.training.preflight import Preflight, check_precision, estimate_needs
from medsynth.training.spec import (
    build_untrained,
    load_start,
    make_spec,
    open_start,
    read_conditions,
    scan_shape,
    set_bands,
    trained_cohort,
)


def train_run(cohort: Cohort, options: TrainOptions) -> Run:
    """Train a denoiser on the training split of `cohort` and return its run; continue if `options.out` holds the same training.

    Raises `ConfigError` if the folder holds a training with other options (it names them), or if the `preflight` finds that a
    step needs more memory than there is, before any scan is prepared; `DataError` if the cohort cannot be used; and
    `KeyboardInterrupt` when a signal stopped the training, after a checkpoint was written.
    """
    check_options(options)
    cohort, classes = trained_cohort(cohort, options)
    options, autoencoder = open_autoencoder(cohort, options)
    options, start = open_start(options)
    before = start or autoencoder
    # Weights and text encoding belong together; fitted again on another machine, it might differ.
    known = [run for run in (start, open_previous(options)) if run is not None and run.spec.text]
    encoding = known[0].text_encoding(options.condition.text_encoder) if known else None
    conditions = read_conditions(cohort, options.condition, loading=options, encoding=encoding)
    shape = scan_shape(cohort, options.grid, mask=options.condition.mask, loading=options)
    denoiser = build_untrained(options, shape, classes, conditions)
    training = Training(
        options=options,
        cohort=cohort,
        classes=classes,
        grid=options.grid,
        # What was measured over the training split belongs to the weights.
        intensity=options.intensity if before is None else before.spec.intensity,
        mask=options.condition.mask,
        conditions=conditions,
        before=before,
    )
    training.check_needs(denoiser, shape, passes=int(options.preflight != "off"))
    prepared = training.prepare()
    if training.finished:
        return load_run(training.out)

    spec = make_spec(cohort, prepared, options, conditions=conditions, start=start)
    set_bands(denoiser, spec)
    if start is not None:
        load_start(denoiser, spec, start)
    elif autoencoder is not None and not training.resumed:  # a checkpoint holds the autoencoder
        put_autoencoder(denoiser, autoencoder, prepared, options)
    if options.activation_checkpointing:
        checkpoint_activations(denoiser)
    module = DiffusionModule(
        denoiser,
        classes=classes,
        total_steps=options.max_steps,
        noise=options.noise,
        optimiser=options.optimiser,
        augment=options.augment,
        condition=options.condition,
        label_dropout=options.label_dropout,
        accumulate_grad_batches=options.accumulate_grad_batches,
        seed=options.seed,
    )
    training.fit(
        module,
        spec,
        scan_data(prepared, options),
        SamplePreviews(prepared, options, resolve_solver(SolverOptions(), voxels=spec.voxels)),
        callbacks=[EarlyWeights(training.out, options.monitor.early_share)],
        lines=[describe_training(spec, denoiser, options), *advice(spec)],
    )
    return load_run(training.out)


def preflight_run(cohort: Cohort, options: TrainOptions) -> Preflight:
    """Return what `train_run` needs in memory and time; nothing is prepared or written. Raises as `train_run` does."""
    check_options(options)
    cohort, classes = trained_cohort(cohort, options)
    options = open_autoencoder(cohort, options)[0]
    conditions = read_conditions(cohort, options.condition, loading=options)
    shape = scan_shape(cohort, options.grid, mask=options.condition.mask, loading=options)
    denoiser = build_untrained(options, shape, classes, conditions)
    check_precision(denoiser, shape, options)
    return estimate_needs(denoiser, shape, options, quick=False)


def describe_training(spec: RunSpec, denoiser: Denoiser, options: TrainOptions) -> str:
    """Return one line on what is about to be trained: scans, shares of the draws, grid, size of the network."""
    shares = class_shares(np.array(spec.class_counts), options.balance)
    rows = zip(spec.classes, spec.class_counts, spec.class_patients, shares, strict=True)
    classes = ", ".join(
        f"{label}: {count} scans of {patients} patients ({share:.0%} of the draws)"
        for label, count, patients, share in rows
    )
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    grid = " x ".join(map(str, spec.shape[1:]))
    if denoiser.codec is not None:
        grid += f", latents {' x '.join(map(str, denoiser.noise_shape(spec.shape)))}"
    steps = f"{options.max_steps} steps of {options.batch_size} scans"
    if (world := options.devices * options.num_nodes) > 1:
        steps += f", {options.batch_size // world} in each of {world} processes"
    return f"{classes}; grid {grid}; {parameters / 1e6:.1f} million parameters; {steps}"


def advice(spec: RunSpec) -> list[str]:
    """Return what the user should know about the cohort before training."""
    notes = []
    if len(spec.shape) == 4:
        notes.append("volumes: tested on small volumes only; begin with a small grid.size")
    for label, scans, patients in zip(spec.classes, spec.class_counts, spec.class_patients, strict=True):
        known = f"{label}: {scans} training scans of {patients} patients"
        if patients < 10:
            notes.append(
                f"{known}; fewer than 10 patients do not show how the condition varies, so expect copies: check the "
                "memorisation curve"
            )
        elif scans < 0.05 * sum(spec.class_counts):
            notes.append(
                f"{known}; check the memorisation curve. In one experiment, synthetic scans changed a classifier's AUROC by "
                "+.017 with 10 real patients, +.007 (-.002 to +.017) with 40 and +.006 with 160; more real patients changed it "
                "far more: docs/rare_classes.md"
            )
    return notes
