"""Options of an evaluation: fidelity, privacy, downstream gain, and the features behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
        components: Leading principal axes of the real training features that the head sees; with few rare scans, many more
            make every arm worse. Number and learning rate are the best on validation scans of X-ray-40
            (`benchmarks/probe_settings.py`).
        copies: Augmented copies of each training scan whose features are extracted, once, for the arms with classical
            augmentation.
        augmented_scans: Training scans at most with augmented copies: all of the rare class first, then others at random.
    """

    steps: int = 300
    batch_size: int = 256
    learning_rate: float = 0.002
    weight_decay: float = 0.1
    components: int = 128
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
        arms: What to try with the synthetic scans: `rare` (they replace draws of the rare class), `all` (of every class alike)
            and `pretrain` (they come first, real scans after). Validation chooses among arms and shares; with few validation
            patients name one of each beforehand.
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
    arms: tuple[Literal["rare", "all", "pretrain"], ...] = ("rare", "all", "pretrain")
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
