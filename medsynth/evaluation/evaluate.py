"""`medsynth evaluate`: a real cohort and a synthetic set through the protocols, part by part."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsynth.cohorts import hash_scans
from medsynth.config import EvaluateOptions
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.downstream import DownstreamResult, check_downstream, make_task, score_downstream
from medsynth.evaluation.fidelity import FidelityResult, FidelitySettings, Sheet, score_fidelity
from medsynth.evaluation.inputs import Inputs, clipping_notes, open_inputs
from medsynth.evaluation.privacy import Copy, MembershipResult, PrivacyResult, score_membership, score_privacy
from medsynth.evaluation.privacy.nearness import equal_rows
from medsynth.evaluation.reader import ReaderStudy, check_reader_study, find_key, plan_study, score_files
from medsynth.evaluation.reports import seal_report
from medsynth.evaluation.verdict import build_report
from medsynth.files import name_of
from medsynth.processes import check_alone
from medsynth.runs import Run
from medsynth.runs.patients import own_key
from medsynth.scans import Scan


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What an evaluation found: the content of `report.json`, the scans for its contact sheets, and the suspicious pairs."""

    report: dict[str, Any]
    sheets: tuple[Sheet, ...] = ()
    pairs: tuple[Pair, ...] = ()
    study: ReaderStudy | None = None


@dataclass(frozen=True, eq=False)
class Pair:
    """A synthetic scan and the real training scan that it may copy, `(C, *spatial)` each, in [-1, 1], described by `copy`.

    `spacing` is the voxel size in millimetres along each spatial axis, where it is known.
    """

    copy: Copy
    synthetic: np.ndarray
    real: np.ndarray
    spacing: tuple[float, ...] | None = None


def evaluate_cohorts(options: EvaluateOptions, *, synthetic_scans: Sequence[Scan] | None = None) -> Evaluation:
    """Return the evaluation of a synthetic set against a real cohort.

    `synthetic_scans`, labelled scans of any generator, take the place of `options.synthetic`; they are written below
    `options.out` first. Classifiers are trained below `options.out`, where a second call continues. With `drop_copies`, the
    scans that the privacy gate flags are set aside first, and every other figure is about the rest.

    Raises `ConfigError` for options that allow no verdict, and errors as `open_inputs`. Before a classifier is trained,
    `ConfigError` for a reader study other than the known one, and `DataError` for answers about other scans.
    """
    clock = _Clock()
    _check(options)
    own_key()  # the report is sealed with it at the end, hours later perhaps
    out = Path(options.out)
    known = find_key(out) if options.reader_study else None
    answers = [Path(file) for file in options.reader_answers]
    readers = score_files(answers, out, seed=options.seed) if answers else None
    inputs = open_inputs(options, synthetic_scans=synthetic_scans)
    if readers is not None:
        readers.check_sets(inputs.hashes)
    identical = find_identical(inputs)
    clock.lap("prepare")
    gate: PrivacyResult | None = None
    pairs: tuple[Pair, ...] = ()
    if "privacy" in options.parts:
        gate, pairs = _judge_privacy(inputs)
        if options.drop_copies and gate.copies:
            dropped = [copy.synthetic_row for copy in gate.copies]
            inputs, identical = inputs.without(dropped), np.setdiff1d(identical, dropped)
        clock.lap("privacy")
    study = None
    if options.reader_study:
        study = plan_study(
            inputs.real.prepared, inputs.synthetic.prepared,
            count=options.reader_study, known=known, sets=inputs.hashes, seed=options.seed,
        )  # fmt: skip
    table: FidelityResult | None = None
    sheets: tuple[Sheet, ...] = ()
    if "fidelity" in options.parts:
        table, sheets = _score_fidelity(inputs)
        clock.lap("fidelity")
    notes = list(inputs.notes)
    if inputs.run is not None and options.intensity is None:
        notes += clipping_notes(inputs.real.cohort, inputs.real.prepared.intensity, loading=options)
    gain = None
    if "downstream" in options.parts:
        gain = _score_downstream(inputs, notes)
        clock.lap("downstream")
    if study is not None:
        notes += [f"A reader study of {options.reader_study} scans lies beside this report.", *study.key.notes()]
    report = build_report(
        table,
        privacy=gate,
        downstream=gain,
        reader_study=None if readers is None else readers.as_dict(),
        sets=inputs.hashes,
        settings=_settings(inputs),
        notes=notes,
        cost=clock.cost(inputs.run),
        identical=len(identical),
    )
    return Evaluation(report=seal_report(report), sheets=sheets, pairs=pairs, study=study)


def _check(options: EvaluateOptions) -> None:
    check_alone(options.devices)
    if not options.parts:
        raise ConfigError("parts: need at least one of fidelity, privacy and downstream, got none; try leaving it out")
    if options.drop_copies and "privacy" not in options.parts:
        raise ConfigError("drop_copies: need the part privacy, which finds copies; try --parts privacy,...")
    check_downstream(options.downstream)
    check_reader_study(options.reader_study)


