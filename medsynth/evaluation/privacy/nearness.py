"""How near scans are to the scans that a generator saw, and how near is too near."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from sklearn.neighbors import NearestNeighbors

from medsynth.config import PrivacyOptions
from medsynth.measures.alignment import aligned_neighbours

CRITERIA = ("pixels", "stands_out", "features_stand_out")
_BY_CLASS = (True, False, False)  # whose typical value depends on the class
_NEVER_ZERO = 1e-7
_FEW = 8  # calibration scans of a class below which all classes say what is typical
_LOWER = 0.1587  # share below one standard deviation
_NARROWEST = 0.02  # spread of ln(distance) at least, against cohorts that are all alike
_CLEARLY = 1 / 3  # d1 < d2 / 3 (arXiv 2310.02664)


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearness:
    """Of N scans, `(N,)` each: the distance to the nearest patient, in pixels and in features, and how far it stands out.

    `pixels` are distances of `measures.alignment` to the nearest training scan, `rows` its row, `second` the distance to the
    nearest of another patient. `stands_out` is `pixels` over the median distance to the next nearest patients: 1 where
    the nearest is one of many, 0 for an exact copy. `features` and `features_stand_out` are the same with Euclidean
    distances of features, NaN where there are none. NaN also without enough patients.
    """

    pixels: np.ndarray
    rows: np.ndarray
    second: np.ndarray
    stands_out: np.ndarray
    features: np.ndarray
    features_rows: np.ndarray
    features_stand_out: np.ndarray

    def values(self) -> np.ndarray:
        """Return the logarithms of `CRITERIA`, `(N, 3)`."""
        known = np.stack([self.pixels, self.stands_out, self.features_stand_out], axis=1)
        return np.log(np.maximum(known, _NEVER_ZERO))


def measure_nearness(
    scans: np.ndarray,
    references: np.ndarray,
    *,
    among: np.ndarray,
    patients: np.ndarray,
    options: PrivacyOptions,
    rows: np.ndarray | None = None,
    barred: np.ndarray | None = None,
    features: np.ndarray | None = None,
    reference_features: np.ndarray | None = None,
    progress: bool = False,
    title: str = "comparing scans",
) -> Nearness:
    """Return how near the scans at `rows` are to the references at `among`, whose `patients` `(R,)` count once each.

    `features` are those of the scans at `rows`. A scan does not find the patient `barred` (-1: finds all).
    """
    found = aligned_neighbours(
        scans,
        references,
        groups=patients,
        rows=rows,
        among=among,
        barred=barred,
        count=options.neighbours,
        shift=options.shift,
        smoothing=options.smoothing,
        progress=progress,
        title=title,
    )
    count = len(found.distances)
    near, near_rows = np.full((count, options.neighbours), np.inf), np.full(count, -1)
    if features is not None and reference_features is not None and count:
        near, near_rows = _feature_neighbours(
            features, reference_features, among, patients, np.full(count, -1) if barred is None else barred, options
        )
    return Nearness(
        pixels=_known(found.distances[:, 0]),
        rows=found.indices[:, 0],
        second=_known(found.distances[:, 1]),
        stands_out=_standing_out(found.distances),
        features=_known(near[:, 0]),
        features_rows=near_rows,
        features_stand_out=_standing_out(near),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Thresholds:
    """When a scan counts as a copy: a criterion lies `cut` spreads beyond what is typical of held-out real scans.

    `typical` `(classes, 3)` and `spread` `(3,)` are of the logarithms of `CRITERIA`; `scans` have set the cut.
    """

    typical: np.ndarray
    spread: np.ndarray
    cut: float
    scans: int

    def scores(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the lowest standardised criterion of each scan `(N,)`; `values` `(N, 3)` as of `Nearness.values`."""
        standardised = (values - self.typical[labels]) / self.spread
        return np.where(np.isnan(standardised), np.inf, standardised).min(axis=1)

    def limits(self, label: int) -> np.ndarray:
        """Return the threshold of each criterion for a class, `(3,)`; NaN where there is none."""
        limits: np.ndarray = np.exp(self.typical[label] + self.cut * self.spread)
        return limits

    def flagged(self, near: Nearness, labels: np.ndarray) -> np.ndarray:
        """Return which scans are below any threshold, bool `(N,)`."""
        return self.scores(near.values(), labels) < self.cut

    def unmistakable(self, near: Nearness, labels: np.ndarray) -> np.ndarray:
        """Return which scans are below half the pixel threshold, and a third as far from the nearest as from the next."""
        limits = np.array([self.limits(label)[0] for label in labels])
        return (near.pixels < limits / 2) & (near.stands_out < _CLEARLY)


