"""The denoiser: MONAI's diffusion UNet behind a stem and the preconditioning of Karras et al. 2022."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks.blocks import SpatialAttentionBlock
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, avg_pool3d
from torch.utils.checkpoint import checkpoint

from medsynth.config import AutoencoderOptions, NetworkOptions
from medsynth.diffusion import match_rank, noise_embedding_position, precondition
from medsynth.errors import ConfigError
from medsynth.networks.autoencoder import LatentCodec, build_autoencoder, latent_factor
from medsynth.networks.condition import Condition, ConditionEmbedding
from medsynth.networks.haar import HaarTransform

_HEAD_CHANNELS = 32  # of each attention head


class Denoiser(nn.Module):
    """Estimates clean scans: `denoiser(noisy, sigma, condition) -> denoised`.

    `noisy` is `(N, C, *spatial)` = scan + sigma * standard normal noise, `sigma` is `(N,)`; scans lie in [-1, 1]. The
    preconditioning acts on the bands of the stem after subtracting their means, with one sigma_data for each band (equal ones
    give the scalar case, since the stem is orthonormal).

    With `observed`, the network also sees the channels that its condition observes, and returns them unchanged. With `shrinks`,
    it has two outputs for each value, combined by `shrink_features`.

    With a `codec`, diffusion acts on latents: `noisy` and `denoised` are latents, `encode` makes them, `decode` turns them into
    scans, and `noise_shape` is their shape. Without one, these three change nothing.
    """

    sigma_data: Tensor
    band_means: Tensor

    def __init__(
        self,
        unet: DiffusionModelUNet,
        stem: HaarTransform,
        sigma_data: Tensor,
        codec: LatentCodec | None = None,
        *,
        observed: bool = False,
        shrinks: bool = False,
        band_means: Tensor | float = 0.0,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.stem = stem
        self.codec = codec
        self.observed = observed
        self.shrinks = shrinks
        self.register_buffer("sigma_data", sigma_data.float())
        means = torch.as_tensor(band_means, dtype=torch.float32).expand_as(sigma_data).clone()
        # Not saved with the weights: the run's description holds it.
        self.register_buffer("band_means", means, persistent=False)

    @property
    def embedding(self) -> ConditionEmbedding:
        """The module that embeds conditions."""
        return self.unet.class_embedding

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        return self.sigma_data.device

    @property
    def rank(self) -> int:
        """Number of spatial axes of its scans."""
        return self.unet.conv_in.conv.weight.ndim - 2

    def noise_shape(self, scan: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the noise from which a scan of shape `(channel, *spatial)` comes."""
        return tuple(scan) if self.codec is None else self.codec.shape(scan)

    def initial_noise(self, noise: Tensor, sigma: float) -> Tensor:
        """Return noise `(N, C, *spatial)` around the mean scan, such that `sigma` times it is a scan at noise level `sigma`.

        A noisy scan keeps its mean, and the mean over all voxels is visible even at high noise levels: noise changes it only by
        sigma / sqrt(voxels) (standard deviation). Noise around 0 would start too bright or too dark.
        """
        grid = [length // self.stem.factor() for length in noise.shape[2:]]
        mean = self.stem.inverse(match_rank(self.band_means[None], noise).expand(1, -1, *grid))
        return noise + mean.to(noise.device) / sigma

    def encode(self, scans: Tensor) -> Tensor:
        """Return the latents of scans; without a codec, the scans."""
        return scans if self.codec is None else self.codec.encode(scans)

    def decode(self, denoised: Tensor) -> Tensor:
        """Return the scans `(N, C, *spatial)` of latents. No gradient passes through the codec in either direction."""
        return denoised if self.codec is None else self.codec.decode(denoised)

    def forward(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the denoised scans, in the dtype of `noisy`."""
        seen = self.stem(hold_observed(noisy, condition))
        means = match_rank(self.band_means[None].to(seen.dtype), seen)
        bands = seen - means
        sigma_data = match_rank(self.sigma_data[None].to(bands.dtype), bands)
        scale = precondition(match_rank(sigma[:, None], bands), sigma_data)
        position = noise_embedding_position(sigma)
        seen = scale.input * bands
        if self.observed:
            seen = torch.cat([seen, *self._observed_bands(condition, noisy, sigma_data)], dim=1)
        features = self.unet(seen, position, class_labels=condition).to(bands.dtype)
        if self.shrinks:
            features = shrink_features(features, bands, match_rank(sigma[:, None], bands), sigma_data)
        return hold_observed(self.stem.inverse(means + scale.skip * bands + scale.output * features), condition)

    def _observed_bands(self, condition: Condition, noisy: Tensor, sigma_data: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bands of the observed channels, scaled to unit power, and where they are observed, on the bands' grid."""
        observed = condition.observed
        values, known = (torch.zeros_like(noisy),) * 2 if observed is None else observed.to(noisy.dtype).chunk(2, dim=1)
        bands = self.stem(values) / sigma_data
        factor = self.stem.factor()
        pool = avg_pool2d if self.rank == 2 else avg_pool3d
        return bands, known if factor == 1 else pool(known, factor)


def shrink_features(features: Tensor, bands: Tensor, sigma: Tensor, sigma_data: Tensor) -> Tensor:
    """Return `(N, B, *spatial)`: for features `(N, 2B, *spatial)` = (added, kept), added + kept * bands / scale.

    The bands of a scan are sparse: nearly zero in flat tissue, large at edges. In flat tissue the best estimate removes the whole
    noisy value (wavelet shrinkage, Donoho and Johnstone 1994). Without the second output, a network has to carry the noise of
    every band from its first layer to its last, through fewer channels than there are bands; with it, one number for each value
    is enough. `scale` = sqrt(sigma^2 + (sigma_data / 4)^2) is about the size of a noisy value in flat tissue, so that number is
    of order 1 there at all noise levels.
    """
    added, kept = features.chunk(2, dim=1)
    return added + kept * bands / (sigma**2 + (sigma_data / 4) ** 2).sqrt()


def hold_observed(scans: Tensor, condition: Condition) -> Tensor:
    """Return scans `(N, C, *spatial)` with the observed values of the condition put in place."""
    if condition.observed is None:
        return scans
    values, known = condition.observed.chunk(2, dim=1)
    return torch.where(known > 0, values.to(scans.dtype), scans)


def build_stem(options: NetworkOptions) -> HaarTransform:
    """Return the stem that the options name; pixels and latents go to the UNet unchanged."""
    if options.levels not in (1, 2):
        raise ConfigError(f"network.levels: need 1 or 2, got {options.levels}")
    return HaarTransform(options.levels if options.stem == "haar" else 0)


def check_network(
    options: NetworkOptions, size: Sequence[int], *, autoencoder: AutoencoderOptions | None = None
) -> None:
    """Raise `ConfigError` for a `size` that stem and UNet cannot halve, or for options that contradict each other."""
    if len(options.attention) != len(options.channels):
        raise ConfigError(
            f"network.attention: need one entry for each of the {len(options.channels)} resolutions in network.channels, "
            f"got {len(options.attention)}"
        )
    wrong = [width for width in options.channels if width % _HEAD_CHANNELS]
    if wrong:
        raise ConfigError(f"network.channels: need multiples of {_HEAD_CHANNELS}, got {wrong}; try 64,96,128")
    groups = options.norm_groups
    if groups < 1 or any(width % groups or width == groups for width in options.channels):
        raise ConfigError(
            f"network.norm_groups: need at least two channels per group, got {groups} groups for "
            f"network.channels={list(options.channels)}; try {max(1, min(options.channels) // 8)}"
        )
    if (options.stem == "latent") != (autoencoder is not None):
        raise ConfigError(
            f"autoencoder.run: need a trained autoencoder for network.stem latent, and none otherwise, got stem {options.stem}; "
            "try medsynth train --stage autoencoder first"
        )
    divisor = build_stem(options).factor() * 2 ** (len(options.channels) - 1)
    if autoencoder is not None:
        divisor *= latent_factor(autoencoder)
    if any(length % divisor for length in size):
        better = [max(divisor, round(length / divisor) * divisor) for length in size]
        raise ConfigError(f"grid.size: need multiples of {divisor} for this network, got {list(size)}; try {better}")


def build_denoiser(
    options: NetworkOptions,
    *,
    channels: int,
    size: Sequence[int],
    classes: int,
    augmentation_parameters: int = 0,
    sigma_data: Tensor | float = 0.5,
    band_means: Tensor | float = 0.0,
    categories: Sequence[int] = (),
    observed: bool = False,
    text: int = 0,
    autoencoder: AutoencoderOptions | None = None,
) -> Denoiser:
    """Return an untrained denoiser for scans of `channels` channels and spatial shape `size` (2D or 3D).

    `sigma_data` and `band_means` are one value, or one for each band of the stem; `categories` and `text` are those of
    `ConditionEmbedding`; `observed` makes a network that can observe channels, which latents cannot; `autoencoder` describes the
    codec of the stem `latent`. Raises `ConfigError` as `check_network` does.
    """
    check_network(options, size, autoencoder=autoencoder)
    if observed and autoencoder is not None:
        raise ConfigError("condition.observed: need network.stem haar or pixel, got latent; try condition.observed 0")
    codec = None
    if autoencoder is not None:
        codec = LatentCodec(build_autoencoder(autoencoder, channels=channels, size=size), autoencoder)
        channels = autoencoder.latent_channels
    stem = build_stem(options)
    rank = len(size)
    bands = stem.band_count(channels, rank)
    last = len(options.channels) - 1
    unet = DiffusionModelUNet(
        spatial_dims=rank,
        in_channels=2 * bands + channels if observed else bands,
        out_channels=2 * bands if options.shrinkage else bands,
        channels=options.channels,
        num_res_blocks=options.residual_blocks,
        attention_levels=options.attention,
        # The middle block has attention whatever the levels say, with the head size of the last level.
        num_head_channels=[
            _HEAD_CHANNELS if attends or level == last else 0 for level, attends in enumerate(options.attention)
        ],
        norm_num_groups=options.norm_groups,
        num_class_embeds=classes + 1,
        use_flash_attention=True,
    )
    unet.class_embedding = ConditionEmbedding(
        classes, augmentation_parameters, unet.class_embedding.embedding_dim, categories=categories, text=text
    )
    for module in unet.modules():
        if isinstance(module, DiffusionUNetResnetBlock):
            module.conv2 = nn.Sequential(nn.Dropout(options.dropout), module.conv2)
    deviations = torch.as_tensor(sigma_data, dtype=torch.float32).expand(bands).clone()
    return Denoiser(unet, stem, deviations, codec, observed=observed, shrinks=options.shrinkage, band_means=band_means)


def checkpoint_activations(network: nn.Module) -> None:
    """Make the residual and attention blocks of `network` store only their inputs while it is trained.

    The backward pass computes the rest again, with the same dropout masks (activation checkpointing, Chen et al. 2016, arXiv
    1604.06174): less memory for about a third more time. Gradients, weights, their names and evaluation stay the same.
    """
    for module in network.modules():
        for kind, checkpointed in _CHECKPOINTED.items():
            if type(module) is kind:
                module.__class__ = checkpointed


class _ResidualBlock(DiffusionUNetResnetBlock):
    """MONAI's residual block with activation checkpointing."""

    def forward(self, *inputs: Any) -> Tensor:
        return _recompute(self, super().forward, *inputs)


class _AttentionBlock(SpatialAttentionBlock):
    """MONAI's attention block with activation checkpointing."""

    def forward(self, *inputs: Any) -> Tensor:
        return _recompute(self, super().forward, *inputs)


# Subclasses, since wrappers would rename every weight in the state_dict.
_CHECKPOINTED: dict[type[nn.Module], type[nn.Module]] = {
    DiffusionUNetResnetBlock: _ResidualBlock,
    SpatialAttentionBlock: _AttentionBlock,
}


def _recompute(block: nn.Module, forward: Callable[..., Tensor], *inputs: Any) -> Tensor:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    result: Tensor = checkpoint(forward, *inputs, use_reentrant=False)
    return result
