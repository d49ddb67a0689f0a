"""Real cohorts and synthetic sets, opened from files; and the provenance that says how a set was made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medsynth.cohorts import Cohort, Row, hash_cohort, index_folder, read_cohort
from medsynth.cohorts.manifest import REQUIRED, check_cohort, declared_roots, read_table, require_columns, resolve_below
from medsynth.config import GridOptions, Loading, changed_options
from medsynth.errors import ConfigError, DataError
from medsynth.files import PathLike, read_json
from medsynth.scans import list_files, read_header, read_scan, scan_suffix

SET_FORMAT = "medsynth-set/2"
COHORT_FILE, PROVENANCE_FILE = "cohort.csv", "provenance.json"
DONOR_DIGITS = 32  # of the hash of its donor's file that an edited scan carries
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
        for name in {COHORT_FILE, PROVENANCE_FILE, "cohort.yaml"} - ({COHORT_FILE} if file == Path(path) else set()):
            resolve_below(file.absolute().parent, name, hint="the file itself in place of the link")
        cohort = _from_table(file)
    if loading.cache_dir is not None and Path(loading.cache_dir).resolve().is_relative_to(cohort.folder.resolve()):
        need = "a folder outside the set that is judged, since what it holds is believed"
        raise ConfigError(f"cache_dir: need {need}, got {loading.cache_dir}; try leaving out --cache_dir")
    if real is not None and (unknown := sorted(set(cohort.classes) - set(real.classes))):
        raise DataError(
            f"{file or path}: need classes of the real cohort ({', '.join(real.classes)}), got {', '.join(unknown)}; "
            "try renaming labels"
        )
    _check_roots(cohort)
    return cohort


def _check_roots(cohort: Cohort) -> None:
    """Refuse (`DataError`) a set that leads out of its own folder: what it says of itself opens no other file of its reader."""
    folder = os.path.realpath(cohort.folder)
    for name in {row.root for row in cohort.rows} - {None}:
        root = cohort.roots.get(name or "", cohort.folder)
        if os.path.commonpath([folder, os.path.realpath(root)]) != folder:
            raise DataError(
                f"{cohort.folder / 'cohort.yaml'}: need the scans of a synthetic set in its own folder, got the root {name!r} in "
                f"{root}; try a CSV in the folder of the scans"
            )


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
        provenance = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: need the provenance of the set, got no JSON; try sampling it again") from error
    return provenance if isinstance(provenance, dict) else {}


def hash_set(synthetic: Cohort, *, loading: Loading = Loading(), anew: bool = False) -> str:
    """Return a hash of a synthetic set: its scans and rows, as `hash_cohort`, and its provenance; errors as there and above."""
    content = [hash_cohort(synthetic, loading=loading, anew=anew), read_provenance(synthetic)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def generator_of(synthetic: Cohort) -> str | None:
    """Return the fingerprint of the run that made the set, from its provenance or (16 digits) its rows; None if neither says.

    `DataError` as above, and for rows of another run than the provenance's, or of several.
    """
    said = read_provenance(synthetic).get("run")
    provenance = said if isinstance(said, str) and said else None
    rows = {row.attributes["run"] for row in synthetic.rows if "run" in row.attributes}
    if len(rows) > 1 or (rows and provenance is not None and not provenance.startswith(next(iter(rows)))):
        raise DataError(
            f"{synthetic.folder}: need the scans of one run, got {', '.join(sorted(rows | {provenance or ''} - {''}))[:200]}; "
            "try one set for each run"
        )
    return provenance or next(iter(rows), None)


def made_by_medsynth(provenance: Mapping[str, Any]) -> bool:
    """Return whether a provenance is one of `medsynth sample` or `medsynth edit`, also of an earlier version."""
    return provenance.get("format") in _FORMATS and isinstance(provenance.get("run"), str)


def real_pixel_rows(synthetic: Cohort) -> np.ndarray:
    """Return which scans have pixels of real ones, `(N,)`, as their rows or the provenance of the set say; `DataError` as above.

    Either is believed when it says so, and inpainting always keeps pixels; that there are none is not proved by saying it.
    """
    provenance = read_provenance(synthetic)
    every = provenance.get("contains_real_pixels") is True or provenance.get("edit") == "inpaint"
    return np.array([every or row.attributes.get("contains_real_pixels") == "1" for row in synthetic.rows])


def holds_real_pixels(synthetic: Cohort) -> bool | None:
    """Return whether the set has pixels of real scans, according to its rows and its provenance; None if neither says."""
    if real_pixel_rows(synthetic).any():
        return True
    said = {row.attributes.get("contains_real_pixels") for row in synthetic.rows}
    return False if said == {"0"} or made_by_medsynth(read_provenance(synthetic)) else None


def names_donor(file: Path, donor: str, *, loading: Loading = Loading()) -> bool:
    """Return whether the file of an edited scan names the scan whose `medsynth.cohorts.hash_scans` is `donor`."""
    if scan_suffix(file) is not None:
        return read_scan(file, loading=loading).provenance.get("donor") == donor[:DONOR_DIGITS]
    with list_files(file)[0].open("rb") as stream:  # DICOM, whose reader leaves out how a scan was made
        return f"donor={donor[:DONOR_DIGITS]}".encode() in stream.read(1 << 16)


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
        previous = read_json(path)
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
