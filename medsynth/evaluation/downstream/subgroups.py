"""The gain for parts of the patients: a gain for some can be harm for others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medsynth.cohorts import PreparedCohort
from medsynth.errors import ConfigError
from medsynth.evaluation.downstream.judging import ALPHA, PRIMARY, Comparer, estimate_dict, known
from medsynth.evaluation.downstream.task import Task
from medsynth.measures.statistics import Estimate, holm

_FEWEST, _MOST = 2, 6  # different values of a column that `auto` takes
# Columns that say how a scan was made, not whose it is.
_OWN = frozenset(
    {"synthetic", "seed", "run", "method", "donor", "observed_from", "region_from", "contains_real_pixels", "text"}
)


def attribute_columns(real: PreparedCohort, rows: np.ndarray, wanted: str) -> dict[str, np.ndarray]:
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
            available = ", ".join(names) or "none"
            raise ConfigError(
                f"downstream.subgroups: need attribute columns of the real cohort ({available}), got {name!r}"
            )
    return {name: columns[name] for name in chosen}


def score_subgroups(
    comparer: Comparer, task: Task, columns: Mapping[str, np.ndarray], *, first: str, second: str, least: int
) -> dict[str, Any]:
    """Return how much arm `first` exceeds arm `second` in each subgroup, for the report; p-values are adjusted over all of them.

    A group needs `least` test patients of the rare class and as many scans of the rest. Small groups are counted
    (`too_small`), not named: a rare value of an attribute may identify a patient. The verdict of a group is `harm` or `gain`
    where any primary figure is significantly lower or higher; harm comes first.
    """
    groups: list[dict[str, Any]] = []
    estimates: list[dict[str, Estimate]] = []
    small = 0
    for column, values in columns.items():
        for value in sorted(set(values.tolist()) - {""}):
            chosen = values == value
            rare = len(np.unique(task.test.patients[chosen & task.test.truth]))
            rest = int((chosen & ~task.test.truth).sum())
            if min(rare, rest) < least:
                small += 1
                continue
            ahead, behind = comparer.among(first, chosen), comparer.among(second, chosen)
            estimates.append({name: ahead[name].minus(behind[name]).estimate() for name in PRIMARY})
            groups.append({"column": column, "value": value, "rare_patients": rare, "rest_scans": rest})
    adjusted = {name: holm(np.array([found[name].p_value for found in estimates])) for name in PRIMARY}
    for number, (group, found) in enumerate(zip(groups, estimates, strict=True)):
        signs = {np.sign(found[name].value) for name in PRIMARY if adjusted[name][number] < ALPHA}
        group["verdict"] = "harm" if -1 in signs else "gain" if 1 in signs else "no gain"
        group["figures"] = {
            name: {**estimate_dict(found[name]), "adjusted_p_value": known(adjusted[name][number])} for name in PRIMARY
        }
    return {"groups": groups, "too_small": small}
