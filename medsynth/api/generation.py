"""The verbs that make a synthetic set. `medsynth.api` says why annotations are not postponed."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medsynth.config import GuidanceOptions, ReadingOptions, SolverOptions
from medsynth.files import PathLike

if TYPE_CHECKING:
    from medsynth.cohorts import Cohort


def sample(
    *,
    run: PathLike,
    count: str | int | dict[str, int],
    out: PathLike,
    seed: int = 0,
    format: Literal["auto", "nifti", "dicom", "png", "npz"] = "auto",
    modality: Literal["auto", "CT", "MR", "CR", "OT"] = "auto",
    batch_size: int = 16,
    solver: SolverOptions = SolverOptions(),
    guidance: GuidanceOptions = GuidanceOptions(),
    device: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
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
        format: File format; `auto` writes what the training scans were. DICOM volumes are folders of slices.
        modality: What DICOM is written as: `CT` (values in HU), `MR`, `CR` (X-ray) or `OT` (other pictures, as Secondary
            Capture); `auto` is what DICOM training scans said.
        batch_size: Scans that go through the network together.
        solver: How noise becomes scans.
        guidance: Classifier-free guidance.
        device: `auto`, `cpu` or `cuda`.
        devices: Processes (GPUs) on each node; the set is the same for any number.
        num_nodes: Nodes, on each of which `torchrun` or SLURM starts the processes.
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
        modality=modality,
        batch_size=batch_size,
        solver=solver,
        guidance=guidance,
        device=device,
        devices=devices,
        num_nodes=num_nodes,
        progress=progress,
    )
    return sample_set(plan)


def edit(
    *,
    run: PathLike,
    cohort: PathLike,
    donor_class: str,
    target_class: str,
    count: int,
    out: PathLike,
    strength: float = 1.0,
    seed: int = 0,
    format: Literal["auto", "nifti", "dicom", "png", "npz"] = "auto",
    modality: Literal["auto", "CT", "MR", "CR", "OT"] = "auto",
    batch_size: int = 16,
    solver: SolverOptions = SolverOptions(),
    guidance: GuidanceOptions = GuidanceOptions(),
    device: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    cache_dir: PathLike | None = None,
    reading: ReadingOptions = ReadingOptions(),
    progress: bool = True,
) -> "Cohort":
    """Turn training scans of one class into another (counterfactuals), with provenance and a cohort of their own.

    Each donor is noised to a chosen strength and denoised as the other class (SDEdit). Every pixel is computed anew, but a scan
    resembles its donor: its row in `cohort.csv` holds the donor's row number, and `medsynth evaluate` says how near they are.
    An interrupted call is completed by the same command. The same seed gives the same set.

    Args:
        run: Run folder of `medsynth train`.
        cohort: The real cohort CSV; donors come from its training split only.
        donor_class: Class of the donors.
        target_class: Class that the donors are turned into.
        count: Scans to make; each donor is used once, in random order, before any is used again.
        out: Folder of the synthetic set.
        strength: Noise level (sigma, where scans lie in [-1, 1]) that donors are brought to: above 0, where they stay as they
            are, and below `solver.sigma_max`, where they are forgotten.
        seed: Seed of the set; every scan has its own, derived from it.
        format: File format; `auto` writes what the training scans were. DICOM volumes are folders of slices.
        modality: What DICOM is written as: `CT` (values in HU), `MR`, `CR` (X-ray) or `OT` (other pictures, as Secondary
            Capture); `auto` is what DICOM training scans said.
        batch_size: Scans that go through the network together.
        solver: How noise becomes scans; an edit takes the steps below the strength.
        guidance: Classifier-free guidance.
        device: `auto`, `cpu` or `cuda`.
        devices: Processes (GPUs) on each node; the set is the same for any number.
        num_nodes: Nodes, on each of which `torchrun` or SLURM starts the processes.
        cache_dir: Folder for the prepared donors, by default `.medsynth_cache` beside the cohort.
        reading: Limits on what a scan file may be.
        progress: Show progress bars.
    """
    from medsynth.cohorts import read_cohort
    from medsynth.generation import edit_counts, edit_set, plan_set
    from medsynth.runs import load_run

    loaded = load_run(run)
    plan = plan_set(
        loaded,
        Path(out),
        edit_counts(target_class, count, loaded.spec.classes),
        seed=seed,
        file_format=format,
        modality=modality,
        batch_size=batch_size,
        solver=solver,
        guidance=guidance,
        device=device,
        devices=devices,
        num_nodes=num_nodes,
        progress=progress,
    )
    cache = Path(cache_dir) if cache_dir is not None else None
    return edit_set(
        plan, read_cohort(cohort), donor_class=donor_class, strength=strength, reading=reading, cache_dir=cache
    )
