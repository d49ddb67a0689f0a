"""Membership inference: an untrained network knows nobody, one that remembers its training scans gives them away."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medsynth.config import NetworkOptions
from medsynth.evaluation.arrays import ScanArrays
from medsynth.evaluation.privacy import GateSettings
from medsynth.evaluation.privacy.membership import denoising_losses, score_membership
from medsynth.networks import build_denoiser

SIGMAS = (0.3, 1.0)
SETTINGS = GateSettings(membership_sigmas=SIGMAS, membership_scans=40)


class Remembers(torch.nn.Module):
    """The exact denoiser of a data set of a few scans (posterior mean), as a network that has memorised them."""

    def __init__(self, known):
        super().__init__()
        self.known = known
        self.register_buffer("sigma_data", torch.ones(1))
        self.embedding = build_denoiser(
            NetworkOptions(stem="pixel", channels=(32,), attention=(False,)),
            channels=1, size=(8, 8), classes=2, augmentation_parameters=0, sigma_data=0.5,
        ).embedding  # fmt: skip

    def encode(self, scans):
        return scans

    def forward(self, noisy, sigma, condition):
        squares = (noisy[:, None] - self.known[None]).square().flatten(2).sum(2)
        weights = torch.softmax(-squares / (2 * sigma[:, None] ** 2), dim=1)
        return torch.einsum("nk,kcij->ncij", weights, self.known)


@pytest.fixture(scope="module")
def real():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    splits = np.tile(np.repeat(["train", "test"], 30), 2)
    scans = generator.uniform(-1, 1, (120, 1, 8, 8)) * np.where(labels, 1, 0.3)[:, None, None, None]
    return ScanArrays(
        scans=scans.astype(np.float16),
        features=np.zeros((120, 1)),
        labels=labels,
        splits=splits,
        patients=np.arange(120) // 2,
        classes=("one", "two"),
    )


def remembering(real, split):
    return Remembers(torch.from_numpy(real.scans[real.splits == split].astype(np.float32)))


def test_a_network_that_remembers_gives_its_scans_away(real):
    result = score_membership(real, remembering(real, "train"), real.classes, settings=SETTINGS, progress=False)
    together = result.rows[-1]
    assert together.label is None
    assert together.auc > 0.98
    assert together.low > 0.95
    assert result.fails
    assert [row.member_patients for row in result.rows] == [15, 15, 30]


def test_a_network_that_remembers_the_others_reads_the_other_way_round(real):
    result = score_membership(real, remembering(real, "test"), real.classes, settings=SETTINGS, progress=False)
    assert result.rows[-1].auc < 0.02
    assert not result.fails


def test_an_untrained_network_knows_nobody_though_classes_differ_in_loss(real):
    """All of one class are easier to denoise; the mean over classes does not take that for membership."""
    torch.manual_seed(0)
    blind = build_denoiser(
        NetworkOptions(stem="pixel", channels=(32,), attention=(False,)),
        channels=1, size=(8, 8), classes=2, augmentation_parameters=0, sigma_data=0.5,
    ).eval()  # fmt: skip
    uneven = np.r_[0:30, 30:45, 60:75, 90:120]
    half = replace(
        real,
        **{name: getattr(real, name)[uneven] for name in ("scans", "features", "labels", "splits", "patients")},
    )
    result = score_membership(
        half, blind, half.classes, settings=replace(SETTINGS, membership_scans=100), progress=False
    )
    told = [row for row in result.rows if row.label is None]
    assert not told  # 15 scans of 8 patients are too few on one side of each class
    assert result.reason
    whole = score_membership(real, blind, real.classes, settings=SETTINGS, progress=False)
    assert whole.rows[-1].low < 0.5 < whole.rows[-1].high
    assert not whole.fails


def test_the_loss_is_the_squared_error_at_fixed_noise(real):
    rows = np.array([3, 64])
    losses = denoising_losses(remembering(real, "train"), real, rows, real.classes, (1e-4,), 0, False)
    assert losses[0, 0] < 1e-8  # remembered: back to the scan itself
    nearest = np.square(real.scans[64].astype(float) - real.scans[real.splits == "train"].astype(float))
    expected = nearest.mean((1, 2, 3)).min()
    assert losses[1, 0] == pytest.approx(expected, rel=1e-3)
    alone = denoising_losses(remembering(real, "train"), real, rows[1:], real.classes, SIGMAS, 7, False)
    both = denoising_losses(remembering(real, "train"), real, rows, real.classes, SIGMAS, 7, False)
    np.testing.assert_allclose(alone[0], both[1], rtol=1e-5, atol=1e-12)
