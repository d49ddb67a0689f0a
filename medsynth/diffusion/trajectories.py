"""Trajectories of the probability-flow equation, and the loss of a student of few steps against them.

A solver is deterministic: the same noise always leads to the same scan. Distillation by regression (Luhman and Luhman 2021,
arXiv 2101.02388) teaches a student to reach it in one step, progressive distillation (Salimans and Ho 2022, arXiv 2202.00512)
repeatedly halves the steps. Here a student of a few Euler steps follows the trajectory of a solver with many steps, and is
compared with it after each of its own steps. Its last noise level is that of the teacher, from where both take one evaluation
of the denoiser to the scan; errors of the earlier steps that are smaller than this level are removed there as noise.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medsynth.config import DistillOptions, SolverOptions
from medsynth.diffusion.solvers import Denoise, Solver, dpmpp_2m_path, euler_path, noise_levels, resolve_solver
from medsynth.errors import ConfigError

# Levels within this factor of each other count as one: a step between them would waste an evaluation.
_NEAR = 1.15
# Differences of a voxel, in [-1, 1], above which the loss is linear: a quarter of a grey level of 255.
_SMOOTH = 0.002


def student_solver(options: DistillOptions, *, voxels: int) -> Solver:
    """Return the only solver of a student: Euler, with the noise levels of a solver of few steps for scans of `voxels` voxels.

    Raises `ConfigError` for a teacher with no more steps than the student.
    """
    if options.teacher_steps <= options.evaluations:
        raise ConfigError(
            f"teacher_steps: need more than evaluations={options.evaluations}, got {options.teacher_steps}; try 12"
        )
    return resolve_solver(SolverOptions(name="euler", steps=options.evaluations), voxels=voxels)


def trajectory_levels(student: Solver, steps: int) -> tuple[Tensor, list[int]]:
    """Return the teacher's `(levels,)` float64 noise levels, 0 at the end, and the indices at which the student stops.

    They are those of a solver with `steps` steps between the same ends; the student's own levels replace those next to them.
    """
    few = noise_levels(student).tolist()
    many = noise_levels(replace(student, steps=steps)).tolist()
    apart = [level for level in many[:-1] if all(max(level / own, own / level) > _NEAR for own in few[:-1])]
    levels = sorted([*apart, *few], reverse=True)
    return torch.tensor(levels, dtype=torch.float64), [levels.index(level) for level in few[1:]]


def trace_trajectory(denoise: Denoise, noise: Tensor, levels: Tensor, stops: list[int]) -> list[Tensor]:
    """Return the states of DPM-Solver++(2M) at the levels with the indices `stops`, none of them 0; the last is the scans."""
    path = enumerate(dpmpp_2m_path(denoise, noise, levels), 1)
    return [noisy for number, noisy in path if number in stops]


def trajectory_losses(student: Denoise, noise: Tensor, points: list[Tensor], levels: Tensor) -> Tensor:
    """Return the mean absolute difference of each scan from its trajectory after each step of the student, `(N, steps)`.

    `points` is the result of `trace_trajectory` at all `levels` `(steps + 1,)` of the student after the first, each
    `(N, C, *spatial)`. The gradient passes through all steps, so each learns to correct the errors of those before it. Absolute
    differences (smoothed below a quarter of a grey level) weigh faint noise in flat tissue, which readers and networks notice,
    as heavily as the position of edges; squared differences do not.
    """
    losses = [
        ((reached - point).square() + _SMOOTH**2).sqrt().flatten(1).mean(1) - _SMOOTH
        for reached, point in zip(euler_path(student, noise, levels), points, strict=True)
    ]
    return torch.stack(losses, dim=1)
