"""What an evaluation compares: both cohorts opened, and checked against one another and against the run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from medsynth.cohorts import Cohort, Row, read_cohort
from medsynth.cohorts.channels import read_channels
from medsynth.cohorts.manifest import REQUIRED, check_cohort, declared_roots, read_table, require_columns
from medsynth.config import ReadingOptions
from medsynth.errors import DataError
from medsynth.runs import Run
from medsynth.scans import Intensity

_COHORT_FILE, PROVENANCE_FILE = "cohort.csv", "provenance.json"
_CLIPPED = 0.2  # share of pixels beyond an end of the range above which figures may overlook what matters
_LOOKED_AT = 12  # scans say enough about a range, and volumes take long to read


def open_real(path: Path) -> Cohort:
    """Return the real cohort of a CSV or its folder; `DataError` if it says that it is synthetic, or cannot be read."""
    file = _cohort_file(path, "medsynth index --scans {folder} --out {folder}/cohort.csv")
    cohort = read_cohort(file)
    if any(row.attributes.get("synthetic") == "1" for row in cohort.rows):
        raise DataError(f"{path}: need real scans, got rows that say synthetic=1; try swapping --real and --synthetic")
    return cohort


def open_synthetic(path: Path, real: Cohort | None = None) -> Cohort:
    """Return the cohort of a synthetic set, from a CSV or its folder, whose classes are among those of `real`, if given.

    Who made the set may know no patients and no splits: without a column `patient_id` each scan is a patient of its own
    (`SYNTH-` and its number), without a column `split` all are `train`. Raises `DataError` as `read_cohort` does, and for
    classes that `real` lacks.
    """
    file = _cohort_file(path, "a CSV with the columns path and label there")
    columns, table = read_table(file)
    if set(REQUIRED) <= set(columns):
        cohort = read_cohort(file)
    else:
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
    if real is not None and (unknown := sorted(set(cohort.classes) - set(real.classes))):
        raise DataError(
            f"{file}: need classes of the real cohort ({', '.join(real.classes)}), got {', '.join(unknown)}; "
            "try renaming labels"
        )
    return cohort


def generator_of(synthetic: Cohort) -> str | None:
    """Return the fingerprint of the run that the set's `provenance.json` names; None for sets without.

    `DataError` for a provenance that cannot be read.
    """
    return _made_by(read_provenance(synthetic))


def check_run(synthetic: Cohort, run: Run) -> None:
    """Refuse (`DataError`) a synthetic set whose `provenance.json` names another run; sets without one pass."""
    provenance = read_provenance(synthetic)
    made_by = _made_by(provenance)
    if made_by is None or made_by == run.fingerprint:
        return
    steps = provenance.get("steps_trained")
    trained = f" after {steps} steps" if isinstance(steps, int) else ""
    raise DataError(
        f"{run.folder}: need the run that made {synthetic.folder} ({made_by[:16]}{trained}), got {run.fingerprint[:16]} "
        f"after {run.steps} steps; try the other run, or sampling again if this one was trained further"
    )


def check_patients(real: Cohort, run: Run) -> None:
    """Refuse (`DataError`) a real cohort with test patients that the generator was trained or validated on.

    Figures against such a test split would praise a generator for what it remembers.
    """
    test = {row.patient_id for row in real.select(split="test").rows}
    if shared := run.shared_patients(test):
        shown = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
        raise DataError(
            f"{run.folder}: need a generator that saw no test patient, got {len(shared)} of {len(test)} ({shown}); "
            "try the cohort that the run was trained on, or training again on this one"
        )


def read_provenance(synthetic: Cohort) -> dict[str, Any]:
    """Return the `provenance.json` of a synthetic set; empty for sets without. `DataError` for one that cannot be read."""
    path = synthetic.folder / PROVENANCE_FILE
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: need the provenance of the set, got no JSON; try sampling it again") from error
    return provenance if isinstance(provenance, dict) else {}


def _made_by(provenance: dict[str, Any]) -> str | None:
    made_by = provenance.get("run")
    return made_by if isinstance(made_by, str) else None


def clipping_notes(real: Cohort, intensity: Intensity, reading: ReadingOptions) -> list[str]:
    """Return a sentence for each end of a run's range that more than a fifth of the real training pixels lie beyond.

    A few training scans, spread over the cohort, are read in full. Pixels that lie on an end lose nothing and do not count.
    """
    rows = real.select(split="train").rows
    chosen = rows[:: max(1, -(-len(rows) // _LOOKED_AT))]
    scans = (read_channels(real.files_of(row), reading).array for row in chosen)
    below, above = _shares_outside(scans, intensity)
    return [
        f"{share:.0%} of the pixels of real training scans lie {side} the run's intensity range "
        f"({_ends(ends)}) and look the same to every figure. Was the run trained on this cohort?"
        for share, side, ends in ((below, "below", intensity.low), (above, "above", intensity.high))
        if share > _CLIPPED
    ]


def _shares_outside(arrays: Iterable[np.ndarray], intensity: Intensity) -> tuple[float, float]:
    """Return the shares of values below `low` and above `high`, over all arrays `(C, *spatial)`; 0 without arrays."""
    below = above = total = 0
    for array in arrays:
        low, high = (np.reshape(ends, (-1, *[1] * (array.ndim - 1))) for ends in (intensity.low, intensity.high))
        below += int((array < low).sum())
        above += int((array > high).sum())
        total += array.size
    return below / max(1, total), above / max(1, total)


def _ends(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _cohort_file(path: Path, remedy: str) -> Path:
    """Return the CSV that a path names or, as a folder, holds; `remedy` is how to make one in `{folder}`."""
    if not path.is_dir():
        return path
    file = path / _COHORT_FILE
    if not file.is_file():
        raise DataError(f"{path}: need {_COHORT_FILE} in the folder, got none; try {remedy.format(folder=path)}")
    return file
