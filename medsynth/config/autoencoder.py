"""Options of the autoencoder behind `network.stem latent`, and of the gate that it has to pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AutoencoderOptions:
    """The autoencoder behind `network.stem latent`: what `--stage autoencoder` trains and a later training builds on.

    Args:
        run: Run folder of a trained autoencoder, of the same grid and intensities, for `network.stem latent`; all other options
            of this group are then those that it was trained with.
        channels: Feature channels at each resolution; each but the first halves every axis, so three make latents of a quarter
            of the scan's width.
        latent_channels: Channels of the latents.
        residual_blocks: Residual blocks at each resolution.
        norm_groups: Groups of the group normalisation.
        kl_weight: Weight of the divergence of the latents from standard normal ones, in nats a voxel of the scan, beside the mean
            absolute error.
        perceptual_weight: Weight of the distance between features of EfficientNet-Lite0 (its ImageNet weights are installed with
            medsynth), in 3D on three planes; 0 leaves it out.
        adversarial_weight: Weight of fooling a discriminator of patches, which trains along; 0 leaves it out.
        adversarial_start: Steps before it counts; the discriminator learns from the first.
    """

    run: str = ""
    channels: tuple[int, ...] = (32, 64, 64)
    latent_channels: int = 4
    residual_blocks: int = 1
    norm_groups: int = 8
    kl_weight: float = 1e-6
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 1000


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions:
    """Limits of the reconstruction gate, for the mean over the validation scans of each class.

    Noise is not reconstructed and counts as error: for noisy scans lower them with care. With other limits the same command
    judges a finished autoencoder anew.

    Args:
        psnr: Lowest peak signal-to-noise ratio in dB; the peak is the model's range.
        ssim: Lowest structural similarity.
        lesion_error: Largest root mean square error inside the mask, as a share of the model's range; for scans with a mask.
    """

    psnr: float = 26.0
    ssim: float = 0.8
    lesion_error: float = 0.05
