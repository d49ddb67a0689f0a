"""Classical augmentation of a batch of scans in [-1, 1]: parameters are drawn first, then applied."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from medsynth.config import ClassicalOptions
from medsynth.errors import ConfigError

_APPLIED = 0.5  # probability of each kind of change


@dataclass(frozen=True, kw_only=True, eq=False)
class Perturbations:
    """Changes of N scans: `matrices` `(N, rank, rank + 1)` in `affine_grid`'s axes, the others `(N,)`; `seeds` of the noise."""

    matrices: Tensor
    contrast: Tensor
    gamma: Tensor
    noise: Tensor


def check_classical(options: ClassicalOptions, rank: int) -> None:
    """Raise `ConfigError` for axes that scans of `rank` spatial axes lack."""
    if wrong := [axis for axis in options.flip_axes if not 0 <= axis < rank]:
        raise ConfigError(f"classical.flip_axes: need axes from 0 to {rank - 1} for {rank}D scans, got {wrong[0]}")


def draw_perturbations(
    options: ClassicalOptions, count: int, shape: tuple[int, ...], generator: torch.Generator
) -> Perturbations:
    """Return random changes of `count` scans with the spatial `shape`; each kind is drawn for half of the scans."""
    rank = len(shape)

    def uniform(columns: int, reach: float) -> Tensor:
        values = (2 * torch.rand(count, columns, generator=generator) - 1) * reach
        return values * (torch.rand(count, 1, generator=generator) < _APPLIED)

    flips = torch.rand(count, rank, generator=generator) < 0.5
    allowed = torch.tensor([axis in options.flip_axes for axis in range(rank)])
    signs = 1.0 - 2.0 * (flips & allowed)
    angles = uniform(1 if rank == 2 else 3, math.radians(options.rotate_degrees))
    zoom, shifts = uniform(1, options.scale), uniform(rank, options.translate)
    contrast, gamma = uniform(1, options.contrast)[:, 0], uniform(1, options.gamma)[:, 0]
    noise = uniform(1, options.noise)[:, 0].abs()
    matrix = torch.diag_embed(signs * (-zoom).exp())
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
    return Perturbations(matrices=matrices, contrast=contrast, gamma=gamma, noise=noise)


def apply_perturbations(scans: Tensor, changes: Perturbations, generator: torch.Generator) -> Tensor:
    """Return `(N, C, *spatial)` scans in [-1, 1], changed; the white noise comes from `generator`, on the CPU."""
    device = scans.device
    grid = affine_grid(changes.matrices.to(device), list(scans.shape), align_corners=False)
    moved = grid_sample(scans, grid, mode="bilinear", padding_mode="border", align_corners=False)
    tail = [1] * (scans.ndim - 1)
    gamma = changes.gamma.to(device).exp().reshape(-1, *tail)
    curved = ((moved + 1) / 2).clamp(0, 1).pow(gamma) * 2 - 1
    mean = curved.mean(dim=tuple(range(1, scans.ndim)), keepdim=True)
    contrasted = mean + (curved - mean) * changes.contrast.to(device).exp().reshape(-1, *tail)
    noise = torch.randn(scans.shape, generator=generator).to(device) * changes.noise.to(device).reshape(-1, *tail)
    return (contrasted + noise).clamp(-1, 1)
