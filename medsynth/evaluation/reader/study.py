"""A reader study: the choice of its scans, and its key, a separate file with the truth, which readers must not have."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from medsynth.cohorts import PreparedCohort
from medsynth.errors import ConfigError, DataError
from medsynth.files import read_json
from medsynth.seeds import numpy_generator

SCHEMA = "medsynth-reader-study/1"
KEY_FILE = "reader_study_key.json"

# Real scans are taken from the first of these that has any left; the generator saw none of `test`, and learned from `train`.
_PREFERRED = ("test", "val", "train")

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
        reasons = {"train": "training scans, because too few patients are held out", "val": "from the validation split"}
        return [
            f"{counts[split]} of the {real} real scans of the reader study are {reason}."
            for split, reason in reasons.items()
            if split in counts
        ]


def find_key(folder: Path) -> StudyKey | None:
    """Return the key of the study in a report folder, None without one; `DataError` for a damaged file."""
    file = folder / KEY_FILE
    try:
        content = read_json(file)
        key = StudyKey(
            study=content["study"],
            classes=tuple(content["classes"]),
            cases=tuple(
                Case(**{name: case[name] for name in ("source", "label", "split")}) for case in content["cases"]
            ),
            sets=content["sets"],
        )
        texts = [key.study, *key.classes, *key.sets.values(), *(case.split or "" for case in key.cases)]
        valid = (
            key.as_dict() == content
            and all(isinstance(text, str) for text in texts)
            and {case.source for case in key.cases} <= set(get_args(Source))
            and {case.label for case in key.cases} <= set(key.classes)
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        valid = False
    if not valid or not key.cases:
        raise DataError(
            f"{file}: need the key that medsynth evaluate --reader_study wrote, got other content; try a copy of that file"
        )
    return key


@dataclass(frozen=True, kw_only=True, eq=False)
class ReaderStudy:
    """A study: its key, and its scans `(cases, C, *spatial)` in [-1, 1] in the order in which they are shown."""

    key: StudyKey
    scans: np.ndarray


def check_reader_study(count: int) -> None:
    """Raise `ConfigError` for a number of cases that makes no study; 0 means that none is wanted."""
    if count < 0 or count % 2:
        raise ConfigError(f"reader_study: need an even number of cases, got {count}; try --reader_study 40")


def plan_study(
    real: PreparedCohort,
    synthetic: PreparedCohort,
    *,
    count: int,
    sets: Mapping[str, str],
    known: StudyKey | None = None,
    seed: int = 0,
) -> ReaderStudy:
    """Return a study of `count` scans (an even number), half of them real, with as many of each class on either side.

    The classes are those of the synthetic set, as evenly as patients allow. Real scans come from the test split, then from the
    validation split, and from the training split only where all classes together have no other. No patient, and no donor of
    an edit, appears twice on a side; a patient with several classes stands for the one with the fewest patients.

    The order depends on `seed` and on the content of both cohorts, so nobody who has only the pictures and this code can
    work it out. `known` is the key of the study in the report folder, if there is one: `ConfigError` if the study would be
    another, since answers to the known one could no longer be scored, or for more cases than there are.
    """
    classes = tuple(sorted(synthetic.classes[label] for label in np.unique(synthetic.labels)))
    generator = numpy_generator(seed, "reader study", real.key, synthetic.key)
    of_real, of_synthetic = (_pools(side, classes, generator) for side in (real, synthetic))
    for rows in of_real.values():
        rows.sort(key=lambda row: _PREFERRED.index(str(real.splits[row])))
    held_out = {label: sum(str(real.splits[row]) != "train" for row in rows) for label, rows in of_real.items()}
    quotas = dict.fromkeys(generator.permutation(np.array(classes, dtype=object)).tolist(), 0)
    for available in (held_out, {label: len(rows) for label, rows in of_real.items()}):
        most = {label: min(available[label], len(of_synthetic[label])) for label in classes}
        _fill(quotas, most, count // 2)
    if (found := sum(quotas.values())) < count // 2:
        raise ConfigError(
            f"reader_study: need {count // 2} real and as many synthetic scans of the same classes, each of another patient, "
            f"got {found} of either; try --reader_study {2 * found}"
        )
    sides: dict[Source, tuple[PreparedCohort, dict[str, list[int]]]] = {
        "real": (real, of_real),
        "synthetic": (synthetic, of_synthetic),
    }
    chosen = [
        (source, label, row)
        for source, (_, pools) in sides.items()
        for label in classes
        for row in pools[label][: quotas[label]]
    ]
    cases, scans = [], []
    for place in generator.permutation(len(chosen)):
        source, label, row = chosen[place]
        cases.append(Case(source=source, label=label, split=str(real.splits[row]) if source == "real" else None))
        scans.append(sides[source][0].scans[row])
    pictures = np.stack(scans) if scans else np.zeros((0, *real.scans.shape[1:]), dtype=real.scans.dtype)
    key = StudyKey(study=_fingerprint(pictures, classes), classes=classes, cases=tuple(cases), sets=dict(sets))
    if known is not None and known != key:
        raise ConfigError(
            f"reader_study: need a report folder without another study, got the study {known.study}, whose answers could "
            f"no longer be scored; try leaving out --reader_study, another --out, or removing its {KEY_FILE}"
        )
    return ReaderStudy(key=key, scans=pictures)


def _pools(cohort: PreparedCohort, classes: tuple[str, ...], generator: np.random.Generator) -> dict[str, list[int]]:
    """Return the rows of each class in random order, each person (or donor) in one row of one class."""
    people = [row.attributes.get("donor") or row.patient_id for row in cohort.rows]
    labels = [cohort.classes[label] for label in cohort.labels]
    in_class = {label: {who for who, own in zip(people, labels, strict=True) if own == label} for label in classes}
    order = [int(row) for row in generator.permutation(len(labels)) if labels[row] in in_class]
    pools: dict[str, list[int]] = {label: [] for label in classes}
    taken: set[str] = set()
    # Rare classes choose first. The sort is stable, so the order within a class stays random.
    for row in sorted(order, key=lambda row: (len(in_class[labels[row]]), labels[row])):
        if people[row] not in taken:
            taken.add(people[row])
            pools[labels[row]].append(row)
    return pools


def _fill(quotas: dict[str, int], most: Mapping[str, int], wanted: int) -> None:
    """Raise the smallest quotas one by one, the first of equals first, until `wanted` is reached or `most` is."""
    while sum(quotas.values()) < wanted:
        open_classes = [label for label in quotas if quotas[label] < most[label]]
        if not open_classes:
            return
        quotas[min(open_classes, key=quotas.__getitem__)] += 1


def _fingerprint(scans: np.ndarray, classes: tuple[str, ...]) -> str:
    """Return the name of the study. It does not depend on the key, which could then be found by trying all 2^40."""
    digest = hashlib.sha256(json.dumps([list(scans.shape), list(classes)]).encode())
    digest.update(np.ascontiguousarray(scans, dtype="<f4").tobytes())
    return digest.hexdigest()[:16]
