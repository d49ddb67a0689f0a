"""Options of every verb as frozen dataclasses, and the lookup of the files that ship with the package.

Defaults live here and nowhere else. Nothing in this module imports torch, so `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medsynth.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """The pixel grid on which a model works.

    Args:
        size: Pixels along each spatial axis; one number means the same along all axes.
        fit: `pad` keeps the aspect ratio and pads with background, `crop` keeps it and cuts the overhang at the centre,
            `stretch` does not keep it.
    """

    size: int | tuple[int, ...] = 64
    fit: Literal["pad", "crop", "stretch"] = "pad"


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
            `pixel` works on pixels.
        levels: Levels of the Haar transform (1 or 2).
        channels: Feature channels at each resolution of the UNet.
        residual_blocks: Residual blocks at each resolution.
        attention: Whether each resolution has self-attention; the middle of the UNet always has.
        head_channels: Channels of one attention head.
        dropout: Dropout rate inside the residual blocks while training.
        band_scaling: Measure sigma_data for each Haar band rather than once for all pixels.
    """

    stem: Literal["haar", "pixel"] = "haar"
    levels: int = 1
    channels: tuple[int, ...] = (64, 96, 128)
    residual_blocks: int = 1
    attention: tuple[bool, ...] = (False, False, True)
    head_channels: int = 32
    dropout: float = 0.1
    band_scaling: bool = True


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
    """

    log_every: int = 50
    validate_every: int = 500
    preview_every: int = 1000
    checkpoint_every: int = 500
    preview_scans: int = 8
    memorisation_scans: int = 32
    validation_scans: int = 256
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """All options of one training; `medsynth train` has them flat. See `medsynth.train` for what each means."""

    max_steps: int
    batch_size: int
    label_dropout: float
    precision: Literal["32-true", "bf16-mixed"]
    accelerator: str
    devices: int
    num_nodes: int
    num_workers: int
    deterministic: bool
    seed: int
    grid: GridOptions
    intensity: IntensityOptions
    network: NetworkOptions
    noise: NoiseOptions
    balance: BalanceOptions
    augment: AugmentOptions
    optimiser: OptimiserOptions
    monitor: MonitorOptions
    reading: ReadingOptions


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """How noise becomes scans.

    Args:
        name: `dpmpp_2m` (DPM-Solver++(2M), Lu et al. 2022), `heun` (Karras et al. 2022, algorithm 1) or `euler`.
        steps: Steps; Heun evaluates the network about twice a step, the others once.
        sigma_min: Last noise level before zero.
        sigma_max: First noise level.
        rho: Curvature of the noise schedule (Karras et al. 2022, equation 5).
    """

    name: Literal["dpmpp_2m", "heun", "euler"] = "dpmpp_2m"
    steps: int = 20
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """Classifier-free guidance, applied between two noise levels only (Kynkäänniemi et al. 2024).

    Args:
        scale: 1 switches guidance off; larger values sharpen the class and cost variety.
        sigma_low: Guidance acts above this noise level.
        sigma_high: Guidance acts up to this noise level.
    """

    scale: float = 1.0
    sigma_low: float = 0.2
    sigma_high: float = 5.0


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """Columns of the labels CSV.

    Args:
        path: Column with the path of each scan, relative to the scans folder.
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
    """

    max_mib: int = 512
    nan: Literal["refuse", "zero"] = "refuse"


@dataclass(frozen=True, kw_only=True)
class FidelityOptions:
    """The fidelity table.

    Args:
        max_scans: Scans of each class at most, drawn at random from either side.
        pca_dims: Dimensions kept by the PCA of the real features before the Fréchet distance.
        repeats: Random halvings of the real scans behind each real-versus-real figure, and subsets behind each interval.
        neighbours: Neighbours that span the balls of precision, recall, density and coverage.
        ssim_pairs: Random pairs of scans behind each SSIM and MS-SSIM figure.
        sheet_scans: Synthetic scans of each class on the contact sheet.
    """

    max_scans: int = 2000
    pca_dims: int = 64
    repeats: int = 100
    neighbours: int = 5
    ssim_pairs: int = 200
    sheet_scans: int = 8


@dataclass(frozen=True, kw_only=True)
class ClassicalOptions:
    """Classical augmentation of the classifier's training scans, each kind applied to half of the scans.

    Args:
        flip_axes: Spatial axes along which a scan may be mirrored (0 is rows in 2D); none by default, since organs have sides.
        rotate_degrees: Largest rotation.
        scale: Largest ln(zoom).
        translate: Largest shift as a part of the image size.
        contrast: Largest ln(contrast about the scan's mean).
        gamma: Largest ln(gamma).
        noise: Largest standard deviation of white noise, where the range of a scan is 2.
    """

    flip_axes: tuple[int, ...] = ()
    rotate_degrees: float = 12.0
    scale: float = 0.12
    translate: float = 0.06
    contrast: float = 0.25
    gamma: float = 0.3
    noise: float = 0.05


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """The probe tier: a logistic head on features, trained by minibatches (AdamW, cosine schedule), all arms equally long.

    Args:
        steps: Optimiser steps of every training.
        batch_size: Scans in a step.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
        components: Leading principal axes of the real training features that the head sees; with few rare scans, more axes
            make every arm worse.
        copies: Augmented copies of each training scan whose features are extracted, once, for the arms with classical
            augmentation.
        augmented_scans: Training scans at most with augmented copies: all of the rare class first, then others at random.
    """

    steps: int = 300
    batch_size: int = 256
    learning_rate: float = 0.002
    weight_decay: float = 0.1
    components: int = 64
    copies: int = 3
    augmented_scans: int = 4000


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions:
    """The full tier: classifiers trained on pixels (AdamW, cosine schedule), all arms equally long.

    Args:
        networks: `densenet` (MONAI, from scratch, 2D and 3D) and `lite0` (EfficientNet-Lite0 with ImageNet weights,
            fine-tuned, 2D only); arms with either compete on validation.
        finalists: Cheap baselines, and synthetic arms, that the probe tier passes on; `real` and the duplicates always go on.
        steps: Optimiser steps of every training.
        batch_size: Scans in a step.
        learning_rate: Peak learning rate of `densenet`; `lite0` takes a fifth.
        weight_decay: Decoupled weight decay.
        width: Feature channels of `densenet` after its first convolution.
        lite0_side: Pixels a side that scans are resized to for `lite0`.
        device: Where to train: `cpu`, `cuda`, or `auto`.
    """

    networks: tuple[Literal["densenet", "lite0"], ...] = ("densenet", "lite0")
    finalists: int = 1
    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    width: int = 16
    lite0_side: int = 96
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class DownstreamOptions:
    """The downstream gain: what a classifier of the rare class against the rest gains from the synthetic set.

    Args:
        rare_class: The class in question; by default the one with the fewest real training scans among those that the
            synthetic set has.
        tier: `probe` trains logistic heads on features (minutes), `full` trains classifiers of the finalists on pixels after it.
        seeds: Trainings of each arm. They differ in initialisation, order, and draw of the synthetic scans.
        shares: Shares of synthetic scans among the draws of their class to try, for the rare class alone and for all classes.
        specificity: Specificity on validation that sets the threshold for the rare sensitivity.
        mixup: Parameter of the Beta distribution of mixup (Zhang et al. 2018).
        resamples: Draws of the two-way bootstrap.
        least_patients: Test patients of the rare class below which the verdict is `cannot tell`; a quarter of it for subgroups.
        subgroups: Attribute columns with few values, comma-separated, for figures by subgroup; `auto` takes the columns with 2
            to 6 values in the test split, `none` none.
        learning_curve: Numbers of real rare training patients, comma-separated (`10,20,40`), at which the strongest cheap
            baseline is trained, to say how many real scans the set is worth; empty for none.
        classical: Classical augmentation.
        probe: The probe tier.
        classifier: The full tier.
    """

    rare_class: str | None = None
    tier: Literal["probe", "full"] = "probe"
    seeds: int = 5
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    specificity: float = 0.9
    mixup: float = 0.4
    resamples: int = 2000
    least_patients: int = 20
    subgroups: str = "auto"
    learning_curve: str = ""
    classical: ClassicalOptions = ClassicalOptions()
    probe: ProbeOptions = ProbeOptions()
    classifier: ClassifierOptions = ClassifierOptions()


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """What turns scans into the features that are compared.

    Args:
        extractor: `lite0` (EfficientNet-Lite0, ImageNet weights, ships with the installation), `inception` (the network behind
            FID, needs the extra `fid` and `weights`), `radimagenet` (a ResNet-50 trained on radiology, needs `weights`), or
            `module:function`, your own: a torch batch (N, C, *spatial) in [-1, 1] in, features (N, D) out.
        weights: File with the weights of `inception` or `radimagenet`; a URL is refused.
        sha256: Hash that the weights (or your module) must have; the report states the hash in any case.
    """

    extractor: str = "lite0"
    weights: str = ""
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class PrivacyOptions:
    """The privacy gate.

    Args:
        max_false_alarms: Largest share of held-out real scans that may be taken for copies. Thresholds are set for a third
            of it, so that it also holds for patients that set no threshold.
        min_patients: A class with fewer real patients to set and to check its threshold reads `cannot tell`.
        min_power: Least share of planted copies that must be found, or the gate reads `cannot tell`.
        shift: Pixels by which a copy may be shifted along each axis (at most a quarter of the axis).
        smoothing: Standard deviation, in pixels, of the Gaussian that both scans pass before they are compared.
        neighbours: Nearest patients of each scan; how far it stands out is its distance to the first over the median of
            the others.
        planted: Copies planted in each class, the positive control: some exact, mirrored, shifted, changed in contrast,
            lightly noised, and all of these at once.
        noise: Standard deviation of the noise on planted copies, where the range of a scan is 2.
        held_out_scans: Held-out real scans of each class at most.
        set_excess: Least part of a class that would have to be copied to explain how it leans to training patients, for that
            to fail the gate, if it is also significant.
        significance: Chance, for a set without copies, that the count of flagged scans or the set-level test fails a class.
        membership_scans: Training scans, and as many test scans, of each class at most for membership inference.
        membership_sigmas: Noise levels of the denoising loss.
        membership_limit: Lower end of the confidence interval of the membership AUC above which the gate fails.
        drop_copies: Set flagged scans aside and judge the rest.
    """

    max_false_alarms: float = 0.02
    min_patients: int = 50
    min_power: float = 0.95
    shift: int = 4
    smoothing: float = 1.0
    neighbours: int = 8
    planted: int = 96
    noise: float = 0.05
    held_out_scans: int = 600
    set_excess: float = 0.2
    significance: float = 0.01
    membership_scans: int = 100
    membership_sigmas: tuple[float, ...] = (0.3, 1.0, 3.0)
    membership_limit: float = 0.8
    drop_copies: bool = False


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A folder of files that ships with medsynth: `configs`, `pipelines` or `data_cards`.

    In a wheel these folders lie inside the package, in a checkout (also an editable install) beside it.
    """

    folder: Literal["configs", "pipelines", "data_cards"]
    suffixes: tuple[str, ...] = field(default=(".yaml", ".yml"))

    def directory(self) -> Path:
        """Return where the files lie; `ConfigError` if the installation lacks them."""
        package = Path(__file__).parent
        for candidate in (package / self.folder, package.parent / self.folder):
            if candidate.is_dir():
                return candidate
        raise ConfigError(
            f"{self.folder}: need the folder that ships with medsynth, got none; try reinstalling medsynth"
        )

    def names(self) -> list[str]:
        """Return the names that `find` accepts, sorted."""
        return sorted(path.stem for path in self.directory().iterdir() if path.suffix in self.suffixes)

    def find(self, name: str) -> Path:
        """Return the file for `name`: a path if it has a suffix or a folder in it, else the shipped file of that name.

        Raises `ConfigError` with the known names if there is no such file.
        """
        given = Path(name)
        if given.suffix in self.suffixes or len(given.parts) > 1:
            if given.is_file():
                return given
            raise ConfigError(
                f"{name}: need an existing file, got none; try a path or one of {', '.join(self.names())}"
            )
        for suffix in self.suffixes:
            shipped = self.directory() / f"{name}{suffix}"
            if shipped.is_file():
                return shipped
        raise ConfigError(
            f"{name}: need one of {', '.join(self.names())} or the path of a .yaml file; got an unknown name"
        )


def changed_options(previous: Mapping[str, Any], current: Mapping[str, Any], *, free: Sequence[str] = ()) -> list[str]:
    """Return `name old -> new` for every option of `current` that differs, nested ones with dots; `free` top keys may."""
    old, new = _flat(previous), _flat(current)
    return [
        f"{key} {old.get(key)!r} -> {value!r}"
        for key, value in sorted(new.items())
        if old.get(key) != value and key.split(".")[0] not in free
    ]


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


CONFIGS = Shipped(folder="configs")
PIPELINES = Shipped(folder="pipelines")
