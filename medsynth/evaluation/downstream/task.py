"""The classification task behind the downstream gain: the rare class against the rest, split by patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from medsynth.cohorts import PreparedCohort
from medsynth.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Validation or test scans: their `rows` in the real cohort, `truth` (True: rare class) and `patients`, `(N,)` each."""

    rows: np.ndarray
    truth: np.ndarray
    patients: np.ndarray

    @property
    def rare_patients(self) -> int:
        """Number of patients with a scan of the rare class."""
        return len(np.unique(self.patients[self.truth]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """The training scans of one class.

    `real`, `synthetic` and `further` are rows of the real cohort, the synthetic set and the further real scans;
    `patients` `(real,)` and `further_patients` number the patients.
    """

    real: np.ndarray
    patients: np.ndarray
    synthetic: np.ndarray
    further: np.ndarray
    further_patients: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Training pools, one a class (the rare one first), and what is held out."""

    rare_class: str
    pools: tuple[Pool, ...]
    validation: HeldOut
    test: HeldOut

    @property
    def rare(self) -> Pool:
        """The pool of the rare class."""
        return self.pools[0]

    @property
    def common(self) -> tuple[Pool, ...]:
        """The pools of all other classes."""
        return self.pools[1:]

    def counts(self) -> dict[str, Any]:
        """Return the numbers of scans and patients of the task, for the report."""
        train = {"rare_scans": len(self.rare.real), "rare_patients": len(np.unique(self.rare.patients))}
        held_out = {
            name: {
                "rare_scans": int(part.truth.sum()),
                "rare_patients": part.rare_patients,
                "rest_scans": int((~part.truth).sum()),
            }
            for name, part in (("validation", self.validation), ("test", self.test))
        }
        return {
            "rare_class": self.rare_class,
            "train": train | {"rest_scans": sum(len(pool.real) for pool in self.common)},
            "synthetic": {
                "rare_scans": len(self.rare.synthetic),
                "rest_scans": sum(len(pool.synthetic) for pool in self.common),
            },
            **held_out,
        }


def make_task(
    real: PreparedCohort,
    synthetic: PreparedCohort,
    *,
    rare_class: str | None = None,
    further: PreparedCohort | None = None,
) -> Task:
    """Return the task of detecting `rare_class` among the rest.

    By default that is the class with the fewest real training scans among those with synthetic scans. Training takes the
    real rows of `train` and all synthetic rows; `further` are real scans of the rare class beyond the cohort, used for the
    ceiling only. Raises `ConfigError` for an unknown class, `DataError` where a patient is in two
    splits, or where training, validation or test lack the rare class or the rest.
    """
    made = np.array(synthetic.classes)[synthetic.labels] if len(synthetic.labels) else np.array([], dtype=str)
    names = np.array(real.classes)[real.labels]
    train = real.splits == "train"
    if rare_class is None:
        candidates = [label for label in real.classes if (made == label).any() and (train & (names == label)).any()]
        if not candidates:
            raise DataError("synthetic: need scans of a class that real training scans have, got none; try another set")
        rare_class = min(candidates, key=lambda label: int((train & (names == label)).sum()))
    if rare_class not in real.classes:
        raise ConfigError(f"rare_class: need one of {', '.join(real.classes)}, got {rare_class!r}")
    if not (made == rare_class).any():
        raise DataError(f"synthetic: need scans of {rare_class}, got none; try another rare_class")
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if np.intersect1d(real.patients[real.splits == first], real.patients[real.splits == second]).size:
            raise DataError(
                f"real: need each patient in one split, got some in {first} and {second}; try `medsynth index`"
            )
    pools = []
    for label in (rare_class, *(label for label in real.classes if label != rare_class)):
        own = np.flatnonzero(train & (names == label))
        beyond = np.zeros(0, dtype=np.int64)
        if further is not None and label == rare_class:
            beyond = np.flatnonzero(np.array(further.classes)[further.labels] == label)
        if len(own) or label == rare_class:
            pools.append(
                Pool(
                    real=own,
                    patients=real.patients[own],
                    synthetic=np.flatnonzero(made == label),
                    further=beyond,
                    further_patients=beyond if further is None else further.patients[beyond],
                )
            )
    validation, test = (
        HeldOut(
            rows=np.flatnonzero(real.splits == split),
            truth=names[real.splits == split] == rare_class,
            patients=real.patients[real.splits == split],
        )
        for split in ("val", "test")
    )
    if len(pools[0].real) == 0 or len(pools) == 1:
        raise DataError(
            f"real: need training scans of {rare_class} and of the rest, got none of one; try another rare_class"
        )
    for name, part in (("val", validation), ("test", test)):
        if part.truth.all() or not part.truth.any():
            missing = "the rest" if part.truth.any() else rare_class
            raise DataError(f"real: need {name} scans of {rare_class} and of the rest, got none of {missing}")
    return Task(rare_class=rare_class, pools=tuple(pools), validation=validation, test=test)
