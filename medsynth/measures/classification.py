"""How well scores separate a class from the rest, for many weightings of the scans at once.

A metric takes `truth` `(N,)` (True: the class in question), `scores` `(N,)` and `weights` `(R, N)`, how often each scan counts in
each of R resamples, and returns float64 `(R,)`, or `(F, R)` for F figures; NaN where a resample leaves it undefined. One row of
ones is the plain metric. `DataError` for scores with NaN, where they are ranked.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medsynth.errors import DataError

_ROUNDING = 1e-9

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def auroc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve `(R,)`: how often a scan of the class outscores one of the rest, ties count half.

    The rank form of Hanley & McNeil 1982 (Radiology 143, 29). NaN without either of the two.
    """
    area: np.ndarray = ranking_metrics(truth, scores, weights)[0]
    return area


def ranking_metrics(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return AUROC and average precision, `(2, R)`.

    Average precision (AUPRC) is the sum of precision times gain in recall over falling thresholds, as in scikit-learn; NaN
    without a scan of the class. Fastest if no two scores are equal and `weights` is in Fortran order, so that all weights of a
    scan lie together.
    """
    order = _falling(scores)
    if (np.diff(scores[order]) == 0).any():
        return _ranking_with_ties(truth, scores, weights)
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
    return np.stack([_ratio(area, count * total), _ratio((positives * precision).sum(axis=0), count)])


def _ranking_with_ties(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    positives, negatives = positives_and_negatives(truth, scores, weights)
    found, alarms = np.cumsum(positives, axis=1), np.cumsum(negatives, axis=1)
    count, total = positives.sum(axis=1), negatives.sum(axis=1)
    outscored = total[:, None] - alarms + negatives / 2
    called = found + alarms
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    return np.stack(
        [_ratio((positives * outscored).sum(axis=1), count * total), _ratio((positives * precision).sum(axis=1), count)]
    )


def brier_score(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean squared error of probabilities of the class `(R,)` (Brier 1950), in [0, 1], 0 is best.

    The half of Brier's own two-class sum, as in scikit-learn. NaN without scans.
    """
    return _ratio(weights @ np.square(scores - truth), weights.sum(axis=1))


def calibration_error(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, *, bins: int = 10) -> np.ndarray:
    """Return the expected calibration error of probabilities of the class `(R,)`, in [0, 1], 0 is best (Guo et al. 2017, eq. 3).

    Over equally wide bins of the probability, closed above, the gap between mean probability and share of the class, weighted
    by the scans in the bin. It is the probability of this class that is binned, not of the likelier one. Biased upward where
    scans are few, so compare only equal scans. NaN without scans.
    """
    bin_of = (np.ceil(scores * bins).astype(np.int64) - 1).clip(0)
    gaps = np.zeros((len(scores), bins))
    gaps[np.arange(len(scores)), bin_of] = scores - truth
    return _ratio(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))


def thresholds_at_specificity(
    truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, specificity: float
) -> np.ndarray:
    """Return the lowest threshold (positive is `score >= threshold`) that reaches `specificity` in each resample, `(R,)`.

    It is one of the scores, or just above all of them if none will do. NaN in a resample without scans of the rest.
    """
    _, rest = positives_and_negatives(truth, scores, weights)
    called = np.cumsum(rest, axis=1)
    allowed = (called <= (1 - specificity) * called[:, -1:] + _ROUNDING).sum(axis=1)
    falling = np.unique(scores)[::-1]
    levels = np.r_[np.nextafter(falling[0], np.inf), falling]
    return np.where(called[:, -1] > 0, levels[allowed], np.nan)


def positives_and_negatives(
    truth: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of scans of the class and of the rest at each different score, falling, `(R, S)` each."""
    order = _falling(scores)
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    chosen = truth[order].astype(np.float64)
    counted = weights[:, order].astype(np.float64)
    positives = np.add.reduceat(counted * chosen, starts, axis=1)
    negatives = np.add.reduceat(counted * (1 - chosen), starts, axis=1)
    return positives, negatives


def _falling(scores: np.ndarray) -> np.ndarray:
    """Return the order of falling scores."""
    if not np.isfinite(scores).all():
        raise DataError("scores: need finite numbers, got NaN or infinity; try training the classifier again")
    return np.argsort(-scores, kind="stable")


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