def find_identical(inputs: Inputs) -> np.ndarray:
    """Return the synthetic rows that are real scans, ascending: equal files, or equal pixels on the grid."""
    quiet, real, synthetic = replace(inputs.options, progress=False), inputs.real, inputs.synthetic
    files = np.isin(hash_scans(synthetic.cohort, loading=quiet), hash_scans(real.cohort, loading=quiet))
    return np.flatnonzero(files | (equal_rows(synthetic.scans, real.scans) >= 0))


def _judge_privacy(inputs: Inputs) -> tuple[PrivacyResult, tuple[Pair, ...]]:
    """Run the privacy gate, with membership inference where there is a run, and return the most suspicious pairs."""
    options, real, synthetic = inputs.options, inputs.real, inputs.synthetic
    gate = score_privacy(
        real,
        synthetic,
        drop_copies=options.drop_copies,
        membership=None if inputs.run is None else infer_membership(inputs, inputs.run),
        seed=options.seed,
        progress=options.progress,
    )
    pairs = (
        Pair(copy, synthetic.scans[copy.synthetic_row], real.scans[copy.donor_row], real.spacing)
        for copy in gate.suspects
    )
    return gate, tuple(pairs)


def infer_membership(inputs: Inputs, run: Run) -> MembershipResult:
    """Return whether the run's denoiser gives its training patients away, or why that cannot be measured."""
    real = inputs.as_trained()
    here, there = (" x ".join(map(str, shape)) for shape in (real.scans.shape[1:], run.spec.shape))
    reason = None
    if run.distilled:
        # Its output is no mean of scans, so an AUC of 0.5 would mean nothing.
        reason = "a distilled run is no denoiser; evaluate a set of the run that it came from"
    elif run.spec.mask and real.prepared.channels[-1:] != ("mask",):
        reason = "the run makes masks, which the real cohort lacks"
    elif here != there:
        reason = f"the scans were compared on a grid of {here}, the run uses {there}"
    elif not set(real.classes) & set(run.classes):
        reason = "the run knows none of the classes"
    if reason is not None:
        return MembershipResult.unmeasured(reason)
    return score_membership(
        real,
        run.load_denoiser(),
        run.classes,
        labels=[real.classes.index(name) for name in inputs.synthetic.cohort.classes],
        seed=inputs.options.seed,
        progress=inputs.options.progress,
    )


def _score_fidelity(inputs: Inputs) -> tuple[FidelityResult, tuple[Sheet, ...]]:
    options, real, intensity = inputs.options, inputs.real, inputs.real.prepared.intensity
    table = score_fidelity(
        real,
        inputs.synthetic,
        extractor=inputs.extractor,
        settings=FidelitySettings(max_scans=options.fidelity_scans),
        seed=options.seed,
        progress=options.progress,
    )
    ends = intensity.low[0], intensity.high[0]
    return table, tuple(replace(sheet, spacing=real.spacing, ends=ends) for sheet in table.sheets)


def _score_downstream(inputs: Inputs, notes: list[str]) -> DownstreamResult | None:
    """Return the gain, or None with a further note if cohorts are too small to train and test a classifier."""
    options = inputs.options
    try:
        # Its errors name labels only.
        make_task(inputs.real.prepared, inputs.synthetic.prepared, rare_class=options.downstream.rare_class)
    except DataError as error:
        if len(options.parts) == 1:
            raise
        notes.append(f"The downstream gain was not measured: {error}.")
        return None
    return score_downstream(
        inputs.real,
        inputs.synthetic,
        further=inputs.further,
        options=options.downstream,
        folder=options.cache_folder() / "trainings" / name_of(options.out),
        seed=options.seed,
        progress=options.progress,
        extractor=inputs.extractor,
    )


def _settings(inputs: Inputs) -> dict[str, str | int | None]:
    run, real = inputs.run, inputs.real.prepared
    return {
        "real_scans": len(real.scans),
        "synthetic_scans": len(inputs.synthetic.scans),
        "grid": " x ".join(str(length) for length in real.scans.shape[2:]),
        "intensity": f"{list(real.intensity.low)} to {list(real.intensity.high)}",
        "features": f"{inputs.extractor.title} (sha256 {inputs.extractor.sha256[:16]})",
        "run": run.fingerprint[:16] if run else None,
        "steps_trained": run.steps if run else None,
        "seed": inputs.options.seed,
    }


class _Clock:
    """Measures how long each part of an evaluation takes; what a former call had finished counts as nothing."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, part: str) -> None:
        before, self._last = self._last, time.perf_counter()
        self._seconds[part] = round(self._last - before, 1)

    def cost(self, run: Run | None) -> dict[str, Any]:
        """Return the seconds of each part, the hardware, and about how long the steps of `run` took."""
        return {
            "seconds": self._seconds,
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "training_seconds": None if run is None else _training_seconds(run),
        }


def _training_seconds(run: Run) -> float | None:
    """Return about how long the steps of a run took, without validation and previews, from the rates in its `metrics.csv`."""
    metrics = run.read_metrics()
    batch = run.options.get("batch_size")
    if "scans_per_s" not in metrics or not batch:
        return None
    steps, rates = metrics["scans_per_s"]
    seconds, done = 0.0, 0
    for step, rate in zip(steps.tolist(), rates.tolist(), strict=True):
        # A step that was repeated after an interruption is logged twice.
        if rate > 0 and step > done:
            seconds += (step - done) * batch / rate
            done = step
    return round(seconds, 1)
