"""What the scores of two arms say about each other: figures, their differences with intervals, and a verdict.

Choices (which baseline, which synthetic arm, which threshold) look at validation scores only; nothing here that looks at test
scores chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.linear_model import LogisticRegression

from medsynth.config import DownstreamOptions
from medsynth.evaluation.downstream.task import HeldOut, Task
from medsynth.measures.classification import brier_score, calibration_error, ranking_metrics
from medsynth.measures.curves import Curve, resample_reliability, resample_roc
from medsynth.measures.operating import resample_operating_point
from medsynth.measures.statistics import (
    Estimate,
    Resampled,
    Resamples,
    holm,
    resample_metric,
    resample_ranking,
)
from medsynth.seeds import numpy_generator

Reading = Literal["gain", "no gain", "harm", "cannot tell"]

PRIMARY = ("auroc", "auprc", "sensitivity")
SECONDARY = ("specificity", "balanced_accuracy", "brier", "ece")
ALPHA = 0.05
LEAST_VALIDATION = 2  # rare validation patients below which nothing can be chosen
FEW_VALIDATION = 20  # rare validation patients below which choices are said to be weak


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

    `adjusted` are the p-values of the primary figures after Holm, `bounds` their intervals at the levels that go with it;
    `replicated` are primary figures with intervals that hold for another synthetic set of the same kind, too.
    """

    estimates: Mapping[str, Estimate]
    replicated: Mapping[str, Estimate]
    adjusted: Mapping[str, float]
    bounds: Mapping[str, tuple[float, float]]

    def significant(self, name: str, sign: int) -> bool:
        """Return whether a primary figure is surely higher (`sign` 1) or lower (-1)."""
        return bool(self.adjusted[name] < ALPHA and np.sign(self.estimates[name].value) == sign)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for the report; what cannot be told is None."""
        return {
            name: {
                **estimate_dict(estimate),
                **(
                    {
                        "adjusted_low": _known(self.bounds[name][0]),
                        "adjusted_high": _known(self.bounds[name][1]),
                        "adjusted_p_value": _known(self.adjusted[name]),
                        "replicated_low": _known(self.replicated[name].low),
                        "replicated_high": _known(self.replicated[name].high),
                    }
                    if name in self.adjusted
                    else {}
                ),
            }
            for name, estimate in self.estimates.items()
        }


class Comparer:
    """Figures of arms on the test split, all with the same redrawn patients and trainings, so that they can be compared."""

    def __init__(self, task: Task, scores: Mapping[str, Scores], *, options: DownstreamOptions, seed: int) -> None:
        self._task, self._scores, self._options = task, scores, options
        self._draws, self._validation_draws = (
            Resamples.draw(
                part.patients,
                options.seeds,
                generator=numpy_generator(seed, "downstream", "resamples", name),
                resamples=options.resamples,
            )
            for name, part in (("test", task.test), ("validation", task.validation))
        )
        self._known: dict[str, dict[str, Resampled]] = {}
        self._parts: dict[bytes, Resamples] = {}

    def figures(self, name: str, *, secondary: bool = True) -> dict[str, Resampled]:
        """Return the primary figures of an arm, test specificity and balanced accuracy, and Brier and ECE if `secondary`."""
        found = self._known.setdefault(name, {})
        task, scores = self._task, self._scores[name]
        if "auroc" not in found:
            found |= self._primary(scores, task.test, self._draws)
        if secondary and "brier" not in found:
            probabilities = calibrated(task.validation.truth, scores)
            found["brier"] = resample_metric(brier_score, task.test.truth, probabilities, self._draws)
            found["ece"] = resample_metric(calibration_error, task.test.truth, probabilities, self._draws)
        return found

    def among(self, name: str, chosen: np.ndarray) -> dict[str, Resampled]:
        """Return the figures of an arm (but Brier and ECE) on the test scans `chosen` `(N,)` (bool) only."""
        test, scores = self._task.test, self._scores[name]
        part = HeldOut(rows=test.rows[chosen], truth=test.truth[chosen], patients=test.patients[chosen])
        # One object for all arms: differences are taken only between arms with the same draws.
        draws = self._parts.setdefault(chosen.tobytes(), self._draws.among(chosen))
        return self._primary(Scores(validation=scores.validation, test=scores.test[:, chosen]), part, draws)

    def difference(self, first: str, second: str, *, secondary: bool = True) -> Difference:
        """Return how much arm `first` exceeds arm `second`."""
        return compare(self.figures(first, secondary=secondary), self.figures(second, secondary=secondary))

    def curves(self, name: str) -> dict[str, Curve]:
        """Return the ROC curve of an arm on the test split and, of its calibrated probabilities, the reliability curve."""
        truth, scores = self._task.test.truth, self._scores[name]
        probabilities = calibrated(self._task.validation.truth, scores)
        return {
            "roc": resample_roc(truth, scores.test, self._draws),
            "reliability": resample_reliability(truth, probabilities, self._draws),
        }

    def _primary(self, scores: Scores, part: HeldOut, draws: Resamples) -> dict[str, Resampled]:
        auroc, auprc = resample_ranking(part.truth, scores.test, draws)
        point = resample_operating_point(
            self._task.validation.truth,
            scores.validation,
            self._validation_draws,
            part.truth,
            scores.test,
            draws,
            specificity=self._options.specificity,
        )
        return {
            "auroc": auroc,
            "auprc": auprc,
            "sensitivity": point.sensitivity,
            "specificity": point.specificity,
            "balanced_accuracy": point.balanced_accuracy,
        }


def compare(first: Mapping[str, Resampled], second: Mapping[str, Resampled]) -> Difference:
    """Return the differences of all figures that both have; the primary ones are one family of Holm."""
    apart = {name: first[name].minus(second[name]) for name in first if name in second}
    estimates = {name: each.estimate() for name, each in apart.items()}
    p_values = np.array([estimates[name].p_value for name in PRIMARY])
    adjusted = holm(p_values)
    levels = holm_levels(p_values)
    bounds = {}
    for name, level in zip(PRIMARY, levels, strict=True):
        wide = apart[name].estimate(level=level)
        bounds[name] = wide.low, wide.high
    return Difference(
        estimates=estimates,
        replicated={name: apart[name].replicated() for name in PRIMARY},
        adjusted=dict(zip(PRIMARY, adjusted.tolist(), strict=True)),
        bounds=bounds,
    )


def holm_levels(p_values: np.ndarray) -> list[float]:
    """Return the confidence level that goes with each Holm-adjusted p-value: its interval leaves 0 out if that is below 0.05.

    The step at which Holm's procedure reaches the figure, or at which it stops, says among how many figures alpha is shared.
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
class Verdict:
    """What the comparison says (`reading`), and which primary figures it says it of."""

    reading: Reading
    figures: tuple[str, ...]
    reason: str


