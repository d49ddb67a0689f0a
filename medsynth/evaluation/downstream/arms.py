"""The arms of the downstream comparison: what each training is made of, and which scans each of its steps sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from medsynth.evaluation.downstream.task import Pool, Task
from medsynth.seeds import numpy_generator

Balance = Literal["none", "oversample", "weighted", "logit_adjusted"]
Kind = Literal["baseline", "synthetic", "control", "curve", "ceiling"]
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

    The synthetic scans (or, for the control, as many duplicates of real training scans) take the place of `rare_share` of the
    draws of the rare class and of `common_share` of those of the others; how often a class is drawn is the recipe's. So
    an arm differs from its baseline in the content of its scans alone. `pretrain`: they take the place of all real scans of
    their class in the first half of the steps, and of none later. `rare_patients`: only so many real rare patients, the
    further ones included.
    """

    name: str
    kind: Kind
    recipe: Recipe
    rare_share: float = 0.0
    common_share: float = 0.0
    pretrain: bool = False
    duplicates: bool = False
    rare_patients: int | None = None
    network: str = "probe"

    def on(self, network: str) -> Arm:
        """Return the same arm for another network."""
        return replace(self, network=network, name=f"{self.name} ({network})")


def baseline_arms(*, augment: bool, mixup: bool = True) -> list[Arm]:
    """Return the cheap baselines: each way of balancing, alone and with classical augmentation, mixup, and both."""
    recipes = [
        Recipe(balance=balance, augment=augmented, mixup=mixed)
        for augmented, mixed in ((False, False), (True, False), (False, True), (True, True))
        for balance in BALANCES
        if (augment or not augmented) and (mixup or not mixed)
    ]
    return [Arm(name=recipe.name, kind="baseline", recipe=recipe) for recipe in recipes]


def synthetic_arms(
    recipe: Recipe, shares: Sequence[float], *, common: bool, kinds: Sequence[str] = ("rare", "all", "pretrain")
) -> list[Arm]:
    """Return the arms that choose among synthetic shares: of the rare class alone, of all classes, and pretraining.

    All use `recipe`, the strongest cheap baseline. `common`: the set has scans of other classes too; without, `all` is `rare`.
    """
    arms = []
    if "rare" in kinds or ("all" in kinds and not common):
        arms += [
            Arm(name=f"synthetic {share:g}", kind="synthetic", recipe=recipe, rare_share=share) for share in shares
        ]
    if "all" in kinds and common:
        arms += [
            Arm(
                name=f"synthetic {share:g} of all classes",
                kind="synthetic",
                recipe=recipe,
                rare_share=share,
                common_share=share,
            )
            for share in shares
        ]
    if "pretrain" in kinds:
        arms.append(Arm(name="pretrain_synthetic", kind="synthetic", recipe=recipe, pretrain=True))
    return arms


def synthetic_only(recipe: Recipe) -> Arm:
    """Return the arm that trains on synthetic scans, and on real ones only of classes that the set lacks."""
    return Arm(name="synthetic_only", kind="control", recipe=recipe, rare_share=1.0, common_share=1.0)


def duplicate_control(arm: Arm) -> Arm:
    """Return the control of a synthetic arm: duplicates of real training scans in the same numbers and places."""
    return replace(arm, name="duplicate_real", kind="control", duplicates=True)


def curve_arm(recipe: Recipe, patients: int) -> Arm:
    """Return the baseline with so many real rare training patients, a point of the learning curve."""
    return Arm(name=f"{patients} rare patients", kind="curve", recipe=recipe, rare_patients=patients)