def calibrate(values: np.ndarray, labels: np.ndarray, classes: int, target: float) -> Thresholds | None:
    """Return thresholds under which a new real scan falls with a chance of about `target`; None without scans.

    `values` `(H, 3)` are of held-out real scans. What is typical is the median, for the pixel distance that of each class;
    spreads are lower standard deviations, pooled. The cut is an order statistic of the scans' scores: a new
    exchangeable scan lies below the k-th lowest of n with probability k / (n + 1). Where n is too small for that (k < 1), it
    is the lower of the lowest score and the normal quantile.
    """
    if len(values) == 0:
        return None
    overall = _column(np.nanmedian, values)
    typical = np.tile(overall, (classes, 1))
    for label in range(classes):
        of_class = values[labels == label]
        if len(of_class) >= _FEW:
            typical[label] = np.where(_BY_CLASS, _column(np.nanmedian, of_class), overall)
    residuals = values - typical[labels]
    spread = np.maximum(-_column(lambda column: np.nanquantile(column, _LOWER), residuals), _NARROWEST)
    thresholds = Thresholds(typical=typical, spread=spread, cut=-np.inf, scans=len(values))
    scores = np.sort(thresholds.scores(values, labels))
    position = int(target * (len(scores) + 1))
    cut = scores[position - 1] if position >= 1 else min(scores[0], norm.ppf(target / len(CRITERIA)))
    return Thresholds(typical=typical, spread=spread, cut=float(cut), scans=len(values))


def _column(measure: object, values: np.ndarray) -> np.ndarray:
    """Return `measure` of each column, NaN where nothing in it is known."""
    assert callable(measure)
    return np.array([measure(column) if np.isfinite(column).any() else np.nan for column in values.T])


def _standing_out(distances: np.ndarray) -> np.ndarray:
    """Return the first distance over the median of the others, `(N,)`."""
    known = np.where(np.isfinite(distances), distances, np.nan)
    result = np.full(len(known), np.nan)
    some = np.isfinite(known[:, 1:]).any(axis=1)
    result[some] = known[some, 0] / np.maximum(np.nanmedian(known[some, 1:], axis=1), _NEVER_ZERO)
    return result


def _feature_neighbours(
    features: np.ndarray,
    references: np.ndarray,
    among: np.ndarray,
    patients: np.ndarray,
    barred: np.ndarray,
    options: PrivacyOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """Return Euclidean distances `(Q, neighbours)` to the nearest patients, and the row `(Q,)` of the first."""
    most_scans = int(np.unique(patients[among], return_counts=True)[1].max())
    wanted = min(len(among), options.neighbours * min(most_scans, 8) + most_scans)
    search = NearestNeighbors(n_neighbors=wanted, algorithm="brute").fit(
        np.asarray(references[among], dtype=np.float32)
    )
    distances = np.full((len(features), options.neighbours), np.inf)
    rows = np.full(len(features), -1)
    for start in range(0, len(features), 512):
        some = slice(start, start + 512)
        found, places = search.kneighbors(np.asarray(features[some], dtype=np.float32))
        for place, (far, candidates) in enumerate(zip(found, among[places], strict=True), start):
            others = patients[candidates] != barred[place]
            far, candidates = far[others], candidates[others]
            _, first = np.unique(patients[candidates], return_index=True)
            kept = np.sort(first)[: options.neighbours]
            distances[place, : len(kept)] = far[kept]
            rows[place] = candidates[kept[0]] if len(kept) else -1
    return distances, rows


def _known(distances: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(distances), distances, np.nan)
