from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medsynth.evaluation.downstream.experiment import Settings
from medsynth.evaluation.downstream.judging import (
    PRIMARY,
    Comparer,
    Difference,
    Scores,
    calibrated,
    choose,
    holm_levels,
    judge,
    validation_figures,
)
from medsynth.evaluation.downstream.task import HeldOut, Task
from medsynth.measures.statistics import Estimate, holm


def held_out(rare: int, rest: int) -> HeldOut:
    truth = np.arange(rare + rest) < rare
    return HeldOut(rows=np.arange(len(truth)), truth=truth, patients=np.arange(len(truth)))


TASK = Task(rare_class="rare", pools=(), validation=held_out(40, 100), test=held_out(60, 150))


def scored(strength: float, seed: int = 0, *, seeds: int = 3) -> Scores:
    generator = np.random.default_rng(seed)
    parts = []
    for part in (TASK.validation, TASK.test):
        shown = generator.normal(size=len(part.truth))
        parts.append(strength * part.truth + shown + 0.2 * generator.normal(size=(seeds, len(part.truth))))
    return Scores(validation=parts[0], test=parts[1])


def difference(values: dict[str, tuple[float, float]], *, specificity: float = 0.0) -> Difference:
    """Differences with p-values, all of standard error 1 as far as signs go."""
    estimates = {
        name: Estimate(
            value=value,
            low=value - (2 if p > 0.05 else 0.5) * abs(value),
            high=value + abs(value),
            standard_error=1,
            p_value=p,
        )
        for name, (value, p) in values.items()
    }
    estimates["specificity"] = Estimate(
        value=specificity, low=specificity - 0.01, high=specificity + 0.01, standard_error=0.005, p_value=0.5
    )
    adjusted = holm(np.array([estimates[name].p_value for name in PRIMARY]))
    return Difference(
        estimates=estimates,
        adjusted=dict(zip(PRIMARY, adjusted, strict=True)),
        bounds=dict.fromkeys(PRIMARY, (0.0, 0.0)),
    )


UP, DOWN, SAME = (0.1, 0.001), (-0.1, 0.001), (0.01, 0.6)


@pytest.mark.parametrize(
    ("values", "expected", "figures"),
    [
        ((UP, SAME, SAME), "gain", ("auroc",)),
        ((SAME, UP, UP), "gain", ("auprc", "sensitivity")),
        ((SAME, SAME, SAME), "no gain", ()),
        (((0.1, 0.03), SAME, SAME), "no gain", ()),  # 0.03 of three figures is 0.09
        (((0.1, 0.03), (0.1, 0.02), (0.1, 0.01)), "gain", ("sensitivity", "auprc", "auroc")),
        ((UP, UP, DOWN), "harm", ("sensitivity",)),
        ((DOWN, SAME, SAME), "harm", ("auroc",)),
    ],
)
def test_verdicts(values, expected, figures):
    found = difference(dict(zip(PRIMARY, values, strict=True)))
    control = difference(dict.fromkeys(PRIMARY, UP))
    verdict = judge(TASK, found, control, least_patients=20)
    assert verdict.verdict == expected
    assert set(verdict.figures) == set(figures)


def test_what_duplicates_do_as_well_is_no_gain():
    found = difference(dict.fromkeys(PRIMARY, UP))
    control = difference({"auroc": SAME, "auprc": SAME, "sensitivity": SAME})
    verdict = judge(TASK, found, control, least_patients=20)
    assert verdict.verdict == "no gain"
    assert "duplicates" in verdict.reason


def test_another_threshold_is_no_gain():
    values = {"auroc": SAME, "auprc": SAME, "sensitivity": UP}
    control = difference(dict.fromkeys(PRIMARY, UP))
    assert judge(TASK, difference(values), control, least_patients=20).verdict == "gain"
    assert judge(TASK, difference(values, specificity=-0.05), control, least_patients=20).verdict == "no gain"


def test_too_few_or_undefined_cannot_tell():
    up = difference(dict.fromkeys(PRIMARY, UP))
    assert judge(TASK, up, up, least_patients=61).verdict == "cannot tell"
    assert judge(replace(TASK, validation=held_out(1, 100)), up, up, least_patients=20).verdict == "cannot tell"
    undefined = replace(up, adjusted={**up.adjusted, "auprc": float("nan")})
    assert judge(TASK, undefined, up, least_patients=20).verdict == "cannot tell"


def test_bounds_and_adjusted_p_values_agree():
    generator = np.random.default_rng(0)
    for _ in range(200):
        p_values = generator.uniform(size=3) ** 4
        for p, adjusted, level in zip(p_values, holm(p_values), holm_levels(p_values), strict=True):
            assert (adjusted < 0.05) == (p < 1 - level)
    assert holm_levels(np.array([0.001, 0.02, 0.3])) == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 2, 0.95])
    assert holm_levels(np.array([0.02, 0.9, 0.03])) == pytest.approx([1 - 0.05 / 3] * 3)


def test_choice_is_by_validation_alone():
    strong, weak = scored(2.0), scored(0.5)
    swapped = {
        "a": Scores(validation=strong.validation, test=weak.test),
        "b": Scores(validation=weak.validation, test=strong.test),
    }
    assert choose(TASK.validation, swapped, ["b", "a"]) == "a"
    assert choose(TASK.validation, {"a": weak, "b": weak}, ["b", "a"]) == "b"
    found = validation_figures(TASK.validation, strong.validation)
    assert found["criterion"] == pytest.approx((found["auroc"] + found["auprc"]) / 2)


def test_a_better_arm_is_better_and_the_same_arm_the_same():
    comparer = Comparer(
        TASK,
        {"good": scored(2.5), "poor": scored(0.8), "again": scored(0.8)},
        seeds=3,
        settings=Settings(resamples=400),
        seed=0,
    )
    found = comparer.difference("good", "poor")
    assert all(found.significant(name, 1) for name in PRIMARY)
    assert found.bounds["auroc"][0] > 0
    assert found.estimates["brier"].value < 0
    same = comparer.difference("again", "poor")
    assert same.estimates["auroc"].value == same.estimates["ece"].value == 0
    assert not any(same.significant(name, sign) for name in PRIMARY for sign in (-1, 1))
    group = np.arange(210) % 2 == 0
    assert comparer.among("good", group)["auroc"].minus(comparer.among("poor", group)["auroc"]).estimate().low > 0


def test_calibration_undoes_scale_and_shift():
    plain = scored(2.0)
    changed = Scores(validation=20 * plain.validation - 60, test=20 * plain.test - 60)
    first, second = calibrated(TASK.validation.truth, plain), calibrated(TASK.validation.truth, changed)
    np.testing.assert_allclose(first, second, atol=0.01)
    assert first.mean() == pytest.approx(TASK.validation.truth.mean(), abs=0.05)
