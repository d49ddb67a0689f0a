"""The options of every verb. A field's name, type, default and help are declared here (or in a group) and nowhere else.

The class docstring is the manual of the verb: its first line the summary, the rest the description. `basic` lists what
`medsynth VERB --help` shows; `--help all` shows the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from medsynth.config.bounds import Bounds, Count, Output, Seed, Share, Words, Written
from medsynth.config.evaluation import DownstreamOptions, FeatureOptions
from medsynth.config.generation import GuidanceOptions, InpaintOptions, ObservedOptions, SolverOptions
from medsynth.config.model import (
    AugmentationOptions,
    AutoencoderOptions,
    ConditionOptions,
    GridOptions,
    IntensityOptions,
    MonitorOptions,
    NetworkOptions,
    NoiseOptions,
    OptimiserOptions,
)
from medsynth.config.shared import Compute, Devices, Loading, TrainingCompute
from medsynth.files import PathLike

Part = Literal["fidelity", "privacy", "downstream"]
FileFormat = Literal["auto", "nifti", "dicom", "png", "npz"]
Modality = Literal["auto", "CT", "MR", "CR", "OT"]
BatchSize = Annotated[int, Bounds(1, 1 << 16)]
SCANS = Bounds(1, 1_000_000)  # of one class in a set


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Write the phantom cohort: CT-like slices or volumes of a chest, in HU, with masks, attributes and a rare class.

    Nothing is downloaded and no patient is involved: anatomy, lesions and noise are drawn from a seed.

    Args:
        out: Folder for the scans, the masks and `cohort.csv`.
        scans: Number of scans, two or three of each patient.
        size: Pixels along each axis. [default: 128, volumes 32]
        volumes: Volumes of 64 mm of lung, instead of slices of the whole chest.
        contrasts: Also write two further sequences of every scan, as MR might show it (`path_t1`, `path_t2`).
        rare_share: Share of the rare class (ground-glass opacity).
        seed: The same seed gives the same files.
        progress: Show a progress bar.
    """

    basic: ClassVar = ("out", "scans", "size", "volumes", "contrasts", "rare_share", "seed")
    example: ClassVar = "medsynth demo --out phantom --scans 400"

    out: Output
    scans: Annotated[int, Bounds(1, 1_000_000)] = 400
    size: Annotated[int | None, Bounds(16, 1024)] = None
    volumes: bool = False
    contrasts: bool = False
    rare_share: Annotated[float, Bounds(0, 0.5)] = 0.05
    seed: Seed = 0
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """Names of the columns in the labels CSV.

    Args:
        path: Path of each scan, relative to the scans folder; for DICOM also SeriesInstanceUID, StudyInstanceUID or
            PatientID.
        label: The class.
        patient: The patient's ID.
        split: `train`, `val` or `test`.
        mask: Path of a mask.
        attributes: Further columns to keep. [default: all that are left]
    """

    path: str = "path"
    label: str = "label"
    patient: str = "patient_id"
    split: str = "split"
    mask: str = "mask"
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class IndexOptions(Loading):
    """Find the scans in a folder, check every one, and write a cohort that is split by patient.

    Labels come from a CSV or from folder names. A quality table is written beside the cohort. If a file cannot be trusted,
    every rejected file is listed with the reason and nothing is written.

    Args:
        scans: Folder with PNG, NIfTI, NPZ or DICOM files; DICOM files are grouped into series.
        out: The cohort CSV to write.
        labels: CSV with one row per scan: `path` and `label`, and `patient_id`, `split`, `mask` if known. [default: the
            names of the folders in the scans folder]
        columns: Names of the columns in the labels CSV.
        patient_pattern: Regular expression with one group that finds the patient in a scan's path, such as
            `(IM-[0-9]+)`. [default: every scan is a patient of its own, unless the CSV names patients]
        split: Shares of the patients for training, validation and test, unless the CSV has a split.
        keep: Simulate a rare class: `viral=40/10` keeps the scans of 40 training and 10 validation patients. Test
            patients stay.
        merge: Combine labels into one class, such as `subsolid=ground_glass+part_solid`; the column `sublabel` keeps
            the original.
        allow_tiny: Accept classes with fewer than two training scans.
        skip_bad: Skip bad scans and list them in the quality table, instead of refusing the folder.
        seed: Seed of the split and of the patients kept.
    """

    basic: ClassVar = (
        "scans", "out", "labels", "columns.path", "columns.label", "columns.patient", "columns.mask", "patient_pattern",
        "split", "keep", "merge", "skip_bad", "nan",
    )  # fmt: skip
    example: ClassVar = "medsynth index --scans scans/ --labels labels.csv --columns.label finding --out cohort.csv"

    scans: PathLike
    out: Output
    labels: PathLike | None = None
    columns: ColumnOptions = ColumnOptions()
    patient_pattern: Annotated[str | None, Words(500)] = None
    split: Annotated[tuple[float, float, float], Bounds(0, 1)] = (0.7, 0.15, 0.15)
    keep: tuple[str, ...] = ()
    merge: tuple[str, ...] = ()
    allow_tiny: bool = False
    skip_bad: bool = False
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Loading, TrainingCompute):
    """Train a class-conditional diffusion model on the training split of a cohort.

    One model learns all classes. Ctrl-C saves; the same command continues. While it trains, the run folder receives previews of
    every class, losses by noise level and class, and the memorisation curve of the rarest class.

    Args:
        cohort: The cohort CSV.
        out: Run folder. An interrupted training in it is continued.
        stage: `diffusion` trains the generator. `autoencoder` trains the autoencoder for `network.stem latent`; if its
            reconstructions are not good enough, the exit code is 4 and nothing can be built on it.
        start: Run folder whose weights the training begins from, with the same grid, intensities and network. Classes
            are matched by name; a new class begins as the mean of the known ones.
        max_steps: Optimiser steps.
        batch_size: Scans per step, over all processes together.
        balance: How often each class is drawn: a class with n scans in proportion to n ** balance. 1 follows the
            cohort, 0 draws all classes equally often; drawing a rare class too often makes the model memorise it.
        label_dropout: Probability of hiding the class in training; guidance needs it above 0.
        leave_out: Classes not to train on, comma-separated: a first stage on common classes, from which a second one
            starts.
        seed: Seed of weights, batches, noise, augmentation and dropout.
        preflight: `check` before training that a step fits into memory; `only` prints memory, time and the largest
            batch that fits, and stops.
        grid: Pixel grid of the model.
        intensity: Conversion of intensities to [-1, 1].
        network: The denoising UNet.
        noise: Noise levels in training.
        condition: Attributes, text, masks and observed channels.
        augment: Augmentation, on which the network is conditioned.
        optimiser: Optimiser.
        monitor: Logging, validation, previews, checkpoints.
        autoencoder: Autoencoder of `network.stem latent`.
    """

    basic: ClassVar = (
        "cohort", "out", "max_steps", "batch_size", "grid.size", "network.channels", "condition.attributes",
        "condition.text", "condition.mask", "precision", "accelerator", "devices", "accumulate_grad_batches", "preflight",
    )  # fmt: skip
    example: ClassVar = "medsynth train --config chest_xray_2d --cohort cohort.csv --out run --max_steps 20000"

    cohort: PathLike
    out: Output
    stage: Literal["diffusion", "autoencoder"] = "diffusion"
    start: PathLike | None = None
    max_steps: Count = 6000
    batch_size: BatchSize = 32
    balance: Share = 0.5
    label_dropout: Share = 0.1
    leave_out: tuple[str, ...] = ()
    seed: Seed = 0
    preflight: Literal["check", "only", "off"] = "check"
    grid: GridOptions = GridOptions()
    intensity: IntensityOptions = IntensityOptions()
    network: NetworkOptions = NetworkOptions()
    noise: NoiseOptions = NoiseOptions()
    condition: ConditionOptions = ConditionOptions()
    augment: AugmentationOptions = AugmentationOptions()
    optimiser: OptimiserOptions = OptimiserOptions()
    monitor: MonitorOptions = MonitorOptions()
    autoencoder: AutoencoderOptions = AutoencoderOptions()


