"""The verbs that make a cohort. `medsynth.api` says why annotations are not postponed."""

from pathlib import Path
from typing import TYPE_CHECKING

from medsynth.config import ColumnOptions, ReadingOptions
from medsynth.files import PathLike

if TYPE_CHECKING:
    from medsynth.cohorts import Cohort, IndexResult


def demo(
    *,
    out: PathLike,
    scans: int = 400,
    size: int | None = None,
    volumes: bool = False,
    contrasts: bool = False,
    rare_share: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> "Cohort":
    """Write the phantom cohort: CT-like thorax slices or lung volumes in HU with a rare class, lesion masks and attributes.

    No download and no patient: anatomy, vessels, lesions and noise are drawn from a seed, so the true distribution is known.

    Args:
        out: Folder for the scans, the masks and `cohort.csv`.
        scans: Number of scans, two to three of each patient.
        size: Pixels along each axis; by default 128, for volumes 32.
        volumes: Draw cubes of 64 mm of lung about a lesion or a healthy place, instead of slices of the whole chest.
        contrasts: Draw two further sequences of every scan on the same grid, as MR might show it (`path_t1` and `path_t2`).
        rare_share: Share of the rare class (ground-glass opacity).
        seed: The same seed gives the same files.
        progress: Show a progress bar.
    """
    from medsynth.cohorts import read_cohort, write_phantom

    path = write_phantom(
        Path(out),
        scans=scans,
        size=size,
        volumes=volumes,
        contrasts=contrasts,
        rare_share=rare_share,
        seed=seed,
        progress=progress,
    )
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
    merge: str | None = None,
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
        scans: Folder with PNG, NIfTI, NPZ or DICOM files; DICOM files are grouped into series.
        out: The cohort CSV to write.
        labels: CSV with a row for each scan and the columns `path` and `label`, also `patient_id`, `split` and `mask` where they
            are known; other names are mapped by `--columns.label finding` and the like.
        columns: Which columns of the labels CSV mean what.
        patient_pattern: Regular expression with one group that finds the patient in a scan's path, such as `(IM-[0-9]+)`, where
            no column names it. With neither, each scan counts as a patient of its own.
        split: Shares of the patients for training, validation and test, where no column says it.
        keep: Keep fewer patients of a class, to simulate a rare one: `viral_pneumonia=40/10` keeps its scans of 40 training
            and 10 validation patients; several are separated by commas. Test patients always stay.
        merge: Labels that count as one class, such as `subsolid=ground_glass+part_solid`; the column `sublabel` keeps what they
            were. Several classes are separated by commas.
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
        merge=[part.strip() for part in (merge or "").split(",") if part.strip()],
        allow_tiny=allow_tiny,
        skip_bad=skip_bad,
        seed=seed,
        reading=reading,
        progress=progress,
    )
