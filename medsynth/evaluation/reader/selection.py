"""Which scans a reader study shows: half real and half synthetic, in the same classes, no person twice, in random order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medsynth.cohorts import PreparedCohort
from medsynth.errors import ConfigError
from medsynth.evaluation.reader.key import KEY_FILE, Case, StudyKey
from medsynth.seeds import numpy_generator

# Real scans are taken from the first of these that has any left; the generator saw none of `test`, and learned from `train`.
_PREFERRED = ("test", "val", "train")
_FINGERPRINT = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class ReaderStudy:
    """A study: its key, and its scans `(cases, C, *spatial)` in [-1, 1] in the order in which they are shown."""

    key: StudyKey
    scans: np.ndarray


def check_reader_study(count: int) -> None:
    """Refuse (`ConfigError`) a number of cases that is no study; 0 is none wanted."""
    if count < 0 or count % 2:
        raise ConfigError(f"reader_study: need an even number of cases, got {count}; try --reader_study 40")


def plan_study(
    real: PreparedCohort,
    synthetic: PreparedCohort,
    *,
    count: int,
    known: StudyKey | None,
    sets: Mapping[str, str],
    seed: int = 0,
) -> ReaderStudy | None:
    """Return the study for a report folder, None for 0 cases.

    `known` is the key that lies there: `ConfigError` if the study would be another one, since answers to that could no
    longer be scored; and as for `select_cases`.
    """
    if count == 0:
        return None
    study = select_cases(real, synthetic, count=count, sets=sets, seed=seed)
    if known is not None and known != study.key:
        raise ConfigError(
            f"reader_study: need a report folder without another study, got the study {known.study}, answers to which could "
            f"no longer be scored; try leaving out --reader_study, another --out, or removing its {KEY_FILE}"
        )
    return study


def select_cases(
    real: PreparedCohort,
    synthetic: PreparedCohort,
    *,
    count: int,
    sets: Mapping[str, str],
    seed: int = 0,
) -> ReaderStudy:
    """Return a study of `count` scans, half of them real, with as many of a class on either side.

    The classes are those of the synthetic set, as evenly as patients allow. Real scans come from the test split, then from the
    validation split, and from the training split only where all classes together have no other. No patient, and no donor of
    an edit, appears twice on a side; a patient with several classes stands for the one with the fewest patients.

    The order depends on `seed` and on the content of both cohorts, so that whoever has only the pictures and this code cannot
    work it out. `ConfigError` for an odd number, or for more cases than there are.
    """
    check_reader_study(count)
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
    chosen = [
        (side[label][place], source, label)
        for source, side in (("real", of_real), ("synthetic", of_synthetic))
        for label in classes
        for place in range(quotas[label])
    ]
    cases, scans = [], []
    for place in generator.permutation(len(chosen)):
        row, source, label = chosen[place]
        if source == "real":
            cases.append(Case(source="real", label=label, split=str(real.splits[row])))
            scans.append(real.scans[row])
        else:
            cases.append(Case(source="synthetic", label=label, split=None))
            scans.append(synthetic.scans[row])
    pictures = np.stack(scans) if scans else np.zeros((0, *real.scans.shape[1:]), dtype=real.scans.dtype)
    key = StudyKey(study=_fingerprint(pictures, classes), classes=classes, cases=tuple(cases), sets=dict(sets))
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
    """Return what names the study. The key is not part of it: with 2^40 keys at most, it could be found by trying."""
    digest = hashlib.sha256(json.dumps([list(scans.shape), list(classes)]).encode())
    digest.update(np.ascontiguousarray(scans, dtype="<f4").tobytes())
    return digest.hexdigest()[:_FINGERPRINT]
