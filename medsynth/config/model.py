"""Options of the model: grid, intensities, network, training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from medsynth.config.bounds import Bounds, Code, Count, CountOrNone, Share


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """The pixel grid that every scan is brought to.

    Args:
        size: Pixels along each spatial axis; one number for all axes, or one for each (`32,64,64`).
        fit: How a scan fills the grid: `pad` keeps the aspect ratio and pads, `crop` keeps it and cuts at the centre,
            `stretch` changes it. Unused when `spacing` is given: what is missing is padded, what overhangs is cut.
        spacing: Voxel size in millimetres along each axis (slices first), for scans with a physical size. [default:
            each scan is scaled to fill the grid]
        centre: With `spacing`, centre the grid on the middle of the `scan` or of its `mask`.
        padding: Pad with the lowest intensity (`background`) or repeat the outermost voxels (`edge`), which suits scans
            that are pieces of larger ones.
    """

    size: Annotated[int | tuple[int, ...], Bounds(1, 8192, items=3)] = 64
    fit: Literal["pad", "crop", "stretch"] = "pad"
    spacing: Annotated[float | tuple[float, ...] | None, Bounds(1e-3, 1e3, items=3)] = None
    centre: Literal["scan", "mask"] = "scan"
    padding: Literal["background", "edge"] = "background"


@dataclass(frozen=True, kw_only=True)
class IntensityOptions:
    """Conversion between stored intensities and the model's range [-1, 1]; values outside are clipped.

    Args:
        method: `range` (from low to high, in stored units), `window` (centre and width, as radiologists give them),
            `percentiles` or `minmax` (both measured over the training split).
        low: Lower end (`range`), window centre (`window`) or lower percentile (`percentiles`).
        high: Upper end (`range`), window width (`window`) or upper percentile (`percentiles`).
    """

    method: Literal["range", "window", "percentiles", "minmax"] = "percentiles"
    low: Annotated[float, Bounds(-1e9, 1e9)] = 0.1
    high: Annotated[float, Bounds(-1e9, 1e9)] = 99.9


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The denoising UNet.

    Args:
        stem: What the UNet sees: `haar`, the coefficients of an orthonormal Haar transform (4 times fewer positions in
            2D, 8 times fewer in 3D, for each level); `pixel`; or `latent`, the latents of a trained autoencoder
            (`autoencoder.run`).
        levels: Levels of the Haar transform, 1 or 2.
        channels: Channels at each resolution of the UNet; multiples of 32.
        residual_blocks: Residual blocks at each resolution.
        attention: Whether each resolution has self-attention. The middle block always has it.
        norm_groups: Groups of the group normalisation. Use at least two channels per group: with one, normalisation
            removes the class and noise information.
        dropout: Dropout rate in the residual blocks.
        shrinkage: Also predict, for each value, how much of it is noise. Helps where the stem has about as many bands
            as the network has channels: volumes with two Haar levels.
    """

    stem: Literal["haar", "pixel", "latent"] = "haar"
    levels: Annotated[int, Bounds(1, 2)] = 1
    channels: Annotated[tuple[int, ...], Bounds(1, 1024)] = (64, 96, 128)
    residual_blocks: Annotated[int, Bounds(1, 64)] = 1
    attention: tuple[bool, ...] = (False, False, True)
    norm_groups: Annotated[int, Bounds(1, 4096)] = 8
    dropout: Share = 0.1
    shrinkage: bool = False


@dataclass(frozen=True, kw_only=True)
class NoiseOptions:
    """Noise levels in training: ln(sigma) is normally distributed (Karras et al. 2022, table 1).

    Args:
        mean: Mean of ln(sigma). Latents have twice the scale of scans: raise it by about 0.7 for `network.stem latent`.
        std: Standard deviation of ln(sigma).
    """

    mean: Annotated[float, Bounds(-20, 20)] = -0.8
    std: Annotated[float, Bounds(1e-3, 20)] = 1.3


