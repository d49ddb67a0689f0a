"""The gain for parts of the patients: a gain for some can be harm for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medsynth.errors import ConfigError
from medsynth.evaluation.downstream.judging import ALPHA, PRIMARY, Comparer, estimate_dict
from medsynth.evaluation.downstream.task import Task, TaskScans
from medsynth.measures.statistics import Estimate, holm

_FEWEST, _MOST = 2, 6  # different values of a column that `auto` takes
# Columns that say how a scan was made, not whose it is.
_OWN = frozenset({"synthetic", "seed", "run", "method", "donor", "given_from", "region_from", "contains_real_pixels"})


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """The gain among the test scans whose attribute `column` is `value`; p-values are adjusted over all subgroups."""

    column: str
    value: str
    rare_patients: int
    rest_scans: int
    estimates: Mapping[str, Estimate]
    adjusted: Mapping[str, float]

    @property
    def reading(self) -> Literal["gain", "harm", "no gain"]:
        """`harm` or `gain` where any primary figure is surely lower or higher; harm comes first."""
        for sign, word in ((-1, "harm"), (1, "gain")):
            if any(self.adjusted[name] < ALPHA and np.sign(self.estimates[name].value) == sign for name in PRIMARY):
                return "harm" if word == "harm" else "gain"
        return "no gain"

    def as_dict(self) -> dict[str, Any]:
        """Return it for the report."""
        return {
            "column": self.column,
            "value": self.value,
            "rare_patients": self.rare_patients,
            "rest_scans": self.rest_scans,
            "reading": self.reading,
            "figures": {
                name: {
                    **estimate_dict(self.estimates[name]),
                    "adjusted_p_value": None if np.isnan(self.adjusted[name]) else self.adjusted[name],
                }
                for name in PRIMARY
            },
        }


def attribute_columns(real: TaskScans, rows: np.ndarray, wanted: str) -> dict[str, np.ndarray]:
    """Return the text of attribute columns of the scans `rows` `(N,)`, empty where a scan has none.

    `wanted` is `auto` (columns with 2 to 6 values among these scans), `none`, or names separated by commas. `ConfigError`
    for a name that no scan has.
    """
    if wanted.strip() in ("", "none"):
        return {}
    attributes = [real.rows[row].attributes for row in rows]
    names = sorted({name for each in attributes for name in each})
    columns = {name: np.array([str(each.get(name, "")) for each in attributes]) for name in names}
    if wanted.strip() == "auto":
        return {
            name: values
            for name, values in columns.items()
            if name not in _OWN and _FEWEST <= len(set(values.tolist()) - {""}) <= _MOST
        }
    chosen = [name.strip() for name in wanted.split(",")]
    for name in chosen:
        if name not in columns:
            known = ", ".join(names) or "none"
            raise ConfigError(f"subgroups: need attribute columns of the real cohort ({known}), got {name!r}")
    return {name: columns[name] for name in chosen}


def score_subgroups(
    comparer: Comparer, task: Task, columns: Mapping[str, np.ndarray], *, first: str, second: str, least: int
) -> tuple[list[Subgroup], int]:
    """Return how much arm `first` exceeds arm `second` in each subgroup, and how many groups were too small to say.

    A group needs `least` test patients of the rare class and as many scans of the rest. Small groups are counted, not named:
    a rare value of an attribute may give a patient away.
    """
    found: list[tuple[str, str, int, int, dict[str, Estimate]]] = []
    small = 0
    for column, values in columns.items():
        for value in sorted(set(values.tolist()) - {""}):
            chosen = values == value
            rare = len(np.unique(task.test.patients[chosen & task.test.truth]))
            rest = int((chosen & ~task.test.truth).sum())
            if rare < least or rest < least:
                small += 1
                continue
            ahead, behind = comparer.among(first, chosen), comparer.among(second, chosen)
            estimates = {name: ahead[name].minus(behind[name]).estimate() for name in PRIMARY}
            found.append((column, value, rare, rest, estimates))
    adjusted = {name: _adjust([each[4][name].p_value for each in found]) for name in PRIMARY}
    groups = [
        Subgroup(
            column=column,
            value=value,
            rare_patients=rare,
            rest_scans=rest,
            estimates=estimates,
            adjusted={name: float(adjusted[name][number]) for name in PRIMARY},
        )
        for number, (column, value, rare, rest, estimates) in enumerate(found)
    ]
    return groups, small


def _adjust(p_values: Sequence[float]) -> np.ndarray:
    return holm(np.array(p_values, dtype=np.float64))
