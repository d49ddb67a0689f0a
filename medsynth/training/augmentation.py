"""Random changes of training scans on which the network is conditioned (Karras et al. 2022, section 5).

Parameters are drawn first and applied deterministically; zero parameters leave a scan bit for bit as it was. Interpolation
must not blur: from its parameters the network cannot distinguish a scan shifted by a hundredth of a voxel from an untouched one,
so the traces of resampling would appear in samples. Scans are therefore upsampled by their spectrum first, and one more parameter
says whether a scan was resampled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from medsynth.config import AugmentationOptions
from medsynth.errors import ConfigError

_CUT = 2.0  # standard deviations at which the normal draws are cut off


class Augmentation:
    """Changes of scans with `rank` spatial axes; a last channel that is a `mask` of -1 and 1 stays one.

    Columns of the parameters, all zero without a change: one flip for each axis (0 or 1), rotation angles (one in 2D, one about
    each axis in 3D), ln(zoom), one shift for each axis, ln(contrast), and 1 if rotation, zoom or shift resampled the scan. All
    but the flips and the last are in standard deviations.
    """

    def __init__(self, options: AugmentationOptions, rank: int, *, mask: bool = False) -> None:
        if wrong := [axis for axis in options.flip_axes if not 0 <= axis < rank]:
            raise ConfigError(f"augment.flip_axes: need axes from 0 to {rank - 1} for {rank}D scans, got {wrong[0]}")
        self._options, self._rank, self._mask = options, rank, mask
        self._rotations = 1 if rank == 2 else 3

    @property
    def parameters(self) -> int:
        """Number of parameters of a scan."""
        return 2 * self._rank + self._rotations + 3

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `(count, parameters)` random parameters on the generator's device."""
        options, device = self._options, generator.device

        def uniform(columns: int) -> Tensor:
            return torch.rand(count, columns, generator=generator, device=device)

        edge = math.erf(_CUT / math.sqrt(2))
        flips = (uniform(self._rank) < 0.5) & (uniform(1) < options.probability)
        allowed = torch.tensor([axis in options.flip_axes for axis in range(self._rank)], device=device)
        groups = [(flips & allowed).float()]
        spreads = (options.rotate_degrees, options.scale, options.translate, options.contrast)
        for width, spread in zip((self._rotations, 1, self._rank, 1), spreads, strict=True):
            values = math.sqrt(2) * torch.erfinv((2 * uniform(width) - 1) * edge)
            groups.append(torch.where(uniform(1) < options.probability, values, 0.0) * (spread > 0))
        resampled = torch.cat(groups[1:-1], dim=1).any(dim=1, keepdim=True).float()
        return torch.cat([*groups, resampled], dim=1)

    def apply(self, scans: Tensor, parameters: Tensor) -> Tensor:
        """Return scans `(N, C, *spatial)` in [-1, 1] changed by their parameters, always in float32.

        In bfloat16 a rotation would be off by up to a tenth of a voxel from its parameters.
        """
        with torch.autocast(scans.device.type, enabled=False):
            rank, options = self._rank, self._options
            flips, angles, zoom, shifts, contrast, _ = parameters.split([rank, self._rotations, 1, rank, 1, 1], dim=1)
            size = torch.tensor(scans.shape[2:], dtype=scans.dtype, device=scans.device)
            matrix = torch.diag_embed((1 - 2 * flips) * (-zoom * options.scale).exp())
            matrix = matrix @ _rotation(angles * math.radians(options.rotate_degrees), rank)
            # affine_grid works in units of half an axis: rotate in voxels, so that oblong grids are not sheared.
            matrix = matrix * size[None, None, :] / size[None, :, None]
            moved = torch.cat([matrix, 2 * shifts[:, :, None] * options.translate], dim=2)
            # affine_grid counts axes from the last to the first.
            moved = torch.cat([moved[:, :, :rank].flip(1, 2), moved[:, :, rank:].flip(1)], dim=2)
            grid = affine_grid(moved, list(scans.shape), align_corners=False)
            # Voxel centres of the upsampled scan lie half of its voxels further to the front.
            grid = grid - 0.5 / size.flip(0)
            # torch has no cubic interpolation of volumes.
            mode = "bicubic" if rank == 2 else "bilinear"
            warped = grid_sample(_upsample(scans), grid, mode=mode, padding_mode="border", align_corners=False).clamp(
                -1, 1
            )
            if self._mask:
                warped[:, -1] = torch.where(warped[:, -1] > 0, 1.0, -1.0)
            changed = (parameters[:, :-2] != 0).any(dim=1)
            result = torch.where(changed.reshape(-1, *[1] * (scans.ndim - 1)), warped, scans)
            if options.contrast > 0:
                factor = (contrast * options.contrast).exp().reshape(-1, *[1] * (scans.ndim - 1))
                images = result[:, :-1] if self._mask else result
                images = torch.where(factor == 1, images, ((images + 1) * factor - 1).clamp(-1, 1))
                result = torch.cat([images, result[:, -1:]], dim=1) if self._mask else images
            return result


def _upsample(scans: Tensor) -> Tensor:
    """Return scans of twice the size whose voxels 0, 2, 4, ... are those of `scans`, with the same spectrum.

    Along each axis, the scan is mirrored, so that it has no jump at its ends, and its Fourier series evaluated twice as densely.
    """
    for axis in range(2, scans.ndim):
        length = scans.shape[axis]
        series = torch.fft.rfft(torch.cat([scans, scans.flip(axis)], dim=axis), dim=axis)
        series.narrow(axis, length, 1).mul_(0.5)
        scans = torch.fft.irfft(series, n=4 * length, dim=axis).narrow(axis, 0, 2 * length) * 2
    return scans


def _rotation(angles: Tensor, rank: int) -> Tensor:
    """Return rotation matrices `(N, rank, rank)`: in the plane (2D), or about the three axes in turn (3D)."""
    planes = [(0, 1)] if rank == 2 else [(1, 2), (0, 2), (0, 1)]
    result = torch.eye(rank, dtype=angles.dtype, device=angles.device).expand(len(angles), rank, rank)
    for number, (first, second) in enumerate(planes):
        cosine, sine = angles[:, number].cos(), angles[:, number].sin()
        turn = torch.eye(rank, dtype=angles.dtype, device=angles.device).repeat(len(angles), 1, 1)
        turn[:, first, first], turn[:, second, second] = cosine, cosine
        turn[:, first, second], turn[:, second, first] = -sine, sine
        result = result @ turn
    return result
