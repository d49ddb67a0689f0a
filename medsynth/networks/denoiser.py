"""The denoiser: MONAI's diffusion UNet behind a stem and the preconditioning of Karras et al. 2022."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, avg_pool3d

from medsynth.config import AutoencoderOptions, NetworkOptions
from medsynth.diffusion import match_rank, noise_embedding_position, precondition
from medsynth.errors import ConfigError
from medsynth.networks.autoencoder import LatentCodec, build_autoencoder, latent_factor
from medsynth.networks.condition import Condition, ConditionEmbedding
from medsynth.networks.haar import HaarTransform, PixelStem, Stem


class Denoiser(nn.Module):
    """Estimates clean scans: `denoiser(noisy, sigma, condition) -> denoised`.

    `noisy` is `(N, C, *spatial)` = scan + sigma * standard normal noise, `sigma` is `(N,)`; scans lie in [-1, 1]. The
    preconditioning acts in the domain of the stem, with one sigma_data for each of its bands (equal ones give the scalar
    case, since the stem is orthonormal), after the means of the bands were taken away.

    A network that is `given` channels sees, beside the noisy scan, the channels that its condition says are known, and returns
    these as they are.

    A network that shrinks has two values for each that it sees: what to add, and what of the noisy value itself to add
    (`gated_features`).

    With a `codec` diffusion acts on its latents: `noisy` and `denoised` are latents, as `encode` gives them, and what a solver
    reaches from noise of `noise_shape` becomes scans by `decode`. Without one these three leave everything as it is.
    """

    sigma_data: Tensor
    band_means: Tensor

    def __init__(
        self,
        unet: DiffusionModelUNet,
        stem: Stem,
        sigma_data: Tensor,
        codec: LatentCodec | None = None,
        *,
        given: bool = False,
        shrinks: bool = False,
        band_means: Tensor | float = 0.0,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.stem = stem
        self.codec = codec
        self.given = given
        self.shrinks = shrinks
        self.register_buffer("sigma_data", sigma_data.float())
        means = torch.as_tensor(band_means, dtype=torch.float32).expand_as(sigma_data).clone()
        # Not among the weights, which earlier versions wrote without it; the run says what it is.
        self.register_buffer("band_means", means, persistent=False)

    @property
    def embedding(self) -> ConditionEmbedding:
        """The module that embeds conditions."""
        return self.unet.class_embedding

    @property
    def rank(self) -> int:
        """Number of spatial axes of its scans."""
        return self.unet.conv_in.conv.weight.ndim - 2

    def noise_shape(self, scan: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the noise from which a scan of shape `(channel, *spatial)` comes."""
        return tuple(scan) if self.codec is None else self.codec.shape(scan)

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """Return noise `(N, C, *spatial)` about the mean scan, so that `sigma` times it is what a scan is at the level `sigma`.

        A scan under noise keeps its mean, and the mean over all voxels of a volume is still seen under much noise: its standard
        deviation is sigma divided by the root of their number. The mean scan is as the bands have it, 0 without `centring`.
        """
        grid = [length // self.stem.factor() for length in noise.shape[2:]]
        means = match_rank(self.band_means[None], noise).expand(1, -1, *grid)
        mean: Tensor = self.stem.inverse(means)
        return noise + mean.to(noise.device) / sigma

    def encode(self, scans: Tensor) -> Tensor:
        """Return what diffusion acts on: the scans themselves, or their latents."""
        return scans if self.codec is None else self.codec.encode(scans)

    def decode(self, denoised: Tensor) -> Tensor:
        """Return the scans `(N, C, *spatial)` that `encode` took there; neither direction keeps a gradient of latents."""
        return denoised if self.codec is None else self.codec.decode(denoised)

    def forward(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the denoised scans, in the dtype of `noisy`."""
        seen = self.stem(hold_given(noisy, condition))
        means = match_rank(self.band_means[None].to(seen.dtype), seen)
        bands = seen - means
        sigma_data = match_rank(self.sigma_data[None].to(bands.dtype), bands)
        scale = precondition(match_rank(sigma[:, None], bands), sigma_data)
        position = noise_embedding_position(sigma)
        condition = self.embedding.gate(condition, sigma)
        seen = scale.input * bands
        if self.given:
            seen = torch.cat([seen, *self._given_bands(condition, noisy, sigma_data)], dim=1)
        features = self.unet(seen, position, class_labels=condition).to(bands.dtype)
        if self.shrinks:
            features = gated_features(features, bands, match_rank(sigma[:, None], bands), sigma_data)
        return hold_given(self.stem.inverse(means + scale.skip * bands + scale.output * features), condition)

    def _given_bands(self, condition: Condition, noisy: Tensor, sigma_data: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bands of what is given, of unit power, and where it is, on the grid of the bands."""
        given = condition.given
        values, known = (torch.zeros_like(noisy),) * 2 if given is None else given.to(noisy.dtype).chunk(2, dim=1)
        bands = self.stem(values) / sigma_data
        factor = self.stem.factor()
        pool = avg_pool2d if self.rank == 2 else avg_pool3d
        return bands, known if factor == 1 else pool(known, factor)


def gated_features(features: Tensor, bands: Tensor, sigma: Tensor, sigma_data: Tensor) -> Tensor:
    """Return `(N, B, *spatial)`: features `(N, 2B, *spatial)` = (what to add, gate), as what to add + gate * bands / scale.

    The bands of a scan are sparse: nearly nothing in flat tissue, large at edges. What is best in flat tissue is to take the
    whole noisy value away, as wavelet shrinkage does (Donoho and Johnstone 1994), so a network without the gate has to carry the
    noise of every band from its first layer to its last, through fewer channels than there are bands. With it, one number for
    each value says how much to keep. `scale` = sqrt(sigma^2 + (sigma_data / 4)^2) is about the size of a noisy value in flat
    tissue, so that the gate is of order 1 there at all noise levels.
    """
    added, gate = features.chunk(2, dim=1)
    return added + gate * bands / (sigma**2 + (sigma_data / 4) ** 2).sqrt()


def hold_given(scans: Tensor, condition: Condition) -> Tensor:
    """Return scans `(N, C, *spatial)` in which what the condition gives is as it says."""
    if condition.given is None:
        return scans
    values, known = condition.given.chunk(2, dim=1)
    return torch.where(known > 0, values.to(scans.dtype), scans)


def build_stem(options: NetworkOptions) -> Stem:
    """Return the stem that the options name; latents go to the UNet as they are."""
    return HaarTransform(options.levels) if options.stem == "haar" else PixelStem()


def check_network(
    options: NetworkOptions, size: Sequence[int], *, autoencoder: AutoencoderOptions | None = None
) -> None:
    """Raise `ConfigError` where `size` does not divide by what stem and UNet halve, or options contradict each other."""
    if len(options.attention) != len(options.channels):
        raise ConfigError(
            f"network.attention: need one entry for each of the {len(options.channels)} resolutions in network.channels, "
            f"got {len(options.attention)}"
        )
    wrong = [width for width in options.channels if width % options.head_channels]
    if wrong:
        raise ConfigError(
            f"network.channels: need multiples of network.head_channels={options.head_channels}, got {wrong}"
        )
    groups = options.norm_groups
    if groups < 1 or any(width % groups or width == groups for width in options.channels):
        raise ConfigError(
            f"network.norm_groups: need groups of several channels in each of network.channels={list(options.channels)}, got "
            f"{groups} groups; try {max(1, min(options.channels) // 8)}"
        )
    if (options.stem == "latent") != (autoencoder is not None):
        raise ConfigError(
            f"autoencoder.run: need a trained autoencoder for network.stem latent and none for others, got stem {options.stem}; "
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
    augmentation_parameters: int,
    sigma_data: Tensor | float,
    band_means: Tensor | float = 0.0,
    parents: Sequence[int] = (),
    gate_sigma: float = 0.0,
    categories: Sequence[int] = (),
    given: bool = False,
    autoencoder: AutoencoderOptions | None = None,
) -> Denoiser:
    """Return an untrained denoiser for scans of `channels` channels and spatial shape `size` (2D or 3D).

    `sigma_data` and `band_means` are one value or one for each band of the stem; `parents`, `gate_sigma` and `categories` are
    those of `ConditionEmbedding`; `given` makes a network that can be given channels, which latents have none of; `autoencoder`
    describes the one behind the stem `latent`. Raises `ConfigError` as `check_network` does.
    """
    check_network(options, size, autoencoder=autoencoder)
    if given and autoencoder is not None:
        raise ConfigError("condition.given: need network.stem haar or pixel, got latent; try condition.given 0")
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
        in_channels=2 * bands + channels if given else bands,
        out_channels=2 * bands if options.shrinkage else bands,
        channels=options.channels,
        num_res_blocks=options.residual_blocks,
        attention_levels=options.attention,
        # The middle block has attention whatever the levels say, with the head size of the last level.
        num_head_channels=[
            options.head_channels if attends or level == last else 0 for level, attends in enumerate(options.attention)
        ],
        norm_num_groups=options.norm_groups,
        num_class_embeds=classes + 1,
        use_flash_attention=True,
    )
    unet.class_embedding = ConditionEmbedding(
        classes,
        augmentation_parameters,
        unet.class_embedding.embedding_dim,
        parents=parents,
        gate_sigma=gate_sigma,
        categories=categories,
    )
    for module in unet.modules():
        if isinstance(module, DiffusionUNetResnetBlock):
            module.conv2 = nn.Sequential(nn.Dropout(options.dropout), module.conv2)
    values = torch.as_tensor(sigma_data, dtype=torch.float32)
    return Denoiser(
        unet, stem, values.expand(bands).clone(), codec, given=given, shrinks=options.shrinkage, band_means=band_means
    )
