"""The answers of readers: CSV files that come back from other machines, checked row by row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsynth.cohorts.manifest import read_table, reason_of, require_columns
from medsynth.errors import DataError
from medsynth.evaluation.reader.key import StudyKey

COLUMNS = ("study", "case", "reader", "answer", "class", "confidence", "seconds")
_LARGEST = 2**22  # bytes; an answer takes some sixty
_SHOWN = 40  # characters of a cell in a message
# A pseudonym, not a name: a letter or digit, then up to 19 of these, `_`, `.` and `-`. The page holds readers to the same.
_READER = re.compile(r"[^\W_][\w.-]{0,19}")
_SECONDS = re.compile(r"[0-9]{1,7}(\.[0-9]{1,3})?")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one reader said of one case (its number, from 1); `label`, `confidence` (1 to 5) and `seconds` may be open."""

    reader: str
    case: int
    answer: str
    label: str | None
    confidence: int | None
    seconds: float | None


def read_answers(files: Sequence[Path], key: StudyKey) -> list[Answer]:
    """Return the answers in CSV files with the columns `study,case,reader,answer,class,confidence,seconds`.

    `class`, `confidence` and `seconds` may be empty. Raises `DataError`, which names file and row (as a spreadsheet counts
    them: the header is row 1), for another study, a case that there is none of, a second answer of a reader to a case, also
    in another file, and whatever else the page does not write.
    """
    answers: list[Answer] = []
    seen: dict[tuple[str, int], str] = {}
    for file in files:
        _check_size(file)
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
    given = {name: cells[name].strip() for name in COLUMNS}
    if given["study"] != key.study:
        raise _wrong(where, f"answers to the study {key.study}", given["study"], "the page of this report folder")
    case = int(given["case"]) if re.fullmatch(r"[0-9]{1,6}", given["case"]) else 0
    if not 1 <= case <= len(key.cases):
        raise _wrong(where, f"a case from 1 to {len(key.cases)}", given["case"], "exporting again")
    if not _READER.fullmatch(given["reader"]):
        raise _wrong(
            where,
            "a reader's pseudonym of up to 20 letters, digits, '_', '.' and '-'",
            given["reader"],
            "initials",
        )
    if given["answer"] not in ("real", "synthetic"):
        raise _wrong(where, "the answer real or synthetic", given["answer"], "exporting again")
    if given["class"] not in ("", *key.classes):
        raise _wrong(where, f"a class ({', '.join(key.classes)}) or none", given["class"], "exporting again")
    if given["confidence"] not in ("", "1", "2", "3", "4", "5"):
        raise _wrong(where, "a confidence from 1 to 5 or none", given["confidence"], "exporting again")
    if given["seconds"] and not _SECONDS.fullmatch(given["seconds"]):
        raise _wrong(where, "seconds as a number or nothing", given["seconds"], "exporting again")
    return Answer(
        reader=given["reader"],
        case=case,
        answer=given["answer"],
        label=given["class"] or None,
        confidence=int(given["confidence"]) if given["confidence"] else None,
        seconds=float(given["seconds"]) if given["seconds"] else None,
    )


def _check_size(file: Path) -> None:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: need a CSV with answers, got {reason_of(error)}; try another path") from error
    if size > _LARGEST:
        raise DataError(
            f"{file}: need answers of at most {_LARGEST} bytes, got {size}; try the CSV that the page exports"
        )


def _wrong(where: str, need: str, got: str, hint: str) -> DataError:
    shown = got if len(got) <= _SHOWN else got[: _SHOWN - 1] + "…"
    return DataError(f"{where}: need {need}, got {shown!r}; try {hint}")
