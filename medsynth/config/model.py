"""Options of what is read, trained and generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medsynth.config.autoencoder import AutoencoderOptions, ReconstructionOptions


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """The pixel grid on which a model works.

    Args:
        size: Pixels along each spatial axis; one number means the same along all axes.
        fit: `pad` keeps the aspect ratio and pads, `crop` keeps it and cuts the overhang at the centre, `stretch` does not
            keep it. With `spacing` it has no say: what is missing is padded, the overhang is cut.
        spacing: Voxel size in millimetres along each spatial axis (one number for all, slices first), for scans whose size in
            millimetres means something; by default each scan is scaled to fill the grid.
        centre: What comes to the centre of the grid where `spacing` is given: the middle of the `scan`, or that of its `mask`.
        padding: What is padded: `background`, the lowest intensity, or `edge`, the outermost voxels again, as suits pieces that
            were cut out of larger scans.
    """

    size: int | tuple[int, ...] = 64
    fit: Literal["pad", "crop", "stretch"] = "pad"
    spacing: float | tuple[float, ...] | None = None
    centre: Literal["scan", "mask"] = "scan"
    padding: Literal["background", "edge"] = "background"


@dataclass(frozen=True, kw_only=True)
class IntensityOptions:
    """How physical intensities become the model's range [-1, 1]; values outside are clipped.

    Args:
        method: `range` takes low and high in physical units, `window` takes them as centre and width as radiologists do,
            `percentiles` takes them as percentages and measures them over the training split, `minmax` measures the
            extremes over the training split.
        low: Lower end (`range`), window centre (`window`) or lower percentage (`percentiles`).
        high: Upper end (`range`), window width (`window`) or upper percentage (`percentiles`).
    """

    method: Literal["range", "window", "percentiles", "minmax"] = "percentiles"
    low: float = 0.1
    high: float = 99.9


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The denoising UNet.

    Args:
        stem: `haar` puts an orthonormal Haar transform around the network (4x fewer positions in 2D, 8x in 3D, a level),
            `pixel` works on pixels, `latent` on the latents of a trained autoencoder (`autoencoder.run`), whose root mean square
            is 1 where that of scans is about 0.5: raise noise.mean by about 0.7.
        levels: Levels of the Haar transform (1 or 2).
        channels: Feature channels at each resolution of the UNet.
        residual_blocks: Residual blocks at each resolution.
        attention: Whether each resolution has self-attention; the middle of the UNet always has.
        head_channels: Channels of one attention head.
        norm_groups: Groups of the group normalisation. What the network is told of noise and class shifts whole channels, and a
            group takes the mean shift of its channels away: one channel a group would leave nothing of it.
        dropout: Dropout rate inside the residual blocks while training.
        band_scaling: Measure sigma_data for each Haar band rather than once for all pixels.
        centring: Take the mean of each band over the training split away first, so that sigma_data is its standard deviation, and
            begin new scans about it. Without it volumes come out too near the middle of the intensity range, since their mean is
            seen even under the largest noise.
        shrinkage: Let the network also say, value by value, how much of what it sees is noise, rather than draw the noise itself.
            It pays where the stem has about as many bands as the network has channels: volumes with two Haar levels.
    """

    stem: Literal["haar", "pixel", "latent"] = "haar"
    levels: int = 1
    channels: tuple[int, ...] = (64, 96, 128)
    residual_blocks: int = 1
    attention: tuple[bool, ...] = (False, False, True)
    head_channels: int = 32
    norm_groups: int = 8
    dropout: float = 0.1
    band_scaling: bool = True
    centring: bool = True
    shrinkage: bool = False


@dataclass(frozen=True, kw_only=True)
class NoiseOptions:
    """Distribution of the noise level in training: ln(sigma) is normal (Karras et al. 2022, table 1).

    Args:
        mean: Mean of ln(sigma).
        std: Standard deviation of ln(sigma).
    """

    mean: float = -0.8
    std: float = 1.3


@dataclass(frozen=True, kw_only=True)
class BalanceOptions:
    """How often each class is drawn in training.

    Args:
        exponent: A class with n scans is drawn in proportion to n ** exponent: 1 follows the cohort, 0 draws all classes
            equally often. Drawing a rare class too often makes the model memorise it.
    """

    exponent: float = 0.5


