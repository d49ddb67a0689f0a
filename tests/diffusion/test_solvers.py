"""Solvers against a Gaussian data set, whose denoiser and probability flow are known in closed form."""

import math
from itertools import pairwise

import pytest
import torch

from medsynth.config import SolverOptions
from medsynth.diffusion import SOLVERS, Solver, dpmpp_2m, edit_sigmas, euler, heun, noise_levels, resolve_solver
from medsynth.errors import ConfigError

SIGMA_MIN, SIGMA_MAX = 0.05, 20.0


def resolved(**options):
    return resolve_solver(SolverOptions(**options))


def gaussian(shape):
    """Mean, standard deviation, exact denoiser and exact solution of data ~ Normal(mean, std^2), each pixel its own."""
    generator = torch.Generator().manual_seed(3)
    mean = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    std = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.2

    def denoise(noisy, sigma):
        variance = sigma.reshape(-1, *[1] * (noisy.ndim - 1)) ** 2
        return (noisy * std**2 + mean * variance) / (std**2 + variance)

    def solution(noise, start, end):
        # Along the flow (noisy - mean) / sqrt(std^2 + sigma^2) stays as it is.
        return mean + (noise * start - mean) * ((std**2 + end**2) / (std**2 + start**2)).sqrt()

    return denoise, solution


def schedule(steps):
    # Without the final 0: the error of a step to 0 does not shrink with the others.
    return noise_levels(resolved(steps=steps + 1, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX))[:-1]


@pytest.mark.parametrize("shape", [(1, 6, 6), (2, 4, 4, 4)], ids=["2D", "3D"])
@pytest.mark.parametrize(("solver", "low", "high"), [(euler, 0.9, 1.1), (heun, 1.9, 2.2), (dpmpp_2m, 1.9, 2.2)])
def test_order_of_convergence(solver, low, high, shape):
    denoise, solution = gaussian(shape)
    noise = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = solution(noise, SIGMA_MAX, SIGMA_MIN)
    counts = [40, 80, 160, 320]
    errors = [(solver(denoise, noise, schedule(steps)) - exact).square().mean().sqrt().item() for steps in counts]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(low <= slope <= high for slope in slopes), (errors, slopes)


@pytest.mark.parametrize("name", SOLVERS)
def test_full_schedule_reaches_the_data(name):
    """Down to sigma = 0 with the default 20 steps: on average within 5 % (Euler 15 %) of the data's mean spread of 0.7."""
    denoise, solution = gaussian((1, 8, 8))
    noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    levels = noise_levels(resolved(name=name, steps=20))
    result = SOLVERS[name](denoise, noise, levels)
    error = (result - solution(noise, float(levels[0]), 0.0)).abs().mean().item()
    assert error < 0.7 * (0.15 if name == "euler" else 0.05)


@pytest.mark.parametrize("last", [0.002, 0.02, 0.2])
def test_the_last_step_removes_detail_finer_than_its_level(last):
    """Of a detail with standard deviation s, s / sqrt(s^2 + last^2) is left, here with s = 0.02."""
    spread = 0.02
    denoise = lambda noisy, sigma: noisy * spread**2 / (spread**2 + sigma.reshape(-1, 1, 1, 1) ** 2)  # noqa: E731
    noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    levels = noise_levels(resolved(steps=300, sigma_max=20.0, sigma_min=last))
    left = heun(denoise, noise, levels).std() / noise.std() * math.hypot(20.0, spread) / 20.0 / spread
    assert left.item() == pytest.approx(spread / math.hypot(spread, last), rel=0.01)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_single_scan_equals_its_place_in_a_batch(name):
    denoise, _ = gaussian((1, 4, 4))
    noise = torch.randn(5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sigmas = noise_levels(resolved(name=name, steps=6))
    together = SOLVERS[name](denoise, noise, sigmas)
    torch.testing.assert_close(SOLVERS[name](denoise, noise[3:4], sigmas), together[3:4], rtol=0, atol=1e-12)


def test_evaluations_per_step():
    calls = {}
    for name, solver in SOLVERS.items():
        seen = []

        def denoise(noisy, sigma, seen=seen):
            seen.append(float(sigma[0]))
            return noisy * 0

        solver(denoise, torch.zeros(1, 1, 2, 2), noise_levels(resolved(steps=18)))
        calls[name] = len(seen)
    assert calls == {"euler": 18, "heun": 35, "dpmpp_2m": 18}


def test_karras_schedule():
    """Equation 5 of Karras et al. 2022 with rho = 7, by hand: the middle of three steps."""
    sigmas = noise_levels(resolved(steps=3, sigma_min=0.002, sigma_max=80.0))
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    torch.testing.assert_close(sigmas, torch.tensor([80.0, middle, 0.002, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"sigma_min": 0.0}, {"sigma_min": 90.0}])
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ConfigError, match="solver: need"):
        resolved(**wrong)


