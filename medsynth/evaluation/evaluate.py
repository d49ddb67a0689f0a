"""`medsynth evaluate`: a real cohort and a synthetic set, brought to one grid and range, through the protocols."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medsynth.cohorts import Cohort, prepare_cohort
from medsynth.config import FidelityOptions, GridOptions, IntensityOptions, ReadingOptions
from medsynth.evaluation.fidelity import Sheet, check_options, score_fidelity
from medsynth.evaluation.inputs import check_run, clipping_notes, open_real, open_synthetic
from medsynth.evaluation.verdict import build_report
from medsynth.measures.features import EfficientNetLite0
from medsynth.runs import Run
from medsynth.scans import Intensity, read_header


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What an evaluation found: the content of `report.json`, and the scans for its contact sheets."""

    report: dict[str, Any]
    sheets: tuple[Sheet, ...]


def evaluate_cohorts(
    real: Path,
    synthetic: Path,
    *,
    run: Run | None = None,
    grid: GridOptions | None = None,
    intensity: IntensityOptions | None = None,
    fidelity: FidelityOptions,
    reading: ReadingOptions,
    cache_dir: Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Return the evaluation of a synthetic set against a real cohort; both may be a cohort CSV or its folder.

    Without `grid` the real scans are brought to the grid of the synthetic ones; without `intensity` both take the range of
    the run, or else percentiles of the real training split. A CSV of synthetic scans may have the columns `path` and
    `label` only. Raises `ConfigError` for options that leave nothing to tell, and `DataError` for cohorts that cannot be
    compared, or a set that another run made; both before any scan is read.
    """
    check_options(fidelity)
    real_cohort = open_real(real)
    made = open_synthetic(synthetic, real_cohort)
    if run is not None:
        check_run(made, run)
    chosen_grid = grid or _grid_of(made, reading)
    chosen: IntensityOptions | Intensity = intensity or (run.spec.intensity if run else IntensityOptions())
    prepare = partial(prepare_cohort, grid=chosen_grid, reading=reading, cache_dir=cache_dir, progress=progress)
    prepared = prepare(real_cohort, intensity=chosen)
    prepared_made = prepare(made, intensity=prepared.intensity)
    result = score_fidelity(
        prepared, prepared_made, options=fidelity, extractor=EfficientNetLite0(), seed=seed, progress=progress
    )
    settings: dict[str, str | int | float | None] = {
        "real_scans": len(prepared.scans),
        "synthetic_scans": len(prepared_made.scans),
        "grid": " x ".join(str(length) for length in prepared.scans.shape[2:]),
        "intensity": f"{list(prepared.intensity.low)} to {list(prepared.intensity.high)}",
        "run": run.fingerprint[:16] if run else None,
        "steps_trained": run.steps if run else None,
    }
    notes = clipping_notes(real_cohort, prepared.intensity, reading) if run and intensity is None else []
    return Evaluation(report=build_report(result, settings=settings, notes=notes), sheets=result.sheets)


def _grid_of(cohort: Cohort, reading: ReadingOptions) -> GridOptions:
    """Grid of the first scan: a set that one generator made has one."""
    return GridOptions(size=read_header(cohort.file_of(cohort.rows[0]), reading=reading).shape[1:], fit="pad")
