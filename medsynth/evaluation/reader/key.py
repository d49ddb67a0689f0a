"""The key of a reader study: what each case is. Readers must not have it, so it is a file of its own beside their page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from medsynth.errors import DataError

SCHEMA = "medsynth-reader-study/1"
KEY_FILE = "reader_study_key.json"

Source = Literal["real", "synthetic"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scan of a study: what it is, its class, and for real scans the split that it comes from."""

    source: Source
    label: str
    split: str | None


@dataclass(frozen=True, kw_only=True)
class StudyKey:
    """What the cases of a study are, in the order in which they are shown (case 1 first).

    `study` is the fingerprint of the pictures; `sets` are the hashes of the real and the synthetic scans that they were drawn
    from, as in `report.json`. No scan is named by path or patient.
    """

    study: str
    classes: tuple[str, ...]
    cases: tuple[Case, ...]
    sets: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the key's file."""
        return {
            "schema": SCHEMA,
            "notice": "Keep this file from the readers: it says which scans are real.",
            "study": self.study,
            "classes": list(self.classes),
            "sets": dict(self.sets),
            "cases": [{"case": number, **asdict(case)} for number, case in enumerate(self.cases, start=1)],
        }

    def real_splits(self) -> dict[str, int]:
        """Return how many of the real scans come from each split."""
        return dict(Counter(case.split or "unknown" for case in self.cases if case.source == "real"))

    def notes(self) -> list[str]:
        """Return what weakens the study: real scans that are not from the test split."""
        counts = self.real_splits()
        real = sum(counts.values())
        notes = []
        if seen := counts.get("train", 0):
            notes.append(
                f"{seen} of the {real} real scans of the reader study are training scans, since too few patients are held out."
            )
        if used := counts.get("val", 0):
            notes.append(f"{used} of the {real} real scans of the reader study are from the validation split.")
        return notes


def find_key(folder: Path) -> StudyKey | None:
    """Return the key of the study in a report folder, None without one; `DataError` for a file that is no such key."""
    file = folder / KEY_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _damaged(file) from error
    try:
        key = StudyKey(
            study=_text(content["study"]),
            classes=tuple(_text(label) for label in content["classes"]),
            cases=tuple(_case(number, case) for number, case in enumerate(content["cases"], start=1)),
            sets={name: _text(content["sets"][name]) for name in ("real", "synthetic")},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file) from error
    if content.get("schema") != SCHEMA or not key.cases or {case.label for case in key.cases} - set(key.classes):
        raise _damaged(file)
    return key


def _case(number: int, content: Mapping[str, Any]) -> Case:
    source, split = content["source"], content["split"]
    if content["case"] != number or source not in get_args(Source):
        raise ValueError(number)
    return Case(source=source, label=_text(content["label"]), split=None if split is None else _text(split))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value


def _damaged(file: Path) -> DataError:
    return DataError(
        f"{file}: need the key that medsynth evaluate --reader_study wrote, got another content; try a copy of that file"
    )
