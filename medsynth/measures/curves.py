"""ROC curve, reliability curve and operating point of a classifier, over resampled patients and trainings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsynth.measures.classification import positives_and_negatives, thresholds_at_specificity
from medsynth.measures.statistics import Resampled, Scored

_ROUNDING = 1e-9
_RESAMPLES = 500  # draws behind a band
_ROWS_AT_ONCE = 200


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
    NaN without scans of the class or of the rest.
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


def resample_roc(scored: Scored, *, points: int = 51) -> Curve:
    """Return the mean ROC curve of the trainings: sensitivity over the false-positive rate.

    Vertical averages (Fawcett 2006, Pattern Recognition Letters 27, 861, section 8.2); the band holds at each rate for itself,
    over resampled patients and trainings.
    """
    truth, rates = scored.truth, np.linspace(0, 1, points)
    scans, seeds = scored.resamples.scans[:_RESAMPLES], scored.resamples.seeds[:_RESAMPLES]
    ones = np.ones((1, len(truth)))
    observed = np.mean([roc_curve(truth, one, ones, rates)[0] for one in scored.scores], axis=0)
    redrawn = np.zeros((len(scans), points))
    for start in range(0, len(scans), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        weights = scans[some].astype(np.float64)
        for seed, one in enumerate(scored.scores):
            redrawn[some] += seeds[some, seed, None] * roc_curve(truth, one, weights, rates)
    return Curve(x=rates, y=observed, **_band(redrawn))


def resample_reliability(scored: Scored, *, bins: int = 8) -> Curve:
    """Return the reliability curve of the trainings, whose scores are probabilities: share of the class over mean probability.

    Bins hold equally many scans, all trainings together (Bröcker & Smith 2007, Weather and Forecasting 22, 651, on bars of such
    curves); bins that equal probabilities leave empty are dropped. Bands as in `resample_roc`.
    """
    probabilities = scored.scores
    scans, seeds = scored.resamples.scans[:_RESAMPLES], scored.resamples.seeds[:_RESAMPLES]
    inner = np.quantile(probabilities, np.arange(1, bins) / bins)
    bin_of = np.searchsorted(inner, probabilities, side="right")
    found: list[tuple[float, float, float, float]] = []
    for number in np.unique(bin_of):
        inside = (bin_of == number).astype(np.float64)
        # (R, S): how many scans, and how many of the class, each training puts into the bin.
        count = scans @ inside.T
        hits = scans @ (inside * scored.truth).T
        total = (seeds * count).sum(axis=1)
        shares = np.divide((seeds * hits).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)
        band = _band(shares[:, None])
        means = ((inside * values).sum() / inside.sum() for values in (probabilities, scored.truth))
        found.append((*means, band["low"][0], band["high"][0]))
    x, y, low, high = np.array(found).T
    return Curve(x=x, y=y, low=low, high=high)


def _band(values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the ends of 95 % of the values `(R, P)`, NaN for points that most draws leave undefined."""
    known = np.isfinite(values).mean(axis=0) > 0.5
    band = {name: np.full(values.shape[1], np.nan) for name in ("low", "high")}
    if known.any():
        band["low"][known], band["high"][known] = np.nanquantile(values[:, known], [0.025, 0.975], axis=0)
    return band


def resample_operating_point(validation: Scored, test: Scored, *, specificity: float) -> dict[str, Resampled]:
    """Return the figures on test scans of the threshold that reaches `specificity` on validation scans.

    They are `sensitivity`, `specificity` and `balanced_accuracy`. In each resample the threshold is found anew on the resampled
    validation patients, so the intervals include its uncertainty. Both sides have equally many resamples and trainings.
    """
    # The first row is of all scans once: the observed figures.
    weights, on = (
        np.concatenate([np.ones_like(side.resamples.scans[:1]), side.resamples.scans]) for side in (test, validation)
    )
    thresholds = [thresholds_at_specificity(validation.truth, one, on, specificity) for one in validation.scores]
    of_rest, of_class = (
        np.stack(
            [
                _share_called(one[members], weights.T[members].T, at)
                for one, at in zip(test.scores, thresholds, strict=True)
            ],
            axis=1,
        )
        for members in (test.truth == 0, test.truth == 1)
    )
    shares = {"sensitivity": of_class, "specificity": 1 - of_rest, "balanced_accuracy": (of_class + 1 - of_rest) / 2}
    return {
        name: Resampled(observed=share[0], values=share[1:], resamples=test.resamples) for name, share in shares.items()
    }


def _share_called(scores: np.ndarray, weights: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the weighted share of scans whose score reaches the threshold of its resample, `(R,)`; NaN without scans."""
    order = np.argsort(-scores, kind="stable")
    summed = np.concatenate([np.zeros((1, len(weights))), np.cumsum(weights.T[order], axis=0, dtype=np.float64)])
    called = np.searchsorted(-scores[order], -thresholds, side="right")
    reached = summed[called, np.arange(len(weights))]
    known = (summed[-1] > 0) & ~np.isnan(thresholds)
    return np.divide(reached, summed[-1], out=np.full(len(weights), np.nan), where=known)
