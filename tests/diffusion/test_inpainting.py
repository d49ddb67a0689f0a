"""Inpainting of Gaussian scans, whose exact denoiser and whose distribution given the surroundings are known."""

import pytest
import torch

from medsynth.diffusion import SOLVERS, Solver, euler, inpaint, noise_levels

SIDE, COUNT = 6, 1500


def covariance():
    """Of scans of SIDE x SIDE whose correlation falls with distance."""
    points = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 2, indexing="ij")).flatten(1).T.double()
    return 0.25 * torch.exp(-(torch.cdist(points, points) ** 2) / (2 * 2.5**2)) + 1e-4 * torch.eye(SIDE * SIDE)


def exact_denoise(noisy, sigma):
    values, vectors = torch.linalg.eigh(covariance())
    gain = values / (values + float(sigma[0]) ** 2)
    return (noisy.flatten(1) @ vectors * gain @ vectors.T).reshape(noisy.shape)


def region():
    marked = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    marked[..., 2:4, 2:4] = True
    return marked


def scan():
    generator = torch.Generator().manual_seed(3)
    root = torch.linalg.cholesky(covariance())
    return (root @ torch.randn(SIDE * SIDE, generator=generator, dtype=torch.float64)).reshape(1, 1, SIDE, SIDE)


def conditional():
    """Mean and standard deviation of the region, given all around it."""
    inside, whole = region().flatten(), covariance()
    across = whole[inside][:, ~inside] @ torch.linalg.inv(whole[~inside][:, ~inside])
    spread = whole[inside][:, inside] - across @ whole[~inside][:, inside]
    return across @ scan().flatten()[~inside], spread.diagonal().sqrt()


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *keys: torch.randn(COUNT, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)


def painted(name, repeats):
    known = scan().expand(COUNT, -1, -1, -1)
    sigmas = noise_levels(Solver(name=name, steps=20, sigma_max=10.0, sigma_min=0.002))
    return inpaint(SOLVERS[name], exact_denoise, known, region(), sigmas, draws(), repeats=repeats)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_the_region_is_drawn_from_its_distribution_given_the_surroundings(name):
    """Without repeats it does not: high noise hides the surroundings until it is too late."""
    mean, std = conditional()
    inside = region().flatten()
    once, often = (painted(name, repeats).flatten(1)[:, inside] for repeats in (1, 8))
    assert (often.mean(0) - mean).abs().max() < 0.25 * std.max()
    assert (often.std(0) / std).sub(1).abs().max() < 0.4
    assert (once.mean(0) - mean).abs().mean() > 10 * (often.mean(0) - mean).abs().mean()
    # The mean alone would be blurred, and a draw without the surroundings far off.
    assert std.max() < 0.05 * covariance().diagonal().sqrt().max()


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_what_is_known_comes_back_as_it_is(name):
    outside = ~region().flatten()
    result = painted(name, 2).flatten(1)
    assert torch.equal(result[:, outside], scan().flatten()[outside].expand(COUNT, -1))


def test_steps_are_repeated_at_every_level_but_the_last():
    levels = []

    def counted(noisy, sigma):
        levels.append(float(sigma[0]))
        return exact_denoise(noisy, sigma)

    sigmas = noise_levels(Solver(name="euler", steps=4, sigma_max=10.0, sigma_min=0.02))
    inpaint(euler, counted, scan().expand(COUNT, -1, -1, -1), region(), sigmas, draws(), repeats=3)
    first, second, third, last = sigmas.tolist()[:-1]
    assert levels == pytest.approx([first] * 3 + [second] * 3 + [third] * 3 + [last])
