"""How many real patients a synthetic set is worth, from the learning curve of the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medsynth.evaluation.downstream.arms import curve_arm
from medsynth.evaluation.downstream.experiment import Experiment
from medsynth.evaluation.downstream.judging import PRIMARY, estimate_dict, known
from medsynth.evaluation.downstream.tiers import Tier
from medsynth.measures.statistics import Resampled

_TAILS = (0.025, 0.975)


def learning_curve(experiment: Experiment, probe: Tier) -> tuple[dict[str, Any] | None, list[int]]:
    """Train the strongest baseline of the probe tier with the wanted numbers of rare patients; return the curve for the report.

    With `further` scans, also with all rare patients that there are: the ceiling. `worth` has, for each primary figure, how many
    real rare `patients` the baseline needs to do as well as with the set, with an interval `low`, `high` over test patients and
    trainings; 0 means fewer than the smallest point, None more than the largest. There is no curve without two points.
    Also returns the wanted numbers that do not exist.
    """
    rare, wanted, book = experiment.task.rare, sorted(set(experiment.options.learning_curve)), probe.book
    recipe = book.arms[probe.baseline].recipe
    own = len(np.unique(rare.patients))
    existing = own + len(np.unique(rare.further_patients))
    arms = {number: curve_arm(recipe, number) for number in wanted if number <= existing and number != own}
    if existing > own:
        arms[existing] = replace(curve_arm(recipe, existing), name="ceiling", kind="ceiling")
    book.run(list(arms.values()))
    left_out = [number for number in wanted if number > existing]
    if not arms:
        return None, left_out
    names = sorted([(own, probe.baseline), *((number, arm.name) for number, arm in arms.items())])
    numbers = [number for number, _ in names]
    curve = [probe.comparer.figures(name) for _, name in names]
    augmented = probe.comparer.figures(probe.synthetic)
    worth = {name: _worth(numbers, [figures[name] for figures in curve], augmented[name]) for name in PRIMARY}
    points = [
        {"patients": number, **{name: estimate_dict(figures[name].estimate()) for name in PRIMARY}}
        for number, figures in zip(numbers, curve, strict=True)
    ]
    return {
        "points": points,
        "augmented": {name: estimate_dict(augmented[name].estimate()) for name in PRIMARY},
        "worth": worth,
        "real_patients": own,
        "sentence": _sentence(worth["auroc"], own, numbers),
    }, left_out


def _worth(numbers: Sequence[int], curve: Sequence[Resampled], augmented: Resampled) -> dict[str, float | None]:
    patients, seeds = np.array(numbers, dtype=np.float64), augmented.resamples.seeds
    drawn = np.stack([(point.values * seeds).sum(axis=1) for point in curve])
    reached = (augmented.values * seeds).sum(axis=1)
    observed = np.array([[point.observed.mean()] for point in curve])
    value = patients_worth(patients, observed, augmented.observed.mean()[None])[0]
    defined = np.isfinite(reached) & np.isfinite(drawn).all(axis=0)
    spread = patients_worth(patients, drawn[:, defined], reached[defined])
    # Between infinite and finite values there is nothing to interpolate: take the drawn value itself.
    low, high = np.quantile(spread, _TAILS, method="inverted_cdf") if defined.any() else (0.0, np.inf)
    return {"patients": known(value), "low": known(low), "high": known(high)}


def _sentence(worth: Mapping[str, float | None], own: int, numbers: Sequence[int]) -> str:
    def words(patients: float | None) -> str:
        if patients is None:
            return f"more than {numbers[-1]}"
        return f"fewer than {numbers[0]}" if patients == 0 else f"{patients:.0f}"

    value, low, high = (words(worth[name]) for name in ("patients", "low", "high"))
    interval = "" if low == high else f" (95 % interval: {low} to {high})"
    return f"By AUROC, {own} real rare patients with the synthetic set do as well as {value} real rare patients alone{interval}."


def patients_worth(patients: np.ndarray, values: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Return how many patients the curve needs to reach each figure, `(R,)`.

    `patients` `(K,)` ascending, `values` `(K, R)` the curve, `reached` `(R,)`. Between points the figure is linear in the
    logarithm of the number; the first crossing counts. 0 where the first point already reaches it, infinite where none does.
    """
    result = np.where(reached <= values[0], 0.0, np.inf)
    still = np.isinf(result)
    for number in range(len(patients) - 1):
        low, high = values[number], values[number + 1]
        crossing = still & (low < reached) & (reached <= high)
        share = np.divide(reached - low, high - low, out=np.zeros_like(reached), where=crossing)
        first, second = np.log(patients[number]), np.log(patients[number + 1])
        result = np.where(crossing, np.exp(first + share * (second - first)), result)
        still &= ~crossing
    return result
