"""The stem: a reversible map between pixels and what the UNet sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ROOT_HALF = 0.5**0.5


class HaarTransform(nn.Module):
    """Orthonormal Haar transform of `levels` levels, for 2D and 3D: W Wᵀ = I, so white noise stays white.

    One level turns `(N, C, *spatial)` into `(N, C * 2**rank, *spatial / 2)`. The first `C` channels are local means (scaled
    by 2**(rank / 2)), the others differences along one or more axes. Further levels transform every band again (a wavelet
    packet), so all bands share one grid. With 0 levels it changes nothing.
    """

    def __init__(self, levels: int = 1) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, scans: Tensor) -> Tensor:
        """Return the bands of `scans`; every spatial axis must divide by 2**levels."""
        for _ in range(self.levels):
            scans = _analyse(scans)
        return scans

    def inverse(self, bands: Tensor) -> Tensor:
        """Return the scans that have these bands."""
        for _ in range(self.levels):
            bands = _synthesise(bands)
        return bands

    def band_count(self, channels: int, rank: int) -> int:
        """Return how many channels the network sees for scans of `channels` channels and `rank` spatial axes."""
        return channels * 2 ** (rank * self.levels)

    def factor(self) -> int:
        """Return by how much each spatial axis shrinks."""
        return int(2**self.levels)


# Butterflies rather than a matrix product: sums and differences stay in float32 when the network runs in bfloat16.
def _analyse(scans: Tensor) -> Tensor:
    for axis in range(2, scans.ndim):
        before = (slice(None),) * axis
        even, odd = scans[(*before, slice(0, None, 2))], scans[(*before, slice(1, None, 2))]
        scans = torch.cat([even + odd, even - odd], dim=1) * _ROOT_HALF
    return scans


def _synthesise(bands: Tensor) -> Tensor:
    for axis in reversed(range(2, bands.ndim)):
        total, difference = bands.chunk(2, dim=1)
        pairs = torch.stack([total + difference, total - difference], dim=axis + 1)
        bands = pairs.flatten(axis, axis + 1) * _ROOT_HALF
    return bands
