"""Who a run was trained on, as salted fingerprints."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from medsynth.errors import DataError
from medsynth.files import hash_file, write_json

PATIENTS_FILE = "patients.json"


class WithPatients(Protocol):
    """A run of any kind, as far as it says whom it was trained on."""

    def patient_fingerprints(self) -> tuple[str, dict[str, set[str]]]: ...


def read_patients(folder: Path, checksums: Mapping[str, str]) -> tuple[str, dict[str, set[str]]]:
    """Return the salt of `patients.json` and the fingerprints of each split; `DataError` if there are none, or others."""
    path = folder / PATIENTS_FILE
    known = checksums.get(PATIENTS_FILE)
    try:
        if known is not None and hash_file(path) != known:
            raise DataError(f"{path}: need the patients that run.json names, got other bytes; try training again")
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["salt"]), {split: set(content[split]) for split in ("train", "val")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: need the fingerprints of the run's patients, got none; try training again") from error


def write_patients(folder: Path, splits: Mapping[str, Iterable[str]], *, start: WithPatients | None = None) -> None:
    """Write `patients.json`: salted fingerprints of the patient IDs of each split (`train` and `val`), sorted.

    The patients of `start`, the run whose weights the training begins from or builds on, are among them.

    They hide IDs from a glance, not from an attacker: whoever has the salt can try every short number. Keep
    `patients.json` with the run, do not publish it.
    """
    salt, seen = (secrets.token_hex(16), {}) if start is None else start.patient_fingerprints()
    digests = {
        split: sorted({patient_fingerprint(name, salt) for name in set(patients)} | seen.get(split, set()))
        for split, patients in splits.items()
    }
    write_json(folder / PATIENTS_FILE, {"salt": salt} | digests)


def patient_fingerprint(name: str, salt: str) -> str:
    """Return the fingerprint of one patient's ID."""
    return hashlib.scrypt(name.encode(), salt=salt.encode(), n=2**10, r=8, p=1, dklen=16).hex()
