"""Comparison of two arms by their scores: figures, their differences with intervals, and a verdict in words.

Choices (which baseline, which synthetic arm, which threshold) look at validation scores only; nothing here that looks at test
scores chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.linear_model import LogisticRegression

from medsynth.evaluation.downstream.experiment import Settings
from medsynth.evaluation.downstream.task import HeldOut, Task
from medsynth.measures.classification import brier_score, calibration_error, ranking_metrics
from medsynth.measures.curves import Curve, resample_operating_point, resample_reliability, resample_roc
from medsynth.measures.statistics import Estimate, Resampled, Resamples, Scored, holm, resample_metric
from medsynth.seeds import numpy_generator

PRIMARY = ("auroc", "auprc", "sensitivity")
ALPHA = 0.05
LEAST_VALIDATION = 2  # rare validation patients below which no arm can be chosen
FEW_VALIDATION = 20  # rare validation patients below which choices are called uncertain

_NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "sensitivity": "rare sensitivity"}
_CLASSIFIERS = {"probe": "a linear classifier on fixed features", "full": "a classifier trained on pixels"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Logits of an arm on the validation and test scans, `(S, N)` each, one row a training."""

    validation: np.ndarray
    test: np.ndarray


def validation_figures(validation: HeldOut, scores: np.ndarray) -> dict[str, float]:
    """Return AUROC and AUPRC on validation, means over trainings, and their mean, by which arms are chosen."""
    ones = np.ones((1, len(validation.truth)))
    found = np.array([ranking_metrics(validation.truth, one, ones) for one in scores])[:, :, 0].mean(axis=0)
    return {"auroc": float(found[0]), "auprc": float(found[1]), "criterion": float(found.mean())}


