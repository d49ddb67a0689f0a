"""Facts about consistency models; a Gaussian data set has an exact consistency function in closed form."""

import itertools
from dataclasses import replace

import pytest
import torch

from medsynth.config import ConsistencyOptions, SolverOptions
from medsynth.diffusion import (
    check_consistency,
    consistency,
    consistency_losses,
    consistency_weight,
    difference_size,
    edit_sigmas,
    lower_sigma,
    noise_levels,
    settle_solver,
    stage_of,
)
from medsynth.errors import ConfigError

MEAN, STD = 0.3, 0.4


def exact(noisy, sigma):
    """Where the probability-flow equation ends for data N(MEAN, STD^2): deviations shrink by STD / sqrt(STD^2 + sigma^2)."""
    sigma = sigma.reshape(-1, *[1] * (noisy.ndim - 1))
    return MEAN + (noisy - MEAN) * STD / (STD**2 + sigma**2).sqrt()


def posterior_mean(noisy, sigma):
    sigma = sigma.reshape(-1, *[1] * (noisy.ndim - 1))
    return (STD**2 * noisy + sigma**2 * MEAN) / (STD**2 + sigma**2)


def pairs(count=4096, shape=(1, 2, 2)):
    random = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, count, *shape, generator=random, dtype=torch.float64)
    sigma = (torch.randn(count, generator=random, dtype=torch.float64) - 0.5).exp()
    return MEAN + STD * clean, noise, sigma


def test_the_first_target_is_the_data_and_the_last_one_is_next_to_the_noise():
    """With q = 2, k = 8: n(0) = 5 and n(infinity) = 1."""
    options = ConsistencyOptions()
    sigma = torch.tensor([1e-6, 0.5, 80.0], dtype=torch.float64)
    assert lower_sigma(sigma, 1, options)[:2].tolist() == [0.0, 0.0]
    for stage in (3, 8, 20):
        ratio = lower_sigma(sigma, stage, options) / sigma
        assert ratio[0].item() == pytest.approx(1 - 5 / 2**stage, abs=1e-6)
        assert ratio[2].item() == pytest.approx(1 - 1 / 2**stage, abs=1e-12)
    every = torch.linspace(-6, 5, 200, dtype=torch.float64).exp()
    gaps = [every - lower_sigma(every, stage, options) for stage in range(1, 9)]
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(gaps))
    assert all((gap > 0).all() and (gap <= every).all() for gap in gaps)


def test_stages_are_equally_long_and_the_last_one_stays():
    stages = [stage_of(step, 800, 8) for step in range(800)]
    assert [stages.count(stage) for stage in range(1, 9)] == [100] * 8
    assert stages == sorted(stages)
    assert stage_of(800, 800, 8) == 8
    assert [stage_of(step, 3, 8) for step in range(3)] == [1, 3, 6]


def test_the_loss_of_an_exact_denoiser_vanishes_where_data_are_constant():
    """All data at one point: the posterior mean is that point, and so is the end of every trajectory."""
    clean = torch.full((64, 1, 4, 4), 0.25, dtype=torch.float64)
    noise = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigma = torch.linspace(0.01, 20, 64, dtype=torch.float64)

    def constant(noisy, level):
        return torch.full_like(noisy, 0.25)

    for stage in (1, 4, 8):
        lower = lower_sigma(sigma, stage, ConsistencyOptions())
        losses = consistency_losses(constant, constant, clean, noise, sigma, lower, huber=0.0)
        assert losses.abs().max() == 0


def test_in_the_first_stage_it_is_the_diffusion_loss():
    """With r = 0 the target is the scan itself, whatever the network says of it."""
    clean, noise, sigma = pairs(8)

    def refuse(noisy, level):
        return torch.full_like(noisy, torch.nan)

    losses = consistency_losses(posterior_mean, refuse, clean, noise, sigma, torch.zeros_like(sigma), huber=0.0)
    error = posterior_mean(clean + sigma.reshape(-1, 1, 1, 1) * noise, sigma) - clean
    torch.testing.assert_close(losses, error.square().flatten(1).mean(1).sqrt() / sigma)


