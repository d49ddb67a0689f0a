"""Curves of a classifier, with bands: ROC and reliability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsynth.errors import ConfigError, DataError
from medsynth.measures.classification import positives_and_negatives
from medsynth.measures.statistics import Resamples

_ROUNDING = 1e-9
_SEEN_AT_ONCE = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Points `x` and `y` `(P,)` with 95 % bands from `low` to `high`; NaN where nothing is known."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def as_dict(self) -> dict[str, list[float | None]]:
        """Return lists of numbers to four decimals, None for NaN."""
        return {
            name: [None if np.isnan(value) else round(float(value), 4) for value in values]
            for name, values in vars(self).items()
        }


def roc_curve(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Return the sensitivity `(R, P)` at false-positive rates `rates` `(P,)`, in each of R weightings of the scans `(R, N)`.

    The highest sensitivity of any threshold that calls no larger share of the rest (the empirical curve, not interpolated).
    NaN without scans of the class or of the rest. `DataError` as in `positives_and_negatives`.
    """
    positives, negatives = positives_and_negatives(truth, scores, weights)
    nothing = np.zeros((len(weights), 1))
    found = np.concatenate([nothing, np.cumsum(positives, axis=1)], axis=1)
    called = np.cumsum(negatives, axis=1)
    sensitivity = np.full((len(weights), len(rates)), np.nan)
    for row, (hits, alarms) in enumerate(zip(found, called, strict=True)):
        if len(alarms) and alarms[-1] > 0 and hits[-1] > 0:
            at = np.searchsorted(alarms, np.asarray(rates) * alarms[-1] + _ROUNDING, side="right")
            sensitivity[row] = hits[at] / hits[-1]
    return sensitivity


def resample_roc(
    truth: np.ndarray, scores: np.ndarray, resamples: Resamples, *, points: int = 51, at_most: int = 500
) -> Curve:
    """Return the mean ROC curve of S trainings with `scores` `(S, N)`: sensitivity over the false-positive rate.

    Vertical averages (Fawcett 2006, Pattern Recognition Letters 27, 861, section 8.2); the band holds at each rate for itself,
    over redrawn patients and trainings, of which the first `at_most` draws are taken. `DataError` for sizes that do not fit.
    """
    scans, seeds = _first(scores, resamples, at_most)
    rates = np.linspace(0, 1, points)
    ones = np.ones((1, len(truth)))
    observed = np.mean([roc_curve(truth, one, ones, rates)[0] for one in scores], axis=0)
    redrawn = np.zeros((len(scans), points))
    for start in range(0, len(scans), _SEEN_AT_ONCE):
        some = slice(start, start + _SEEN_AT_ONCE)
        weights = scans[some].astype(np.float64)
        for seed, one in enumerate(scores):
            redrawn[some] += seeds[some, seed, None] * roc_curve(truth, one, weights, rates)
    return Curve(x=rates, y=observed, **_band(redrawn))


def resample_reliability(
    truth: np.ndarray, probabilities: np.ndarray, resamples: Resamples, *, bins: int = 8, at_most: int = 500
) -> Curve:
    """Return a reliability curve of S trainings with `probabilities` `(S, N)`: share of the class over mean probability.

    Bins hold equally many scans, all trainings together (Bröcker & Smith 2007, Weather and Forecasting 22, 651, on bars of such
    curves); bins that equal probabilities leave empty are dropped. Bands as in `resample_roc`. `ConfigError` for less than
    one bin, `DataError` for sizes that do not fit.
    """
    if bins < 1:
        raise ConfigError(f"bins: need at least 1, got {bins}")
    scans, seeds = _first(probabilities, resamples, at_most)
    inner = np.quantile(probabilities, np.arange(1, bins) / bins)
    bin_of = np.searchsorted(inner, probabilities, side="right")
    x, y, low, high = [], [], [], []
    for number in range(bins):
        inside = (bin_of == number).astype(np.float64)
        if not inside.any():
            continue
        # (R, S): how many scans, and how many of the class, each training puts into the bin.
        count = scans @ inside.T
        hits = scans @ (inside * truth).T
        total = (seeds * count).sum(axis=1)
        shares = np.divide((seeds * hits).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)
        band = _band(shares[:, None])
        x.append(float((inside * probabilities).sum() / inside.sum()))
        y.append(float((inside * truth).sum() / inside.sum()))
        low.append(float(band["low"][0]))
        high.append(float(band["high"][0]))
    return Curve(x=np.array(x), y=np.array(y), low=np.array(low), high=np.array(high))


def _first(scores: np.ndarray, resamples: Resamples, at_most: int) -> tuple[np.ndarray, np.ndarray]:
    expected = resamples.seeds.shape[1], resamples.scans.shape[1]
    if scores.shape != expected:
        raise DataError(f"scores: need (seeds, scans) {expected} like the resamples, got {scores.shape}")
    return resamples.scans[:at_most], resamples.seeds[:at_most]


def _band(values: np.ndarray) -> dict[str, np.ndarray]:
    """Low and high ends of 95 % of the values `(R, P)`, NaN for points that most draws leave undefined."""
    known = np.isfinite(values).mean(axis=0) > 0.5
    band = {name: np.full(values.shape[1], np.nan) for name in ("low", "high")}
    if known.any():
        band["low"][known], band["high"][known] = np.nanquantile(values[:, known], [0.025, 0.975], axis=0)
    return band
