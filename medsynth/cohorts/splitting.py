"""Which class, split and place in the cohort each scan gets: merged labels, splits by patient, simulated rarity."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from medsynth.cohorts.manifest import SPLITS, Row
from medsynth.errors import ConfigError
from medsynth.seeds import numpy_generator

SUBLABEL = "sublabel"  # the attribute that keeps a label as it was before merging
_KEEP = re.compile(r"\s*(\S.*?)\s*=\s*([0-9]+)\s*/\s*([0-9]+)\s*")


def parse_merges(texts: Sequence[str]) -> dict[str, str]:
    """Return the class that each merged label becomes, from texts like `subsolid=ground_glass+part_solid`.

    Raises `ConfigError` that names the part it cannot read, and for a label that would become two classes.
    """
    merges: dict[str, str] = {}
    for text in texts:
        target, equals, rest = text.rpartition("=")
        target, sources = target.strip(), [part.strip() for part in rest.split("+")]
        if not equals or not target or not all(sources):
            hint = "subsolid=ground_glass+part_solid"
            raise ConfigError(f"merge: need CLASS=LABEL+LABEL, got {text.strip()!r}; try {hint}")
        for source in sources:
            if source in merges:
                raise ConfigError(f"merge: need each label in one class, got {source!r} twice; try one of them")
            merges[source] = target
    return merges


def parse_keep(texts: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return how many patients of each label keep their scans of it, by split, from texts like `viral_pneumonia=40/10`.

    Raises `ConfigError` for anything else than patients of train/val, and for a label that is named twice.
    """
    keeps: dict[str, dict[str, int]] = {}
    for text in texts:
        match = _KEEP.fullmatch(text)
        if match is None:
            raise ConfigError(f"keep: need LABEL=TRAIN/VAL in numbers of patients, got {text.strip()!r}; try x=40/10")
        label, train, val = match.groups()
        if label in keeps:
            raise ConfigError(f"keep: need each label once, got {label!r} twice; try one of them")
        keeps[label] = {"train": int(train), "val": int(val)}
    return keeps


def check_labels(option: str, labels: Collection[str], known: Collection[str]) -> None:
    """Raise `ConfigError` that names the option for a label that is not among the known ones."""
    if unknown := [label for label in labels if label not in known]:
        labels = ", ".join(sorted(set(known)))
        raise ConfigError(f"{option}: need labels of the cohort, got {unknown[0]!r}; try one of {labels}")


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise `ConfigError` unless `fractions` are three shares that sum to 1, the first above 0."""
    if len(fractions) != 3 or not (min(fractions) >= 0 < fractions[0] and abs(sum(fractions) - 1) < 1e-6):
        raise ConfigError(f"split: need train, val and test shares that sum to 1, got {fractions}; try 0.7,0.15,0.15")


def split_patients(
    labels: Sequence[str], patients: Sequence[str], fractions: tuple[float, float, float], *, seed: int
) -> list[str]:
    """Return the split of each scan, from its label and patient.

    Labels are split from the rarest (in patients) to the most frequent, so a patient counts for the rarest label first.
    The patients of each label are shared out by the largest remainder. A label with at least three patients has some in
    every split whose fraction is not zero, unless rarer labels leave no choice. The order of scans does not matter.
    """
    check_fractions(fractions)
    patients_of: dict[str, list[str]] = {}
    for patient, label in sorted(set(zip(patients, labels, strict=True))):
        patients_of.setdefault(label, []).append(patient)
    split_of: dict[str, str] = {}
    for label in sorted(patients_of, key=lambda label: (len(patients_of[label]), label)):
        found = patients_of[label]
        placed = Counter(split_of[patient] for patient in found if patient in split_of)
        free = [patient for patient in found if patient not in split_of]
        # Rarer labels may have filled one split beyond its share; then there are too few patients for what is missing elsewhere,
        # and splits that have none of this label come first.
        wanted = largest_remainder(len(found), fractions)
        missing = [split for split, count in zip(SPLITS, wanted, strict=True) for _ in range(count - placed[split])]
        order = list(dict.fromkeys(split for split in reversed(missing) if not placed[split]))
        for split in order:
            missing.remove(split)
        order = [*order, *missing][: len(free)]
        shuffled = numpy_generator(seed, "split", label).permutation(len(free))
        for position, split in zip(shuffled, order, strict=True):
            split_of[free[position]] = split
    return [split_of[patient] for patient in patients]


def largest_remainder(count: int, fractions: Sequence[float]) -> list[int]:
    """Share `count` out in proportion to `fractions`; each positive one gets at least 1 if `count` suffices for all."""
    exact = [count * fraction for fraction in fractions]
    shares = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (shares[index] - exact[index], index))
    for index in by_remainder[: count - sum(shares)]:
        shares[index] += 1
    positive = [index for index, fraction in enumerate(fractions) if fraction > 0]
    if count >= len(positive):
        for index in positive:
            if shares[index] == 0:
                shares[max(positive, key=lambda other: shares[other])] -= 1
                shares[index] = 1
    return shares


def kept_scans(rows: Sequence[Row], keeps: Mapping[str, Mapping[str, int]], *, seed: int) -> list[bool]:
    """Return which scans stay: of a label in `keeps`, only the training and validation scans of so many patients.

    Patients are drawn by `seed`; a draw of fewer patients is part of a draw of more. Raises `ConfigError` for an
    unknown label, and if there are fewer patients.
    """
    check_labels("keep", keeps, {row.label for row in rows})
    stays = [True] * len(rows)
    for label, numbers in keeps.items():
        for split, number in numbers.items():
            scans = [i for i, row in enumerate(rows) if (row.label, row.split) == (label, split)]
            there = sorted({rows[i].patient_id for i in scans})
            if number > len(there):
                most = len(there)
                raise ConfigError(f"keep {label!r}: need at most {most} {split} patients, got {number}; try {most}")
            drawn = numpy_generator(seed, "keep", label, split).permutation(len(there))[:number]
            chosen = {there[position] for position in drawn}
            for i in scans:
                stays[i] = rows[i].patient_id in chosen
    return stays
