"""Consistency models: one network evaluation from any noise level to the data, by Easy Consistency Tuning (ECT).

Geng et al. 2024 (arXiv 2406.14548, "Consistency Models Made Easy"). A consistency function f(noisy, sigma) gives, for every
point of one trajectory of the probability-flow equation, the data at its end, with f(noisy, 0) = noisy (Song et al. 2023, arXiv
2303.01469, definition 1). A denoiser is what the objective below asks for as long as the lower level r is 0: the diffusion
loss. So tuning starts from a trained denoiser and moves r towards sigma, stage by stage; the gap sigma - r is what is left of
discretisation.

With the denoiser that tuning started from as a teacher, the point at the lower level is one step along the teacher's trajectory
rather than the same scan under less of the same noise: consistency distillation (Song et al. 2023, algorithm 2). Both agree in
the mean as the gap closes; the teacher's has no noise of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medsynth.config import ConsistencyOptions
from medsynth.diffusion.precondition import match_rank
from medsynth.diffusion.solvers import Denoise
from medsynth.errors import ConfigError


def check_consistency(options: ConsistencyOptions) -> None:
    """Raise `ConfigError` that names an option with which no gap shrinks or no level can be drawn."""
    if options.base <= 1:
        raise ConfigError(f"consistency.base: need a number above 1, got {options.base:g}; try 2")
    if options.stages < 1:
        raise ConfigError(f"consistency.stages: need at least 1, got {options.stages}; try 8")
    if options.std <= 0:
        raise ConfigError(f"consistency.std: need a number above 0, got {options.std:g}; try 2")
    for name in ("widening", "slope", "huber"):
        if getattr(options, name) < 0:
            raise ConfigError(f"consistency.{name}: need 0 or more, got {getattr(options, name):g}")


def stage_of(step: int, total_steps: int, stages: int) -> int:
    """Return the stage, 1 to `stages`, of an optimiser step counted from 0; all stages are equally long."""
    return min(stages, 1 + step * stages // total_steps)


def lower_sigma(sigma: Tensor, stage: int, options: ConsistencyOptions) -> Tensor:
    """Return the noise level r of the target, 0 <= r < sigma.

    r / sigma = 1 - n(sigma) / q^stage with n(sigma) = 1 + k s(-b sigma), s the logistic function, and 0 where that is negative:
    the mapping function p(r | sigma, iterations) of the paper, with q = `base`, k = `widening`, b = `slope` and the stage in
    place of its ceil(iterations / d).
    """
    widened = 1 + options.widening * torch.sigmoid(-options.slope * sigma)
    return sigma * (1 - widened / options.base**stage).clamp(min=0)


def consistency_weight(sigma: Tensor, lower: Tensor) -> Tensor:
    """Return 1 / (sigma - r), which keeps the loss from vanishing with the gap."""
    return 1 / (sigma - lower)


def difference_size(difference: Tensor, huber: float) -> Tensor:
    """Return sqrt(m + c^2) - c of each scan, `(N,)`, with m the mean square of its differences.

    The pseudo-Huber metric of Song and Dhariwal 2023 (arXiv 2310.14189, equation 7), where c = `huber` for each voxel; their
    constant 0.00054 sqrt(d) for a sum over d voxels is c = 0.00054 here. With c = 0 it is the L2 norm that the paper's
    adaptive weighting amounts to. Its gradient is finite at 0 too.
    """
    mean = difference.square().flatten(1).mean(1)
    # A root has no gradient at 0, where student and target agree to the last bit.
    constant = max(huber, 1e-8)
    return (mean + constant**2).sqrt() - constant


def consistency_losses(
    student: Denoise,
    target: Denoise,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    lower: Tensor,
    *,
    huber: float,
    teacher: Denoise | None = None,
) -> Tensor:
    """Return w(sigma, r) d(f(clean + sigma noise, sigma), f(clean + r noise, r)) of each scan, `(N,)`.

    The objective of the paper: `student` and `target` are one function, of which `target` gives no gradient and draws the same
    dropout masks; both see the same `noise`, or, with a `teacher`, the target sees where an Euler step of its
    probability-flow equation leads from what the student sees. Where r is 0 the target is the clean scan itself. All but `sigma`
    and `lower`, both `(N,)`, are `(N, C, *spatial)`.
    """
    noisy = clean + match_rank(sigma, clean) * noise
    # The network takes the logarithm of a level: rows with r = 0 get any other and are replaced.
    level = torch.where(lower > 0, lower, sigma)
    with torch.no_grad():
        if teacher is None:
            below = clean + match_rank(level, clean) * noise
        else:
            denoised = teacher(noisy, sigma)
            below = denoised + match_rank(level / sigma, clean) * (noisy - denoised)
        reached = target(below, level)
        reached = torch.where(match_rank(lower, clean) > 0, reached, clean)
    given = student(noisy, sigma)
    return consistency_weight(sigma, lower) * difference_size(given - reached, huber)
