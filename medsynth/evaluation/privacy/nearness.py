"""How near scans are to the scans that a generator saw, and how near is too near."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from sklearn.neighbors import NearestNeighbors

from medsynth.cohorts.near import NEAR_DUPLICATE
from medsynth.evaluation.arrays import ScanArrays
from medsynth.measures.alignment import AlignedReferences

CRITERIA = ("pixels", "stands_out", "patches_stand_out", "features_stand_out")
_BY_CLASS = (True, False, False, False)  # whose typical value depends on the class
_NEVER_ZERO = 1e-7
_FEW = 8  # calibration scans of a class below which all classes say what is typical
_LOWER = 0.1587  # share below one standard deviation
_NARROWEST = 0.02  # spread of ln(distance) at least, against cohorts that are all alike
_CLEARLY = 1 / 3  # d1 < d2 / 3 (arXiv 2310.02664)
_PERMUTATIONS = 5000
_ALIKE = 0.25  # of the typical pixel distance, below which held-out scans count as near-duplicates


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """Thresholds and sizes of the privacy gate."""

    max_false_alarms: float = 0.02  # share of held-out scans; thresholds are set for a third of it
    min_patients: int = 50  # real patients of a class, to set and check its threshold
    min_power: float = 0.95  # share of planted copies of whole scans that may be found, as the interval says
    min_power_parts: float = 0.5  # the same for planted copies of parts
    shift: int = 4  # pixels by which a copy may be shifted along each axis, at most a quarter of the axis
    smoothing: float = 1.0  # standard deviation, in pixels, of the Gaussian applied to both scans
    neighbours: int = 8  # nearest patients of each scan
    planted: int = 120  # copies planted in each class as positive control
    noise: float = 0.05  # standard deviation on some of these, where the range of a scan is 2
    held_out_scans: int = 600  # of each class at most
    set_excess: float = 0.2  # part of a class that would have to be copied to explain how it leans to training patients
    significance: float = 0.01  # chance that a class without copies fails by its count of flagged scans or by its lean
    membership_scans: int = 100  # of each class at most, and as many test scans
    membership_sigmas: tuple[float, ...] = (0.3, 1.0, 3.0)  # noise levels of the loss
    membership_limit: float = 0.8  # of the lower end of the interval of the AUC


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearness:
    """Of N scans, `(N,)` each: the distance to the nearest patient, in pixels, patches and features, and how far it stands out.

    `pixels` are distances of `measures.alignment` to the nearest reference scan, `rows` its row, `second` the distance to the
    nearest of another patient. `stands_out` is `pixels` over the median distance to the next nearest patients: 1 where
    the nearest is one of many, 0 for an exact copy. `patches_stand_out` is the median evidence of `measures.alignment` for the
    next patients over that for the first, whose row is `patches_rows`: small where parts of the scan are found in one patient
    only; `parts` is the distance to it of the quarter of a scan that agrees best. `features` and `features_stand_out` are as for
    pixels with Euclidean distances of features, NaN where there are none. NaN also without enough patients.
    """

    pixels: np.ndarray
    rows: np.ndarray
    second: np.ndarray
    stands_out: np.ndarray
    patches_rows: np.ndarray
    patches_stand_out: np.ndarray
    parts: np.ndarray
    features: np.ndarray
    features_rows: np.ndarray
    features_stand_out: np.ndarray

    def values(self) -> np.ndarray:
        """Return the logarithms of `CRITERIA`, `(N, 4)`."""
        known = np.stack([getattr(self, name) for name in CRITERIA], axis=1)
        return np.log(np.maximum(known, _NEVER_ZERO))


class References:
    """Real scans at the rows `among`, which others are compared with; each patient counts once."""

    def __init__(self, real: ScanArrays, among: np.ndarray, settings: GateSettings, *, progress: bool = False) -> None:
        self._real, self._among, self._neighbours, self._progress = real, among, settings.neighbours, progress
        self._aligned = AlignedReferences(
            real.scans, groups=real.patients, among=among, shift=settings.shift, smoothing=settings.smoothing
        )

    def measure(
        self,
        scans: np.ndarray,
        *,
        title: str,
        features: np.ndarray | None = None,
        rows: np.ndarray | None = None,
        barred: np.ndarray | None = None,
    ) -> Nearness:
        """Return how near the scans at `rows` (all by default) are; `features` are those of all `scans`.

        A scan does not find the patient `barred` (-1: finds all).
        """
        found = self._aligned.nearest(
            scans, self._neighbours, rows=rows, barred=barred, progress=self._progress, title=title
        )
        count = len(found.distances)
        far = np.where(np.isfinite(found.distances), found.distances, np.nan)
        near, near_rows = np.full((count, self._neighbours), np.nan), np.full(count, -1)
        if features is not None and count:
            own = features if rows is None else features[rows]
            near, near_rows = self._in_features(own, np.full(count, -1) if barred is None else barred)
        return Nearness(
            pixels=far[:, 0],
            rows=found.indices[:, 0],
            second=far[:, 1],
            stands_out=_standing_out(far),
            patches_rows=found.evidence_indices[:, 0],
            patches_stand_out=_standing_out(1 / (1 + np.where(found.evidence_indices < 0, np.nan, found.evidence))),
            parts=np.where(np.isfinite(found.part_distances), found.part_distances, np.nan),
            features=near[:, 0],
            features_rows=near_rows,
            features_stand_out=_standing_out(near),
        )

    def _in_features(self, features: np.ndarray, barred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Euclidean distances `(Q, neighbours)` to the nearest patients (NaN: none), and the row `(Q,)` of the first."""
        patients, neighbours = self._real.patients, self._neighbours
        most_scans = int(np.unique(patients[self._among], return_counts=True)[1].max())
        wanted = min(len(self._among), neighbours * min(most_scans, 8) + most_scans)
        search = NearestNeighbors(n_neighbors=wanted, algorithm="brute").fit(
            np.asarray(self._real.features[self._among], dtype=np.float32)
        )
        distances = np.full((len(features), neighbours), np.nan)
        rows = np.full(len(features), -1)
        for start in range(0, len(features), 512):
            found, places = search.kneighbors(np.asarray(features[start : start + 512], dtype=np.float32))
            for place, (far, candidates) in enumerate(zip(found, self._among[places], strict=True), start):
                others = patients[candidates] != barred[place]
                far, candidates = far[others], candidates[others]
                _, first = np.unique(patients[candidates], return_index=True)
                kept = np.sort(first)[:neighbours]
                distances[place, : len(kept)] = far[kept]
                rows[place] = candidates[kept[0]] if len(kept) else -1
        return distances, rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Thresholds:
    """When a scan counts as a copy: a criterion lies `cut` spreads beyond what is typical of held-out real scans.

    `typical` `(classes, 4)` and `spread` `(4,)` are of the logarithms of `CRITERIA`; `parts` is typical of `Nearness.parts`.
    """

    typical: np.ndarray
    spread: np.ndarray
    cut: float
    parts: float = np.nan

    def scores(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the lowest standardised criterion of each scan `(N,)`; `values` `(N, 4)` as of `Nearness.values`."""
        standardised = (values - self.typical[labels]) / self.spread
        return np.where(np.isnan(standardised), np.inf, standardised).min(axis=1)

    def limits(self, label: int) -> np.ndarray:
        """Return the threshold of each criterion for a class, `(4,)`; NaN where there is none."""
        return np.asarray(np.exp(self.typical[label] + self.cut * self.spread))

    def flagged(self, near: Nearness, labels: np.ndarray) -> np.ndarray:
        """Return which scans are below any threshold, bool `(N,)`."""
        return self.scores(near.values(), labels) < self.cut

    def unmistakable(self, near: Nearness, labels: np.ndarray) -> np.ndarray:
        """Return which scans are unmistakable copies, bool `(N,)`.

        They lie below half the pixel threshold, and a third as far from the nearest as from the next; or their patches stand
        out, and the quarter that agrees best does so within a third of what is typical.
        """
        limits = np.array([self.limits(label) for label in labels]).reshape(-1, len(CRITERIA))
        whole = (near.pixels < limits[:, 0] / 2) & (near.stands_out < _CLEARLY)
        parts = near.patches_stand_out < limits[:, CRITERIA.index("patches_stand_out")]
        return whole | (parts & (near.parts < _CLEARLY * self.parts))


def calibrate(values: np.ndarray, labels: np.ndarray, classes: int, target: float) -> Thresholds:
    """Return thresholds under which a new real scan falls with a chance of about `target`.

    `values` `(H, 4)` are of held-out real scans. What is typical is the median, for the pixel distance that of each class;
    spreads are lower standard deviations, pooled. The cut is an order statistic of the scans' scores: a new
    exchangeable scan lies below the k-th lowest of n with probability k / (n + 1). Where n is too small for that (k < 1), it
    is the lower of the lowest score and the normal quantile. Without scans nothing is below the cut, minus infinity.
    """
    kinds = len(CRITERIA)
    if len(values) == 0:
        return Thresholds(typical=np.full((classes, kinds), np.nan), spread=np.full(kinds, np.nan), cut=-np.inf)
    overall = _by_column(np.nanmedian, values)
    typical = np.tile(overall, (classes, 1))
    for label in range(classes):
        of_class = values[labels == label]
        if len(of_class) >= _FEW:
            typical[label] = np.where(_BY_CLASS, _by_column(np.nanmedian, of_class), overall)
    residuals = values - typical[labels]
    spread = np.maximum(-_by_column(lambda column: np.nanquantile(column, _LOWER), residuals), _NARROWEST)
    thresholds = Thresholds(typical=typical, spread=spread, cut=-np.inf)
    scores = np.sort(thresholds.scores(values, labels))
    position = int(target * (len(scores) + 1))
    cut = scores[position - 1] if position >= 1 else min(scores[0], norm.ppf(target / len(CRITERIA)))
    return Thresholds(typical=typical, spread=spread, cut=float(cut))


def find_alike(near: Nearness, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return which held-out scans `(H,)` are near-duplicates of scans that the generator saw, as real cohorts have them.

    They say nothing about how near new patients come: with them, a threshold would let copies pass. The limit is that of
    `medsynth index`, or in a class of scans that are all alike a quarter of the median distance.
    """
    limits = np.full(classes, NEAR_DUPLICATE)
    for label in np.unique(labels):
        limits[label] = min(NEAR_DUPLICATE, _ALIKE * median_of_known(near.pixels[labels == label]))
    return near.pixels < limits[labels]


def median_of_known(values: np.ndarray) -> float:
    """Return the median of the values that are no NaN; NaN where none is known."""
    return float(_by_column(np.nanmedian, values[:, None])[0])


def equal_rows(scans: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the first reference that equals each scan in every pixel, or -1, `(N,)`; either may be a memory map."""
    known: dict[bytes, int] = {}
    for row, scan in enumerate(references):
        known.setdefault(digest_scan(scan), row)
    return np.array([known.get(digest_scan(scan), -1) for scan in scans], dtype=np.int64)


def digest_scan(scan: np.ndarray) -> bytes:
    """Return a hash of the values of a scan."""
    # Equal values as equal bytes: one type, and no negative zero.
    return hashlib.sha256((np.asarray(scan, dtype=np.float32) + np.float32(0)).tobytes()).digest()


@dataclass(frozen=True, kw_only=True)
class Lean:
    """`share` of `scans` synthetic scans whose nearest patient is one that the generator saw; `expected` without copying.

    `excess` is (share - expected) / (1 - expected): the part of the set that would have to be copied to explain it. `p_value`
    is the chance of such a share or a higher one when it makes no difference which side a patient is on.
    """

    share: float
    expected: float
    excess: float
    p_value: float
    scans: int


def measure_lean(
    nearest: np.ndarray, real: ScanArrays, seen: np.ndarray, generator: np.random.Generator
) -> Lean | None:
    """Return how far the `nearest` real rows `(M,)` of synthetic scans lean to patients with rows in `seen`; None if M is 0.

    A test of the whole set without thresholds on distances: a generator of smooth or typical scans comes nearer to training scans
    than real patients do, but just as near to patients that it never saw. So each synthetic scan looks for its nearest patient
    among all, and without copying the sides turn up as often as if patients had been split anew (the question of Meehan et al.
    2020, arXiv 2004.05675, asked by sides). Sides are permuted among the patients of each class, which holds for any generator,
    for sides of unequal size, and where a few patients are the nearest of many scans; it assumes a random split by patient.
    -1 in `nearest` does not count.
    """
    nearest = nearest[nearest >= 0]
    patients, first, numbers = np.unique(real.patients, return_index=True, return_inverse=True)
    sides = np.isin(patients, real.patients[seen])
    if len(nearest) == 0 or sides.all():
        return None
    counts = np.bincount(numbers[nearest], minlength=len(patients))
    strata = real.labels[first]
    observed = int(counts[sides].sum())
    sums = np.zeros(_PERMUTATIONS, dtype=np.int64)
    expected = 0.0
    for stratum in np.unique(strata):
        inside = strata == stratum
        of_stratum, seen_here = counts[inside], int(sides[inside].sum())
        if not of_stratum.any():
            continue
        expected += float(of_stratum.sum() * seen_here / inside.sum())
        sums += np.array([generator.permutation(of_stratum)[:seen_here].sum() for _ in range(_PERMUTATIONS)])
    share, expected = observed / len(nearest), expected / len(nearest)
    return Lean(
        share=share,
        expected=expected,
        excess=(share - expected) / (1 - expected) if expected < 1 else 0.0,
        p_value=float((1 + (sums >= observed).sum()) / (1 + _PERMUTATIONS)),
        scans=len(nearest),
    )


def _by_column(measure: Callable[[np.ndarray], np.floating], values: np.ndarray) -> np.ndarray:
    """Return `measure` of each column, NaN where nothing in it is known."""
    return np.array([measure(column) if np.isfinite(column).any() else np.nan for column in values.T])


def _standing_out(distances: np.ndarray) -> np.ndarray:
    """Return the first distance over the median of the others that are known, `(N,)`."""
    result = np.full(len(distances), np.nan)
    some = np.isfinite(distances[:, 1:]).any(axis=1)
    result[some] = distances[some, 0] / np.maximum(np.nanmedian(distances[some, 1:], axis=1), _NEVER_ZERO)
    return result
