"""The latent space: MONAI's autoencoder with a Gaussian posterior (Rombach et al. 2022, arXiv 2112.10752), in 2D and 3D."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from medsynth.config import AutoencoderOptions
from medsynth.diffusion import match_rank
from medsynth.errors import ConfigError

_RESIDUAL_BLOCKS, _NORM_GROUPS = 1, 8
_VOXELS = 2**20  # that go through the frozen autoencoder at once
_LEAST_SCALE = 1e-3  # keeps a channel without content from amplifying its noise without bound


def build_autoencoder(options: AutoencoderOptions, *, channels: int, size: Sequence[int]) -> AutoencoderKL:
    """Return an untrained autoencoder for scans of `channels` channels and spatial shape `size` (2D or 3D).

    It has convolutions only: attention over all positions of a volume would need more memory than everything else together.
    Raises `ConfigError` as `check_autoencoder` does.
    """
    check_autoencoder(options, size)
    return AutoencoderKL(
        spatial_dims=len(size),
        in_channels=channels,
        out_channels=channels,
        channels=options.channels,
        num_res_blocks=_RESIDUAL_BLOCKS,
        attention_levels=[False] * len(options.channels),
        latent_channels=options.latent_channels,
        norm_num_groups=_NORM_GROUPS,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )


def check_autoencoder(options: AutoencoderOptions, size: Sequence[int]) -> None:
    """Raise `ConfigError` for options of which no autoencoder can be built, or a `size` that it cannot halve."""
    if not options.channels or any(width < 1 or width % _NORM_GROUPS for width in options.channels):
        raise ConfigError(
            f"autoencoder.channels: need multiples of {_NORM_GROUPS}, got {list(options.channels)}; try 32,64,64"
        )
    factor = latent_factor(options)
    if any(length % factor for length in size):
        better = [max(factor, round(length / factor) * factor) for length in size]
        raise ConfigError(f"grid.size: need multiples of {factor} for this autoencoder, got {list(size)}; try {better}")


def latent_factor(options: AutoencoderOptions) -> int:
    """Return the factor by which each spatial axis shrinks."""
    return int(2 ** (len(options.channels) - 1))


def least_bytes(options: AutoencoderOptions, rank: int) -> int:
    """Return a lower bound on the size of the weights: one convolution in each residual block of the encoder."""
    return 4 * _RESIDUAL_BLOCKS * sum(width * width for width in options.channels) * 3**rank


class LatentCodec(nn.Module):
    """A frozen autoencoder whose latents have mean 0 and root mean square 1 in each channel over the training split.

    `encode` turns scans in [-1, 1] into such latents (the mean of the posterior), `decode` turns them back. `mean` and `scale`
    are `(channel,)`, 0 and 1 before `measure`. Both directions compute in float32 and split batches, so that a batch of volumes
    needs no more memory than one.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, autoencoder: AutoencoderKL, options: AutoencoderOptions) -> None:
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False)
        self.factor = latent_factor(options)
        self.register_buffer("mean", torch.zeros(options.latent_channels))
        self.register_buffer("scale", torch.ones(options.latent_channels))

    def shape(self, scan: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the latents of scans of shape `(channel, *spatial)`."""
        return (len(self.mean), *(length // self.factor for length in scan[1:]))

    @torch.no_grad()
    def encode(self, scans: Tensor) -> Tensor:
        """Return the latents of scans `(N, C, *spatial)`."""
        latents = self._posterior_mean(scans)
        return (latents - match_rank(self.mean[None], latents)) / match_rank(self.scale[None], latents)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the scans of latents, about in [-1, 1]."""
        raw = latents.float() * match_rank(self.scale[None], latents) + match_rank(self.mean[None], latents)
        with torch.autocast(raw.device.type, enabled=False):
            return torch.cat([self.autoencoder.decode(part) for part in _parts(raw, self.factor ** (raw.ndim - 2))])

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> None:
        """Set `mean` and `scale` to those of the latents of all scans in `batches`, each `(N, C, *spatial)` in [-1, 1]."""
        count = 0
        total = squares = torch.zeros(len(self.mean), dtype=torch.float64, device=self.mean.device)
        for scans in batches:
            latents = self._posterior_mean(scans).double().transpose(0, 1).flatten(1)
            count += latents.shape[1]
            total = total + latents.sum(1)
            squares = squares + latents.square().sum(1)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=_LEAST_SCALE**2)
        self.mean.copy_(mean)
        self.scale.copy_(variance.sqrt())

    def _posterior_mean(self, scans: Tensor) -> Tensor:
        with torch.autocast(scans.device.type, enabled=False):
            return torch.cat([self.autoencoder.encode(part.float())[0] for part in _parts(scans)])


def divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of normal posteriors from the standard normal, summed over each scan, `(N,)`."""
    terms = mean.square() + deviation.square() - 1 - 2 * deviation.clamp(min=1e-15).log()
    return 0.5 * terms.flatten(1).sum(1)


def _parts(batch: Tensor, voxels_each: int = 1) -> Sequence[Tensor]:
    """Split a batch into parts that fit into memory; each position stands for `voxels_each` voxels of a scan."""
    one = max(1, math.prod(batch.shape[2:]) * voxels_each)
    return batch.split(max(1, _VOXELS // one))