def test_the_exact_consistency_function_is_a_stationary_point_as_the_gap_closes():
    """d/ds of E[w d^2] at f* + s h, d the difference: it falls in proportion to the gap, though w does not."""
    clean, noise, sigma = pairs(200_000)
    wide = sigma.reshape(-1, 1, 1, 1)

    def direction(noisy, level):
        return torch.tanh(noisy) / (1 + level.reshape(-1, 1, 1, 1))

    slopes = []
    for stage in (4, 5, 6, 7):
        lower = lower_sigma(sigma, stage, ConsistencyOptions(widening=0.0))
        low = lower.reshape(-1, 1, 1, 1)
        above, below = clean + wide * noise, clean + low * noise
        difference = exact(above, sigma) - exact(below, lower)
        # The target gives no gradient, so only the student moves along the direction.
        slope = (difference * direction(above, sigma)).flatten(1).mean(1) * consistency_weight(sigma, lower)
        slopes.append(abs(slope.mean().item()))
    other = (posterior_mean(above, sigma) - posterior_mean(below, lower)) * direction(above, sigma)
    denoiser_slope = abs((other.flatten(1).mean(1) * consistency_weight(sigma, lower)).mean().item())
    assert slopes[0] < 0.05
    assert slopes[-1] < slopes[0] / 4
    assert denoiser_slope > 10 * slopes[-1], "the denoiser is no such point"


def test_along_the_teacher_the_exact_consistency_function_has_no_loss_as_the_gap_closes():
    """The probability-flow equation of N(MEAN, STD^2) is solved exactly, so an Euler step errs with the gap squared; the same
    scan under less of the same noise lies on another trajectory, and its loss does not fall."""
    clean, noise, sigma = pairs(2000)
    along, apart = [], []
    for gap in (0.1, 0.01):
        lower = sigma * (1 - gap)
        for found, teacher in ((along, posterior_mean), (apart, None)):
            losses = consistency_losses(exact, exact, clean, noise, sigma, lower, huber=0.0, teacher=teacher)
            found.append(losses.mean().item())
    assert along[1] == pytest.approx(along[0] / 10, rel=0.1)
    assert apart[1] == pytest.approx(apart[0], rel=0.1)
    assert apart[1] > 100 * along[1]


def test_where_the_lower_level_is_0_the_teacher_is_not_believed():
    clean, noise, sigma = pairs(8)
    lower = torch.zeros_like(sigma)

    def constant(noisy, level):
        return torch.full_like(noisy, 7.0)

    alone = consistency_losses(exact, exact, clean, noise, sigma, lower, huber=0.0)
    taught = consistency_losses(exact, exact, clean, noise, sigma, lower, huber=0.0, teacher=constant)
    torch.testing.assert_close(alone, taught, rtol=0, atol=0)


def test_pseudo_huber_is_quadratic_below_its_constant_and_linear_above():
    small, large = torch.full((1, 1, 8, 8), 1e-4), torch.full((1, 1, 8, 8), 1.0)
    assert difference_size(small, 0.01).item() == pytest.approx((1e-4) ** 2 / 0.02, rel=1e-2)
    assert difference_size(large, 0.01).item() == pytest.approx(1 - 0.01, rel=1e-4)
    assert difference_size(large, 0.0).item() == pytest.approx(1.0)
    still = torch.zeros(1, 1, 2, 2, requires_grad=True)
    difference_size(still, 0.0).sum().backward()
    assert torch.isfinite(still.grad).all()


