"""Inpainting: a solver that paints one region anew and is shown, at every noise level, what is known around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from medsynth.diffusion.solvers import Denoise, Solver

# Standard normal noise `(N, C, *spatial)` of its own for each combination of keys.
DrawNoise = Callable[..., Tensor]


def inpaint(
    solver: Solver,
    denoise: Denoise,
    known: Tensor,
    region: Tensor,
    sigmas: Tensor,
    draw: DrawNoise,
    *,
    repeats: int = 1,
    to_data: bool = False,
) -> Tensor:
    """Return `known` `(N, C, *spatial)` with what `region` (bool, broadcast to it) marks painted anew.

    Before every step what lies outside the region is replaced by the known values, noised afresh to the level of the step. A step
    is taken `repeats` times, in between brought back to its level by noise, so that inside and outside come to agree (RePaint,
    Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1 with jumps of one step). `solver` takes single steps; one of several steps
    begins anew at each, since what it would remember was seen beside other noise. A distilled model goes `to_data` at each step
    and is noised to the next level. Noise is `draw(step, turn, kind)`, that of the beginning `draw(0)`.
    """
    levels = sigmas.tolist()
    noisy = levels[0] * draw(0)
    for number, (sigma, following) in enumerate(pairwise(levels), 1):
        turns = repeats if following > 0 else 1
        for turn in range(turns):
            noisy = torch.where(region, noisy, known + sigma * draw(number, turn, 0))
            ends = torch.tensor([sigma, 0.0 if to_data else following], dtype=torch.float64)
            lower = solver(denoise, noisy / sigma, ends)
            if to_data and following > 0:
                lower = lower + following * draw(number, turn, 1)
            if turn + 1 < turns:
                noisy = lower + math.sqrt(sigma**2 - following**2) * draw(number, turn, 2)
        noisy = lower
    return torch.where(region, noisy, known)
