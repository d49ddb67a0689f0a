"""`medsynth evaluate`: a real cohort and a synthetic set, brought to one grid and range, through the protocols."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medsynth.cohorts import Cohort, PreparedCohort, hash_cohort, prepare_cohort
from medsynth.config import (
    DownstreamOptions,
    FeatureOptions,
    FidelityOptions,
    GridOptions,
    IntensityOptions,
    PrivacyOptions,
    ReadingOptions,
)
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.cost import Clock
from medsynth.evaluation.downstream import DownstreamResult, check_downstream, make_task, score_downstream
from medsynth.evaluation.features import cached_features
from medsynth.evaluation.fidelity import FidelityResult, Sheet, check_options, score_fidelity
from medsynth.evaluation.inputs import (
    check_patients,
    check_run,
    clipping_notes,
    open_real,
    open_synthetic,
    read_provenance,
)
from medsynth.evaluation.privacy import Copy, PrivacyResult, check_privacy_options, score_privacy
from medsynth.evaluation.reader import ReaderResult, ReaderStudy, StudyKey, check_reader_study, plan_study
from medsynth.evaluation.selection import selection_note
from medsynth.evaluation.verdict import build_report
from medsynth.measures.extractors import open_extractor
from medsynth.measures.features import Extractor
from medsynth.processes import check_alone
from medsynth.runs import Run
from medsynth.scans import Intensity, read_header

Part = Literal["fidelity", "privacy", "downstream"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What an evaluation found: the content of `report.json`, the scans for its contact sheets, and the suspicious pairs."""

    report: dict[str, Any]
    sheets: tuple[Sheet, ...]
    pairs: tuple[Pair, ...]
    study: ReaderStudy | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A synthetic scan and the real training scan that it may copy, `(C, *spatial)` each, in [-1, 1]; `copy` tells more.

    `spacing` is the voxel size in millimetres along each spatial axis, where it is known.
    """

    copy: Copy
    synthetic: np.ndarray
    real: np.ndarray
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    """One side of the comparison, prepared, with its features `(N, D)`."""

    cohort: Cohort
    prepared: PreparedCohort
    features: np.ndarray


def evaluate_cohorts(
    real: Path,
    synthetic: Path,
    *,
    work: Path,
    parts: Sequence[Part] = ("fidelity", "privacy", "downstream"),
    run: Run | None = None,
    ceiling: Path | None = None,
    drop_copies: bool = False,
    grid: GridOptions | None = None,
    intensity: IntensityOptions | None = None,
    features: FeatureOptions = FeatureOptions(),
    fidelity: FidelityOptions = FidelityOptions(),
    privacy: PrivacyOptions = PrivacyOptions(),
    downstream: DownstreamOptions = DownstreamOptions(),
    reading: ReadingOptions = ReadingOptions(),
    cache_dir: Path | None = None,
    reader_study: int = 0,
    known_study: StudyKey | None = None,
    readers: ReaderResult | None = None,
    devices: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Return the evaluation of a synthetic set against a real cohort; both may be a cohort CSV or its folder.

    Without `grid` both sides are brought to the grid of the run, or else of the synthetic scans; without `intensity` both take
    the range of the run, or else percentiles of the real training split. A CSV of synthetic scans may have the columns `path`
    and `label` only. Classifiers are trained in the folder `work`, where a second call goes on. With `drop_copies` the scans
    that the privacy gate finds to be copies are set aside first, and everything is about the rest. `ceiling` is a cohort
    with more real scans, for the figures that these would reach. `reader_study` is how many scans to select for readers,
    `known_study` the key of the study that the report folder holds, `readers` what was answered to it. Features are extracted in
    `devices` processes, which this one starts; everything else is done here.

    Raises `ConfigError` for options that leave nothing to tell, and `DataError` for cohorts that cannot be compared, a set
    that another run made, or a run that saw patients of the test split; all before any scan is read.
    Before a classifier is trained, `ConfigError` for a reader study other than the known one, and `DataError` for answers
    about other scans.
    """
    clock = Clock()
    check_alone(devices)
    _check_parts(parts, drop_copies=drop_copies)
    check_options(fidelity)
    check_privacy_options(privacy)
    check_downstream(downstream)
    check_reader_study(reader_study)
    real_cohort = open_real(real)
    made = open_synthetic(synthetic, real_cohort)
    more = _beyond(open_real(ceiling), real_cohort, ceiling) if ceiling is not None else None
    if run is not None:
        check_run(made, run)
        check_patients(real_cohort, run)
    extractor = open_extractor(features)
    chosen: IntensityOptions | Intensity = intensity or (run.spec.image_intensity if run else IntensityOptions())
    shared = grid or (run.grid if run else _grid_of(made, reading))
    prepare = partial(
        _prepared, extractor=extractor, reading=reading, cache_dir=cache_dir, devices=devices,
        reopen=partial(open_extractor, features), progress=progress,
    )  # fmt: skip
    one = prepare(real_cohort, "real", grid=shared, intensity=chosen)
    sets = {
        name: hash_cohort(cohort, cache_dir=cache_dir, progress=False)
        for name, cohort in (("real", real_cohort), ("synthetic", made))
    }
    if readers is not None:
        readers.check_sets(sets)
    # Synthetic scans lie as the real ones were laid, and have no masks to lay them by.
    laid = replace(shared, centre="scan")
    other = prepare(made, "synthetic", grid=laid, intensity=one.prepared.intensity)

    clock.lap("prepare")
    gate: PrivacyResult | None = None
    pairs: tuple[Pair, ...] = ()
    if "privacy" in parts:
        gate = score_privacy(
            one.prepared, other.prepared, real_features=one.features, synthetic_features=other.features,
            options=replace(privacy, drop_copies=privacy.drop_copies or drop_copies), run=run, seed=seed, progress=progress,
            members=_with_masks(real_cohort, run, one.prepared, shared, reading, cache_dir, progress),
        )  # fmt: skip
        pairs = tuple(
            Pair(
                copy=copy,
                synthetic=other.prepared.scans[copy.synthetic_row],
                real=one.prepared.scans[copy.donor_row],
                spacing=_spacing(one.prepared),
            )
            for copy in gate.suspects
        )
        if gate.options.drop_copies and gate.copies:
            kept = _without(made, [copy.synthetic_row for copy in gate.copies])
            other = prepare(kept, "accepted synthetic", grid=laid, intensity=one.prepared.intensity)
        clock.lap("privacy")
    study = plan_study(one.prepared, other.prepared, count=reader_study, known=known_study, sets=sets, seed=seed)
    table: FidelityResult | None = None
    sheets: tuple[Sheet, ...] = ()
    if "fidelity" in parts:
        table = score_fidelity(
            one.prepared, other.prepared, real_features=one.features, synthetic_features=other.features,
            options=fidelity, extractor=extractor, seed=seed, progress=progress,
        )  # fmt: skip
        ends = (one.prepared.intensity.low[0], one.prepared.intensity.high[0])
        sheets = tuple(replace(sheet, spacing=_spacing(one.prepared), ends=ends) for sheet in table.sheets)
        clock.lap("fidelity")
    gain: DownstreamResult | None = None
    without_task = _why_no_task(one.prepared, other.prepared, downstream) if "downstream" in parts else None
    if without_task is not None and len(parts) == 1:
        raise without_task
    if "downstream" in parts and without_task is None:
        further = prepare(more, "ceiling", grid=shared, intensity=one.prepared.intensity) if more is not None else None
        gain = score_downstream(
            one.prepared, other.prepared, real_features=one.features, synthetic_features=other.features,
            extractor=extractor, options=downstream, folder=work, seed=seed, progress=progress,
            further=further.prepared if further else None, further_features=further.features if further else None,
        )  # fmt: skip
        clock.lap("downstream")
    settings: dict[str, str | int | float | None] = {
        "real_scans": len(one.prepared.scans),
        "synthetic_scans": len(other.prepared.scans),
        "grid": " x ".join(str(length) for length in one.prepared.scans.shape[2:]),
        "intensity": f"{list(one.prepared.intensity.low)} to {list(one.prepared.intensity.high)}",
        "features": f"{extractor.title} (sha256 {extractor.sha256[:16]})",
        "run": run.fingerprint[:16] if run else None,
        "steps_trained": run.steps if run else None,
        "seed": seed,
    }
    notes = clipping_notes(real_cohort, one.prepared.intensity, reading) if run and intensity is None else []
    if note := selection_note(read_provenance(made)):
        notes.append(note)
    if without_task is not None:
        notes.append(f"The downstream gain was not measured: {without_task}.")
    if study is not None:
        notes += [f"A reader study of {reader_study} scans lies beside this report.", *study.key.notes()]
    report = build_report(
        fidelity=table, privacy=gate, downstream=gain, sets=sets, settings=settings, notes=notes,
        cost=clock.cost(run), reader_study=None if readers is None else readers.as_dict(),
    )  # fmt: skip
    return Evaluation(report=report, sheets=sheets, pairs=pairs, study=study)


