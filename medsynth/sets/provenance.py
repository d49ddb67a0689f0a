"""`provenance.json`: how a synthetic set was made, read and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsynth.cohorts import Cohort
from medsynth.config import changed_options
from medsynth.errors import ConfigError, DataError

SET_FORMAT = "medsynth-set/2"
PROVENANCE_FILE = "provenance.json"
_FORMATS = ("medsynth-set/1", SET_FORMAT)


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
