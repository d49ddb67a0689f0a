"""Real cohorts and synthetic sets, opened from a CSV, a folder with one, or a folder with one folder per class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medsynth.cohorts import Cohort, Row, index_folder, read_cohort
from medsynth.cohorts.manifest import REQUIRED, check_cohort, declared_roots, read_table, require_columns
from medsynth.config import GridOptions, Loading
from medsynth.errors import DataError
from medsynth.files import PathLike
from medsynth.scans import read_header
from medsynth.sets.provenance import PROVENANCE_FILE

COHORT_FILE = "cohort.csv"


def open_real(path: PathLike, *, loading: Loading = Loading()) -> Cohort:
    """Return the real cohort of a CSV, its folder, or a folder of class folders (split in memory by patient).

    Raises `DataError` if it says that it is synthetic, or cannot be read.
    """
    file = find_cohort_file(path)
    cohort = index_folder(Path(path), loading=loading) if file is None else read_cohort(file)
    if any(row.attributes.get("synthetic") == "1" for row in cohort.rows):
        raise DataError(f"{path}: need real scans, got rows that say synthetic=1; try swapping --real and --synthetic")
    return cohort


def open_synthetic(path: PathLike, real: Cohort | None = None, *, loading: Loading = Loading()) -> Cohort:
    """Return the cohort of a synthetic set: a CSV, its folder, or a folder of class folders.

    Its classes must be among those of `real`, if given. Without a column `patient_id` each scan counts as a patient of its own
    (`SYNTH-` and its number), without a column `split` all are `train`. Raises `DataError` as `read_cohort` does, for classes
    that `real` lacks, and for a set that is not complete.
    """
    file = find_cohort_file(path)
    cohort = _from_folders(Path(path), loading) if file is None else _from_table(file)
    if real is not None and (unknown := sorted(set(cohort.classes) - set(real.classes))):
        raise DataError(
            f"{file or path}: need classes of the real cohort ({', '.join(real.classes)}), got {', '.join(unknown)}; "
            "try renaming labels"
        )
    return cohort


def find_cohort_file(path: PathLike) -> Path | None:
    """Return the CSV that a path names or, as a folder, holds; None for a folder of class folders.

    Raises `DataError` for a folder with neither, and for a set that was begun and not completed.
    """
    folder = Path(path)
    if not folder.is_dir():
        return folder
    if (folder / COHORT_FILE).is_file():
        return folder / COHORT_FILE
    if (folder / PROVENANCE_FILE).is_file():
        raise DataError(
            f"{folder}: need a complete set, got one without {COHORT_FILE}; try the command that began it again"
        )
    if any(each.is_dir() and not each.name.startswith(".") for each in folder.iterdir()):
        return None
    raise DataError(
        f"{folder}: need {COHORT_FILE} or one folder per class, got neither; try a CSV with the columns path and label, or "
        f"medsynth index --scans {folder} --out {folder}/{COHORT_FILE} for real scans"
    )


def grid_of(cohort: Cohort, *, loading: Loading = Loading()) -> GridOptions:
    """Return the grid of the first scan of a set: sets of one generator have one grid."""
    return GridOptions(size=read_header(cohort.file_of(cohort.rows[0]), loading=loading).shape[1:], fit="pad")


def _from_folders(folder: Path, loading: Loading) -> Cohort:
    cohort = index_folder(folder, loading=loading)
    rows = [replace(row, patient_id=f"SYNTH-{number}", split="train") for number, row in enumerate(cohort.rows)]
    return replace(cohort, rows=tuple(rows))


def _from_table(file: Path) -> Cohort:
    columns, table = read_table(file)
    if set(REQUIRED) <= set(columns):
        return read_cohort(file)
    require_columns(columns, ("path", "label"), source=file)
    folder = file.absolute().parent
    rows = tuple(
        Row(
            path=cells["path"],
            label=cells["label"].strip(),
            patient_id=cells.get("patient_id", f"SYNTH-{number}").strip(),
            split=cells.get("split", "train").strip(),
            root=cells.get("root") or None,
        )
        for number, cells in enumerate(table)
    )
    cohort = Cohort(folder=folder, rows=rows, roots=declared_roots(folder))
    check_cohort(cohort, source=file)
    return cohort
