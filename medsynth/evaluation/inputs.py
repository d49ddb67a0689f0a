"""What an evaluation compares: two cohorts, checked against one another and the run, on one grid and in one range."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from medsynth.cohorts import Cohort, PreparedCohort, hash_cohort, hash_scans, prepare_cohort
from medsynth.cohorts.channels import read_channels
from medsynth.config import EvaluateOptions, GridOptions, IntensityOptions, Loading
from medsynth.errors import DataError
from medsynth.evaluation.arrays import ScanArrays
from medsynth.evaluation.features import cached_features
from medsynth.files import PathLike
from medsynth.measures.extractors import open_extractor
from medsynth.measures.features import Extractor
from medsynth.runs import Run, load_run
from medsynth.scans import Intensity, Scan
from medsynth.sets import (
    COHORT_FILE,
    generator_of,
    grid_of,
    hash_set,
    names_donor,
    open_real,
    open_synthetic,
    read_provenance,
    real_pixel_rows,
    write_scans,
)

_CLIPPED = 0.2  # share of pixels beyond an end of the range above which figures may overlook what matters
_LOOKED_AT = 12  # scans are enough to check a range, and volumes take long to read


@dataclass(frozen=True, kw_only=True, eq=False)
class Side(ScanArrays):
    """One side of the comparison: the arrays of a cohort, and the cohort itself, prepared."""

    cohort: Cohort
    prepared: PreparedCohort

    @classmethod
    def of(cls, cohort: Cohort, prepared: PreparedCohort, features: np.ndarray) -> Side:
        """Return a side without donors and real pixels."""
        return cls(
            cohort=cohort,
            prepared=prepared,
            features=features,
            real_pixels=np.zeros(len(cohort.rows), dtype=bool),
            **{name: getattr(prepared, name) for name in ("scans", "labels", "classes", "splits", "patients")},
        )

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in millimetres along each spatial axis."""
        return tuple(np.linalg.norm(self.prepared.affine[:3, : self.scans.ndim - 2], axis=0).tolist())


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Everything that the parts of an evaluation look at.

    `further` are real training scans beyond the real cohort, where `ceiling` was given. `hashes` are those of the whole `real`
    and `synthetic` cohorts. `grid` is that of the real scans. `notes` are sentences for the report.
    """

    options: EvaluateOptions
    run: Run | None
    extractor: Extractor
    grid: GridOptions
    real: Side
    synthetic: Side
    further: Side | None
    hashes: dict[str, str]
    notes: tuple[str, ...] = ()

    def without(self, dropped: Sequence[int]) -> Inputs:
        """Return the inputs without some rows of the synthetic set; `DataError` if none is left."""
        cohort = self.synthetic.cohort
        kept = np.setdiff1d(np.arange(len(cohort.rows)), dropped)
        if len(kept) == 0:
            raise DataError(
                f"{cohort.folder}: need scans that are not copies of real ones, got none in {len(cohort.rows)}; "
                "try a generator trained for fewer steps"
            )
        rest = replace(cohort, rows=tuple(cohort.rows[row] for row in kept))
        grid, intensity = _of_synthetic(self.grid), self.real.prepared.intensity
        side = _prepare(rest, "accepted synthetic", self.options, self.extractor, grid, intensity)
        return replace(self, synthetic=side)

    def as_trained(self) -> Side:
        """Return the real scans as the run saw them: with their masks as a channel, where it makes masks and there are some."""
        real = self.real
        if self.run is None or not self.run.spec.mask or all(row.mask is None for row in real.cohort.rows):
            return real
        prepared = prepare_cohort(
            real.cohort, grid=self.grid, intensity=real.prepared.intensity, loading=self.options, mask=True
        )
        return Side.of(real.cohort, prepared, real.features)


def open_inputs(options: EvaluateOptions, *, synthetic_scans: Sequence[Scan] | None = None) -> Inputs:
    """Return what is to be evaluated; `synthetic_scans` replace `options.synthetic` and are written below `options.out`.

    Without `options.grid` both sides are brought to the grid of the run, or else of the synthetic scans; without
    `options.intensity` both take the range of the run, or else percentiles of the real training split.

    Raises `DataError` for cohorts that cannot be compared, a set that another run made, or a run that saw patients of the test
    split; all before any scan is prepared.
    """
    real = open_real(options.real, loading=options)
    source = options.synthetic if synthetic_scans is None else _write(synthetic_scans, Path(options.out))
    made = open_synthetic(source, real, loading=options)
    more = None if options.ceiling is None else _beyond(options.ceiling, real, options)
    run = None if options.run is None else load_run(options.run)
    if run is not None:
        check_run(made, run)
        check_patients(real, run)
    extractor = open_extractor(options.features)
    range_: IntensityOptions | Intensity = options.intensity or (
        run.spec.image_intensity if run is not None else IntensityOptions()
    )
    grid = options.grid or (run.grid if run is not None else grid_of(made, loading=options))
    one = _prepare(real, "real", options, extractor, grid, range_)
    intensity = one.prepared.intensity
    quiet = replace(options, progress=False)
    hashes = {"real": hash_cohort(real, loading=quiet), "synthetic": hash_set(made, loading=quiet)}
    donors, notes = find_donors(made, real, hashes["real"], loading=quiet)
    other = _prepare(made, "synthetic", options, extractor, _of_synthetic(grid), intensity)
    return Inputs(
        options=options,
        run=run,
        extractor=extractor,
        grid=grid,
        real=one,
        synthetic=replace(other, donors=donors, real_pixels=real_pixel_rows(made)),
        further=None if more is None else _prepare(more, "ceiling", options, extractor, grid, intensity),
        hashes=hashes,
        notes=notes,
    )


def check_run(synthetic: Cohort, run: Run) -> None:
    """Refuse (`DataError`) a synthetic set whose provenance or rows name another run; sets that name none pass."""
    provenance, made_by = read_provenance(synthetic), generator_of(synthetic)
    if made_by is None or run.fingerprint.startswith(made_by):
        return
    steps = provenance.get("steps_trained")
    trained = f" after {steps} steps" if isinstance(steps, int) else ""
    raise DataError(
        f"{run.folder}: need the run that made {synthetic.folder} ({made_by[:16]}{trained}), got {run.fingerprint[:16]} "
        f"after {run.steps} steps; try the other run, or sampling again if this one was trained further"
    )


def check_patients(real: Cohort, run: Run) -> None:
    """Refuse (`DataError`) a real cohort with test patients that the generator saw: figures would reward its memory."""
    test = {row.patient_id for row in real.select(split="test").rows}
    if shared := run.shared_patients(test):
        shown = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
        raise DataError(
            f"{run.folder}: need a generator that saw no test patient, got {len(shared)} of {len(test)} ({shown}); "
            "try the cohort that the run was trained on, or training again on this one"
        )


def clipping_notes(real: Cohort, intensity: Intensity, *, loading: Loading = Loading()) -> list[str]:
    """Return a sentence for each end of a run's range beyond which more than a fifth of the real training pixels lie.

    A few training scans, spread over the cohort, are read in full. Pixels that lie on an end lose nothing and do not count.
    """
    rows = real.select(split="train").rows
    below = above = total = 0
    for row in rows[:: max(1, -(-len(rows) // _LOOKED_AT))]:
        array = read_channels(real.files_of(row), loading).array
        low, high = (np.reshape(ends, (-1, *[1] * (array.ndim - 1))) for ends in (intensity.low, intensity.high))
        below += int((array < low).sum())
        above += int((array > high).sum())
        total += array.size
    return [
        f"{outside / total:.0%} of the pixels of real training scans lie {side} the run's intensity range "
        f"({', '.join(f'{value:g}' for value in ends)}) and look the same to every figure. Was the run trained on this cohort?"
        for outside, side, ends in ((below, "below", intensity.low), (above, "above", intensity.high))
        if outside > _CLIPPED * total
    ]


def _prepare(
    cohort: Cohort,
    name: str,
    options: EvaluateOptions,
    extractor: Extractor,
    grid: GridOptions,
    intensity: IntensityOptions | Intensity,
) -> Side:
    prepared = prepare_cohort(cohort, grid=grid, intensity=intensity, loading=options)
    features = cached_features(
        prepared,
        extractor,
        folder=options.cache_folder(),
        devices=options.devices,
        reopen=partial(open_extractor, options.features),
        progress=options.progress,
        description=f"features of {name} scans",
    )
    return Side.of(cohort, prepared, features)


def _of_synthetic(grid: GridOptions) -> GridOptions:
    """Synthetic scans are positioned as the real ones were, and have no masks to position them by."""
    return replace(grid, centre="scan")


def _write(scans: Iterable[Scan], out: Path) -> Path:
    """Write scans as a set in a folder named by their content, so that a second call with the same scans finds them there."""
    scans = list(scans)
    digest = hashlib.sha256()
    for scan in scans:
        digest.update(f"{scan.label}{scan.array.shape}{scan.array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(scan.array).tobytes())
    folder = out / f"synthetic-{digest.hexdigest()[:12]}"
    return folder if (folder / COHORT_FILE).is_file() else write_scans(scans, folder)


def _beyond(source: PathLike, real: Cohort, loading: Loading) -> Cohort:
    """Return the training scans of a cohort that `real` lacks, without patients that `real` holds out."""
    more = open_real(source, loading=loading)
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


def find_donors(
    synthetic: Cohort, real: Cohort, real_hash: str, *, loading: Loading = Loading()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the row of each synthetic scan's donor in the real cohort, `(N,)`, -1 without, and a note on what is not believed.

    A column `donor` counts only where medsynth's provenance of an edit names this very cohort (its hash, `real_hash`) and the
    file of the scan names the file of its donor by a hash: a scan does not become an edit by saying so.
    """
    donors = np.full(len(synthetic.rows), -1)
    named = {place: row.attributes["donor"] for place, row in enumerate(synthetic.rows) if "donor" in row.attributes}
    if not named:
        return donors, ()
    provenance = read_provenance(synthetic)
    about, label = provenance.get("donors"), provenance.get("donor_class")
    if provenance.get("method") == "edit" and isinstance(about, dict) and about.get("cohort") == real_hash:
        hashes = hash_scans(real, loading=loading)
        for place, text in named.items():
            row = int(text) if text.isdecimal() and len(text) < 10 else len(hashes)
            fits = row < len(hashes) and (real.rows[row].label, real.rows[row].split) == (label, "train")
            if fits and names_donor(synthetic.file_of(synthetic.rows[place]), hashes[row], loading=loading):
                donors[place] = row
    if doubtful := int((donors[list(named)] < 0).sum()):
        return donors, (
            f"{doubtful} of {len(named)} scans that name a donor are judged as if they had none: the set's provenance does not "
            "name this real cohort and these donors. Evaluate edits against the cohort that they were made from.",
        )
    return donors, ()
