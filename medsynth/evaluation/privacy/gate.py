"""The privacy gate: does a synthetic set hold copies of the real scans that its generator saw?

A synthetic scan is flagged when it lies nearer to a training scan than held-out real scans do, in one of three ways: its
distance in pixels (whatever was mirrored, shifted, or changed in contrast and brightness), that distance over the median
distance to the next nearest patients, or the same ratio in features. The absolute distance of features flags nothing: it
would accuse generators that draw typical scans. Thresholds come from one half of the held-out patients, false alarms are
counted on the other half, and copies planted in every run say how many the gate finds (its power). A class fails with

- any *unmistakable* copy: identical to a real scan of any split, or below half the pixel threshold and less than a third as
  far from the nearest patient as from the next (Gu et al. 2023, arXiv 2310.02664), unless held-out scans have as many;
- more flagged scans than the permitted false alarms explain, and than held-out real scans have;
- a set that leans to its training patients (`datacopying`), significantly and materially.

A class that does not fail reads `cannot tell` with too few real patients, too many false alarms, or too little power.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np

from medsynth.cohorts import PreparedCohort
from medsynth.config import PrivacyOptions
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.privacy.controls import PLANTED, SEEN, HeldOut, draw_held_out, plant_copies
from medsynth.evaluation.privacy.datacopying import measure_lean
from medsynth.evaluation.privacy.membership import score_membership
from medsynth.evaluation.privacy.nearness import CRITERIA, Nearness, Thresholds, calibrate, measure_nearness
from medsynth.evaluation.privacy.result import (
    MEASURED,
    Copy,
    Figure,
    PrivacyResult,
    PrivacyRow,
    Share,
    Spread,
    count_distances,
)
from medsynth.measures.alignment import aligned_distances
from medsynth.runs import Run
from medsynth.seeds import numpy_generator

_TARGET = 1 / 3  # share of the permitted false alarms for which thresholds are set
_SUSPECTS = 8  # scans shown beside their likely donors
_REASONS = ("nearer than held-out scans", "stands out", "stands out in features")


def score_privacy(
    real: PreparedCohort,
    synthetic: PreparedCohort,
    *,
    real_features: np.ndarray,
    synthetic_features: np.ndarray,
    options: PrivacyOptions = PrivacyOptions(),
    run: Run | None = None,
    members: PreparedCohort | None = None,
    seed: int = 0,
    progress: bool = True,
) -> PrivacyResult:
    """Return the privacy gate's reading of a synthetic set, by class and overall, with every figure behind it.

    Features are `(N, D)`, rows as in the cohorts. Where a row of the synthetic set names its `donor` (row number in the real
    cohort), likeness to that patient is reported apart and does not count; a scan identical to any real one always does, and so
    does one that says `contains_real_pixels`.
    With `run`, membership inference on its denoiser, with `members` as the real scans that it looks at. Raises `ConfigError`
    for options that leave nothing to tell, and `DataError` without training scans, for classes that `real` lacks, other
    shapes, or a donor that is no row number.
    """
    check_privacy_options(options)
    seen = real.indices(SEEN)
    if len(seen) == 0:
        raise DataError("split: need train or val scans in the real cohort, got none; try another cohort")
    if unknown := sorted(set(synthetic.classes) - set(real.classes)):
        raise DataError(f"label: need classes of the real cohort, got {unknown[0]!r}; try renaming labels")
    labels = np.array([real.classes.index(name) for name in synthetic.classes])[synthetic.labels]
    present = tuple(int(label) for label in np.unique(labels))
    donors = donor_rows(synthetic, len(real.scans))
    barred = np.where(donors >= 0, real.patients[donors], -1)
    measure = partial(
        measure_nearness,
        references=real.scans,
        reference_features=real_features,
        among=seen,
        patients=real.patients,
        options=options,
        progress=progress,
    )

    made = measure(
        synthetic.scans,
        barred=barred,
        features=synthetic_features,
        title="synthetic against training scans",
    )
    held = draw_held_out(real, present, options, seed)
    near_held = measure(
        real.scans,
        rows=held.rows,
        barred=held.barred,
        features=real_features[held.rows],
        title="held-out against training scans",
    )
    thresholds = calibrate(
        near_held.values()[held.calibrates],
        held.labels[held.calibrates],
        len(real.classes),
        _TARGET * options.max_false_alarms,
    )
    planted: dict[int, tuple[Nearness, np.ndarray]] = {}
    for label in present:
        copies, _, kinds = plant_copies(real, label, options, seed)
        title = f"planted copies of {real.classes[label]}"
        planted[label] = measure(copies, title=title), kinds

    identical, repeated = _identical(synthetic.scans, real.scans)
    found = identical >= 0
    unmistakable = found.copy()
    if thresholds is not None:
        found |= thresholds.flagged(made, labels)
        unmistakable |= thresholds.unmistakable(made, labels)
    test = real.indices("test")
    near_test = None
    if len(test):
        title = "synthetic against held-out scans"
        near_test = measure(synthetic.scans, among=test, barred=barred, features=synthetic_features, title=title)
    evidence = _Evidence(
        labels=labels,
        made=made,
        held=held,
        near_held=near_held,
        planted=planted,
        thresholds=thresholds,
        identical=identical,
        found=found,
        unmistakable=unmistakable,
        judged=~found if options.drop_copies else np.ones(len(labels), dtype=bool),
        nearest=_nearest_of_both(made, near_test),
    )
    membership = None
    if run is not None:
        seen_by_run = real if members is None else members
        membership = score_membership(seen_by_run, run, options=options, labels=present, seed=seed, progress=progress)
    return PrivacyResult(
        rows=tuple(_row(evidence, real, label, options, seed) for label in present),
        copies=tuple(_copy(evidence, real, int(row), options) for row in np.flatnonzero(found)),
        suspects=tuple(_copy(evidence, real, row, options) for row in _most_suspicious(evidence)),
        repeated=repeated,
        edits=_edits(real, synthetic, donors, options),
        membership=membership,
        options=options,
        seed=seed,
        real_pixels=sum(row.attributes.get("contains_real_pixels") == "1" for row in synthetic.rows),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Evidence:
    """What was measured on M synthetic scans, on held-out scans, and on planted copies of each class with their kinds.

    `identical` `(M,)` is the equal real row or -1; `found` and `unmistakable` say which are copies, `judged` which are not set
    aside; `nearest` are the nearest rows of any split in pixels and in features.
    """

    labels: np.ndarray
    made: Nearness
    held: HeldOut
    near_held: Nearness
    planted: dict[int, tuple[Nearness, np.ndarray]]
    thresholds: Thresholds | None
    identical: np.ndarray
    found: np.ndarray
    unmistakable: np.ndarray
    judged: np.ndarray
    nearest: dict[str, np.ndarray]


def check_privacy_options(options: PrivacyOptions) -> None:
    """Raise `ConfigError` for options that leave nothing to tell."""
    least = {"min_patients": 2, "shift": 0, "smoothing": 0, "neighbours": 2, "planted": 0, "noise": 0}
    least |= {"held_out_scans": 2, "membership_scans": 1}
    for name, lowest in least.items():
        if getattr(options, name) < lowest:
            raise ConfigError(f"privacy.{name}: need at least {lowest}, got {getattr(options, name)}")
    for name in ("max_false_alarms", "min_power", "set_excess", "significance", "membership_limit"):
        if not 0 < getattr(options, name) < 1:
            raise ConfigError(f"privacy.{name}: need a share between 0 and 1, got {getattr(options, name)}")
    if not options.membership_sigmas or min(options.membership_sigmas) <= 0:
        raise ConfigError(
            f"privacy.membership_sigmas: need positive noise levels, got {list(options.membership_sigmas)}"
        )


def _row(evidence: _Evidence, real: PreparedCohort, label: int, options: PrivacyOptions, seed: int) -> PrivacyRow:
    """Return all figures of one class."""
    held, thresholds, made, near_held = evidence.held, evidence.thresholds, evidence.made, evidence.near_held
    mine, real_mine = evidence.labels == label, held.labels == label
    near_planted, kinds = evidence.planted[label]
    alarms, clear, hits = np.zeros(len(held.rows), dtype=bool), 0, np.zeros(len(kinds), dtype=bool)
    limits = np.full(len(CRITERIA), np.nan)
    if thresholds is not None:
        alarms = thresholds.flagged(near_held, held.labels)
        clear = int((thresholds.unmistakable(near_held, held.labels) & real_mine).sum())
        hits = thresholds.flagged(near_planted, np.full(len(kinds), label))
        limits = thresholds.limits(label)
    measures = real_mine & ~held.calibrates
    kept = mine & evidence.judged
    limit_of = dict(zip(CRITERIA, limits.tolist(), strict=True))
    return PrivacyRow(
        label=real.classes[label],
        synthetic=int(mine.sum()),
        dropped=int((mine & ~evidence.judged).sum()),
        flagged=int((kept & evidence.found).sum()),
        identical=int((kept & (evidence.identical >= 0)).sum()),
        unmistakable=int((kept & evidence.unmistakable).sum()),
        held_out_patients=len(np.unique(held.patients[real_mine])),
        held_out_scans=int(real_mine.sum()),
        held_out_seen=int((held.barred[real_mine] >= 0).sum()),
        held_out_unmistakable=clear,
        calibration_patients=len(np.unique(held.patients[real_mine & held.calibrates])),
        calibration_scans=int((real_mine & held.calibrates).sum()),
        false_alarms=Share(int(alarms[measures].sum()), int(measures.sum())),
        power=Share(int(hits.sum()), len(hits)),
        power_by_kind={
            kind: Share(int(hits[kinds == number].sum()), int((kinds == number).sum()))
            for number, kind in enumerate(PLANTED)
        },
        figures={
            measure: Figure(
                synthetic=Spread.of(getattr(made, measure)[kept]),
                held_out=Spread.of(getattr(near_held, measure)[real_mine]),
                planted=Spread.of(getattr(near_planted, measure)),
                threshold=limit_of.get(measure, float("nan")),
            )
            for measure in MEASURED
        },
        lean={
            by: measure_lean(
                nearest[kept],
                real,
                real.indices(SEEN),
                numpy_generator(seed, "privacy", "lean", real.classes[label], by),
            )
            for by, nearest in evidence.nearest.items()
        },
        histogram=count_distances(
            {"synthetic": made.pixels[kept], "held_out": near_held.pixels[real_mine], "planted": near_planted.pixels}
        ),
    )


def _nearest_of_both(near_seen: Nearness, near_test: Nearness | None) -> dict[str, np.ndarray]:
    """Return the real row of any split that is nearest to each scan, in pixels and in features; -1 where there is no test."""
    if near_test is None:
        nowhere = np.full(len(near_seen.rows), -1)
        return {"pixels": nowhere, "features": nowhere}
    return {
        "pixels": np.where(near_test.pixels < near_seen.pixels, near_test.rows, near_seen.rows),
        "features": np.where(near_test.features < near_seen.features, near_test.features_rows, near_seen.features_rows),
    }


def _most_suspicious(evidence: _Evidence) -> list[int]:
    """Return the synthetic rows that look most like copies, the worst first: identical ones, then by their scores."""
    made, thresholds = evidence.made, evidence.thresholds
    scores = made.stands_out if thresholds is None else thresholds.scores(made.values(), evidence.labels)
    scores = np.where(evidence.identical >= 0, -np.inf, np.nan_to_num(scores, nan=np.inf))
    return [int(row) for row in np.argsort(scores, kind="stable")[:_SUSPECTS]]


def _copy(evidence: _Evidence, real: PreparedCohort, row: int, options: PrivacyOptions) -> Copy:
    """Return what is known of a suspicious synthetic scan."""
    made, label = evidence.made, int(evidence.labels[row])
    reasons: list[str] = []
    donor = made.rows[row]
    if evidence.thresholds is not None:
        below = made.values()[row] < np.log(evidence.thresholds.limits(label))
        reasons = [reason for reason, on in zip(_REASONS, below, strict=True) if on]
        if below[2] and not below[:2].any():
            donor = made.features_rows[row]
    if evidence.identical[row] >= 0:
        donor, reasons = evidence.identical[row], ["identical", *reasons]
    return Copy(
        synthetic_row=row,
        donor_row=int(donor),
        label=real.classes[label],
        donor_label=real.classes[real.labels[donor]],
        donor_split=str(real.splits[donor]),
        reason=", ".join(reasons),
        unmistakable=bool(evidence.unmistakable[row]),
        pixels=float(made.pixels[row]),
        second=float(made.second[row]),
        stands_out=float(made.stands_out[row]),
        features_stand_out=float(made.features_stand_out[row]),
        dropped=options.drop_copies and bool(evidence.found[row]),
    )


def donor_rows(synthetic: PreparedCohort, count: int) -> np.ndarray:
    """Return the row of each synthetic scan's donor in the real cohort, -1 without; `DataError` for what is no row."""
    donors = np.full(len(synthetic.scans), -1)
    for place, row in enumerate(synthetic.rows):
        given = row.attributes.get("donor")
        if given is None:
            continue
        if not given.isdecimal() or int(given) >= count:
            raise DataError(
                f"donor of synthetic row {place}: need a row number of the real cohort, from 0 to {count - 1}, "
                f"got {given!r}; try the cohort that the set was edited from"
            )
        donors[place] = int(given)
    return donors


