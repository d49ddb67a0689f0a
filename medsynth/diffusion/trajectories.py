"""Trajectories of the probability-flow equation, and what a student of few steps loses against them.

A solver is deterministic: from one noise it always reaches the same scan. Distillation by regression (Luhman and Luhman 2021,
arXiv 2101.02388) teaches a student to go there in one step, progressive distillation (Salimans and Ho 2022, arXiv 2202.00512)
in half as many, again and again. Here a student of a few Euler steps follows the trajectory of a solver of many, and is measured
wherever it stops. Its last level is the solver's last, where one evaluation of the denoiser is what the solver does too: what the
steps before miss by less than that level is taken away there as noise.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medsynth.config import SolverOptions, TrajectoryOptions
from medsynth.diffusion.solvers import Denoise, dpmpp_2m_path, euler_path, noise_levels, settle_solver
from medsynth.errors import ConfigError

# Levels nearer than this factor are one: a step so short only costs an evaluation.
_NEAR = 1.15
# Differences of a voxel, in [-1, 1], above which the loss is linear: a quarter of a grey level of 255.
_SMOOTH = 0.002


def student_solver(options: TrajectoryOptions, *, voxels: int) -> SolverOptions:
    """Return the one solver of a student: Euler steps, with the levels of a solver of few steps for scans of so many voxels.

    Raises `ConfigError` for fewer evaluations than 1 or more than 4, or a teacher with no more steps than the student.
    """
    if not 1 <= options.evaluations <= 4:
        raise ConfigError(f"trajectories.evaluations: need 1 to 4, got {options.evaluations}; try 2")
    if options.steps <= options.evaluations:
        raise ConfigError(
            f"trajectories.steps: need more than trajectories.evaluations={options.evaluations}, got {options.steps}; try 12"
        )
    if options.count < 1:
        raise ConfigError(f"trajectories.count: need at least 1, got {options.count}; try 20000")
    if options.guidance < 0:
        raise ConfigError(f"trajectories.guidance: need 0 or more, got {options.guidance:g}; try 1")
    return settle_solver(SolverOptions(name="euler", steps=options.evaluations), voxels=voxels)


def trajectory_levels(student: SolverOptions, steps: int) -> tuple[Tensor, list[int]]:
    """Return the teacher's `(levels,)` float64 noise levels, 0 at the end, and at which of them the student stops.

    They are those of a solver of so many `steps` between the same ends, with the student's own in place of those next to them.
    A student of one step, which has no level but the first, ends where few steps do.
    """
    few = noise_levels(student).tolist()
    many = noise_levels(replace(student, steps=steps)).tolist()
    apart = [level for level in many[:-1] if all(max(level / own, own / level) > _NEAR for own in few[:-1])]
    levels = sorted([*apart, *few], reverse=True)
    return torch.tensor(levels, dtype=torch.float64), [levels.index(level) for level in few[1:]]


def trace_trajectory(denoise: Denoise, noise: Tensor, levels: Tensor, stops: list[int]) -> list[Tensor]:
    """Return where DPM-Solver++(2M) is at the levels numbered `stops`, none of them the first; the last are the scans."""
    path = enumerate(dpmpp_2m_path(denoise, noise, levels), 1)
    return [noisy for number, noisy in path if number in stops]


def trajectory_losses(student: Denoise, noise: Tensor, points: list[Tensor], levels: Tensor) -> Tensor:
    """Return the mean absolute difference of each scan from its trajectory, wherever the student stops, `(N, stops)`.

    `points` are what `trace_trajectory` gives at all `levels` `(steps + 1,)` of the student but the first, each
    `(N, C, *spatial)`. The gradient passes through all steps, so that each learns to mend what those before it miss. Absolute
    differences (smooth below a quarter of a grey level) weigh faint noise in flat tissue, which every reader and every network
    sees, as heavily as the places of edges; squares do not.
    """
    losses = [
        ((reached - point).square() + _SMOOTH**2).sqrt().flatten(1).mean(1) - _SMOOTH
        for reached, point in zip(euler_path(student, noise, levels), points, strict=True)
    ]
    return torch.stack(losses, dim=1)