@dataclass(frozen=True, kw_only=True)
class ConditionOptions:
    """What the model is conditioned on besides the class, and which channels it generates.

    Args:
        attributes: Columns of the cohort, comma-separated, such as `diameter_mm,texture`. Numbers are continuous,
            anything else (or `texture:category`) is categorical; cells may be empty. `spacing_mm` (largest voxel side)
            and `modality` are read from the files if the cohort has no such columns. Never choose a column that
            identifies patients.
        text: Column with a sentence for each scan, such as the impression of its report; cells may be empty. The run
            folder keeps the words of these sentences that occur in texts of at least three patients, not the sentences.
        text_encoder: `module:function` of your own that turns a list of sentences into an array (N, D). [default:
            TF-IDF of words and character n-grams, then truncated SVD]
        dropout: Probability of hiding each attribute, or the text, of a training scan, so that each can stay
            unspecified later.
        mask: Generate a mask with each scan, as one more channel.
        observed: Probability of showing the network some channels (sequences, mask) of a training scan; above 0,
            `medsynth sample --observed.cohort` can generate the others to fit.
    """

    attributes: str = ""
    text: str = ""
    text_encoder: Annotated[str, Code()] = ""
    dropout: Share = 0.1
    mask: bool = False
    observed: Share = 0.0


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions:
    """Random changes of training scans. The network is conditioned on them, so they do not appear in samples.

    Args:
        probability: Probability of each kind of change, drawn independently for each scan.
        flip_axes: Spatial axes along which a scan may be mirrored (in 2D, 0 is up-down and 1 is left-right). None by
            default, since organs have sides.
        rotate_degrees: Standard deviation of the rotation; every draw is cut off at two standard deviations.
        scale: Standard deviation of ln(zoom).
        translate: Standard deviation of the shift, as a fraction of the image size.
        contrast: Standard deviation of ln(contrast).
    """

    probability: Share = 0.4
    flip_axes: Annotated[tuple[int, ...], Bounds(0, 2, items=3)] = ()
    rotate_degrees: Annotated[float, Bounds(0, 180)] = 5.0
    scale: Annotated[float, Bounds(0, 2)] = 0.06
    translate: Share = 0.04
    contrast: Annotated[float, Bounds(0, 2)] = 0.0


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions:
    """AdamW with linear warm-up and cosine decay, and the moving average of the weights.

    Args:
        learning_rate: Peak learning rate.
        warmup_steps: Steps of the linear warm-up.
        ema_decay: Decay of the exponential moving average of the weights.
    """

    learning_rate: Annotated[float, Bounds(0, 1000)] = 1e-3
    warmup_steps: CountOrNone = 200
    ema_decay: Share = 0.999


@dataclass(frozen=True, kw_only=True)
class MonitorOptions:
    """Logging, validation, previews and checkpoints.

    Args:
        log_every: Steps between rows of metrics.csv.
        validate_every: Steps between validations (loss for each class and noise level); 0 for none.
        preview_every: Steps between preview pictures of every class and points of the memorisation curve; 0 for none.
        checkpoint_every: Steps between checkpoints, from which the same command resumes.
        early_share: Fraction of the training after which a copy of the weights is kept for `guidance.weak early`; 0 for
            none.
        tensorboard: Also write TensorBoard logs (needs the extra `tensorboard`).
    """

    log_every: Count = 50
    validate_every: CountOrNone = 500
    preview_every: CountOrNone = 1000
    checkpoint_every: Count = 500
    early_share: Share = 0.125
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class AutoencoderOptions:
    """The autoencoder of `network.stem latent`, trained by `--stage autoencoder`.

    Args:
        run: Run folder of a trained autoencoder with the same grid and intensities; the other options of this group are
            then read from it.
        channels: Channels at each resolution. Each resolution after the first halves every axis.
        latent_channels: Channels of the latents.
        kl_weight: Weight of the KL divergence, in nats per voxel, beside the mean absolute error.
    """

    run: str = ""
    channels: Annotated[tuple[int, ...], Bounds(1, 1024, items=8)] = (32, 64, 64)
    latent_channels: Annotated[int, Bounds(1, 1024)] = 4
    kl_weight: Annotated[float, Bounds(0, 1000)] = 1e-6
