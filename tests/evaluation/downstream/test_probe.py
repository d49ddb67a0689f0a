from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from medsynth.evaluation.downstream.arms import Arm, Recipe, Table
from medsynth.evaluation.downstream.experiment import ProbeSettings, Settings
from medsynth.evaluation.downstream.probe import ProbeData, train_probe
from medsynth.evaluation.downstream.task import Task, make_task
from medsynth.evaluation.downstream.training import loss_slope, rate_factor
from tests.evaluation.downstream.made_task import DIMS, MadeTask, real_cohort, synthetic_set

LONG = Settings(probe=ProbeSettings(steps=1500, batch_size=512, learning_rate=0.05, weight_decay=0.0, components=DIMS))


@pytest.fixture(scope="module")
def made() -> tuple[MadeTask, Task, Table, ProbeData]:
    real = real_cohort(rare=60)
    synthetic = synthetic_set(real, "fresh")
    task = make_task(real, synthetic)  # type: ignore[arg-type]
    table = Table.of(task)
    return real, task, table, ProbeData.of(task, table, [real.features, synthetic.features], components=DIMS)


def logits(made, settings: Settings, **recipe) -> np.ndarray:
    _, task, table, data = made
    arm = Arm(name="", kind="baseline", recipe=Recipe(**recipe))
    return train_probe(task, table, data, arm, settings=settings, seed=0, repeats=range(1))[1][0]


def converged(made, weight: dict[int, float] | None) -> np.ndarray:
    """Logits of the test scans at the optimum."""
    _, _, table, data = made
    inputs = data.training[: len(table.real), 0].numpy()
    model = LogisticRegression(C=np.inf, class_weight=weight, max_iter=500)
    return model.fit(inputs, table.rare[: len(inputs)]).decision_function(data.test.numpy())


def test_axes_keep_the_geometry_of_the_features(made):
    real, task, table, data = made
    # As many axes as features: distances are those of the features, all scaled alike.
    own = real.features[table.real]
    expected = np.linalg.norm(own[:50] - own[50:100], axis=1)
    found = torch.linalg.norm(data.training[:50, 0] - data.training[50:100, 0], dim=1).numpy()
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-4)
    assert data.training[: len(own)].square().mean().item() == pytest.approx(1, rel=1e-4)
    assert data.training[: len(own)].mean(dim=0).abs().max().item() < 1e-4
    assert data.test.shape == (len(task.test.rows), DIMS)


def test_plain_training_reaches_the_logistic_optimum(made):
    expected = converged(made, None)
    np.testing.assert_allclose(logits(made, LONG), expected, atol=0.12 * expected.std())


def test_oversampling_and_weights_reach_the_same_optimum(made):
    _, _, table, _ = made
    rare = table.rare[: len(table.real)].mean()
    expected = converged(made, {True: 0.5 / rare, False: 0.5 / (1 - rare)})
    for balance in ("oversample", "weighted"):
        np.testing.assert_allclose(logits(made, LONG, balance=balance), expected, atol=0.12 * expected.std())


def test_logit_adjustment_takes_the_prior_out_of_the_logit(made):
    _, _, table, _ = made
    rare = table.rare[: len(table.real)].mean()
    shift = logits(made, LONG, balance="logit_adjusted") - logits(made, LONG)
    np.testing.assert_allclose(shift, -np.log(rare / (1 - rare)), atol=0.15)


@pytest.mark.parametrize("balance", ["none", "weighted", "logit_adjusted"])
def test_slopes_are_the_derivative_of_the_loss(balance):
    score = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 0.3, 1, 0, 0.8, 1], dtype=torch.float64)
    rate = torch.tensor(0.1, dtype=torch.float64)
    weight = targets / 0.2 + (1 - targets) / 1.8 if balance == "weighted" else torch.ones(7, dtype=torch.float64)
    adjusted = score + torch.logit(rate) if balance == "logit_adjusted" else score
    loss = torch.nn.functional.binary_cross_entropy_with_logits(adjusted, targets, weight=weight, reduction="sum")
    arm = Arm(name="", kind="baseline", recipe=Recipe(balance=balance))
    torch.testing.assert_close(loss_slope(arm, score.detach(), targets, rate), torch.autograd.grad(loss, score)[0])


def test_a_training_does_not_depend_on_those_beside_it(made):
    _, task, table, data = made
    settings = replace(LONG, probe=replace(LONG.probe, steps=50))
    for recipe in (Recipe(), Recipe(balance="oversample", mixup=True)):
        arm = Arm(name="", kind="baseline", recipe=recipe)
        together, alone = (
            train_probe(task, table, data, arm, settings=settings, seed=0, repeats=repeats)
            for repeats in (range(3), range(1, 2))
        )
        for first, second in zip(together, alone, strict=True):
            np.testing.assert_allclose(first[1:2], second, atol=1e-4)
            assert np.abs(first[0] - first[1]).max() > 1e-3  # trainings are replicates, not copies


def test_copies_are_seen_only_where_asked(made):
    real, task, table, _ = made
    synthetic = np.zeros((360, DIMS), dtype=np.float32)
    copies = np.full((len(table), 2, DIMS), np.nan, dtype=np.float32)
    copies[table.rare, :] = 50.0
    data = ProbeData.of(task, table, [real.features, synthetic], components=DIMS, copies=copies)
    plain = ProbeData.of(task, table, [real.features, synthetic], components=DIMS)
    assert data.training.shape[1] == 3
    torch.testing.assert_close(data.training[:, 0], plain.training[:, 0])
    torch.testing.assert_close(data.training[~table.rare, 1], plain.training[~table.rare, 0])
    assert (data.training[table.rare, 1] - plain.training[table.rare, 0]).abs().mean() > 5
    settings = replace(LONG, probe=replace(LONG.probe, steps=30))
    arms = [Arm(name="", kind="baseline", recipe=Recipe(augment=augment)) for augment in (False, True)]
    first, second = (
        [train_probe(task, table, each, arm, settings=settings, seed=0, repeats=range(1))[1] for each in (plain, data)]
        for arm in arms
    )
    np.testing.assert_array_equal(*first)
    assert np.abs(second[0] - second[1]).max() > 0.1


def test_the_rate_rises_and_falls_to_zero():
    rates = [rate_factor(step, 100) for step in range(101)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == rates[10] == 1
    assert rates[100] == pytest.approx(0)
    assert all(one >= other for one, other in pairwise(rates[10:]))
