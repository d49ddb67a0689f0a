"""The answers of readers: CSV files that come back from other machines, checked row by row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsynth.cohorts.manifest import read_table, require_columns
from medsynth.errors import DataError
from medsynth.evaluation.reader.study import StudyKey

COLUMNS = ("study", "case", "reader", "answer", "class", "confidence", "seconds")
_LARGEST = 2**22  # bytes; an answer takes some sixty
_SHOWN = 40  # characters of a cell in a message
# A pseudonym, not a name: a letter or digit, then up to 19 of these, `_`, `.` and `-`. The page enforces the same.
_READER = re.compile(r"[^\W_][\w.-]{0,19}")
_SECONDS = re.compile(r"([0-9]{1,7}(\.[0-9]{1,3})?)?")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A reader's answer to one case (its number, from 1); `label`, `confidence` (1 to 5) and `seconds` may be missing."""

    reader: str
    case: int
    answer: str
    label: str | None
    confidence: int | None
    seconds: float | None


def read_answers(files: Sequence[Path], key: StudyKey) -> list[Answer]:
    """Return the answers in CSV files with the columns `study,case,reader,answer,class,confidence,seconds`.

    `class`, `confidence` and `seconds` may be empty. Raises `DataError`, which names file and row (as a spreadsheet counts
    them: the header is row 1), for another study, an unknown case, a second answer of a reader to a case, also in another
    file, and any value that the page does not write.
    """
    answers: list[Answer] = []
    seen: dict[tuple[str, int], str] = {}
    for file in files:
        if file.is_file() and (size := file.stat().st_size) > _LARGEST:
            raise DataError(
                f"{file}: need answers of at most {_LARGEST} bytes, got {size}; try the CSV that the page exports"
            )
        columns, table = read_table(file)
        require_columns(columns, COLUMNS, source=file)
        for number, cells in enumerate(table, start=2):
            where = f"{file}: row {number}"
            answer = _answer(cells, key, where)
            if before := seen.get((answer.reader, answer.case)):
                raise DataError(
                    f"{where}: need one answer of a reader to a case, got {answer.reader!r} on case {answer.case} again "
                    f"({before}); try removing one"
                )
            seen[answer.reader, answer.case] = where
            answers.append(answer)
    return answers


def _answer(cells: Mapping[str, str], key: StudyKey, where: str) -> Answer:
    study, case, reader, answer, label, confidence, seconds = (cells[name].strip() for name in COLUMNS)
    number = int(case) if re.fullmatch(r"[0-9]{1,6}", case) else 0
    again = "exporting again"
    for valid, need, got, hint in (
        (study == key.study, f"answers to the study {key.study}", study, "the page of this report folder"),
        (1 <= number <= len(key.cases), f"a case from 1 to {len(key.cases)}", case, again),
        (
            _READER.fullmatch(reader),
            "a reader's pseudonym of up to 20 letters, digits, '_', '.' and '-'",
            reader,
            "initials",
        ),
        (answer in ("real", "synthetic"), "the answer real or synthetic", answer, again),
        (label in ("", *key.classes), f"a class ({', '.join(key.classes)}) or none", label, again),
        (confidence in ("", *"12345"), "a confidence from 1 to 5 or none", confidence, again),
        (_SECONDS.fullmatch(seconds), "seconds as a number or nothing", seconds, again),
    ):
        if not valid:
            shown = got if len(got) <= _SHOWN else got[: _SHOWN - 1] + "…"
            raise DataError(f"{where}: need {need}, got {shown!r}; try {hint}")
    return Answer(
        reader=reader,
        case=number,
        answer=answer,
        label=label or None,
        confidence=int(confidence) if confidence else None,
        seconds=float(seconds) if seconds else None,
    )
