"""How sure a figure is: the bootstrap over test patients and over training seeds, and many comparisons at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from medsynth.errors import ConfigError, DataError
from medsynth.measures.classification import Metric, ranking_metrics

_NUMBERS_AT_ONCE = 2**22
_MOST_UNDEFINED = 0.05
_FEW = 10  # resamples in a tail below which its percentile says little


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its confidence interval and standard error; `p_value` is of the hypothesis that the truth is 0.

    Interval and p-value agree: a 95 % interval without 0 goes with a p-value below 0.05. NaN is what cannot be told.
    """

    value: float
    low: float
    high: float
    standard_error: float
    p_value: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Resamples:
    """R draws of patients and, apart from them, of seeds, to be shared by all figures that are to be compared.

    `scans` `(R, N)` says how often each scan counts (all scans of a patient alike), `seeds` `(R, S)` the share of each seed;
    `patients` is how many different patients there are.
    """

    scans: np.ndarray
    seeds: np.ndarray
    patients: int

    @classmethod
    def draw(
        cls, patients: np.ndarray, seeds: int, *, generator: np.random.Generator, resamples: int = 2000
    ) -> Resamples:
        """Return draws with replacement of the patients `(N,)` of N scans, and of `seeds` training seeds.

        As many patients as there are, but one seed fewer than there are: the mean of S - 1 of S draws scatters as the mean of
        S does about the truth (Rao & Wu 1988, JASA 83, 231), whereas that of S draws would scatter 11 % too little at S = 5.
        A single seed stays as it is, and results hold for that one training. `DataError` without patients, `ConfigError`
        without seeds or resamples.
        """
        for name, count in (("seeds", seeds), ("resamples", resamples)):
            if count < 1:
                raise ConfigError(f"{name}: need at least 1, got {count}")
        if len(patients) == 0:
            raise DataError("patients: need at least one test scan, got none")
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

        Both factors are drawn apart (the pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics 1, 386), which covers
        patients, seeds, and somewhat more than their interaction. Few seeds need wider tails than the normal ones: the
        percentiles are those of a t distribution (Hesterberg 2015, The American Statistician 69, 371) with the degrees of
        freedom of the two factors together (Satterthwaite 1946). Resamples in which the metric is undefined are left out;
        all but `value` is NaN if they are more than 5 %. `ConfigError` for a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise ConfigError(f"level: need a share between 0 and 1, got {level}")
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
            # So far out there are no percentiles: the t interval, unless the percentiles are wider.
            low, high = min(low, value + reach * error), max(high, value - reach * error)
        beyond = min((known <= 0).sum(), (known >= 0).sum())
        # The smaller tail beyond 0, never quite empty, read as the tail of the same t distribution.
        p_value = 2 * float(t.cdf(norm.ppf((1 + beyond) / (1 + len(known))), freedom))
        if beyond < _FEW and error > 0:
            # The rule for the interval, turned round: 0 lies outside only if it lies beyond the t interval as well.
            p_value = 2 * float(t.cdf(-abs(value) / error, freedom))
        return Estimate(value=value, low=float(low), high=float(high), standard_error=error, p_value=min(1.0, p_value))

    def replicated(self, *, level: float = 0.95) -> Estimate:
        """Return the mean over seeds with an interval that holds for a new draw of what the seeds draw, too.

        `estimate` takes the mean over many trainings for the truth. Where each seed also redraws its training data (a bootstrap
        of a synthetic set), the deviation of that set from others of its kind is common to all seeds and does not average out;
        it is as large as the scatter of a single seed. Its variance is added, and the interval is that of t with Satterthwaite's
        degrees of freedom. `ConfigError` for a level outside (0, 1); NaN as in `estimate`, and with a single seed.
        """
        plain = self.estimate(level=level)
        seeds = len(self.observed)
        single = float(self.observed.var(ddof=1)) if seeds > 1 else float("nan")
        error = float(np.sqrt(plain.standard_error**2 + single))
        if np.isnan(error) or error == 0:
            unknown = float("nan") if np.isnan(error) else plain.value
            p_value = float("nan") if np.isnan(error) else plain.p_value
            return Estimate(value=plain.value, low=unknown, high=unknown, standard_error=error, p_value=p_value)
        of_patients = max(0.0, plain.standard_error**2 - single / seeds)
        of_seeds = single * (1 + 1 / seeds)
        freedom = _satterthwaite(of_seeds, seeds, of_patients, self.resamples.patients)
        reach = float(t.ppf((1 + level) / 2, freedom)) * error
        return Estimate(
            value=plain.value,
            low=plain.value - reach,
            high=plain.value + reach,
            standard_error=error,
            p_value=2 * float(t.cdf(-abs(plain.value) / error, freedom)),
        )

    def _degrees_of_freedom(self, variance: float) -> float:
        seeds = len(self.observed)
        of_seeds = float(self.observed.var(ddof=1)) / seeds if seeds > 1 else 0.0
        of_patients = max(0.0, variance - of_seeds)
        return _satterthwaite(of_seeds, seeds, of_patients, self.resamples.patients)


