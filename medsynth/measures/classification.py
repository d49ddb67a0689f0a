"""How well scores tell a class from the rest, for many weightings of the scans at once.

A metric takes `truth` `(N,)` (True: the class in question), `scores` `(N,)` and `weights` `(R, N)`, how often each scan counts in
each of R resamples, and returns float64 `(R,)`, NaN where a resample leaves it undefined. One row of ones is the plain metric.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from medsynth.errors import ConfigError, DataError

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

_ROUNDING = 1e-9


def auroc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve: how often a scan of the class outscores one of the rest, ties count half.

    The rank form of Hanley & McNeil 1982 (Radiology 143, 29). NaN without either of the two. `DataError` as in
    `positives_and_negatives`.
    """
    positives, negatives = positives_and_negatives(truth, scores, weights)
    outscored = negatives.sum(axis=1, keepdims=True) - np.cumsum(negatives, axis=1) + negatives / 2
    return _ratio((positives * outscored).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))


def average_precision(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the precision-recall curve as a step function (AUPRC): the mean precision at each scan found.

    The sum of precision times gain in recall over falling thresholds, as in scikit-learn. NaN without a scan of the class.
    `DataError` as in `positives_and_negatives`.
    """
    positives, negatives = positives_and_negatives(truth, scores, weights)
    found = np.cumsum(positives, axis=1)
    called = found + np.cumsum(negatives, axis=1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    return _ratio((positives * precision).sum(axis=1), positives.sum(axis=1))


def ranking_metrics(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `auroc` and `average_precision` at once, some ten times faster where no two scores are equal.

    Fastest if `weights` is in Fortran order, so that all weights of a scan lie together. `DataError` as for the two.
    """
    _check(truth, scores, weights)
    order = np.argsort(-scores, kind="stable")
    if (np.diff(scores[order]) == 0).any():
        return auroc(truth, scores, weights), average_precision(truth, scores, weights)
    chosen = truth[order].astype(bool)
    by_scan = weights.T
    # Only sums of weights, whole numbers in a bootstrap: exact in float64, and cumulated over the rest alone.
    positives = by_scan[order[chosen]].astype(np.float64)
    above = np.cumsum(by_scan[order[~chosen]], axis=0, dtype=np.float64)
    total = above[-1] if len(above) else np.zeros(len(weights))
    # How many scans of the rest stand above each scan of the class.
    rank = np.cumsum(~chosen)[chosen]
    outscoring = np.concatenate([np.zeros((1, len(weights))), above])[rank]
    area = (positives * (total - outscoring)).sum(axis=0)
    found = np.cumsum(positives, axis=0)
    called = found + outscoring
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    count = positives.sum(axis=0)
    return _ratio(area, count * total), _ratio((positives * precision).sum(axis=0), count)


def sensitivity_at_specificity(
    truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, *, specificity: float = 0.9
) -> np.ndarray:
    """Return the highest sensitivity of any threshold whose specificity, on the same scans, is `specificity` at least.

    A point of the empirical ROC curve, without interpolation; each resample chooses its own threshold. NaN without scans of
    the class or of the rest. For a threshold from other scans see `threshold_at_specificity`. `ConfigError` for a
    `specificity` outside [0, 1], `DataError` as in `positives_and_negatives`.
    """
    _check_share("specificity", specificity)
    positives, negatives = positives_and_negatives(truth, scores, weights)
    total = negatives.sum(axis=1, keepdims=True)
    allowed = np.cumsum(negatives, axis=1) <= (1 - specificity) * total + _ROUNDING
    found = np.where(allowed, np.cumsum(positives, axis=1), 0).max(axis=1, initial=0)
    return np.where(total[:, 0] > 0, _ratio(found, positives.sum(axis=1)), np.nan)


def at_specificity(specificity: float) -> Metric:
    """Return `sensitivity_at_specificity` as a metric."""
    return partial(sensitivity_at_specificity, specificity=specificity)


def threshold_at_specificity(truth: np.ndarray, scores: np.ndarray, *, specificity: float = 0.9) -> float:
    """Return the lowest threshold (positive is `score >= threshold`) of which `specificity` on these scans is true.

    It is one of the scores, or just above all of them if none will do. To be found on validation scans and used on test
    scans: give the metrics below `scores - threshold`. `ConfigError` for a `specificity` outside [0, 1]; `DataError` as in
    `positives_and_negatives`, or without a scan of the rest.
    """
    _check_share("specificity", specificity)
    _, negatives = positives_and_negatives(truth, scores, np.ones((1, len(truth))))
    total = negatives.sum()
    if total == 0:
        raise DataError("truth: need scans of the rest to find a threshold on, got none; try more validation scans")
    allowed = np.cumsum(negatives[0]) <= (1 - specificity) * total + _ROUNDING
    falling = np.unique(scores)[::-1]
    return float(falling[allowed][-1]) if allowed.any() else float(np.nextafter(falling[0], np.inf))


def sensitivity(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the share of the class with a score of 0 or more (shift scores by the threshold). NaN without the class."""
    _check(truth, scores, weights)
    chosen = truth.astype(np.float64)
    return _ratio(weights @ (chosen * (scores >= 0)), weights @ chosen)


def specificity(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the share of the rest with a score below 0 (shift scores by the threshold). NaN without the rest."""
    _check(truth, scores, weights)
    chosen = 1.0 - truth
    return _ratio(weights @ (chosen * (scores < 0)), weights @ chosen)


def balanced_accuracy(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of sensitivity and specificity at the threshold 0 (shift scores by the threshold)."""
    return (sensitivity(truth, scores, weights) + specificity(truth, scores, weights)) / 2


def brier_score(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean squared error of probabilities of the class (Brier 1950), in [0, 1], 0 is best.

    The half of Brier's own two-class sum, as in scikit-learn. NaN without scans; `DataError` for scores outside [0, 1].
    """
    _check(truth, scores, weights, probabilities=True)
    return _ratio(weights @ np.square(scores - truth), weights.sum(axis=1))


def calibration_error(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, *, bins: int = 10) -> np.ndarray:
    """Return the expected calibration error of probabilities of the class, in [0, 1], 0 is best (Guo et al. 2017, eq. 3).

    Over equally wide bins of the probability, closed above, the gap between mean probability and share of the class, weighted
    by the scans in the bin. It is the probability of this class that is binned, not of the likelier one. Biased upward where
    scans are few, so compare only equal scans. NaN without scans. `DataError` for scores outside [0, 1], `ConfigError` for
    less than one bin.
    """
    _check(truth, scores, weights, probabilities=True)
    if bins < 1:
        raise ConfigError(f"bins: need at least 1, got {bins}")
    bin_of = (np.ceil(scores * bins).astype(np.int64) - 1).clip(0)
    gaps = np.zeros((len(scores), bins))
    gaps[np.arange(len(scores)), bin_of] = scores - truth
    return _ratio(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))


def positives_and_negatives(
    truth: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of scans of the class and of the rest at each different score, falling, `(R, S)` each.

    `DataError` for sizes that do not fit, truth other than 0 and 1, or scores with NaN.
    """
    _check(truth, scores, weights)
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
    chosen = truth[order].astype(np.float64)
    counted = weights[:, order].astype(np.float64)
    if len(starts) == 0:
        return np.zeros((len(weights), 0)), np.zeros((len(weights), 0))
    positives = np.add.reduceat(counted * chosen, starts, axis=1)
    negatives = np.add.reduceat(counted * (1 - chosen), starts, axis=1)
    return positives, negatives


def _check(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, *, probabilities: bool = False) -> None:
    if truth.ndim != 1 or scores.shape != truth.shape or weights.ndim != 2 or weights.shape[1] != len(truth):
        raise DataError(
            f"scores: need one a scan, (N,), and weights (R, N), got truth {truth.shape}, scores {scores.shape}, "
            f"weights {weights.shape}"
        )
    if not np.isin(truth, (0, 1)).all():
        raise DataError("truth: need 1 for the class and 0 for the rest, got other values")
    if not np.isfinite(scores).all():
        raise DataError("scores: need finite numbers, got NaN or infinity; try training the classifier again")
    if probabilities and len(scores) and (scores.min() < 0 or scores.max() > 1):
        raise DataError(
            f"scores: need probabilities from 0 to 1, got {scores.min():.3g} to {scores.max():.3g}; try a sigmoid"
        )


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"{name}: need a share from 0 to 1, got {share}")


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