def _with_masks(
    real: Cohort,
    run: Run | None,
    prepared: PreparedCohort,
    grid: GridOptions,
    reading: ReadingOptions,
    cache_dir: Path | None,
    progress: bool,
) -> PreparedCohort:
    """Return the real scans as the run saw them: with their masks as a channel, where it makes masks and there are some."""
    if run is None or not run.spec.mask or all(row.mask is None for row in real.rows):
        return prepared
    return prepare_cohort(
        real,
        grid=grid,
        intensity=prepared.intensity,
        reading=reading,
        mask=True,
        cache_dir=cache_dir,
        progress=progress,
    )


def _spacing(prepared: PreparedCohort) -> tuple[float, ...]:
    return tuple(np.linalg.norm(prepared.affine[:3, : prepared.scans.ndim - 2], axis=0).tolist())


def _check_parts(parts: Sequence[str], *, drop_copies: bool) -> None:
    if not parts:
        raise ConfigError("parts: need one of fidelity, privacy and downstream at least, got none; try leaving it out")
    if drop_copies and "privacy" not in parts:
        raise ConfigError("drop_copies: need the part privacy, which finds copies, got none; try --parts privacy,...")


def _why_no_task(real: PreparedCohort, synthetic: PreparedCohort, options: DownstreamOptions) -> DataError | None:
    """Return what keeps a classifier from being trained and tested on small cohorts, or None; it names labels only."""
    try:
        make_task(real, synthetic, rare_class=options.rare_class)
    except DataError as error:
        return error
    return None