def test_an_edit_takes_the_levels_below_its_strength():
    full = noise_levels(resolved())
    sigmas = edit_sigmas(resolved(), 1.0)
    assert sigmas[0] == 1.0
    assert torch.equal(sigmas[1:], full[full < 1.0])
    assert edit_sigmas(resolved(), 0.001).tolist() == [0.001, 0.0]
    # Begun at a level of the schedule, it takes the schedule from there.
    assert torch.equal(edit_sigmas(resolved(), float(full[7])), full[7:])


@pytest.mark.parametrize("excess", [1e-12, 1e-9, 1e-6])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_strength_just_above_a_level_is_as_good_as_the_level(name, excess):
    """A first step of almost nothing would make the multistep solver divide float32 rounding by it."""
    solver = resolved(name=name)
    level = float(noise_levels(solver)[8])
    denoise, _ = gaussian((1, 8, 8))
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(6))

    def solve(strength):
        rounded = lambda noisy, sigma: denoise(noisy.double(), sigma.double()).float()  # noqa: E731
        return SOLVERS[name](rounded, noise, edit_sigmas(solver, strength))

    torch.testing.assert_close(solve(level * (1 + excess)), solve(level), rtol=0, atol=1e-4)


@pytest.mark.parametrize("strength", [0.0, -1.0, 80.0, 200.0, float("nan")])
def test_impossible_strengths_are_refused(strength):
    with pytest.raises(ConfigError, match=r"strength: need a noise level above 0 and below solver\.sigma_max=80"):
        edit_sigmas(resolved(), strength)


@pytest.mark.parametrize(
    ("options", "voxels", "first"),
    [
        ({}, 32 * 32, 80.0),
        ({"steps": 10}, 32 * 32, 80.0),
        ({"steps": 9}, 32 * 32, 0.6 * 32),
        ({"steps": 9}, 64 * 64, 0.6 * 64),
        ({"steps": 9}, 32**3, 80.0),  # 0.6 times the root would be 109
        ({"steps": 9}, None, 80.0),
        ({"steps": 9, "sigma_max": 40.0}, 32 * 32, 40.0),
    ],
)
def test_few_steps_begin_where_the_mean_of_a_scan_is_visible(options, voxels, first):
    levels = noise_levels(resolve_solver(SolverOptions(**options), voxels=voxels))
    assert float(levels[0]) == pytest.approx(first)
    assert float(levels[-2]) == pytest.approx(0.05 if options.get("steps") == 9 else 0.02)


def test_defaults_and_precision():
    assert resolved() == Solver(name="dpmpp_2m", steps=20, sigma_min=0.02, sigma_max=80.0, rho=7.0, precision="32-true")
    fast = resolve_solver(SolverOptions(name="heun"), precision="bf16-mixed")
    assert (fast.name, fast.steps, fast.precision) == ("heun", 20, "bf16-mixed")