@dataclass(frozen=True, kw_only=True)
class RareOptions:
    """What a rare class borrows from a class that it resembles, its parent.

    Args:
        parents: Rare classes with their parents, such as `viral_pneumonia=bacterial_pneumonia`, separated by commas. What the
            network is told of a rare class is then what it is told of the parent plus a difference that begins at zero.
        gate_sigma: Above this noise level a rare class is trained and sampled as its parent: layout comes from many patients,
            detail from few. 0 switches it off.
    """

    parents: str = ""
    gate_sigma: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ConditionOptions:
    """What a model is told of a scan besides its class, and which channels it generates or can be given.

    Args:
        attributes: Columns of the cohort, separated by commas, such as `diameter_mm,texture`. One of numbers is continuous, any
            other, or one written `texture:category`, takes one of its values; cells may be empty. `spacing_mm` (largest side
            of a voxel) and `modality` come from the headers of the scans where the cohort has no such columns. The run folder
            keeps which values occur together, without patients: choose no column that names them.
        dropout: Probability with which each attribute of a training scan is withheld, beside `label_dropout`, which withholds
            class and attributes together.
        mask: Generate the mask of each scan along with it, as one more channel.
        given: Probability with which some of the channels (sequences, mask) of a training scan, drawn at random, are given to the
            network rather than generated; without it no channel can be given later.
    """

    attributes: str = ""
    dropout: float = 0.1
    mask: bool = False
    given: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """A training that begins from the weights of another, such as one on common classes.

    Args:
        run: Run folder with the weights, of the same grid, intensities and network. Classes are matched by name; a new one begins
            as its parent (`rare.parents`), or as the mean of the known ones.
        trainable: `all` weights, or `modulation` alone: the embedding of the condition, and the scales and shifts with which it
            and the normalisations act on the features.
    """

    run: str = ""
    trainable: Literal["all", "modulation"] = "all"


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """Random changes of training scans, whose parameters the network is told, so that they do not leak into samples.

    Args:
        probability: Probability of each kind of change, drawn independently for each scan.
        flip_axes: Spatial axes along which a scan may be mirrored (0 is rows in 2D); none by default, since organs have sides.
        rotate_degrees: Standard deviation of the rotation angle, cut off at two standard deviations.
        scale: Standard deviation of ln(zoom), cut off likewise.
        translate: Standard deviation of the shift as a part of the image size, cut off likewise.
        contrast: Standard deviation of ln(contrast), cut off likewise.
    """

    probability: float = 0.4
    flip_axes: tuple[int, ...] = ()
    rotate_degrees: float = 5.0
    scale: float = 0.06
    translate: float = 0.04
    contrast: float = 0.0


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions:
    """Optimiser and schedule.

    Args:
        learning_rate: Peak learning rate of AdamW.
        schedule: `cosine` falls to zero at the last step, `constant` stays.
        warmup_steps: Steps over which the rate rises linearly from zero.
        weight_decay: Decoupled weight decay.
        betas: Exponential decay rates of the moments.
        gradient_clip: Largest norm of the gradient; 0 switches clipping off.
        ema_decay: Decay of the exponential moving average of the weights, warmed up over the first steps.
    """

    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 200
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    gradient_clip: float = 1.0
    ema_decay: float = 0.999


