"""Real cohorts and synthetic sets, opened from files; and the provenance that says how a set was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsynth.cohorts import Cohort, Row, index_folder, read_cohort
from medsynth.cohorts.manifest import REQUIRED, check_cohort, declared_roots, read_table, require_columns
from medsynth.config import GridOptions, Loading, changed_options
from medsynth.errors import ConfigError, DataError
from medsynth.files import PathLike
from medsynth.scans import read_header

SET_FORMAT = "medsynth-set/2"
COHORT_FILE, PROVENANCE_FILE = "cohort.csv", "provenance.json"
_FORMATS = ("medsynth-set/1", SET_FORMAT)


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
    if file is None:
        cohort = index_folder(Path(path), loading=loading)
        rows = [replace(row, patient_id=f"SYNTH-{number}", split="train") for number, row in enumerate(cohort.rows)]
        cohort = replace(cohort, rows=tuple(rows))
    else:
        cohort = _from_table(file)
    if loading.cache_dir is not None and Path(loading.cache_dir).resolve().is_relative_to(cohort.folder.resolve()):
        need = "a folder outside the set that is judged, since what it holds is believed"
        raise ConfigError(f"cache_dir: need {need}, got {loading.cache_dir}; try leaving out --cache_dir")
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


def read_provenance(synthetic: Cohort) -> dict[str, Any]:
    """Return the `provenance.json` of a synthetic set; empty for sets without. `DataError` if it cannot be read."""
    path = synthetic.folder / PROVENANCE_FILE
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: need the provenance of the set, got no JSON; try sampling it again") from error
    return provenance if isinstance(provenance, dict) else {}


def generator_of(synthetic: Cohort) -> str | None:
    """Return the fingerprint of the run that made the set, None for sets of other generators; `DataError` as above."""
    made_by = read_provenance(synthetic).get("run")
    return made_by if isinstance(made_by, str) else None


def made_by_medsynth(provenance: Mapping[str, Any]) -> bool:
    """Return whether a provenance is one of `medsynth sample` or `medsynth edit`, also of an earlier version."""
    return provenance.get("format") in _FORMATS and isinstance(provenance.get("run"), str)


def holds_real_pixels(synthetic: Cohort, provenance: Mapping[str, Any]) -> bool | None:
    """Return whether the set has pixels of real scans, according to its rows and its provenance; None if neither says."""
    said = {row.attributes.get("contains_real_pixels") for row in synthetic.rows}
    if "1" in said or provenance.get("contains_real_pixels") is True:
        return True
    return False if said == {"0"} or made_by_medsynth(provenance) else None


def resume_set(out: Path, settings: Mapping[str, Any]) -> list[Any]:
    """Return the sessions in which the set in `out` was made so far, none for a new folder.

    Raises `ConfigError` for a folder with other files, a set of medsynth 0.1, and a set with other settings, which it names;
    `DataError` for a damaged provenance.
    """
    path = out / PROVENANCE_FILE
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise ConfigError(f"{out}: need a new folder or a set to continue, got other files; try another --out")
        return []
    try:
        previous = json.loads(path.read_text(encoding="utf-8"))
        sessions, written = list(previous["sessions"]), previous["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: need the provenance of the set, got damaged JSON; try another --out") from error
    if written == "medsynth-set/1":
        raise ConfigError(
            f"{out}: this set was begun with medsynth 0.1; install medsynth-diffusion==0.1.0 to complete it, or try another --out"
        )
    # JSON turns tuples into lists: compare what a file would hold.
    if changed := changed_options(previous, json.loads(json.dumps(settings))):
        raise ConfigError(
            f"{out}: need the settings this set was begun with, got {'; '.join(changed)}; try another --out"
        )
    return sessions


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