@dataclass(frozen=True, kw_only=True)
class DistillOptions(Loading, TrainingCompute):
    """Turn a trained run into one that makes a scan in 1 to 4 network evaluations instead of 20.

    A student learns to end where the solver of its teacher ends, from the same noise (Luhman and Luhman 2021, arXiv 2101.02388).
    The result is a run folder for `medsynth sample`; for edits and observed channels use the original run. Ctrl-C saves;
    the same command continues.

    Args:
        run: Run folder of `medsynth train`.
        cohort: The cohort CSV it was trained on, or another with the same classes.
        out: Run folder of the result.
        evaluations: Network evaluations of the student per scan, 1 to 4.
        teacher_steps: Steps of the teacher's solver, DPM-Solver++(2M).
        teacher_guidance: Scale of the teacher's autoguidance by its early weights; 1 is none. The student needs no
            guidance.
        trajectories: Scans that the teacher draws before training; on the disk each takes `evaluations` scans of 2
            bytes per voxel.
        max_steps: Optimiser steps.
        batch_size: Scans per step, over all processes together.
        seed: Seed of trajectories, batches and dropout.
        optimiser: Optimiser.
        monitor: Logging, validation, previews, checkpoints.
    """

    basic: ClassVar = (
        "run", "cohort", "out", "evaluations", "trajectories", "teacher_steps", "teacher_guidance", "max_steps",
        "batch_size", "accelerator", "devices", "seed",
    )  # fmt: skip
    example: ClassVar = "medsynth distill --run run --cohort cohort.csv --out fast_run"

    run: PathLike
    cohort: PathLike
    out: Output
    evaluations: Annotated[int, Bounds(1, 4)] = 2
    teacher_steps: Annotated[int, Bounds(2, 1000)] = 12
    teacher_guidance: Annotated[float, Bounds(0, 100)] = 1.0
    trajectories: Annotated[int, Bounds(1, 1_000_000)] = 20000
    max_steps: Count = 4000
    batch_size: BatchSize = 32
    seed: Seed = 0
    optimiser: OptimiserOptions = OptimiserOptions(learning_rate=2e-3, ema_decay=0.998)
    monitor: MonitorOptions = MonitorOptions()


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(Loading, Compute):
    """What `sample` and `edit` share.

    Args:
        run: Run folder of `medsynth train`.
        out: Folder of the synthetic set.
        where: Attributes of the scans, for a run trained with `condition.attributes`:
            `diameter_mm=6..10,side=left|right`. Attributes that are not named vary as in the training scans (in an edit
            they stay unspecified).
        where_from: `scans` takes the attributes of training scans that fit, so that combinations stay realistic;
            `ranges` draws evenly from the ranges, also beyond the training scans.
        seed: Seed of the set. The same seed gives the same set.
        format: File format; `auto` is that of the training scans. DICOM volumes are folders of slices.
        modality: DICOM modality: `CT` (values in HU), `MR`, `CR` (X-ray) or `OT` (Secondary Capture); `auto` is that of
            the training scans.
        batch_size: Scans that go through the network together.
        solver: How noise becomes a scan.
        guidance: Guidance, classifier-free or by a weaker model.
    """

    run: PathLike
    out: Output
    where: str = ""
    where_from: Literal["scans", "ranges"] = "scans"
    seed: Seed = 0
    format: FileFormat = "auto"
    modality: Modality = "auto"
    batch_size: BatchSize = 16
    solver: SolverOptions = SolverOptions()
    guidance: GuidanceOptions = GuidanceOptions()


