"""Inpainting: a solver that fills one region and sees, at every noise level, the known values around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from medsynth.diffusion.solvers import Denoise, Solve

# Independent standard normal noise `(N, C, *spatial)` for each combination of keys.
DrawNoise = Callable[..., Tensor]

# Last key of a draw: the noise of the known surroundings, and the noise that takes a step back for its repetition.
_SURROUNDINGS, _STEP_BACK = 0, 2


def inpaint(
    solve: Solve, denoise: Denoise, known: Tensor, region: Tensor, sigmas: Tensor, draw: DrawNoise, *, repeats: int = 1
) -> Tensor:
    """Return `known` `(N, C, *spatial)` with the marked `region` (bool, broadcast to it) generated anew.

    Before every step, everything outside the region is replaced by the known values with fresh noise of that level. Each step is
    taken `repeats` times, with noise added in between to return to its level, so that inside and outside come to agree (RePaint,
    Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1 with jumps of one step). `solve` is called for one step at a time, so a
    multistep solver acts as one of first order. `draw(0)` is the initial noise, `draw(step, turn, kind)` all further noise.
    """
    levels = sigmas.tolist()
    noisy = levels[0] * draw(0)
    for number, (sigma, following) in enumerate(pairwise(levels), 1):
        ends = torch.tensor([sigma, following], dtype=torch.float64)
        turns = repeats if following > 0 else 1
        for turn in range(turns):
            noisy = torch.where(region, noisy, known + sigma * draw(number, turn, _SURROUNDINGS))
            lower = solve(denoise, noisy / sigma, ends)
            if turn + 1 < turns:
                noisy = lower + math.sqrt(sigma**2 - following**2) * draw(number, turn, _STEP_BACK)
        noisy = lower
    return torch.where(region, noisy, known)
