"""The classification task behind the downstream gain: the rare class against the rest, split by patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medsynth.errors import ConfigError, DataError


class TaskScans(Protocol):
    """What the task needs of a prepared cohort; see `PreparedCohort` for each."""

    @property
    def scans(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def splits(self) -> np.ndarray: ...

    @property
    def patients(self) -> np.ndarray: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def rows(self) -> Sequence[Any]:
        """Rows of the cohort, of which only `attributes` is read."""
        ...

    @property
    def key(self) -> str: ...


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

    label: str
    rare: bool
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
        rest = [len(pool.real) for pool in self.common]
        return {
            "rare_class": self.rare_class,
            "train": {
                "rare_scans": len(self.rare.real),
                "rare_patients": len(np.unique(self.rare.patients)),
                "rest_scans": int(sum(rest)),
            },
            "synthetic": {
                "rare_scans": len(self.rare.synthetic),
                "rest_scans": int(sum(len(pool.synthetic) for pool in self.common)),
            },
            **{
                name: {
                    "rare_scans": int(part.truth.sum()),
                    "rare_patients": part.rare_patients,
                    "rest_scans": int((~part.truth).sum()),
                }
                for name, part in (("validation", self.validation), ("test", self.test))
            },
        }


def make_task(
    real: TaskScans, synthetic: TaskScans, *, rare_class: str | None = None, further: TaskScans | None = None
) -> Task:
    """Return the task of telling `rare_class` from the rest.

    By default that is the class with the fewest real training scans among those with synthetic scans. Training takes the
    real rows of `train` and all synthetic rows; `further` are real scans of the rare class beyond the cohort, used for the
    learning curve and the ceiling only. Raises `ConfigError` for an unknown class, `DataError` where a patient is in two
    splits or in `further` too, or where training, validation or test lack the rare class or the rest.
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
    order = [rare_class, *(label for label in real.classes if label != rare_class)]
    pools = tuple(
        Pool(
            label=label,
            rare=label == rare_class,
            real=np.flatnonzero(train & (names == label)),
            patients=real.patients[train & (names == label)],
            synthetic=np.flatnonzero(made == label),
            **_further(further, label if label == rare_class else None),
        )
        for label in order
        if (train & (names == label)).any() or label == rare_class
    )
    held_out = {
        split: HeldOut(
            rows=np.flatnonzero(real.splits == split),
            truth=names[real.splits == split] == rare_class,
            patients=real.patients[real.splits == split],
        )
        for split in ("val", "test")
    }
    task = Task(rare_class=rare_class, pools=pools, validation=held_out["val"], test=held_out["test"])
    _check(task)
    return task


def _further(further: TaskScans | None, label: str | None) -> dict[str, np.ndarray]:
    nothing = np.zeros(0, dtype=np.int64)
    if further is None or label is None:
        return {"further": nothing, "further_patients": nothing}
    chosen = np.flatnonzero(np.array(further.classes)[further.labels] == label)
    return {"further": chosen, "further_patients": further.patients[chosen]}


def _check(task: Task) -> None:
    if len(task.rare.real) == 0 or not task.common:
        raise DataError(
            f"real: need training scans of {task.rare_class} and of the rest, got none of one; try another rare_class"
        )
    for name, part in (("val", task.validation), ("test", task.test)):
        if part.truth.all() or not part.truth.any():
            missing = "the rest" if part.truth.any() else task.rare_class
            raise DataError(f"real: need {name} scans of {missing} and more, got none; try another split")