def test_the_target_gives_no_gradient():
    clean, noise, sigma = pairs(4)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    lower = sigma / 2

    def moving(noisy, level):
        return scale * exact(noisy, level)

    consistency_losses(exact, moving, clean, noise, sigma, lower, huber=0.0)
    losses = consistency_losses(moving, moving, clean, noise, sigma, lower, huber=0.0)
    (both,) = torch.autograd.grad(losses.sum(), scale)
    alone = consistency_losses(moving, exact, clean, noise, sigma, lower, huber=0.0)
    (student,) = torch.autograd.grad(alone.sum(), scale)
    torch.testing.assert_close(both, student)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_the_exact_function_any_number_of_steps_reaches_the_data(steps):
    """Mean and spread of the samples, and one evaluation a step; one step of a denoiser gives nearly the mean alone."""
    random = torch.Generator().manual_seed(2)
    noise = torch.randn(20_000, 1, 2, 2, generator=random, dtype=torch.float64)
    calls = []

    def counted(noisy, sigma):
        calls.append(float(sigma[0]))
        return exact(noisy, sigma)

    sigmas = noise_levels(SolverOptions(name="consistency", steps=steps))
    scans = consistency(counted, noise, sigmas, lambda _: torch.randn(noise.shape, generator=random).double())
    assert calls == sigmas[:-1].tolist()
    assert len(calls) == steps
    assert scans.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert scans.std().item() == pytest.approx(STD, rel=0.01)
    if steps == 1:
        ends = exact(80.0 * noise, torch.full((len(noise),), 80.0, dtype=torch.float64))
        assert torch.equal(scans, ends)
        assert consistency(posterior_mean, noise, sigmas, lambda _: noise).std().item() < 0.01


def test_a_distilled_model_makes_its_last_step_from_where_it_draws_its_detail():
    assert noise_levels(SolverOptions(name="consistency", steps=1)).tolist() == [pytest.approx(80.0), 0.0]
    assert noise_levels(SolverOptions(name="consistency")).tolist() == [pytest.approx(80.0), pytest.approx(0.3), 0.0]
    levels = noise_levels(SolverOptions(name="consistency", steps=4))
    assert torch.equal(levels, noise_levels(SolverOptions(steps=4, sigma_min=0.3)))
    edited = edit_sigmas(SolverOptions(name="consistency", steps=4), 1.0)
    assert edited[0] == 1.0
    assert torch.equal(edited[1:], levels[levels < 0.99])
    with pytest.raises(ConfigError, match="need steps >= 1"):
        noise_levels(SolverOptions(name="consistency", steps=0))


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
        ({"name": "consistency"}, 32 * 32, 0.6 * 32),
    ],
)
def test_few_steps_begin_where_the_mean_of_a_scan_is_seen(options, voxels, first):
    solver = SolverOptions(**options)
    levels = noise_levels(solver, voxels=voxels)
    assert float(levels[0]) == pytest.approx(first)
    last = 0.3 if solver.name == "consistency" else 0.05 if solver.steps == 9 else 0.02
    assert float(levels[-2]) == pytest.approx(last)
    own = SolverOptions(name="consistency") if solver.name == "consistency" else None
    settled = settle_solver(solver, own=own, voxels=voxels)
    assert torch.equal(noise_levels(settled), levels), "settled once, voxels are no longer asked for"


def test_what_a_solver_is_by_default_depends_on_the_run():
    assert settle_solver(SolverOptions()) == SolverOptions(name="dpmpp_2m", steps=20, sigma_min=0.02, sigma_max=80.0)
    own = SolverOptions(name="consistency")
    assert settle_solver(SolverOptions(), own=own) == SolverOptions(
        name="consistency", steps=2, sigma_min=0.3, sigma_max=80.0
    )
    assert settle_solver(SolverOptions(steps=1), own=own).steps == 1
    assert settle_solver(SolverOptions(name="heun")).steps == 20
    with pytest.raises(ConfigError, match=r"solver\.name: need consistency for this distilled run, got heun; try"):
        settle_solver(SolverOptions(name="heun"), own=own)
    with pytest.raises(ConfigError, match=r"solver\.name: need a run of medsynth distill --method consistency"):
        settle_solver(SolverOptions(name="consistency"))


@pytest.mark.parametrize(
    "wrong", [{"base": 1.0}, {"stages": 0}, {"std": 0.0}, {"widening": -1.0}, {"slope": -1.0}, {"huber": -0.1}]
)
def test_options_that_cannot_work_are_named(wrong):
    with pytest.raises(ConfigError, match=rf"consistency\.{next(iter(wrong))}: need"):
        check_consistency(replace(ConsistencyOptions(), **wrong))
