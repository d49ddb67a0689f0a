"""The arms of the downstream comparison, and the scans that each step of their trainings sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from medsynth.evaluation.downstream.task import Task
from medsynth.seeds import numpy_generator

Balance = Literal["none", "oversample", "weighted", "logit_adjusted"]
Kind = Literal["baseline", "synthetic", "control", "ceiling"]
BALANCES: tuple[Balance, ...] = ("none", "oversample", "weighted", "logit_adjusted")

_BALANCED = 0.5  # share of the rare class among the draws of `oversample`
_PRETRAINING = 0.5  # part of the steps


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A cheap way of training with few rare scans.

    `oversample` draws the rare class as often as the rest, `weighted` weights its loss instead, `logit_adjusted` adds the log
    odds of the rare class to the logit in the loss (Menon et al. 2021, arXiv 2007.07314, equation 10).
    """

    balance: Balance = "none"
    augment: bool = False
    mixup: bool = False

    @property
    def name(self) -> str:
        """Its parts joined by plus signs; `real` for plain training."""
        parts = [self.balance] if self.balance != "none" else ["real"]
        return "+".join([*parts, *(part for part in ("augment", "mixup") if getattr(self, part))])


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training a classifier.

    Synthetic scans (or, for the control, as many duplicates of real training scans) replace `rare_share` of the draws of the
    rare class and `common_share` of those of the others. How often a class is drawn depends on the recipe alone, so
    an arm differs from its baseline only in the content of its scans. `pretrain`: they replace all real scans of their class
    in the first half of the steps, and none later. `further`: the rare scans beyond the cohort are used too.
    """

    name: str
    kind: Kind
    recipe: Recipe
    rare_share: float = 0.0
    common_share: float = 0.0
    pretrain: bool = False
    duplicates: bool = False
    further: bool = False
    network: str = "probe"

    def on(self, network: str) -> Arm:
        """Return the same arm for another network."""
        return replace(self, network=network, name=f"{self.name} ({network})")


def baseline_arms(*, augment: bool) -> list[Arm]:
    """Return the cheap baselines: each way of balancing, alone and with classical augmentation, mixup, and both."""
    recipes = [
        Recipe(balance=balance, augment=augmented, mixup=mixed)
        for augmented, mixed in ((False, False), (True, False), (False, True), (True, True))
        for balance in BALANCES
        if augment or not augmented
    ]
    return [Arm(name=recipe.name, kind="baseline", recipe=recipe) for recipe in recipes]


def synthetic_arms(
    recipe: Recipe, shares: Sequence[float], *, common: bool, kinds: Sequence[str] = ("rare", "all", "pretrain")
) -> list[Arm]:
    """Return the arms that choose among synthetic shares: of the rare class alone, of all classes, and pretraining.

    All use `recipe`, the strongest cheap baseline. `common`: the set has scans of other classes too; without, `all` is `rare`.
    """
    base = Arm(name="pretrain_synthetic", kind="synthetic", recipe=recipe)
    arms = []
    if "rare" in kinds or ("all" in kinds and not common):
        arms += [replace(base, name=f"synthetic {share:g}", rare_share=share) for share in shares]
    if "all" in kinds and common:
        names = {share: f"synthetic {share:g} of all classes" for share in shares}
        arms += [replace(base, name=names[share], rare_share=share, common_share=share) for share in shares]
    return [*arms, replace(base, pretrain=True)] if "pretrain" in kinds else arms


def duplicate_control(arm: Arm) -> Arm:
    """Return the control of a synthetic arm: duplicates of real training scans in the same numbers and places."""
    return replace(arm, name="duplicate_real", kind="control", duplicates=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """All training scans of a task: entries are the rows `real` of the real cohort, then `synthetic`, then `further`."""

    real: np.ndarray
    synthetic: np.ndarray
    further: np.ndarray
    rare: np.ndarray

    def __len__(self) -> int:
        return len(self.real) + len(self.synthetic) + len(self.further)

    @classmethod
    def of(cls, task: Task) -> Table:
        """Return all training scans of the task; `rare` `(entries,)` says which are of the rare class."""
        parts = {name: [getattr(pool, name) for pool in task.pools] for name in ("real", "synthetic", "further")}
        rare = [
            np.full(len(rows), pool is task.rare)
            for of in parts.values()
            for pool, rows in zip(task.pools, of, strict=True)
        ]
        return cls(**{name: np.concatenate(rows) for name, rows in parts.items()}, rare=np.concatenate(rare))


def draw_training(task: Task, arm: Arm, *, steps: int, batch: int, seed: int, repeat: int) -> tuple[np.ndarray, float]:
    """Return the scans of training number `repeat` of the arm, and the share of the rare class among the real ones.

    The scans are entries of the table, `(steps, batch)`. Arms share their random numbers, so they differ only where their
    definitions do. Each training draws its own bootstrap of the synthetic scans (and of the duplicates), so that trainings
    vary as sets of that size do.
    """
    generator = numpy_generator(seed, "downstream", "draws", repeat)
    class_draw, source_draw, item_draw = generator.random((3, steps, batch))
    pools = _entries(task, arm, generator)
    counts = np.array([len(real) for real, _ in pools], dtype=np.float64)
    rates = counts / counts.sum()
    rare_rate = float(rates[0])
    if arm.recipe.balance == "oversample":
        rates = np.r_[_BALANCED, (1 - _BALANCED) * counts[1:] / counts[1:].sum()]
    which = np.searchsorted(np.cumsum(rates)[:-1], class_draw, side="right")
    pretraining = (np.arange(steps) < round(_PRETRAINING * steps))[:, None] & arm.pretrain
    entries = np.empty((steps, batch), dtype=np.int64)
    for number, (real, replacing) in enumerate(pools):
        share = arm.rare_share if number == 0 else arm.common_share
        replaced = ((source_draw < share) | pretraining) & (len(replacing) > 0)
        for source, wanted in ((real, ~replaced), (replacing, replaced)):
            chosen = (which == number) & wanted
            if chosen.any():
                entries[chosen] = source[(item_draw[chosen] * len(source)).astype(np.int64)]
    return entries, rare_rate


def _entries(task: Task, arm: Arm, generator: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for each pool, the entries of its real scans and of those that replace them in this training."""
    reals = np.cumsum([0, *(len(pool.real) for pool in task.pools)])
    made = reals[-1] + np.cumsum([0, *(len(pool.synthetic) for pool in task.pools)])
    result = []
    for number, pool in enumerate(task.pools):
        real = np.arange(reals[number], reals[number + 1])
        # Drawn for every arm alike, so that the generator stays in step.
        picks = generator.random(len(pool.synthetic))
        # Patients were drawn here once; these draws keep the random numbers, and with them published figures, as they were.
        for patients in (pool.patients, pool.further_patients):
            generator.permutation(np.unique(patients))
        if arm.further:
            real = np.concatenate([real, made[-1] + np.arange(len(pool.further))])
        source = real if arm.duplicates else np.arange(made[number], made[number + 1])
        result.append((real, source[(picks * len(source)).astype(np.int64)] if len(source) else source))
    return result