@dataclass(frozen=True, kw_only=True)
class SampleOptions(GenerationOptions):
    """Generate a synthetic set: new scans of chosen classes, with provenance and a cohort of their own.

    Every file says that it is synthetic. An interrupted call is completed by the same command.

    Args:
        count: Scans of each class, such as `viral_pneumonia=400,normal=100`; one number means as many of every class.
        text: A sentence for all scans, for a run trained with `condition.text`, such as `small nodule in the left
            lung`.
        observed: Channels taken from real scans. The new scans also take their attributes, slightly changed, unless
            `where` names some. Sets with real images say `contains_real_pixels` and must stay within your institution.
    """

    basic: ClassVar = (
        "run", "count", "out", "where", "text", "seed", "format", "modality", "guidance.scale", "guidance.weak",
        "solver.steps", "batch_size", "precision", "accelerator", "devices",
    )  # fmt: skip
    example: ClassVar = (
        "medsynth sample --run run --count viral_pneumonia=400,normal=100 --out synthetic --format nifti"
    )

    count: Annotated[str | int | dict[str, int], SCANS]
    text: str = ""
    observed: ObservedOptions = ObservedOptions()


@dataclass(frozen=True, kw_only=True)
class EditOptions(GenerationOptions):
    """Turn training scans of one class into another: counterfactuals, or lesions painted into them.

    A counterfactual is its donor with noise added up to a chosen strength, denoised as the other class (SDEdit, Meng et al.
    2022): every pixel is new, but the scan resembles its donor. Inpainting replaces one region and leaves every other pixel as
    it is; such a set contains real pixels, says so, and must stay within your institution. The column `donor` holds the row
    number of each donor. An interrupted call is completed by the same command.

    Args:
        cohort: The real cohort CSV; only training scans are donors.
        donor_class: Class of the donors.
        target_class: Class to turn them into.
        count: Scans to make. Each donor is used once, in random order, before any is used again.
        method: `counterfactual`, or `inpaint` to replace one region.
        strength: Noise level up to which a counterfactual's donor is noised: near 0 it stays as it is, near
            `solver.sigma_max` it is forgotten.
        inpaint: Where `--method inpaint` paints.
    """

    basic: ClassVar = (
        "run", "cohort", "donor_class", "target_class", "count", "out", "method", "strength", "inpaint.region", "where",
        "seed", "format", "guidance.scale",
    )  # fmt: skip
    example: ClassVar = (
        "medsynth edit --run run --cohort cohort.csv --donor_class normal --target_class viral_pneumonia --count 400 "
        "--out edited"
    )

    cohort: PathLike
    donor_class: str
    target_class: str
    count: Annotated[int, SCANS]
    method: Literal["counterfactual", "inpaint"] = "counterfactual"
    strength: Annotated[float, Bounds(1e-6, 1e6)] = 1.0
    inpaint: InpaintOptions = InpaintOptions()


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Loading, Devices):
    """Score a synthetic set against the real cohort, and write `report.html` and `report.json`.

    Works for the synthetic scans of any generator: how faithful they are, whether they copy patients, and what a classifier
    gains from them. It can answer "no gain". Exit code 4 if the privacy gate fails. The same command continues an interrupted
    evaluation.

    Args:
        real: The real cohort: a CSV, or a folder with one folder per class.
        synthetic: The synthetic set: its folder, a cohort CSV (`path` and `label` are enough), or a folder with one
            folder per class.
        out: Report folder.
        parts: What to evaluate.
        run: Run folder that made the set: adds membership inference and training curves, checks that no test patient
            was trained on, and gives grid and intensities.
        drop_copies: Set aside the scans that the privacy gate flags as copies, and evaluate the rest.
        ceiling: Cohort CSV with more real scans of the rare class, for the figures that these would reach.
        real_pictures: Show real scans in the report. They are patient data.
        reader_study: Write a page on which readers tell this many scans, half of them real, from synthetic ones; the
            key is a separate file. Both must stay within your institution.
        reader_answers: CSV files that readers exported from that page, comma-separated; their accuracy joins the
            report.
        fidelity_scans: Scans of each class at most in the fidelity table.
        seed: Seed of random halves, pairs, pictures and trainings.
        grid: Pixel grid of the comparison. [default: that of the run, else of the synthetic scans]
        intensity: Conversion of intensities. [default: that of the run, else percentiles of the real training split]
        features: The network whose features are compared.
        downstream: The gain of a classifier.
    """

    basic: ClassVar = (
        "real", "synthetic", "out", "run", "parts", "drop_copies", "real_pictures", "downstream.rare_class",
        "downstream.tier", "features.extractor", "reader_study", "devices", "seed",
    )  # fmt: skip
    example: ClassVar = "medsynth evaluate --real cohort.csv --synthetic synthetic --run run --out report"

    real: PathLike
    synthetic: PathLike
    out: Output
    parts: tuple[Part, ...] = ("fidelity", "privacy", "downstream")
    run: PathLike | None = None
    drop_copies: bool = False
    ceiling: PathLike | None = None
    real_pictures: bool = True
    reader_study: Annotated[int, Bounds(0, 10_000)] = 0
    reader_answers: tuple[PathLike, ...] = ()
    fidelity_scans: Annotated[int, Bounds(20, 1_000_000)] = 2000
    seed: Seed = 0
    grid: GridOptions | None = None
    intensity: IntensityOptions | None = None
    features: FeatureOptions = FeatureOptions()
    downstream: DownstreamOptions = DownstreamOptions()


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(Loading):
    """Write the cohort to train a classifier on: real training scans and the accepted synthetic scans.

    Refuses (exit code 4) a set whose privacy gate failed, could not tell, or was not run, and (exit code 3) a report about other
    scans, or a generator that saw patients of the test split. The scans stay where they are.

    Args:
        real: The real cohort CSV.
        synthetic: The synthetic set: its folder or a cohort CSV.
        report: Folder of `medsynth evaluate`, or its `report.json`.
        out: CSV to write.
        run: Run folder that made the set, if the evaluation was not given it.
        splits: Splits of the real cohort to write. Synthetic scans are always `train`.
    """

    basic: ClassVar = ("real", "synthetic", "report", "out", "run", "splits")
    example: ClassVar = (
        "medsynth augment --real cohort.csv --synthetic synthetic --report report --out augmented/cohort.csv"
    )

    real: PathLike
    synthetic: PathLike
    report: PathLike
    out: Output
    run: PathLike | None = None
    splits: tuple[Literal["train", "val", "test"], ...] = ("train",)


