from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medsynth.errors import ConfigError
from medsynth.evaluation.downstream.arms import Arm, Recipe
from medsynth.evaluation.downstream.classifier import Lite0Classifier, PixelTrainer, build_network, usable_networks
from medsynth.evaluation.downstream.experiment import ClassifierSettings, Settings
from medsynth.evaluation.downstream.judging import validation_figures
from medsynth.evaluation.downstream.task import Task
from medsynth.measures.features import EfficientNetLite0
from tests.evaluation.downstream.made_task import made_experiment, pictures


def trainer(*, contrast: float = 0.25, **settings) -> tuple[PixelTrainer, Task]:
    real, made = pictures(contrast=contrast)
    chosen = Settings(classifier=ClassifierSettings(device="cpu", **settings))
    experiment = made_experiment(real, made, chosen, Path("unused"))
    return PixelTrainer(experiment), experiment.task


def arm(network: str, **recipe) -> Arm:
    return Arm(
        name="", kind="synthetic", recipe=Recipe(balance="oversample", **recipe), rare_share=0.5, network=network
    )


def test_a_bright_corner_is_learnt_from_pixels():
    train, task = trainer(contrast=0.8, steps=60, batch_size=32, width=8, learning_rate=5e-3)
    validation, test = train(arm("densenet"), range(1))
    assert (validation.shape, test.shape) == ((1, len(task.validation.rows)), (1, len(task.test.rows)))
    assert validation_figures(task.test, test)["auroc"] > 0.9


def test_trainings_repeat_and_differ_and_leave_other_randomness_alone():
    train, _ = trainer(steps=3, batch_size=8, width=4)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = train(arm("densenet", augment=True, mixup=True), range(1))
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(train(arm("densenet", augment=True, mixup=True), range(1))[1], first[1])
    assert np.abs(train(arm("densenet", augment=True, mixup=True), range(1, 2))[1] - first[1]).max() > 1e-4


def test_lite0_starts_from_the_features_of_the_extractor():
    scans = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, size=(2, 2, 20, 20)).astype(np.float32))
    network = Lite0Classifier(224).eval()
    with torch.no_grad():
        found = network(scans)
        # Two channels are two pictures; the extractor puts their features one after the other, rounded to 8 bits nowhere.
        features = EfficientNetLite0()(scans).reshape(2, 2, 1280).mean(dim=1)
        torch.testing.assert_close(found, network.head(features), rtol=1e-3, atol=1e-4)


def test_lite0_is_fine_tuned():
    train, _ = trainer(steps=2, batch_size=4, lite0_side=32)
    test = train(arm("lite0"), range(1))[1]
    assert np.isfinite(test).all()
    assert test.std() > 0


def test_networks_that_suit_the_axes():
    both = ("densenet", "lite0")
    assert usable_networks(both, 2) == both
    assert usable_networks(both, 3) == ("densenet",)
    with pytest.raises(ConfigError, match="3D"):
        usable_networks(("lite0",), 3)
    with torch.no_grad():
        assert build_network("densenet", 2, 3, ClassifierSettings())(torch.zeros(2, 2, 16, 16, 16)).shape == (2, 1)
