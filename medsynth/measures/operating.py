"""Sensitivity and specificity at a threshold that other scans have set, with both sets of scans resampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsynth.errors import DataError
from medsynth.measures.classification import threshold_at_specificity
from medsynth.measures.statistics import Resampled, Resamples

_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class OperatingPoint:
    """Figures on test scans at the `thresholds` `(S,)`, one a seed, that reach a specificity on validation scans."""

    thresholds: np.ndarray
    sensitivity: Resampled
    specificity: Resampled
    balanced_accuracy: Resampled


def resample_operating_point(
    validation_truth: np.ndarray,
    validation_scores: np.ndarray,
    validation_resamples: Resamples,
    truth: np.ndarray,
    scores: np.ndarray,
    resamples: Resamples,
    *,
    specificity: float = 0.9,
) -> OperatingPoint:
    """Return what the threshold of `threshold_at_specificity` on validation scans gives on test scans.

    Truth `(N,)`, scores `(S, N)` and as many resamples of either set. In each resample the threshold is found anew on the
    redrawn validation patients, so the intervals hold its scatter too. `DataError` without a validation scan of the
    rest, or for resamples that do not belong together.
    """
    for name, given, draws in (
        ("validation_scores", validation_scores, validation_resamples),
        ("scores", scores, resamples),
    ):
        expected = resamples.seeds.shape[1], draws.scans.shape[1]
        if given.shape != expected or len(draws.scans) != len(resamples.scans):
            raise DataError(f"{name}: need (seeds, scans) {expected} like the resamples, got {given.shape}")
    thresholds = np.array(
        [threshold_at_specificity(validation_truth, one, specificity=specificity) for one in validation_scores]
    )
    redrawn = np.stack(
        [_thresholds(validation_truth, one, validation_resamples.scans, specificity) for one in validation_scores],
        axis=1,
    )
    chosen = truth.astype(bool)
    shares = []
    for members, above in ((chosen, True), (~chosen, False)):
        observed = np.array(
            [
                _share_called(one[members], np.ones((1, members.sum())), at[None])[0]
                for one, at in zip(scores, thresholds, strict=True)
            ]
        )
        weights = resamples.scans.T[members].T
        values = np.stack(
            [_share_called(one[members], weights, at) for one, at in zip(scores, redrawn.T, strict=True)], axis=1
        )
        if not above:
            observed, values = 1 - observed, 1 - values
        shares.append(Resampled(observed=observed, values=values, resamples=resamples))
    return OperatingPoint(
        thresholds=thresholds,
        sensitivity=shares[0],
        specificity=shares[1],
        balanced_accuracy=Resampled(
            observed=(shares[0].observed + shares[1].observed) / 2,
            values=(shares[0].values + shares[1].values) / 2,
            resamples=resamples,
        ),
    )


def _thresholds(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, specificity: float) -> np.ndarray:
    """Return `threshold_at_specificity` in each resample `(R,)`; NaN where it holds no scan of the rest."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]])
    rest = weights.T[order] * (1.0 - truth[order])[:, None]
    called = np.cumsum(np.add.reduceat(rest, starts, axis=0), axis=0)
    allowed = (called <= (1 - specificity) * called[-1] + _ROUNDING).sum(axis=0)
    # None allowed: just above all scores, as with the threshold of all scans.
    levels = np.r_[np.nextafter(falling[0], np.inf), falling[starts]]
    return np.where(called[-1] > 0, levels[allowed], np.nan)


def _share_called(scores: np.ndarray, weights: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the weighted share of scans whose score reaches the threshold of its resample, `(R,)`; NaN without scans."""
    order = np.argsort(-scores, kind="stable")
    summed = np.concatenate([np.zeros((1, len(weights))), np.cumsum(weights.T[order], axis=0, dtype=np.float64)])
    called = np.searchsorted(-scores[order], -thresholds, side="right")
    reached = summed[called, np.arange(len(weights))]
    known = (summed[-1] > 0) & ~np.isnan(thresholds)
    return np.divide(reached, summed[-1], out=np.full(len(weights), np.nan), where=known)