@dataclass(frozen=True, kw_only=True)
class CardOptions(Loading):
    """Write the data card of a synthetic set (Markdown, YAML front matter) and `croissant.json`, or check a card.

    The card says what the set is, where it comes from, what it must not be used for, and what the evaluation found. What nobody
    stated or measured is marked as a gap. A report about other scans and an invalid card are refused (exit code 3).

    Args:
        synthetic: The synthetic set: its folder or a cohort CSV.
        report: Folder of `medsynth evaluate`, or its `report.json`. Without it, the card says that nothing was
            evaluated.
        source: What only you know about the real scans (origin, licence, consent, intended use): your YAML file, begun
            from `data_cards/template.md`, or the card of the source cohort.
        real: The real cohort CSV, for its subgroups; only counts are written.
        out: Folder for `data_card.md` and `croissant.json`. [default: that of the set]
        check: A card to validate; nothing is written.
    """

    basic: ClassVar = ("synthetic", "report", "source", "real", "out", "check")
    example: ClassVar = "medsynth card --synthetic synthetic --report report --source our_scans.yaml"

    synthetic: PathLike | None = None
    report: PathLike | None = None
    source: PathLike | None = None
    real: PathLike | None = None
    out: Annotated[PathLike | None, Written()] = None
    check: PathLike | None = None


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Check the installation: package versions, processor, GPU, free disk space, and a self-test of ten seconds.

    The output can be pasted into a bug report: it names no user, machine, folder or patient. Exit code 2 if the installation
    must not be used as it is.

    Args:
        out: Folder where results would go; its disk is checked.
        quick: Skip the self-test.
        progress: Show a progress bar.
    """

    basic: ClassVar = ("out", "quick")
    example: ClassVar = "medsynth doctor > report.txt"

    out: PathLike = "."
    quick: bool = False
    progress: bool = True


OPTIONS: dict[str, Any] = {
    "demo": DemoOptions,
    "index": IndexOptions,
    "train": TrainOptions,
    "distill": DistillOptions,
    "sample": SampleOptions,
    "edit": EditOptions,
    "evaluate": EvaluateOptions,
    "augment": AugmentOptions,
    "card": CardOptions,
    "doctor": DoctorOptions,
}