def choose(validation: HeldOut, scores: Mapping[str, Scores], names: Sequence[str]) -> str:
    """Return which of the arms `names` has the highest validation criterion; of equals the first, simplest."""
    return max(names, key=lambda name: validation_figures(validation, scores[name].validation)["criterion"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Difference:
    """How much one arm exceeds another in each figure.

    `adjusted` are the p-values of the primary figures after Holm, `bounds` their intervals at the levels that go with it.
    """

    estimates: Mapping[str, Estimate]
    adjusted: Mapping[str, float]
    bounds: Mapping[str, tuple[float, float]]

    def significant(self, name: str, sign: int) -> bool:
        """Return whether a primary figure is significantly higher (`sign` 1) or lower (-1)."""
        return bool(self.adjusted[name] < ALPHA and np.sign(self.estimates[name].value) == sign)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for the report; None where a figure is undefined."""
        found: dict[str, Any] = {name: estimate_dict(estimate) for name, estimate in self.estimates.items()}
        for name in self.adjusted:
            found[name] |= {
                "adjusted_low": known(self.bounds[name][0]),
                "adjusted_high": known(self.bounds[name][1]),
                "adjusted_p_value": known(self.adjusted[name]),
            }
        return found


class Comparer:
    """Figures of arms on the test split, all with the same resampled patients and trainings, so that they can be compared."""

    def __init__(self, task: Task, scores: Mapping[str, Scores], *, seeds: int, settings: Settings, seed: int) -> None:
        self._task, self._scores, self._specificity = task, scores, settings.specificity
        self._draws, self._validation_draws = (
            Resamples.draw(
                part.patients,
                seeds,
                generator=numpy_generator(seed, "downstream", "resamples", name),
                resamples=settings.resamples,
            )
            for name, part in (("test", task.test), ("validation", task.validation))
        )
        self._known: dict[str, dict[str, Resampled]] = {}
        self._parts: dict[bytes, Resamples] = {}

    def figures(self, name: str) -> dict[str, Resampled]:
        """Return the primary figures of an arm, test specificity and balanced accuracy, Brier score and ECE."""
        if name not in self._known:
            found = self._figures(self._scores[name], self._task.test, self._draws)
            probabilities = self._calibrated(self._scores[name])
            (found["brier"],) = resample_metric(brier_score, probabilities)
            (found["ece"],) = resample_metric(calibration_error, probabilities)
            self._known[name] = found
        return self._known[name]

    def among(self, name: str, chosen: np.ndarray) -> dict[str, Resampled]:
        """Return the figures of an arm (without Brier and ECE) on the test scans `chosen` `(N,)` (bool) only."""
        test, scores = self._task.test, self._scores[name]
        part = HeldOut(rows=test.rows[chosen], truth=test.truth[chosen], patients=test.patients[chosen])
        # One object for all arms: differences are taken only between arms with the same draws.
        draws = self._parts.setdefault(chosen.tobytes(), self._draws.among(chosen))
        return self._figures(Scores(validation=scores.validation, test=scores.test[:, chosen]), part, draws)

    def difference(self, first: str, second: str) -> Difference:
        """Return how much arm `first` exceeds arm `second`; the primary figures are one family of Holm."""
        other = self.figures(second)
        apart = {name: figure.minus(other[name]) for name, figure in self.figures(first).items()}
        estimates = {name: each.estimate() for name, each in apart.items()}
        p_values = np.array([estimates[name].p_value for name in PRIMARY])
        bounds = {}
        for name, level in zip(PRIMARY, holm_levels(p_values), strict=True):
            wide = apart[name].estimate(level=level)
            bounds[name] = wide.low, wide.high
        return Difference(
            estimates=estimates, adjusted=dict(zip(PRIMARY, holm(p_values).tolist(), strict=True)), bounds=bounds
        )

    def curves(self, name: str) -> dict[str, Curve]:
        """Return the ROC curve of an arm on the test split and, of its calibrated probabilities, the reliability curve."""
        scores = self._scores[name]
        tested = Scored(truth=self._task.test.truth, scores=scores.test, resamples=self._draws)
        return {"roc": resample_roc(tested), "reliability": resample_reliability(self._calibrated(scores))}

    def _calibrated(self, scores: Scores) -> Scored:
        probabilities = calibrated(self._task.validation.truth, scores)
        return Scored(truth=self._task.test.truth, scores=probabilities, resamples=self._draws)

    def _figures(self, scores: Scores, part: HeldOut, draws: Resamples) -> dict[str, Resampled]:
        tested = Scored(truth=part.truth, scores=scores.test, resamples=draws)
        validation = Scored(
            truth=self._task.validation.truth, scores=scores.validation, resamples=self._validation_draws
        )
        auroc, auprc = resample_metric(ranking_metrics, tested)
        point = resample_operating_point(validation, tested, specificity=self._specificity)
        return {"auroc": auroc, "auprc": auprc, **point}


def holm_levels(p_values: np.ndarray) -> list[float]:
    """Return the confidence level that goes with each Holm-adjusted p-value: its interval excludes 0 if that is below 0.05.

    Alpha is shared among the figures that are left at the step where Holm's procedure reaches the figure, or where it stops.
    """
    count = len(p_values)
    order = np.argsort(np.where(np.isnan(p_values), 1.0, p_values), kind="stable")
    levels = [0.0] * count
    shared = count
    for step, which in enumerate(order):
        levels[which] = 1 - ALPHA / shared
        if p_values[which] < ALPHA / shared and step < count - 1:
            shared -= 1
    return levels


def calibrated(truth: np.ndarray, scores: Scores) -> np.ndarray:
    """Return probabilities of the rare class on the test scans, `(S, N)`: logits calibrated on validation (Platt 1999).

    Recipes that balance classes give other logits than plain ones by design; calibration makes their probabilities comparable.
    """
    result = np.empty(scores.test.shape)
    for row, (validation, test) in enumerate(zip(scores.validation, scores.test, strict=True)):
        scale = float(validation.std()) or 1.0
        model = LogisticRegression(C=1.0).fit(validation[:, None] / scale, truth)
        result[row] = model.predict_proba(test[:, None] / scale)[:, 1]
    return result


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict, the primary figures that decided it, and a reason where figures are not enough."""

    verdict: Literal["gain", "no gain", "harm", "cannot tell"]
    figures: tuple[str, ...] = ()
    reason: str = ""


def judge(task: Task, baseline: Difference, control: Difference, *, least_patients: int) -> Judgement:
    """Return the verdict on a synthetic arm from its differences to the strongest cheap baseline and to the duplicates.

    `harm`: a primary figure is significantly lower than the baseline's (Holm over the three, 5 % two-sided). `gain`: none is,
    and one is significantly higher than the baseline's and than that of the duplicates (5 % two-sided, unadjusted, since it is
    a further condition on a figure already found), so that more draws of known scans do not pass for news. How often worthless
    sets get `gain` is counted by `benchmarks/null_gain.py`. A sensitivity whose specificity on test is significantly lower
    does not count: that is another threshold, not a better classifier. `cannot tell`: too few patients, or undefined figures.
    """
    for split, found, needed in (
        ("test", task.test.rare_patients, least_patients),
        ("validation", task.validation.rare_patients, LEAST_VALIDATION),
    ):
        if found < needed:
            reason = f"Too few patients to judge: {found} of {task.rare_class} in the {split} split, {needed} needed"
            return Judgement(verdict="cannot tell", reason=reason)
    if any(np.isnan(baseline.adjusted[name]) for name in PRIMARY):
        return Judgement(verdict="cannot tell", reason="Cannot judge: some figures are undefined in too many resamples")
    lower = tuple(name for name in PRIMARY if baseline.significant(name, -1))
    if lower:
        return Judgement(verdict="harm", figures=lower)
    higher = [name for name in PRIMARY if baseline.significant(name, 1)]
    if baseline.estimates["specificity"].high < 0:
        higher = [name for name in higher if name != "sensitivity"]
    above_both = tuple(name for name in higher if control.estimates[name].low > 0)
    if above_both:
        return Judgement(verdict="gain", figures=above_both)
    reason = "It beats the baseline, but duplicates of real training scans may do as well" if higher else ""
    return Judgement(verdict="no gain", reason=reason)


def verdict_sentence(
    judgement: Judgement, difference: Difference, task: Task, *, baseline: str, harmed: Sequence[str], tier: str
) -> str:
    """Return the verdict with the figures behind it, and a warning where a subgroup is harmed."""
    if judgement.verdict == "cannot tell":
        return f"{judgement.reason}."
    figures = "; ".join(_figure(name, difference) for name in judgement.figures or PRIMARY)
    compared = {"gain": "does better", "no gain": "does no better", "harm": "does worse"}[judgement.verdict]
    text = (
        f"{judgement.verdict.capitalize()}: {_CLASSIFIERS[tier]} that detects {task.rare_class} {compared} with the synthetic "
        f"scans than with the strongest cheap baseline ({baseline}): {figures}."
    )
    if judgement.reason:
        text += f" {judgement.reason}."
    if harmed:
        text += f" Harm in subgroups: {', '.join(harmed)}."
    return text


def _figure(name: str, difference: Difference) -> str:
    low, high = difference.bounds[name]
    value = difference.estimates[name].value
    return f"{_NAMES[name]} {value:+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "−")


def estimate_dict(estimate: Estimate) -> dict[str, float | None]:
    """Return an estimate for the report; None where a figure is undefined."""
    names = ("value", "low", "high", "p_value")
    return {name: known(getattr(estimate, name)) for name in names}


def known(value: float) -> float | None:
    """Return a plain number, None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None
