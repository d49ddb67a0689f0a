from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medsynth.evaluation.downstream.experiment import ClassicalSettings
from medsynth.evaluation.downstream.training import perturb

NOTHING = ClassicalSettings(rotate_degrees=0, scale=0, translate=0, contrast=0, gamma=0, noise=0)


def smooth(*shape: int) -> torch.Tensor:
    noise = gaussian_filter(np.random.default_rng(0).normal(size=shape), (0, 0, *[2] * (len(shape) - 2)))
    return torch.from_numpy((noise / np.abs(noise).max()).astype(np.float32))


def changed(settings: ClassicalSettings, scans: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return perturb(scans, settings, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 2, 12, 16), (2, 1, 8, 10, 12)])
def test_nothing_asked_changes_nothing(shape):
    scans = smooth(*shape)
    torch.testing.assert_close(changed(NOTHING, scans), scans, atol=2e-5, rtol=0)


def test_a_shift_and_a_quarter_of_a_turn_move_the_picture():
    scan = torch.full((300, 1, 21, 21), -1.0)
    scan[:, :, 5, 10] = 1.0
    turned = changed(replace(NOTHING, rotate_degrees=90), scan)
    # a point above the centre stays at its distance from it
    rows, columns = np.mgrid[:21, :21] - 10
    mass = (turned[:, 0].numpy() + 1) * (np.hypot(rows, columns) > 2)
    radius = (mass * np.hypot(rows, columns)).sum(axis=(1, 2)) / mass.sum(axis=(1, 2))
    assert np.abs(radius - 5).max() < 0.35
    moved = changed(replace(NOTHING, translate=0.1), scan)
    centre = ((moved[:, 0].numpy() + 1) * rows).sum(axis=(1, 2)) / (moved[:, 0].numpy() + 1).sum(axis=(1, 2))
    assert np.abs(centre + 5).max() == pytest.approx(2.1, abs=0.2)


def test_half_of_the_scans_get_each_change_and_stay_in_range():
    scans = smooth(400, 1, 8, 8)
    for name in ("contrast", "gamma", "noise"):
        found = changed(replace(NOTHING, **{name: 0.5}), scans)
        touched = ((found - scans).abs().flatten(1).amax(1) > 1e-4).float().mean()
        assert 0.4 < touched < 0.6, name
        assert found.abs().max() <= 1
    torch.testing.assert_close(changed(ClassicalSettings(), scans, 1), changed(ClassicalSettings(), scans, 1))