def judge(task: Task, baseline: Difference, control: Difference, *, least_patients: int) -> Verdict:
    """Return the verdict on a synthetic arm from its differences to the strongest cheap baseline and to the duplicates.

    `harm`: a primary figure is surely lower than the baseline's (Holm over the three, 5 % two-sided). `gain`: none is, and
    one is surely higher than the baseline's, and higher than that of the duplicates (5 % two-sided, unadjusted, since it is a
    further condition on a figure already found): more draws of what is known must not pass for news. How often worthless sets
    read `gain` is counted by `benchmarks/null_gain.py`. A sensitivity whose specificity on test is surely lower does not
    count: that is another threshold, not a better classifier. `cannot tell`: too few rare patients, or undefined figures.
    """
    if task.test.rare_patients < least_patients:
        found = task.test.rare_patients
        return Verdict(
            reading="cannot tell",
            figures=(),
            reason=f"{found} test {'patient' if found == 1 else 'patients'} of {task.rare_class}; at least "
            f"{least_patients} are needed",
        )
    if task.validation.rare_patients < LEAST_VALIDATION:
        return Verdict(
            reading="cannot tell",
            figures=(),
            reason=f"fewer than {LEAST_VALIDATION} validation patients of {task.rare_class}, so no arm can be chosen",
        )
    if any(np.isnan(baseline.adjusted[name]) for name in PRIMARY):
        return Verdict(reading="cannot tell", figures=(), reason="some figures are undefined in too many resamples")
    lower = tuple(name for name in PRIMARY if baseline.significant(name, -1))
    if lower:
        return Verdict(reading="harm", figures=lower, reason="")
    higher = [name for name in PRIMARY if baseline.significant(name, 1)]
    if baseline.estimates["specificity"].high < 0:
        higher = [name for name in higher if name != "sensitivity"]
    surely = tuple(name for name in higher if control.estimates[name].low > 0)
    if surely:
        return Verdict(reading="gain", figures=surely, reason="")
    reason = "duplicates of real training scans in their place may do as well" if higher else ""
    return Verdict(reading="no gain", figures=(), reason=reason)


def estimate_dict(estimate: Estimate) -> dict[str, float | None]:
    """Return an estimate for the report; what cannot be told is None."""
    return {
        "value": _known(estimate.value),
        "low": _known(estimate.low),
        "high": _known(estimate.high),
        "p_value": _known(estimate.p_value),
    }


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
