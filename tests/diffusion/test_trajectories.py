"""Trajectories: where the student stops, the teacher's path, and what the loss measures."""

from dataclasses import replace

import pytest
import torch

from medsynth.config import DistillOptions, SolverOptions
from medsynth.diffusion import (
    dpmpp_2m,
    euler,
    noise_levels,
    resolve_solver,
    student_solver,
    trace_trajectory,
    trajectory_levels,
    trajectory_losses,
)
from medsynth.errors import ConfigError

VOXELS = 32 * 32
SPREAD = 0.5


def gaussian(noisy, sigma):
    """The denoiser of scans whose voxels are normal with standard deviation 0.5."""
    return noisy * (SPREAD**2 / (SPREAD**2 + sigma.reshape(-1, 1, 1, 1) ** 2)).to(noisy.dtype)


def solver_of_student(**options):
    return student_solver(DistillOptions(run="", cohort="", out="", **options), voxels=VOXELS)


def noise(count=4):
    return torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("evaluations", [1, 2, 3, 4])
def test_the_student_stops_on_levels_of_its_teacher(evaluations):
    student = solver_of_student(evaluations=evaluations)
    assert (student.name, student.steps) == ("euler", evaluations)
    levels, stops = trajectory_levels(student, 12)
    assert torch.equal(levels[stops], noise_levels(student)[1:])
    assert float(levels[0]) == pytest.approx(0.6 * 32)
    assert float(levels[-2]) == pytest.approx(0.05)
    assert stops[-1] == len(levels) - 1
    assert 13 <= len(levels) <= 13 + evaluations
    ratios = levels[:-2] / levels[1:-1]
    assert bool((ratios > 1.15 * (1 - 1e-9)).all()), "no step too short to be worth an evaluation"


def test_with_two_evaluations_the_teacher_is_its_solver():
    student = solver_of_student()
    levels, stops = trajectory_levels(student, 12)
    teacher = replace(student, name="dpmpp_2m", steps=12)
    assert levels.tolist() == pytest.approx(noise_levels(teacher).tolist(), rel=1e-9)
    assert stops == [11, 12]


def test_a_trace_is_where_the_solver_passes_and_the_equation_leads():
    """Of normal data the trajectory is known: it shrinks as the standard deviation does."""
    levels, stops = trajectory_levels(solver_of_student(evaluations=3), 200)
    start = noise()
    points = trace_trajectory(gaussian, start, levels, stops)
    assert torch.equal(points[-1], dpmpp_2m(gaussian, start, levels))
    first = float(levels[0])
    for stop, point in zip(stops[:-1], points[:-1], strict=True):
        shrunk = ((SPREAD**2 + float(levels[stop]) ** 2) / (SPREAD**2 + first**2)) ** 0.5
        torch.testing.assert_close(point, start * first * shrunk, rtol=2e-3, atol=0)


def test_no_loss_on_the_trajectory_and_the_difference_beside_it():
    levels = noise_levels(solver_of_student())
    start = noise()
    middle = gaussian(start * levels[0], torch.full((4,), float(levels[0])))
    middle = middle + levels[1] / levels[0] * (start * levels[0] - middle)
    points = [middle, euler(gaussian, start, levels)]
    assert trajectory_losses(gaussian, start, points, levels).abs().max() < 1e-12
    shifted = [points[0], points[1] + 0.3]
    losses = trajectory_losses(gaussian, start, shifted, levels)
    assert losses.shape == (4, 2)
    assert losses[:, 0].abs().max() < 1e-12
    torch.testing.assert_close(losses[:, 1], torch.full((4,), 0.3 - 0.002, dtype=torch.float64), rtol=1e-3, atol=0)


def test_the_last_stop_teaches_the_first_step():
    levels = noise_levels(solver_of_student())
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    start = noise()

    def student(noisy, sigma):
        return gaussian(noisy, sigma) + (shift if float(sigma[0]) > 1 else 0.0)

    points = [torch.zeros_like(start), torch.full_like(start, 2.0)]
    trajectory_losses(student, start, points, levels)[:, 1].mean().backward()
    assert shift.grad is not None
    # What it adds at the first level comes through the last: (1 - 0.05 / 19.2) * 0.25 / (0.25 + 0.05^2).
    assert float(shift.grad) == pytest.approx(-(1 - 0.05 / 19.2) * 0.25 / 0.2525, rel=1e-3)


def test_a_student_has_one_solver():
    own = solver_of_student()
    assert resolve_solver(SolverOptions(), own=own) == own
    fast = resolve_solver(SolverOptions(steps=2), own=own, precision="bf16-mixed")
    assert fast == replace(own, precision="bf16-mixed")
    for wrong, message in (
        ({"steps": 4}, r"solver\.steps: need 2, for which this run was distilled, got 4; try leaving"),
        ({"sigma_min": 0.02}, r"solver\.sigma_min: need 0\.05, for which this run was distilled, got 0\.02"),
        ({"name": "dpmpp_2m"}, r"solver\.name: need euler, for which this run was distilled, got dpmpp_2m"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve_solver(SolverOptions(**wrong), own=own)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"teacher_steps": 2}, r"^teacher_steps: need more than evaluations=2, got 2"),
    ],
)
def test_what_no_student_can_learn_from_is_refused(options, named):
    with pytest.raises(ConfigError, match=named):
        solver_of_student(**options)
