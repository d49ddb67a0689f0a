from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medsynth.evaluation.downstream.arms import (
    Arm,
    Recipe,
    Table,
    baseline_arms,
    draw_training,
    duplicate_control,
    synthetic_arms,
)
from medsynth.evaluation.downstream.task import Task, make_task
from tests.evaluation.downstream.made_task import real_cohort, synthetic_set

STEPS, BATCH = 400, 50


@pytest.fixture(scope="module")
def task() -> Task:
    real = real_cohort(rare=20)
    return make_task(real, synthetic_set(real, "fresh", count=30))


def drawn(task: Task, arm: Arm, repeat: int = 0) -> np.ndarray:
    return draw_training(task, arm, steps=STEPS, batch=BATCH, seed=3, repeat=repeat)[0]


def shares(task: Task, entries: np.ndarray) -> tuple[float, float, float]:
    """Share of the rare class, of synthetic scans within it, and within the rest."""
    table = Table.of(task)
    rare, synthetic = table.rare[entries], entries >= len(table.real)
    return float(rare.mean()), float(synthetic[rare].mean()), float(synthetic[~rare].mean())


def test_baselines_are_all_ways_of_balancing_with_and_without_augmentation_and_mixup():
    names = [arm.name for arm in baseline_arms(augment=True)]
    assert len(set(names)) == len(names) == 16
    assert names[0] == "real"
    assert {"real+augment", "oversample+augment+mixup", "weighted", "logit_adjusted+mixup"} <= set(names)
    assert not any("augment" in arm.name for arm in baseline_arms(augment=False))


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        (Arm(name="", kind="baseline", recipe=Recipe()), (20 / 420, 0, 0)),
        (Arm(name="", kind="baseline", recipe=Recipe(balance="weighted")), (20 / 420, 0, 0)),
        (Arm(name="", kind="baseline", recipe=Recipe(balance="oversample")), (0.5, 0, 0)),
        (Arm(name="", kind="synthetic", recipe=Recipe(balance="oversample"), rare_share=0.75), (0.5, 0.75, 0)),
        (
            Arm(name="", kind="synthetic", recipe=Recipe(balance="oversample"), rare_share=0.25, common_share=0.25),
            (0.5, 0.25, 0.25),
        ),
    ],
)
def test_synthetic_scans_take_the_place_of_their_share_and_change_no_class(task, arm, expected):
    assert shares(task, drawn(task, arm)) == pytest.approx(expected, abs=0.015)


def test_arms_differ_only_where_scans_are_replaced(task):
    base = Arm(name="", kind="baseline", recipe=Recipe(balance="oversample"))
    mixed = replace(base, rare_share=0.5)
    one, other = drawn(task, base), drawn(task, mixed)
    synthetic = other >= len(Table.of(task).real)
    assert 0.2 < synthetic.mean() < 0.3
    np.testing.assert_array_equal(one[~synthetic], other[~synthetic])


def test_pretraining_sees_synthetic_scans_first_and_real_ones_later(task):
    arm = synthetic_arms(Recipe(balance="oversample"), (0.5,), common=True)[-1]
    assert arm.name == "pretrain_synthetic"
    entries = drawn(task, arm)
    assert shares(task, entries[: STEPS // 2])[1:] == (1, 1)
    assert shares(task, entries[STEPS // 2 :])[1:] == (0, 0)


def test_duplicates_are_real_training_scans_in_the_same_numbers(task):
    arm = Arm(name="", kind="synthetic", recipe=Recipe(balance="oversample"), rare_share=0.99)
    one, other = drawn(task, arm), drawn(task, duplicate_control(arm))
    table = Table.of(task)
    assert other.max() < len(table.real)
    np.testing.assert_array_equal(table.rare[one], table.rare[other])
    # 30 draws of 20 scans hold about 20 (1 - 1/e^1.5) = 15.5 different ones
    frequent = np.bincount(other[table.rare[other]], minlength=20)[:20] > STEPS * BATCH / 2 / 60
    assert 12 <= frequent.sum() <= 19


def test_trainings_bootstrap_the_synthetic_set(task):
    arm = Arm(name="", kind="synthetic", recipe=Recipe(balance="oversample"), rare_share=1.0)
    table = Table.of(task)
    seen = [set(entries[table.rare[entries]].tolist()) for entries in (drawn(task, arm, repeat) for repeat in range(4))]
    assert all(15 <= len(each) <= 23 for each in seen)  # 30 (1 - 1/e) = 19
    assert len(set().union(*seen)) > 25


def test_the_ceiling_sees_all_rare_scans_and_its_natural_rate_follows():
    real = real_cohort(rare=20)
    task = make_task(real, synthetic_set(real, "fresh"), further=synthetic_set(real, "fresh", 1, count=50))
    table = Table.of(task)
    arm = Arm(name="", kind="ceiling", recipe=Recipe(balance="oversample"), further=True)
    entries, rare_rate = draw_training(task, arm, steps=STEPS, batch=BATCH, seed=3, repeat=0)
    seen = np.unique(entries[table.rare[entries]])
    assert len(seen) == 20 + 50
    assert (seen >= len(table.real) + len(table.synthetic)).sum() == 50
    assert rare_rate == pytest.approx(70 / 470)


def test_arms_can_be_named_beforehand():
    recipe = Recipe(balance="weighted")

    def names(common, *kinds):
        return [arm.name for arm in synthetic_arms(recipe, (0.25,), common=common, kinds=kinds)]

    assert names(True, "all") == ["synthetic 0.25 of all classes"]
    assert names(True, "rare") == ["synthetic 0.25"]
    # A set of the rare class alone has no other classes to take along.
    assert names(False, "all") == ["synthetic 0.25"]
    assert names(False, "pretrain") == ["pretrain_synthetic"]
