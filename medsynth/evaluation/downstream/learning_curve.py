"""How many real scans a synthetic set is worth: the baseline's learning curve, read backwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medsynth.errors import ConfigError
from medsynth.evaluation.downstream.judging import PRIMARY, estimate_dict
from medsynth.measures.statistics import Resampled

_TAILS = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The baseline with `patients` real rare training patients: its figures on the test split."""

    patients: int
    figures: Mapping[str, Resampled]


def parse_curve(text: str) -> tuple[int, ...]:
    """Return the numbers of patients of `10,20,40`, ascending; `ConfigError` for anything but whole numbers from 1."""
    if not text.strip():
        return ()
    numbers = []
    for part in text.split(","):
        if not part.strip().isdecimal() or int(part) < 1:
            raise ConfigError(
                f"learning_curve: need whole numbers from 1, comma-separated, got {part.strip()!r}; try 10,20,40"
            )
        numbers.append(int(part))
    return tuple(sorted(set(numbers)))


def patients_worth(patients: np.ndarray, values: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Return how many patients the curve needs to reach each figure, `(R,)`.

    `patients` `(K,)` ascending, `values` `(K, R)` the curve, `reached` `(R,)`. Between points the figure is linear in the
    logarithm of the number; the first crossing counts. 0 where the first point is there already, infinite where no point is.
    """
    result = np.where(reached <= values[0], 0.0, np.inf)
    open_ = np.isinf(result)
    for number in range(len(patients) - 1):
        low, high = values[number], values[number + 1]
        crossing = open_ & (low < reached) & (reached <= high)
        share = np.divide(reached - low, high - low, out=np.zeros_like(reached), where=crossing)
        first, second = np.log(patients[number]), np.log(patients[number + 1])
        result = np.where(crossing, np.exp(first + share * (second - first)), result)
        open_ &= ~crossing
    return result


def curve_dict(points: Sequence[CurvePoint], augmented: Mapping[str, Resampled]) -> dict[str, Any]:
    """Return the curve and what the set is worth, for the report.

    `worth` has, for each primary figure, `patients` and its interval `low`, `high` (over test patients and trainings): numbers
    of real rare patients with which the baseline does as well as with the set; 0 means fewer than the smallest point, None more
    than the largest. `points` and `augmented` have the figures themselves.
    """
    points = sorted(points, key=lambda point: point.patients)
    numbers = np.array([point.patients for point in points], dtype=np.float64)
    worth = {}
    for name in PRIMARY:
        observed = np.array([[point.figures[name].observed.mean()] for point in points])
        seeds = augmented[name].resamples.seeds
        drawn = np.stack([(point.figures[name].values * seeds).sum(axis=1) for point in points])
        reached = (augmented[name].values * seeds).sum(axis=1)
        value = patients_worth(numbers, observed, augmented[name].observed.mean()[None])[0]
        known = np.isfinite(reached) & np.isfinite(drawn).all(axis=0)
        # Between infinite and finite values there is nothing to interpolate: take the drawn value itself.
        spread = patients_worth(numbers, drawn[:, known], reached[known])
        low, high = np.quantile(spread, _TAILS, method="inverted_cdf") if known.any() else (0.0, np.inf)
        worth[name] = {"patients": _finite(value), "low": _finite(low), "high": _finite(high)}
    return {
        "points": [
            {
                "patients": point.patients,
                **{name: estimate_dict(point.figures[name].estimate()) for name in PRIMARY},
            }
            for point in points
        ],
        "augmented": {name: estimate_dict(augmented[name].estimate()) for name in PRIMARY},
        "worth": worth,
    }


def worth_sentence(curve: Mapping[str, Any], real_patients: int) -> str:
    """Return in words how many real patients the set is worth by AUROC, beside those that training has."""
    worth = curve["worth"]["auroc"]
    smallest, largest = curve["points"][0]["patients"], curve["points"][-1]["patients"]
    value, low, high = (_words(worth[name], smallest, largest) for name in ("patients", "low", "high"))
    interval = "" if low == high else f" (95 % interval: {low} to {high})"
    return (
        f"By AUROC, {real_patients} real rare patients and the synthetic set do as well as {value} real rare "
        f"patients alone{interval}."
    )


def _words(patients: float | None, smallest: int, largest: int) -> str:
    if patients is None:
        return f"more than {largest}"
    return f"fewer than {smallest}" if patients == 0 else f"{patients:.0f}"


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
