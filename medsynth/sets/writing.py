"""Sets and hand-over cohorts as files: scans of any generator, and real scans beside accepted synthetic ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.cohorts.manifest import MASK, PATH
from medsynth.errors import ConfigError, DataError
from medsynth.files import PathLike, label_folder, write_json
from medsynth.scans import Scan, write_scan
from medsynth.sets.opening import COHORT_FILE, PROVENANCE_FILE, SET_FORMAT
from medsynth.versions import installed_versions

_UNKNOWN = (
    "Every scan in this folder is synthetic and must not be used for diagnosis. Its generator is unknown, and nothing here "
    "says whether a scan copies a patient. Run medsynth evaluate before you share it."
)


def write_scans(scans: Iterable[Scan], folder: PathLike) -> Path:
    """Write labelled scans from any generator as a synthetic set of NPZ files, and return its `cohort.csv`.

    Values, affines and attributes are kept exactly. Files, rows and provenance say that the scans are synthetic and their
    generator unknown. Scans are written one at a time, so `scans` may be an iterator. Raises `ConfigError` for a folder that is
    not empty, `DataError` for a scan without a label and as `write_scan` does.
    """
    out = Path(folder)
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out}: need a new folder for a synthetic set, got one with files; try another")
    rows: list[Row] = []
    counts: Counter[str] = Counter()
    for scan in scans:
        if not scan.label:
            raise DataError(
                f"{out}: need a label for every scan, got none for scan {len(rows)}; try Scan(..., label=...)"
            )
        file = Path(f"{scan_stem(out, scan.label, counts[scan.label])}.npz")
        facts = {"generator": "unknown", **scan.provenance, "synthetic": "YES"}
        write_scan(replace(scan, provenance=facts), file)
        attributes = {name: str(value) for name, value in scan.attributes.items()} | {"synthetic": "1"}
        patient = f"SYNTH-{len(rows)}"
        rows.append(set_row(out, {PATH: file}, label=scan.label, patient_id=patient, attributes=attributes))
        counts[scan.label] += 1
    if not rows:
        raise DataError(f"{out}: need at least one scan, got none; try another generator")
    provenance = {"format": SET_FORMAT, "synthetic": True, "notice": _UNKNOWN, "generator": "unknown", "counts": counts}
    write_json(out / PROVENANCE_FILE, provenance | {"versions": installed_versions()})
    write_cohort(Cohort(folder=out.absolute(), rows=tuple(rows)), out / COHORT_FILE)
    return out / COHORT_FILE


def write_augmented(
    real: Cohort, synthetic: Cohort, out: PathLike, *, splits: Sequence[str] = ("train",), dropped: Collection[int] = ()
) -> Cohort:
    """Write the cohort to train on, real scans of `splits` and the synthetic ones, and return it.

    Files stay where they are, as roots of the new cohort. Every row says in the column `synthetic` what it is (`1` or `0`);
    synthetic scans are `train`. `dropped` are rows of the set to leave out. Errors as in `write_cohort`.
    """
    roots: dict[str, Path] = {}
    rows = [_rooted(row, real, "real", "0", roots) for row in real.rows if row.split in splits]
    kept = [replace(row, split="train") for number, row in enumerate(synthetic.rows) if number not in dropped]
    rows += [_rooted(row, synthetic, "synthetic", "1", roots) for row in kept]
    cohort = Cohort(folder=Path(out).absolute().parent, rows=tuple(rows), roots=roots)
    write_cohort(cohort, out)
    return cohort


def scan_stem(folder: Path, label: str, number: int) -> Path:
    """Return the path of a scan of a set without its suffix: `folder/label/000017`."""
    return folder / label_folder(label) / f"{number:06d}"


def set_row(
    folder: Path,
    files: Mapping[str, Path],
    *,
    label: str,
    patient_id: str,
    split: str = "train",
    attributes: Mapping[str, str],
) -> Row:
    """Return the row of a scan of a set in `folder`; `files` are its images and its mask by name."""
    below = {name: file.relative_to(folder).as_posix() for name, file in files.items()}
    path, mask = below.pop(PATH), below.pop(MASK, None)
    return Row(
        path=path, label=label, patient_id=patient_id, split=split, mask=mask, sequences=below, attributes=attributes
    )


def _rooted(row: Row, cohort: Cohort, name: str, synthetic: str, roots: dict[str, Path]) -> Row:
    """Return a row that names its root in `roots`, where the folder of its files is entered under a free name."""
    folder = cohort.base_of(row)
    wanted = row.root or name
    chosen, number = wanted, 2
    while chosen in roots and os.path.realpath(roots[chosen]) != os.path.realpath(folder):
        chosen, number = f"{wanted}_{number}", number + 1
    roots[chosen] = folder
    return replace(row, root=chosen, attributes={**row.attributes, "synthetic": synthetic})
