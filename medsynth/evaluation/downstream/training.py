"""What the trainings of both tiers share: classical augmentation, the loss and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from medsynth.evaluation.downstream.arms import Arm
from medsynth.evaluation.downstream.experiment import ClassicalSettings

_APPLIED = 0.5  # probability of each kind of change
_WARMUP = 0.1  # share of the steps over which the learning rate rises


def gather(sources: Sequence[tuple[np.ndarray, int]]) -> Tensor:
    """Return scans, each a row of an array, as one float32 batch."""
    return torch.from_numpy(np.stack([np.asarray(array[row], dtype=np.float32) for array, row in sources]))


def perturb(scans: Tensor, settings: ClassicalSettings, generator: torch.Generator) -> Tensor:
    """Return `(N, C, *spatial)` scans in [-1, 1] with classical augmentation; each kind changes half of the scans."""
    count, shape = len(scans), tuple(scans.shape[2:])
    rank = len(shape)

    def uniform(columns: int, reach: float) -> Tensor:
        values = (2 * torch.rand(count, columns, generator=generator) - 1) * reach
        return values * (torch.rand(count, 1, generator=generator) < _APPLIED)

    # Flips were drawn here once; this draw keeps the random numbers, and with them published figures, as they were.
    torch.rand(count, rank, generator=generator)
    angles = uniform(1 if rank == 2 else 3, math.radians(settings.rotate_degrees))
    zoom, shifts = uniform(1, settings.scale), uniform(rank, settings.translate)
    contrast, gamma, noise = (
        uniform(1, reach).reshape(-1, 1, *[1] * rank) for reach in (settings.contrast, settings.gamma, settings.noise)
    )
    matrix = torch.diag_embed((-zoom).exp().expand(-1, rank))
    planes = [(0, 1)] if rank == 2 else [(1, 2), (0, 2), (0, 1)]
    for number, (first, second) in enumerate(planes):
        turn = torch.eye(rank).repeat(count, 1, 1)
        cosine, sine = angles[:, number].cos(), angles[:, number].sin()
        turn[:, first, first], turn[:, second, second] = cosine, cosine
        turn[:, first, second], turn[:, second, first] = -sine, sine
        matrix = matrix @ turn
    # affine_grid measures each axis by its own half: turn in voxels, so that oblong grids are not sheared.
    size = torch.tensor(shape, dtype=torch.float32)
    matrix = matrix * size[None, None, :] / size[None, :, None]
    # affine_grid counts axes from the last to the first.
    matrices = torch.cat([matrix.flip(1, 2), 2 * shifts.flip(1)[:, :, None]], dim=2)
    grid = affine_grid(matrices, list(scans.shape), align_corners=False)
    moved = grid_sample(scans, grid, mode="bilinear", padding_mode="border", align_corners=False)
    curved = ((moved + 1) / 2).clamp(0, 1).pow(gamma.exp()) * 2 - 1
    mean = curved.mean(dim=tuple(range(1, scans.ndim)), keepdim=True)
    contrasted = mean + (curved - mean) * contrast.exp()
    return (contrasted + torch.randn(scans.shape, generator=generator) * noise.abs()).clamp(-1, 1)


def loss_slope(arm: Arm, logits: Tensor, targets: Tensor, rare_rate: Tensor) -> Tensor:
    """Return the derivative of each scan's cross entropy by its logit, for targets in [0, 1] and the arm's balancing."""
    if arm.recipe.balance == "logit_adjusted":
        logits = logits + torch.logit(rare_rate)
    slope = torch.sigmoid(logits) - targets
    if arm.recipe.balance == "weighted":
        slope = slope * (targets / (2 * rare_rate) + (1 - targets) / (2 * (1 - rare_rate)))
    return slope


def start_bias(arm: Arm, rare_rate: float) -> float:
    """Return the initial bias of a classifier: the log odds of the rare class among what its loss sees.

    From zero, the few steps of a training without balancing would go into making every scan unlikely, by whatever separates
    augmented, duplicated or synthetic scans from the others.
    """
    return math.log(rare_rate / (1 - rare_rate)) if arm.recipe.balance == "none" else 0.0


def rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step: a linear rise, then a cosine to zero."""
    rise = max(1, round(_WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