@dataclass(frozen=True, kw_only=True)
class MonitorOptions:
    """What is looked at while training, and how often.

    Args:
        log_every: Steps between rows of metrics.csv.
        validate_every: Steps between validations (loss per noise level and class); 0 switches them off.
        preview_every: Steps between preview pictures of every class and points of the memorisation curve; 0 switches both off.
        checkpoint_every: Steps between checkpoints, from which the same command resumes.
        preview_scans: Scans of each class in a preview.
        memorisation_scans: Samples of the rarest class behind each point of the memorisation curve.
        validation_scans: Validation scans at most, drawn evenly over the classes.
        tensorboard: Also write TensorBoard logs (needs the extra `tensorboard`).
        early_share: Part of the steps after which the weights are also kept as the weaker model of autoguidance
            (`guidance.weak early`); 0 keeps none. Of the stage `diffusion` only.
    """

    log_every: int = 50
    validate_every: int = 500
    preview_every: int = 1000
    checkpoint_every: int = 500
    preview_scans: int = 8
    memorisation_scans: int = 32
    validation_scans: int = 256
    tensorboard: bool = False
    early_share: float = 0.125


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """All options of one training; `medsynth train` has them flat. See `medsynth.train` for what each means."""

    max_steps: int
    batch_size: int
    accumulate: int
    label_dropout: float
    leave_out: str
    precision: Literal["32-true", "bf16-mixed"]
    activation_checkpointing: bool
    accelerator: str
    devices: int
    num_nodes: int
    num_workers: int
    deterministic: bool
    seed: int
    grid: GridOptions
    intensity: IntensityOptions
    network: NetworkOptions
    autoencoder: AutoencoderOptions
    reconstruction: ReconstructionOptions
    noise: NoiseOptions
    balance: BalanceOptions
    condition: ConditionOptions
    rare: RareOptions
    start: StartOptions
    augment: AugmentOptions
    optimiser: OptimiserOptions
    monitor: MonitorOptions
    reading: ReadingOptions


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """How noise becomes scans.

    Args:
        name: `dpmpp_2m` (DPM-Solver++(2M), Lu et al. 2022), `heun` (Karras et al. 2022, algorithm 1) or `euler`; a
            run of `medsynth distill` has one alone, `euler` with the steps and levels that it learnt, or `consistency` (Song et
            al. 2023, algorithm 1). `auto` is that one for such a run, else `dpmpp_2m`.
        steps: Steps, by default 20, of `consistency` 2 (1 to 4 make sense); Heun evaluates the network about twice a step, the
            others once.
        sigma_min: Last noise level before zero, by default 0.02 (below it, networks that were trained for hours add more error
            than detail) or, with fewer than ten steps, 0.05; of `consistency` 0.3: there such a model draws its detail.
        sigma_max: First noise level, by default 80; with fewer than ten steps, which are better spent where something is seen,
            0.6 times the root of the number of voxels where that is less.
        rho: Curvature of the noise schedule (Karras et al. 2022, equation 5).
        precision: `bf16-mixed` computes the network in bfloat16: one and a half to two times as fast where the processor has it
            in hardware (`medsynth doctor` says so), and scans that differ by about a tenth of an 8-bit grey level.
    """

    name: Literal["auto", "dpmpp_2m", "heun", "euler", "consistency"] = "auto"
    steps: int | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """Guidance, applied between two noise levels only (Kynkäänniemi et al. 2024): classifier-free, or autoguidance.

    Args:
        scale: 1 switches guidance off; larger values sharpen the class and cost variety.
        sigma_low: Guidance acts above this noise level.
        sigma_high: Guidance acts up to this noise level.
        against: Classes with the class that each is steered away from, such as `viral=bacterial,bacterial=viral`; those that are
            not named, from the network without a class.
        weak: Autoguidance (Karras et al. 2024): steer away from what a weaker model makes of the same class. `early` is what this
            model was early in its training (`monitor.early_share`); else a run folder of a smaller or less trained model of the
            same classes, grid, intensities and stem. Not together with `against`.
    """

    scale: float = 1.0
    sigma_low: float = 0.2
    sigma_high: float = 5.0
    against: str = ""
    weak: str = ""


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """Columns of the labels CSV.

    Args:
        path: Column with the path of each scan, relative to the scans folder; of DICOM, also with folders, SeriesInstanceUID,
            StudyInstanceUID or PatientID.
        label: Column with the class.
        patient: Column with the patient's ID.
        split: Column with `train`, `val` or `test`; used where it is present.
        mask: Column with the path of a mask.
        attributes: Further columns to keep; none means all that are left.
    """

    path: str = "path"
    label: str = "label"
    patient: str = "patient_id"
    split: str = "split"
    mask: str = "mask"
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """What a scan file may be.

    Args:
        max_mib: Largest decoded size of one scan in MiB, checked from the header before pixels are read.
        nan: `refuse` a scan with NaN or infinite values, or set them to `zero` and count them.
        tilt: `refuse` a DICOM series taken with a tilted gantry, whose slices are shifted against each other, or `resample` it
            upright, linearly within each slice.
    """

    max_mib: int = 512
    nan: Literal["refuse", "zero"] = "refuse"
    tilt: Literal["refuse", "resample"] = "refuse"
