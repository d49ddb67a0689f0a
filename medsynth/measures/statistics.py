"""The uncertainty of a figure: the bootstrap over test patients and training seeds, and correction for many comparisons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from medsynth.errors import DataError
from medsynth.measures.classification import Metric

_NUMBERS_AT_ONCE = 2**22
_MOST_UNDEFINED = 0.05
_FEW = 10  # resamples in a tail below which its percentile is unreliable


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its confidence interval and standard error; `p_value` is of the hypothesis that the truth is 0.

    Interval and p-value agree: a 95 % interval without 0 goes with a p-value below 0.05. NaN means undefined.
    """

    value: float
    low: float
    high: float
    standard_error: float
    p_value: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Resamples:
    """R independent draws of patients and of seeds, shared by all figures that are to be compared.

    `scans` `(R, N)` is how often each scan counts (all scans of a patient alike), `seeds` `(R, S)` the share of each seed;
    `patients` is how many different patients there are.
    """

    scans: np.ndarray
    seeds: np.ndarray
    patients: int

    @classmethod
    def draw(cls, patients: np.ndarray, seeds: int, *, generator: np.random.Generator, resamples: int) -> Resamples:
        """Return draws with replacement of the patients `(N,)` of N scans, and of `seeds` training seeds.

        As many patients as there are, but one seed fewer than there are: the mean of S - 1 of S draws scatters as the mean of
        S does about the truth (Rao & Wu 1988, JASA 83, 231), whereas that of S draws would scatter 11 % too little at S = 5.
        A single seed stays as it is, and results hold for that one training.
        """
        _, numbers = np.unique(patients, return_inverse=True)
        count = int(numbers.max()) + 1
        # In Fortran order, and so are `scans`: metrics read the weights scan by scan.
        of_patients = np.empty((resamples, count), dtype=np.uint16, order="F")
        for row in range(resamples):
            of_patients[row] = np.bincount(generator.integers(count, size=count), minlength=count)
        drawn = max(1, seeds - 1)
        of_seeds = generator.multinomial(drawn, np.full(seeds, 1 / seeds), size=resamples) / drawn
        return cls(scans=of_patients.T[numbers].T, seeds=of_seeds, patients=count)

    def among(self, chosen: np.ndarray) -> Resamples:
        """Return the same draws of the scans `chosen` `(N,)` (bool) only, as for a subgroup of the patients.

        `patients` stays that of all scans, of which the group's size is a random part.
        """
        return Resamples(scans=self.scans.T[chosen].T, seeds=self.seeds, patients=self.patients)


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampled:
    """A metric of one arm, or a difference of two: `observed` `(S,)` for each seed, `values` `(R, S)` in each resample."""

    observed: np.ndarray
    values: np.ndarray
    resamples: Resamples

    def minus(self, other: Resampled) -> Resampled:
        """Return the difference to another arm or metric, paired by patient, seed and resample.

        `DataError` if the other was not computed with the same resamples.
        """
        if other.resamples is not self.resamples:
            raise DataError("resamples: need the same draws for both arms, got different ones")
        return Resampled(
            observed=self.observed - other.observed, values=self.values - other.values, resamples=self.resamples
        )

    def estimate(self, *, level: float = 0.95) -> Estimate:
        """Return the mean over seeds with a two-way percentile interval.

        Both factors are drawn independently (the pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics 1, 386), which
        covers patients, seeds, and somewhat more than their interaction. Few seeds need wider tails than the normal ones: the
        percentiles are those of a t distribution (Hesterberg 2015, The American Statistician 69, 371) with the degrees of
        freedom of the two factors together (Satterthwaite 1946). Resamples in which the metric is undefined are left out;
        all but `value` is NaN if they are more than 5 %.
        """
        value = float(self.observed.mean())
        draws = (self.values * self.resamples.seeds).sum(axis=1)
        known = draws[np.isfinite(draws)]
        unknown = float("nan")
        if np.isnan(value) or len(known) < (1 - _MOST_UNDEFINED) * len(draws):
            return Estimate(value=value, low=unknown, high=unknown, standard_error=unknown, p_value=unknown)
        freedom = self._degrees_of_freedom(float(known.var()))
        error = float(known.std())
        reach = t.ppf((1 - level) / 2, freedom)
        tail = norm.cdf(reach)
        low, high = np.quantile(known, [tail, 1 - tail])
        if tail * len(known) < _FEW:
            # Too few draws lie so far out for a percentile: take the t interval, unless the percentiles are wider.
            low, high = min(low, value + reach * error), max(high, value - reach * error)
        beyond = min((known <= 0).sum(), (known >= 0).sum())
        # The smaller tail beyond 0, never counted as empty, taken as the tail of the same t distribution.
        p_value = 2 * float(t.cdf(norm.ppf((1 + beyond) / (1 + len(known))), freedom))
        if beyond < _FEW and error > 0:
            # As for the interval: 0 lies outside only if it lies outside the t interval as well.
            p_value = 2 * float(t.cdf(-abs(value) / error, freedom))
        return Estimate(value=value, low=float(low), high=float(high), standard_error=error, p_value=min(1.0, p_value))

    def _degrees_of_freedom(self, variance: float) -> float:
        seeds = len(self.observed)
        of_seeds = float(self.observed.var(ddof=1)) / seeds if seeds > 1 else 0.0
        of_patients = max(0.0, variance - of_seeds)
        return _satterthwaite(of_seeds, seeds, of_patients, self.resamples.patients)