def _prepared(
    cohort: Cohort,
    name: str,
    *,
    grid: GridOptions,
    intensity: IntensityOptions | Intensity,
    extractor: Extractor,
    reading: ReadingOptions,
    cache_dir: Path | None,
    devices: int,
    reopen: Callable[[], Extractor],
    progress: bool,
) -> _Side:
    prepared = prepare_cohort(
        cohort, grid=grid, intensity=intensity, reading=reading, cache_dir=cache_dir, progress=progress
    )
    folder = cohort.folder / ".medsynth_cache" if cache_dir is None else cache_dir
    features = cached_features(
        prepared, extractor, folder=folder, devices=devices, reopen=reopen, progress=progress,
        description=f"features of {name} scans",
    )  # fmt: skip
    return _Side(cohort=cohort, prepared=prepared, features=features)


def _beyond(more: Cohort, real: Cohort, source: Path) -> Cohort:
    """Return the training scans of `more` that `real` lacks, without patients that `real` holds out."""
    known = {os.path.realpath(real.file_of(row)) for row in real.rows}
    held_out = {row.patient_id for row in real.select(split=("val", "test")).rows}
    rows = tuple(
        row
        for row in more.select(split="train").rows
        if row.patient_id not in held_out and os.path.realpath(more.file_of(row)) not in known
    )
    if not rows:
        raise DataError(
            f"{source}: need training scans that the real cohort lacks, got none; try leaving out --ceiling"
        )
    return replace(more, rows=rows)


def _without(cohort: Cohort, dropped: Sequence[int]) -> Cohort:
    kept = tuple(row for number, row in enumerate(cohort.rows) if number not in set(dropped))
    if not kept:
        raise DataError(
            f"{cohort.folder}: need scans that are no copies of real ones, got none in {len(cohort.rows)}; "
            "try a generator trained for fewer steps"
        )
    return replace(cohort, rows=kept)


def _grid_of(cohort: Cohort, reading: ReadingOptions) -> GridOptions:
    """Grid of the first scan: a set that one generator made has one."""
    return GridOptions(size=read_header(cohort.file_of(cohort.rows[0]), reading=reading).shape[1:], fit="pad")
