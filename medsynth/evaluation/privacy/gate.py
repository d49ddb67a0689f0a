"""The privacy gate: does a synthetic set hold copies of the real scans that its generator saw?

A synthetic scan is flagged when it lies nearer to a training scan than held-out real scans do, in one of four ways: its
distance in pixels (regardless of mirroring, quarter turns, shifts, contrast and brightness), that distance over the median
distance to the next nearest patients, the same ratio for patches that it shares with a patient, which finds copies of parts, or
for features. The absolute distance of features flags nothing: it would accuse generators that draw typical scans. An edit may
resemble its donor, but not lie below the limit of the distance in pixels. Thresholds come from one half of the held-out
patients, false alarms are counted on the other half, and copies planted in every run say how many the gate finds (its power).
Held-out scans that are near-duplicates of training scans count for neither. A class fails with

- any *unmistakable* copy: identical to a real scan of any split, or below half the pixel threshold and less than a third as
  far from the nearest patient as from the next (Gu et al. 2023, arXiv 2310.02664), or with parts that stand out and are as
  good as unchanged, unless held-out scans have as many;
- more flagged scans than the permitted false alarms explain, and than held-out real scans have;
- a set that leans to its training patients (`nearness.measure_lean`), significantly and materially.

A class that does not fail reads `cannot tell` with too few real patients, too many false alarms, or too little power.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from medsynth.errors import DataError
from medsynth.evaluation.arrays import HELD_OUT, SEEN, ScanArrays
from medsynth.evaluation.privacy.controls import PLANTED, WHOLE, draw_held_out, plant_copies
from medsynth.evaluation.privacy.membership import MembershipResult
from medsynth.evaluation.privacy.nearness import (
    CRITERIA,
    GateSettings,
    References,
    calibrate,
    digest_scan,
    equal_rows,
    find_alike,
    measure_lean,
    median_of_known,
)
from medsynth.evaluation.privacy.result import MEASURED, Copy, PrivacyResult, PrivacyRow, Share, count_distances, spread
from medsynth.measures.alignment import aligned_distances
from medsynth.seeds import numpy_generator

_TARGET = 1 / 3  # share of the permitted false alarms for which thresholds are set
_SUSPECTS = 8  # scans shown beside their likely donors
_REASONS = ("nearer than held-out scans", "stands out", "shares parts", "stands out in features")


def score_privacy(
    real: ScanArrays,
    synthetic: ScanArrays,
    *,
    settings: GateSettings = GateSettings(),
    drop_copies: bool = False,
    membership: MembershipResult | None = None,
    seed: int = 0,
    progress: bool = True,
) -> PrivacyResult:
    """Return the privacy gate's verdict on a synthetic set, by class and overall, with every figure behind it.

    A donor (`synthetic.donors`) explains that an edit resembles it, but an edit nearer to it than the limit is a copy; a scan
    identical to any real one always counts, and so does one with real pixels. With `drop_copies`, flagged scans are set aside and
    the rest is judged. `membership` is part of the verdict where it was measured. Raises `DataError` without training
    scans, or for classes that `real` lacks.
    """
    if not np.isin(real.splits, SEEN).any():
        raise DataError("split: need train or val scans in the real cohort, got none; try another cohort")
    if unknown := sorted(set(synthetic.classes) - set(real.classes)):
        raise DataError(f"label: need classes of the real cohort, got {unknown[0]!r}; try renaming labels")
    evidence = _Evidence(real, synthetic, settings, seed, progress)
    dropped = evidence.found if drop_copies else np.zeros_like(evidence.found)
    equal: dict[bytes, list[int]] = {}
    for row, scan in enumerate(synthetic.scans):
        equal.setdefault(digest_scan(scan), []).append(row)
    return PrivacyResult(
        rows=tuple(evidence.row(label, dropped) for label in evidence.present),
        copies=tuple(evidence.copy(int(row), drop_copies) for row in np.flatnonzero(evidence.found)),
        suspects=tuple(evidence.copy(row, drop_copies) for row in evidence.most_suspicious()),
        repeated=tuple(tuple(rows) for rows in equal.values() if len(rows) > 1),
        edits=evidence.edits(),
        membership=membership,
        settings=settings,
        drop_copies=drop_copies,
        real_pixels=0 if synthetic.real_pixels is None else int(synthetic.real_pixels.sum()),
    )


class _Evidence:
    """What is measured on M synthetic scans, on held-out scans, and on planted copies of each class.

    `identical` `(M,)` is the equal real row or -1; `nearest` are the nearest real rows of any split, -1 without a test split.
    """

    def __init__(
        self, real: ScanArrays, synthetic: ScanArrays, settings: GateSettings, seed: int, progress: bool
    ) -> None:
        self.real, self.seed = real, seed
        self.seen, test = (np.flatnonzero(np.isin(real.splits, splits)) for splits in (SEEN, HELD_OUT))
        self.labels = np.array([real.classes.index(name) for name in synthetic.classes])[synthetic.labels]
        self.present = tuple(int(label) for label in np.unique(self.labels))
        self.donors = np.full(len(self.labels), -1) if synthetic.donors is None else synthetic.donors
        barred = np.where(self.donors >= 0, real.patients[self.donors], -1)
        own = {"features": synthetic.features, "barred": barred}
        references = References(real, self.seen, settings, progress=progress)
        self.made = references.measure(synthetic.scans, title="synthetic against training scans", **own)
        self.from_donor = _from_donor(real, synthetic, self.donors, settings)
        self.held = draw_held_out(real, self.present, settings, seed)
        self.near_held = references.measure(
            real.scans,
            title="held-out against training scans",
            features=real.features,
            rows=self.held.rows,
            barred=self.held.barred,
        )
        self.alike = find_alike(self.near_held, self.held.labels, len(real.classes))
        setting = self.held.calibrates & ~self.alike
        values, labels = (of_held[setting] for of_held in (self.near_held.values(), self.held.labels))
        found = calibrate(values, labels, len(real.classes), _TARGET * settings.max_false_alarms)
        self.thresholds = replace(found, parts=median_of_known(self.near_held.parts[setting]))
        self.planted = {}
        for label in self.present:
            copies, _, kinds = plant_copies(real, label, settings, seed)
            self.planted[label] = references.measure(copies, title=f"planted copies of {real.classes[label]}"), kinds
        self.identical = equal_rows(synthetic.scans, real.scans)
        self.found = self.identical >= 0
        self.unmistakable = self.found | self.thresholds.unmistakable(self.made, self.labels)
        self.found |= self.thresholds.flagged(self.made, self.labels)
        limits = np.array([self.thresholds.limits(label)[0] for label in self.labels])
        self.is_donor = self.from_donor < limits
        self.unmistakable |= self.from_donor < limits / 2
        self.found |= self.is_donor
        self.nearest = {"pixels": np.full(len(self.labels), -1), "features": np.full(len(self.labels), -1)}
        if len(test):
            references = References(real, test, settings, progress=progress)
            made, near = self.made, references.measure(synthetic.scans, title="synthetic against held-out scans", **own)
            self.nearest = {
                "pixels": np.where(near.pixels < made.pixels, near.rows, made.rows),
                "features": np.where(near.features < made.features, near.features_rows, made.features_rows),
            }

    def row(self, label: int, dropped: np.ndarray) -> PrivacyRow:
        """Return all figures of one class, without the scans that are `dropped`."""
        held, made, near_held = self.held, self.made, self.near_held
        near_planted, kinds = self.planted[label]
        name, mine, real_mine = self.real.classes[label], self.labels == label, held.labels == label
        generators = {by: numpy_generator(self.seed, "privacy", "lean", name, by) for by in self.nearest}
        counts = real_mine & ~self.alike
        kept, checks, calibrates = mine & ~dropped, counts & ~held.calibrates, counts & held.calibrates
        alarms = self.thresholds.flagged(near_held, held.labels)
        clear = self.thresholds.unmistakable(near_held, held.labels)
        hits = self.thresholds.flagged(near_planted, np.full(len(kinds), label))
        limits = dict(zip(CRITERIA, self.thresholds.limits(label).tolist(), strict=True))
        whole = kinds < len(WHOLE)
        sides = {"synthetic": (made, kept), "held_out": (near_held, counts), "planted": (near_planted, whole)}
        figures: dict[str, dict[str, Any]] = {
            measure: {
                **{side: spread(getattr(near, measure)[rows]) for side, (near, rows) in sides.items()},
                "threshold": limits.get(measure, np.nan),
            }
            for measure in MEASURED
        }
        return PrivacyRow(
            label=name,
            synthetic=int(mine.sum()),
            dropped=int((mine & dropped).sum()),
            flagged=int((kept & self.found).sum()),
            identical=int((kept & (self.identical >= 0)).sum()),
            unmistakable=int((kept & self.unmistakable).sum()),
            held_out_patients=len(np.unique(held.patients[counts])),
            held_out_scans=int(counts.sum()),
            held_out_seen=int((held.barred[counts] >= 0).sum()),
            held_out_alike=int((real_mine & self.alike).sum()),
            held_out_unmistakable=int((clear & counts).sum()),
            calibration_patients=len(np.unique(held.patients[calibrates])),
            false_alarms=Share.of_those(alarms[checks]),
            power=Share.of_those(hits[whole]),
            power_of_parts=Share.of_those(hits[~whole]),
            power_by_kind={kind: Share.of_those(hits[kinds == number]) for number, kind in enumerate(PLANTED)},
            figures=figures,
            lean={
                by: measure_lean(nearest[kept], self.real, self.seen, generators[by])
                for by, nearest in self.nearest.items()
            },
            histogram=count_distances({side: near.pixels[rows] for side, (near, rows) in sides.items()}),
        )

    def edits(self) -> dict[str, float | int] | None:
        """Return how near edits are to their own donors, and how many lie below the limit for copies; None without edits."""
        edited = self.donors >= 0
        if not edited.any():
            return None
        low, middle = np.quantile(self.from_donor[edited], [0.05, 0.5])
        return {
            "scans": int(edited.sum()),
            "donors": len(np.unique(self.donors[edited])),
            "low": float(low),
            "median": float(middle),
            "nearer_than_limit": int(self.is_donor.sum()),
        }

    def most_suspicious(self) -> list[int]:
        """Return the synthetic rows that look most like copies, the worst first.

        Identical ones come first, then edits below the limit to their donors, then the others by their scores.
        """
        scores = self.made.stands_out
        if np.isfinite(self.thresholds.cut):
            scores = self.thresholds.scores(self.made.values(), self.labels)
        identical, scores = (
            self.identical >= 0,
            np.where(self.is_donor, self.from_donor, np.nan_to_num(scores, nan=np.inf)),
        )
        order = np.lexsort((np.where(identical, -np.inf, scores), ~self.is_donor | identical, ~identical))
        return [int(row) for row in order[:_SUSPECTS]]

    def copy(self, row: int, drop_copies: bool) -> Copy:
        """Return what is known of a suspicious synthetic scan."""
        real, made, label = self.real, self.made, int(self.labels[row])
        below = made.values()[row] < np.log(self.thresholds.limits(label))
        reasons = [reason for reason, on in zip(_REASONS, below, strict=True) if on]
        pixels = float(made.pixels[row])
        donor = made.rows[row]
        if not below[:2].any():
            donor = made.patches_rows[row] if below[2] else made.features_rows[row] if below[3] else donor
        if self.is_donor[row]:
            donor, pixels, reasons = self.donors[row], float(self.from_donor[row]), ["its own donor", *reasons]
        if self.identical[row] >= 0:
            donor, reasons = self.identical[row], ["identical", *reasons]
        return Copy(
            synthetic_row=row,
            donor_row=int(donor),
            label=real.classes[label],
            donor_label=real.classes[real.labels[donor]],
            donor_split=str(real.splits[donor]),
            reason=", ".join(reasons),
            unmistakable=bool(self.unmistakable[row]),
            pixels=pixels,
            second=float(made.second[row]),
            dropped=drop_copies and bool(self.found[row]),
        )


def _from_donor(real: ScanArrays, synthetic: ScanArrays, donors: np.ndarray, settings: GateSettings) -> np.ndarray:
    """Return the distance in pixels of each synthetic scan to its own donor, `(M,)`; NaN without one."""
    distances = np.full(len(donors), np.nan)
    edited = np.flatnonzero(donors >= 0)
    for some in np.array_split(edited, -(-len(edited) // 64)) if len(edited) else ():
        distances[some] = aligned_distances(
            synthetic.scans[some], real.scans[donors[some]], shift=settings.shift, smoothing=settings.smoothing
        )
    return distances