def ceiling_arm(recipe: Recipe, patients: int) -> Arm:
    """Return the baseline with all real rare patients, the further ones included."""
    return Arm(name="ceiling", kind="ceiling", recipe=recipe, rare_patients=patients)


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Where each training scan lies: entries are the real rows `real`, then `synthetic`, then `further`."""

    real: np.ndarray
    synthetic: np.ndarray
    further: np.ndarray
    rare: np.ndarray

    def __len__(self) -> int:
        return len(self.real) + len(self.synthetic) + len(self.further)

    @classmethod
    def of(cls, task: Task) -> Table:
        """Return all training scans of the task; `rare` `(entries,)` says which are of the rare class."""
        parts = [[getattr(pool, name) for pool in task.pools] for name in ("real", "synthetic", "further")]
        rare = [
            [np.full(len(getattr(pool, name)), pool.rare) for pool in task.pools]
            for name in ("real", "synthetic", "further")
        ]
        return cls(
            real=np.concatenate(parts[0]),
            synthetic=np.concatenate(parts[1]),
            further=np.concatenate(parts[2]),
            rare=np.concatenate([each for part in rare for each in part]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """What one training sees: `entries` `(steps, batch)` of the table, and the share of the rare class in the real scans."""

    entries: np.ndarray
    rare_rate: float


def draw_training(task: Task, arm: Arm, *, steps: int, batch: int, seed: int, repeat: int) -> Draws:
    """Return the scans that training number `repeat` of the arm sees in each step.

    Arms share their random numbers, so they differ by as little as their definition. Each training draws its own bootstrap
    of the synthetic scans (and likewise its own duplicates): the trainings then scatter as sets of that size do.
    """
    generator = numpy_generator(seed, "downstream", "draws", repeat)
    class_draw, source_draw, item_draw = generator.random((3, steps, batch))
    pools = _entries(task, arm, generator)
    counts = np.array([len(pool.real) for pool in pools], dtype=np.float64)
    rare_rate = counts[0] / counts.sum()
    rates = counts / counts.sum()
    if arm.recipe.balance == "oversample":
        rates = np.r_[_BALANCED, (1 - _BALANCED) * counts[1:] / counts[1:].sum()]
    which = np.searchsorted(np.cumsum(rates)[:-1], class_draw, side="right")
    pretraining = (np.arange(steps) < round(_PRETRAINING * steps))[:, None] & arm.pretrain
    entries = np.empty((steps, batch), dtype=np.int64)
    for number, pool in enumerate(pools):
        share = arm.rare_share if number == 0 else arm.common_share
        replaced = ((source_draw < share) | pretraining) & (len(pool.replacing) > 0)
        for source, wanted in ((pool.real, ~replaced), (pool.replacing, replaced)):
            chosen = (which == number) & wanted
            if chosen.any():
                entries[chosen] = source[(item_draw[chosen] * len(source)).astype(np.int64)]
    return Draws(entries=entries, rare_rate=float(rare_rate))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sources:
    real: np.ndarray
    replacing: np.ndarray


def _entries(task: Task, arm: Arm, generator: np.random.Generator) -> list[_Sources]:
    """Return, for each pool, the entries of its real scans and of those that replace them in this training."""
    reals = np.cumsum([0, *(len(pool.real) for pool in task.pools)])
    made = reals[-1] + np.cumsum([0, *(len(pool.synthetic) for pool in task.pools)])
    beyond = int(made[-1])
    result = []
    for number, pool in enumerate(task.pools):
        real = np.arange(reals[number], reals[number + 1])
        # Drawn for every arm alike, so that the generator stays in step.
        picks = generator.random(len(pool.synthetic))
        patients = _ordered_patients(pool, generator)
        if pool.rare and arm.rare_patients is not None:
            kept = patients[: arm.rare_patients]
            further = beyond + np.flatnonzero(np.isin(_beyond(pool), kept))
            real = np.concatenate([real[np.isin(pool.patients, kept)], further])
        source = real if arm.duplicates else np.arange(made[number], made[number + 1])
        replacing = source[(picks * len(source)).astype(np.int64)] if len(source) else source
        result.append(_Sources(real=real, replacing=replacing))
    return result


def _ordered_patients(pool: Pool, generator: np.random.Generator) -> np.ndarray:
    """Return the pool's patients in a random order, those beyond the cohort last; a prefix is a nested draw."""
    own, beyond = np.unique(pool.patients), np.unique(_beyond(pool))
    return np.concatenate([own[generator.permutation(len(own))], beyond[generator.permutation(len(beyond))]])


def _beyond(pool: Pool) -> np.ndarray:
    # Patients of another cohort have numbers of their own: negative ones cannot be mistaken.
    return -1 - pool.further_patients