def _satterthwaite(of_seeds: float, seeds: int, of_patients: float, patients: int) -> float:
    shares = of_seeds**2 / max(1, seeds - 1) + of_patients**2 / max(1, patients - 1)
    return (of_seeds + of_patients) ** 2 / shares if shares > 0 else float("inf")


def resample_metric(metric: Metric, truth: np.ndarray, scores: np.ndarray, resamples: Resamples) -> Resampled:
    """Return a metric of the scores `(S, N)` of S seeds on N test scans with `truth` `(N,)`, as observed and resampled.

    Scans and seeds are those that the resamples were drawn for (seed s of every arm is paired with seed s of the others).
    Memory holds a bounded part of the resamples as float64. `DataError` for other sizes, and as the metric raises it.
    """
    expected = resamples.seeds.shape[1], resamples.scans.shape[1]
    if scores.shape != expected:
        raise DataError(f"scores: need (seeds, scans) {expected} like the resamples, got {scores.shape}")
    observed = np.array([metric(truth, one, np.ones((1, len(truth))))[0] for one in scores])
    values = np.empty((len(resamples.scans), len(scores)))
    at_once = max(1, _NUMBERS_AT_ONCE // len(truth))
    for start in range(0, len(values), at_once):
        weights = resamples.scans[start : start + at_once].astype(np.float64)
        for seed, one in enumerate(scores):
            values[start : start + at_once, seed] = metric(truth, one, weights)
    return Resampled(observed=observed, values=values, resamples=resamples)


def resample_ranking(truth: np.ndarray, scores: np.ndarray, resamples: Resamples) -> tuple[Resampled, Resampled]:
    """Return AUROC and average precision as `resample_metric` does for each of them, in a tenth of the time."""
    expected = resamples.seeds.shape[1], resamples.scans.shape[1]
    if scores.shape != expected:
        raise DataError(f"scores: need (seeds, scans) {expected} like the resamples, got {scores.shape}")
    ones = np.ones((1, len(truth)))
    observed = np.array([ranking_metrics(truth, one, ones) for one in scores])[:, :, 0]
    values = np.empty((2, len(resamples.scans), len(scores)))
    at_once = max(1, _NUMBERS_AT_ONCE // len(truth))
    for start in range(0, values.shape[1], at_once):
        weights = resamples.scans[start : start + at_once]
        for seed, one in enumerate(scores):
            values[:, start : start + at_once, seed] = ranking_metrics(truth, one, weights)
    found = [Resampled(observed=observed[:, which], values=values[which], resamples=resamples) for which in (0, 1)]
    return found[0], found[1]


def bootstrap_difference(
    metric: Metric,
    truth: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    patients: np.ndarray,
    *,
    generator: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Return how much a metric of scores `first` `(S, N)` exceeds that of `second` `(S, N)`, with its interval.

    `truth` and `patients` are `(N,)`. For more than two arms or one metric, draw `Resamples` once and take
    `resample_metric(...).minus(...).estimate()`. Errors as there.
    """
    draws = Resamples.draw(patients, len(first), generator=generator, resamples=resamples)
    arms = [resample_metric(metric, truth, scores, draws) for scores in (first, second)]
    return arms[0].minus(arms[1]).estimate(level=level)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values `(K,)` adjusted for K comparisons, in the same order (Holm 1979, Scand. J. Statistics 6, 65).

    Rejecting where the adjusted value is below alpha keeps the chance of any false rejection below alpha. NaN stays NaN but
    counts as a comparison. `DataError` for values outside [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    known = values[~np.isnan(values)]
    if values.ndim != 1 or ((known < 0) | (known > 1)).any():
        raise DataError("p_values: need one row of numbers from 0 to 1, got others")
    order = np.argsort(known, kind="stable")
    stepped = known[order] * (len(values) - np.arange(len(known)))
    adjusted = np.empty_like(known)
    adjusted[order] = np.maximum.accumulate(stepped).clip(max=1)
    result = np.full_like(values, np.nan)
    result[~np.isnan(values)] = adjusted
    return result