def _edits(
    real: PreparedCohort, synthetic: PreparedCohort, donors: np.ndarray, options: PrivacyOptions
) -> dict[str, float | int] | None:
    """Return how near edits are to their own donors, which is no copying; None without edits."""
    edited = np.flatnonzero(donors >= 0)
    if len(edited) == 0:
        return None
    distances = np.concatenate(
        [
            aligned_distances(synthetic.scans[some], real.scans[donors[some]], shift=options.shift, smoothing=options.smoothing)
            for some in np.array_split(edited, -(-len(edited) // 64))
        ]
    )  # fmt: skip
    low, middle = np.quantile(distances, [0.05, 0.5])
    return {"scans": len(edited), "donors": len(np.unique(donors[edited])), "low": float(low), "median": float(middle)}


def _identical(scans: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
    """Return the first real row that equals each synthetic scan in every pixel, or -1, and groups of equal synthetic rows."""
    known: dict[bytes, int] = {}
    for row, scan in enumerate(references):
        known.setdefault(_digest(scan), row)
    groups: dict[bytes, list[int]] = {}
    for row, scan in enumerate(scans):
        groups.setdefault(_digest(scan), []).append(row)
    equal = np.full(len(scans), -1)
    for digest, rows in groups.items():
        equal[rows] = known.get(digest, -1)
    return equal, tuple(tuple(rows) for rows in groups.values() if len(rows) > 1)


def _digest(scan: np.ndarray) -> bytes:
    # Equal values as equal bytes: no negative zero.
    return hashlib.sha256((np.asarray(scan, dtype=np.float32) + np.float32(0)).tobytes()).digest()
