"""The verbs: what the command line runs and what a pipeline calls. Signatures and docs here, bodies in the rooms.

Bodies import lazily, so that `import medsynth` and `medsynth --help` load no torch. For the same reason annotations are not
postponed here: to evaluate postponed ones, the parser would import what the results are made of.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medsynth.api_edit import edit as edit
from medsynth.config import (
    AugmentOptions,
    BalanceOptions,
    ColumnOptions,
    DownstreamOptions,
    FeatureOptions,
    FidelityOptions,
    GridOptions,
    GuidanceOptions,
    IntensityOptions,
    MonitorOptions,
    NetworkOptions,
    NoiseOptions,
    OptimiserOptions,
    PrivacyOptions,
    RareOptions,
    ReadingOptions,
    SolverOptions,
    StartOptions,
    TrainingPlan,
)

if TYPE_CHECKING:
    from medsynth.cohorts import Cohort, IndexResult
    from medsynth.evaluation import Handover
    from medsynth.reporting import ReportFiles
    from medsynth.runs import Run

PathLike = str | Path


def demo(
    *,
    out: PathLike,
    scans: int = 400,
    size: int = 128,
    rare_share: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> "Cohort":
    """Write the phantom cohort: CT-like thorax slices in HU with a rare class, lesion masks and attributes.

    No download and no patient: anatomy, vessels, lesions and noise are drawn from a seed, so the true distribution is known.

    Args:
        out: Folder for the scans, the masks and `cohort.csv`.
        scans: Number of scans, two to three of each patient.
        size: Pixels along each axis.
        rare_share: Share of the rare class (ground-glass opacity).
        seed: The same seed gives the same files.
        progress: Show a progress bar.
    """
    from medsynth.cohorts import read_cohort, write_phantom

    path = write_phantom(Path(out), scans=scans, size=size, rare_share=rare_share, seed=seed, progress=progress)
    return read_cohort(path)


def index(
    *,
    scans: PathLike,
    out: PathLike,
    labels: PathLike | None = None,
    columns: ColumnOptions = ColumnOptions(),
    patient_pattern: str | None = None,
    split: tuple[float, float, float] = (0.7, 0.15, 0.15),
    keep: str | None = None,
    allow_tiny: bool = False,
    skip_bad: bool = False,
    seed: int = 0,
    reading: ReadingOptions = ReadingOptions(),
    progress: bool = True,
) -> "IndexResult":
    """Find the scans below a folder, check every one, and write a cohort with a patient-level split.

    Labels come from a CSV, or from the names of the folders right below the scans folder. A quality table is written beside
    the cohort. Files that cannot be trusted are refused by name, and then nothing is written.

    Args:
        scans: Folder with PNG, NIfTI or NPZ files.
        out: The cohort CSV to write.
        labels: CSV with a row for each scan.
        columns: Which columns of the labels CSV mean what.
        patient_pattern: Regular expression with one group that finds the patient in a scan's path, where no column names it.
        split: Shares of the patients for training, validation and test, where no column says it.
        keep: Keep fewer patients of a class, to simulate a rare one: `viral_pneumonia=40/10` keeps its scans of 40 training
            and 10 validation patients; several are separated by commas. Test patients always stay.
        allow_tiny: Accept classes with no or a single training scan.
        skip_bad: Leave bad scans out, and list them in the quality table, instead of refusing the folder.
        seed: Decides the split and the patients kept.
        reading: Limits on what a scan file may be.
        progress: Show a progress bar.
    """
    from medsynth.cohorts import index_scans

    return index_scans(
        scans=Path(scans),
        out=Path(out),
        labels=Path(labels) if labels is not None else None,
        columns=columns,
        patient_pattern=patient_pattern,
        split=split,
        keep=[part.strip() for part in (keep or "").split(",") if part.strip()],
        allow_tiny=allow_tiny,
        skip_bad=skip_bad,
        seed=seed,
        reading=reading,
        progress=progress,
    )


def train(
    *,
    cohort: PathLike,
    out: PathLike,
    max_steps: int = 6000,
    batch_size: int = 32,
    label_dropout: float = 0.1,
    leave_out: str = "",
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    num_workers: int = 0,
    deterministic: bool = False,
    seed: int = 0,
    cache_dir: PathLike | None = None,
    grid: GridOptions = GridOptions(),
    intensity: IntensityOptions = IntensityOptions(),
    network: NetworkOptions = NetworkOptions(),
    noise: NoiseOptions = NoiseOptions(),
    balance: BalanceOptions = BalanceOptions(),
    rare: RareOptions = RareOptions(),
    start: StartOptions = StartOptions(),
    augment: AugmentOptions = AugmentOptions(),
    optimiser: OptimiserOptions = OptimiserOptions(),
    monitor: MonitorOptions = MonitorOptions(),
    reading: ReadingOptions = ReadingOptions(),
    progress: bool = True,
) -> "Run":
    """Train a class-conditional diffusion model on the training split of a cohort.

    One joint model learns all classes. Ctrl-C saves; the same command continues. While it trains, the run folder receives
    previews of every class, losses by noise level and class, and the memorisation curve of the rarest class.

    Args:
        cohort: The cohort CSV.
        out: Run folder; a training that was interrupted there is continued.
        max_steps: Optimiser steps.
        batch_size: Scans of a step over all processes together.
        label_dropout: Probability with which a scan's class is withheld in training; guidance needs it above 0.
        leave_out: Classes to train without, separated by commas: a first stage on common classes, from which a second one, with
            the rare class, begins (`--start.run`).
        precision: `bf16-mixed` computes the network in bfloat16, about twice as fast where the processor supports it.
        accelerator: `auto`, `cpu` or `gpu`.
        devices: Processes (GPUs) on each node.
        num_nodes: Nodes.
        num_workers: Processes that load scans; 0 loads in the training process, which is fast enough in 2D.
        deterministic: Use deterministic algorithms only (slower on a GPU).
        seed: Decides initial weights, batches, noise, augmentation and dropout.
        cache_dir: Folder for the prepared scans, by default `.medsynth_cache` beside the cohort.
        grid: Pixel grid of the model.
        intensity: Conversion between physical units and [-1, 1].
        network: The denoising UNet.
        noise: Noise levels in training.
        balance: How often each class is drawn.
        rare: What a rare class borrows from one that it resembles.
        start: Begin from the weights of another run.
        augment: Conditioned augmentation.
        optimiser: Optimiser and schedule.
        monitor: Logging, validation, previews, checkpoints.
        reading: Limits on what a scan file may be.
        progress: Show a progress bar.
    """
    from medsynth.cohorts import read_cohort
    from medsynth.training import train_run

    plan = TrainingPlan(
        max_steps=max_steps,
        batch_size=batch_size,
        label_dropout=label_dropout,
        leave_out=leave_out,
        precision=precision,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        num_workers=num_workers,
        deterministic=deterministic,
        seed=seed,
        grid=grid,
        intensity=intensity,
        network=network,
        noise=noise,
        balance=balance,
        rare=rare,
        start=start,
        augment=augment,
        optimiser=optimiser,
        monitor=monitor,
        reading=reading,
    )
    cache = Path(cache_dir) if cache_dir is not None else None
    return train_run(read_cohort(cohort), Path(out), plan, cache_dir=cache, progress=progress)


def sample(
    *,
    run: PathLike,
    count: str | int | dict[str, int],
    out: PathLike,
    seed: int = 0,
    format: Literal["auto", "nifti", "png", "npz"] = "auto",
    batch_size: int = 16,
    solver: SolverOptions = SolverOptions(),
    guidance: GuidanceOptions = GuidanceOptions(),
    device: str = "auto",
    progress: bool = True,
) -> "Cohort":
    """Generate a synthetic set: new scans of chosen classes, with provenance and a cohort of their own.

    Every file says that it is synthetic. An interrupted call is completed by the same command. The same seed gives the same
    set.

    Args:
        run: Run folder of `medsynth train`.
        count: Scans of each class, such as `viral_pneumonia=400,normal=100`; one number means as many of every class.
        out: Folder of the synthetic set.
        seed: Seed of the set; every scan has its own, derived from it.
        format: File format; `auto` writes what the training scans were.
        batch_size: Scans that go through the network together.
        solver: How noise becomes scans.
        guidance: Classifier-free guidance.
        device: `auto`, `cpu` or `cuda`.
        progress: Show a progress bar.
    """
    from medsynth.generation import parse_counts, plan_set, sample_set
    from medsynth.runs import load_run

    loaded = load_run(run)
    plan = plan_set(
        loaded,
        Path(out),
        parse_counts(count, loaded.spec.classes),
        seed=seed,
        file_format=format,
        batch_size=batch_size,
        solver=solver,
        guidance=guidance,
        device=device,
        progress=progress,
    )
    return sample_set(plan)


def evaluate(
    *,
    real: PathLike,
    synthetic: PathLike,
    out: PathLike,
    parts: Sequence[Literal["fidelity", "privacy", "downstream"]] = ("fidelity", "privacy", "downstream"),
    run: PathLike | None = None,
    drop_copies: bool = False,
    ceiling: PathLike | None = None,
    seed: int = 0,
    cache_dir: PathLike | None = None,
    grid: GridOptions | None = None,
    intensity: IntensityOptions | None = None,
    features: FeatureOptions = FeatureOptions(),
    fidelity: FidelityOptions = FidelityOptions(),
    privacy: PrivacyOptions = PrivacyOptions(),
    downstream: DownstreamOptions = DownstreamOptions(),
    reading: ReadingOptions = ReadingOptions(),
    progress: bool = True,
) -> "ReportFiles":
    """Score a synthetic set against the real cohort, and write `report.json` and `report.html`.

    Works for any synthetic cohort, whoever made it: how faithful it is, whether it copies patients, and what a classifier
    gains from it, or that it gains nothing. Exit code 4 where the privacy gate fails. A call that was interrupted goes on where
    it stopped.

    Args:
        real: The real cohort CSV.
        synthetic: The synthetic set: its folder, or a cohort CSV, of which `path` and `label` are enough.
        out: Report folder.
        parts: What to evaluate.
        run: Run folder that made the set; gives the intensity range, compares its patients with the test split, adds membership
            inference, and its training curves to the report.
        drop_copies: Set aside the scans that the privacy gate finds to be copies, and judge the rest.
        ceiling: Cohort CSV with more real scans of the rare class than `real` has, for the figures that these would reach.
        seed: Decides random halves, pairs, pictures and trainings.
        cache_dir: Folder for prepared scans and features, by default `.medsynth_cache` beside each cohort.
        grid: Pixel grid for the comparison, by default that of the synthetic scans.
        intensity: Conversion to [-1, 1] for both sides; by default that of the run, or else percentiles of the real
            training split.
        features: What turns scans into features.
        fidelity: Options of the fidelity table.
        privacy: Options of the privacy gate.
        downstream: Options of the downstream gain.
        reading: Limits on what a scan file may be.
        progress: Show progress bars.
    """
    from medsynth.evaluation import evaluate_cohorts
    from medsynth.reporting import check_report_folder, training_figures, write_report
    from medsynth.runs import load_run

    check_report_folder(out)
    made_by = load_run(run) if run is not None else None
    evaluation = evaluate_cohorts(
        Path(real),
        Path(synthetic),
        work=Path(out) / "trainings",
        parts=parts,
        run=made_by,
        drop_copies=drop_copies,
        ceiling=Path(ceiling) if ceiling is not None else None,
        grid=grid,
        intensity=intensity,
        features=features,
        fidelity=fidelity,
        privacy=privacy,
        downstream=downstream,
        reading=reading,
        cache_dir=Path(cache_dir) if cache_dir is not None else None,
        seed=seed,
        progress=progress,
    )
    figures = training_figures(made_by) if made_by is not None else []
    return write_report(out, evaluation.report, sheets=evaluation.sheets, figures=figures)


def augment(
    *,
    real: PathLike,
    synthetic: PathLike,
    report: PathLike,
    out: PathLike,
    run: PathLike | None = None,
    splits: Sequence[Literal["train", "val", "test"]] = ("train",),
    cache_dir: PathLike | None = None,
    progress: bool = True,
) -> "Handover":
    """Write the cohort to train a classifier on: real training scans and the accepted synthetic ones.

    Refuses (exit code 4) a set whose privacy gate failed, could not tell, or was not judged, and (exit code 3) a report about
    other scans, or a generator that saw patients of the test split. Scans stay where they are: the CSV names their folders.

    Args:
        real: The real cohort CSV.
        synthetic: The synthetic set: its folder or a cohort CSV.
        report: Folder of `medsynth evaluate`, or its `report.json`.
        out: CSV to write.
        run: Run folder that made the set, needed where the evaluation was not given it.
        splits: Splits of the real cohort to write; synthetic scans are always `train`.
        cache_dir: Folder of the prepared scans, as in the evaluation.
        progress: Show progress bars.
    """
    from medsynth.evaluation import augment_cohort
    from medsynth.runs import load_run

    return augment_cohort(
        Path(real),
        Path(synthetic),
        Path(report),
        Path(out),
        run=load_run(run) if run is not None else None,
        splits=splits,
        cache_dir=Path(cache_dir) if cache_dir is not None else None,
        progress=progress,
    )


def fetch(*, url: str, sha256: str, out: PathLike, progress: bool = True) -> Path:
    """Download a file of weights once, for `--features.weights`; the only command that uses the network.

    The file appears only if its hash is the given one. Weights have their own licence: read the publisher's first.

    Args:
        url: Address of the file, from its publisher.
        sha256: The hash that the publisher states, 64 hexadecimal digits.
        out: Where to write the file.
        progress: Show a progress bar.
    """
    from medsynth.measures.extractors import fetch_weights

    return fetch_weights(url, Path(out), sha256, progress=progress)
