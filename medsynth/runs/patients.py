"""Which patients a run was trained on, as fingerprints that nobody can try out without a key that is kept elsewhere.

Patient IDs are short: whoever can compute a fingerprint can compute it for all of them. A fingerprint is therefore an
HMAC-SHA256 under a random key of 256 bits, which lies in the user's own data folder and never in a run folder.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medsynth.errors import ConfigError, DataError
from medsynth.files import hash_file, read_json, user_folder, write_json

PATIENTS_FILE = "patients.json"
KEY_FILE, KEY_VARIABLE = "patients.key", "MEDSYNTH_PATIENTS_KEY"
_SPLITS = ("train", "val")


@dataclass(frozen=True)
class PatientsKey:
    """The key in a file; `id` names it in a run folder, and tells nothing about it."""

    path: Path
    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """A public name of 16 hexadecimal digits."""
        return self.derive("id").hex()[:16]

    def derive(self, purpose: str) -> bytes:
        """Return 32 bytes for a purpose, from which neither the key nor those of other purposes can be computed."""
        return hmac.digest(self.secret, f"medsynth {purpose}".encode(), "sha256")

    def fingerprint(self, patient: str, salt: str) -> str:
        """Return 32 hexadecimal digits for a patient's ID; with another salt, another fingerprint."""
        return hmac.digest(self.derive("patients"), f"{salt} {patient}".encode(), "sha256").hex()[:32]


def own_key() -> PatientsKey:
    """Return the user's key, made on first need, in a file that only the user may read.

    It lies in `$XDG_DATA_HOME/medsynth/patients.key`, else `~/.local/share/medsynth/patients.key`, or where the environment
    variable `MEDSYNTH_PATIENTS_KEY` says. `ConfigError` where it cannot be written, `DataError` for a file with other content.
    """
    path = key_path()
    try:
        if not path.exists():
            _create(path)
    except OSError as error:
        raise _no_place(path, error) from error
    return _read(path)


def find_key(wanted: str, *, of: Path) -> PatientsKey:
    """Return the user's key if its public name is `wanted`; `DataError` that names the file `of` if there is another or none."""
    path = key_path()
    known = _read(path) if path.exists() else None
    if known is None or known.id != wanted:
        raise DataError(
            f"{of}: need the patients' key {wanted[:16]} to compare patients, got {'none' if known is None else known.id} in "
            f"{path}; try the key file from where the run was trained: copy it, then {KEY_VARIABLE}=COPY"
        )
    return known


def key_path() -> Path:
    """Return where the user's key is, or would be."""
    if given := os.environ.get(KEY_VARIABLE):
        return Path(given).expanduser()
    try:
        return user_folder("data") / KEY_FILE
    except OSError as error:
        raise _no_place(error.filename or "home", error) from error


@dataclass(frozen=True, kw_only=True)
class Patients:
    """What `patients.json` says: fingerprints of the patients of each split, under the key with the public name `key`.

    Runs of medsynth 0.2 have no key, but a salted hash that can be tried out for every short ID.
    """

    path: Path
    key: str | None
    salt: str
    splits: Mapping[str, frozenset[str]]

    def among(self, patients: Iterable[str]) -> list[str]:
        """Return, sorted, those of `patients` (IDs) that are in a split; `DataError` without the key."""
        seen, key = frozenset().union(*self.splits.values()), self.open_key() if self.key is not None else None
        return sorted(name for name in set(patients) if _fingerprint(key, name, self.salt) in seen)

    def open_key(self) -> PatientsKey:
        """Return the key of the fingerprints; `DataError` if this user has another one, or if they have none."""
        if self.key is None:
            raise DataError(
                f"{self.path}: need fingerprints under a key to add patients to them, got those of medsynth 0.2; try training "
                "that run again"
            )
        return find_key(self.key, of=self.path)


def read_patients(folder: Path, checksum: str | None) -> Patients:
    """Return the fingerprints in a run folder; `DataError` for a missing or damaged file, or one with another sha256."""
    path = folder / PATIENTS_FILE
    try:
        if checksum is not None and hash_file(path) != checksum:
            raise DataError(f"{path}: need the patients that run.json names, got other bytes; try training again")
        content = read_json(path)
        splits = {split: frozenset(content[split]) for split in _SPLITS}
        key, salt = content.get("key"), content["salt"]
        if not all(isinstance(each, str) for each in (salt, *frozenset().union(*splits.values()))):
            raise ValueError("fingerprints that are no texts")
        return Patients(path=path, key=None if key is None else str(key), salt=salt, splits=splits)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: need the fingerprints of the run's patients, got none; try training again") from error


def write_patients(folder: Path, splits: Mapping[str, Iterable[str]], *, before: Patients | None = None) -> PatientsKey:
    """Write `patients.json` for the patient IDs of each split (`train` and `val`), sorted, and return the key.

    The patients of `before`, those of the run whose weights a training begins with, are added. `DataError` if their fingerprints
    are under another key.
    """
    key = own_key() if before is None else before.open_key()
    salt, seen = (secrets.token_hex(16), {}) if before is None else (before.salt, before.splits)
    found = {
        split: sorted({key.fingerprint(name, salt) for name in set(patients)} | seen.get(split, frozenset()))
        for split, patients in splits.items()
    }
    write_json(folder / PATIENTS_FILE, {"key": key.id, "salt": salt} | found)
    return key


def _fingerprint(key: PatientsKey | None, patient: str, salt: str) -> str:
    if key is not None:
        return key.fingerprint(patient, salt)
    return hashlib.scrypt(patient.encode(), salt=salt.encode(), n=2**10, r=8, p=1, dklen=16).hex()


def _create(path: Path) -> None:
    """Write a new key, unless another process is quicker."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".partial-", dir=path.parent)  # only the user may read it
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(name, path)  # unlike a rename, it replaces no key that is there by now
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.rename(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _read(path: Path) -> PatientsKey:
    try:
        if not path.is_file():
            raise OSError("no regular file")
        with path.open("rb") as stream:
            content = stream.read(100)
        if not re.fullmatch(rb"[0-9a-f]{64}\s*", content):
            raise ValueError("other content")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: need a patients' key (64 hexadecimal digits), got {error}; try the copy that you kept of it"
        ) from error
    return PatientsKey(path, bytes.fromhex(content.decode()))


def _no_place(path: object, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path}: need a place for the patients' key, got {error.strerror or error}; try {KEY_VARIABLE}=FILE"
    )