def _satterthwaite(of_seeds: float, seeds: int, of_patients: float, patients: int) -> float:
    shares = of_seeds**2 / max(1, seeds - 1) + of_patients**2 / max(1, patients - 1)
    return (of_seeds + of_patients) ** 2 / shares if shares > 0 else float("inf")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The scores `(S, N)` of S trainings on N scans with `truth` `(N,)`, and the resamples drawn for these scans.

    Training s of every arm is paired with training s of the others. `DataError` for sizes that do not fit.
    """

    truth: np.ndarray
    scores: np.ndarray
    resamples: Resamples

    def __post_init__(self) -> None:
        expected = self.resamples.seeds.shape[1], self.resamples.scans.shape[1]
        if self.scores.shape != expected or self.truth.shape != expected[1:]:
            raise DataError(f"scores: need (seeds, scans) {expected} like the resamples, got {self.scores.shape}")


def resample_metric(metric: Metric, scored: Scored) -> list[Resampled]:
    """Return each figure of a metric, as observed and resampled; memory holds a bounded part of the resamples as float64."""
    truth, scans = scored.truth, scored.resamples.scans
    ones = np.ones((1, len(truth)))
    observed = np.stack([np.atleast_2d(metric(truth, one, ones))[:, 0] for one in scored.scores], axis=1)
    values = np.empty((len(observed), len(scans), len(scored.scores)))
    at_once = max(1, _NUMBERS_AT_ONCE // len(truth))
    for start in range(0, len(scans), at_once):
        some = slice(start, start + at_once)
        for seed, one in enumerate(scored.scores):
            values[:, some, seed] = metric(truth, one, scans[some])
    return [
        Resampled(observed=one, values=each, resamples=scored.resamples)
        for one, each in zip(observed, values, strict=True)
    ]


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values `(K,)` adjusted for K comparisons, in the same order (Holm 1979, Scand. J. Statistics 6, 65).

    Rejecting where the adjusted value is below alpha keeps the chance of any false rejection below alpha. NaN stays NaN but
    counts as a comparison.
    """
    values = np.asarray(p_values, dtype=np.float64)
    known = values[~np.isnan(values)]
    order = np.argsort(known, kind="stable")
    stepped = known[order] * (len(values) - np.arange(len(known)))
    adjusted = np.empty_like(known)
    adjusted[order] = np.maximum.accumulate(stepped).clip(max=1)
    result = np.full_like(values, np.nan)
    result[~np.isnan(values)] = adjusted
    return result
