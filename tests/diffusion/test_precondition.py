import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medsynth.diffusion import draw_sigma, loss_weight, match_rank, noise_embedding_position, precondition
from medsynth.seeds import torch_generator

levels = st.floats(0.001, 100)


@given(levels, st.floats(0.05, 3))
def test_network_sees_and_predicts_unit_variance(sigma, sigma_data):
    """Equations 114 to 117 of Karras et al. 2022: input and target of the network have variance 1, weight x output² = 1."""
    sigma = torch.tensor(sigma, dtype=torch.float64)
    scale = precondition(sigma, sigma_data)
    total = sigma**2 + sigma_data**2
    assert float(scale.input**2 * total) == pytest.approx(1)
    # The target is (clean - skip * noisy) / output with independent clean and noise.
    target = ((1 - scale.skip) ** 2 * sigma_data**2 + scale.skip**2 * sigma**2) / scale.output**2
    assert float(target) == pytest.approx(1)
    assert float(loss_weight(sigma, sigma_data) * scale.output**2) == pytest.approx(1)


def test_exact_denoiser_of_gaussian_data_needs_no_network():
    """For Normal(0, sigma_data²) the best denoiser is skip * noisy: the network's target is zero on average."""
    generator = torch_generator(0, "test")
    clean = 0.5 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    noisy = clean + 1.3 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    scale = precondition(torch.tensor(1.3, dtype=torch.float64), 0.5)
    slope = (noisy * clean).mean() / noisy.square().mean()
    assert float(slope) == pytest.approx(float(scale.skip), abs=3e-3)


def test_noise_levels_follow_their_distribution():
    sigma = draw_sigma(4096, mean=-0.8, std=1.3, generator=torch_generator(1, "sigma")).double()
    assert stats.kstest((sigma.log().numpy() + 0.8) / 1.3, "norm").pvalue > 0.01
    # Stratified: each of the slices of equal probability holds exactly one draw.
    slices = torch.special.ndtr((sigma.log() + 0.8) / 1.3) * 4096
    assert len(slices.floor().clamp(0, 4095).unique()) > 4090  # a few lie on an edge, within float32 rounding


def test_embedding_position_stays_within_what_monai_expects():
    sigma = torch.tensor([math.exp(-8), 0.002, 1.0, 80.0, math.exp(8)], dtype=torch.float64)
    position = noise_embedding_position(sigma)
    torch.testing.assert_close(position[[0, 2, 4]], torch.tensor([0.0, 500.0, 1000.0], dtype=torch.float64))
    assert bool((position.diff() > 0).all())


@pytest.mark.parametrize("rank", [2, 3])
def test_match_rank(rank):
    like = torch.zeros(3, 2, *[4] * rank)
    assert match_rank(torch.ones(3), like).shape == (3, 1, *[1] * rank)
    assert match_rank(torch.ones(3, 2), like).shape == (3, 2, *[1] * rank)
