"""Splits by patient, stratified by label, and the simulation of rarity by dropping patients of one label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from medsynth.cohorts.manifest import SPLITS
from medsynth.errors import ConfigError
from medsynth.seeds import numpy_generator


@dataclass(frozen=True, kw_only=True)
class Keep:
    """How many patients of a label keep their scans of that label, by split."""

    label: str
    train: int
    val: int


def split_patients(
    labels_of: Mapping[str, Collection[str]], fractions: tuple[float, float, float], *, seed: int
) -> dict[str, str]:
    """Return the split of each patient; `labels_of` holds the labels of each patient's scans.

    Labels are dealt with from the rarest (in patients) to the commonest, so a patient counts with the rarest label first.
    Each label's patients are shared out by the largest remainder; one with three patients or more has some in every split
    whose fraction is not zero, where the rarer labels left it that choice. The order of patients does not matter.
    """
    check_fractions(fractions)
    patients_of: dict[str, list[str]] = {}
    for patient in sorted(labels_of):
        for label in set(labels_of[patient]):
            patients_of.setdefault(label, []).append(patient)
    split_of: dict[str, str] = {}
    for label in sorted(patients_of, key=lambda label: (len(patients_of[label]), label)):
        patients = patients_of[label]
        placed = Counter(split_of[patient] for patient in patients if patient in split_of)
        free = [patient for patient in patients if patient not in split_of]
        # Rarer labels may have filled one split beyond its share; then patients are too few for what is owed elsewhere, and
        # splits that have none of this label come first.
        wanted = largest_remainder(len(patients), fractions)
        owed = [split for split, count in zip(SPLITS, wanted, strict=True) for _ in range(count - placed[split])]
        first = dict.fromkeys(split for split in reversed(owed) if not placed[split])
        order = [*first, *_without(owed, first)][: len(free)]
        shuffled = numpy_generator(seed, "split", label).permutation(len(free))
        for position, split in zip(shuffled, order, strict=True):
            split_of[free[position]] = split
    return split_of


def largest_remainder(count: int, fractions: Sequence[float]) -> list[int]:
    """Share `count` out in proportion to `fractions`, each positive one getting at least 1 where `count` suffices for all."""
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


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise `ConfigError` unless `fractions` are three parts of 1, the first above 0."""
    valid = len(fractions) == 3 and min(fractions) >= 0 and fractions[0] > 0 and abs(sum(fractions) - 1) < 1e-6
    if not valid:
        raise ConfigError(
            f"split: need parts for train, val and test that sum to 1, got {fractions}; try 0.7,0.15,0.15"
        )


def parse_keep(texts: Sequence[str]) -> list[Keep]:
    """Read texts like `viral_pneumonia=40/10` (patients of train/val); `ConfigError` names the part that is wrong."""
    keeps: list[Keep] = []
    for text in texts:
        label, equals, numbers = (part.strip() for part in text.rpartition("="))
        if not equals or not label:
            lack = "no label before '='" if equals else "no '='"
            raise ConfigError(f"keep {text.strip()!r}: need LABEL=TRAIN/VAL, got {lack}; try viral=40/10")
        train, slash, val = (part.strip() for part in numbers.partition("/"))
        if not slash:
            raise ConfigError(f"keep {text!r}: need TRAIN/VAL after '=', got {numbers!r}; try {label}=40/10")
        for split, number in (("train", train), ("val", val)):
            if not (number.isascii() and number.isdigit()):
                raise ConfigError(
                    f"keep {text!r}: need a number of {split} patients, got {number!r}; try {label}=40/10"
                )
        if any(keep.label == label for keep in keeps):
            raise ConfigError(f"keep {text!r}: need each label once, got {label!r} twice; try one of them")
        keeps.append(Keep(label=label, train=int(train), val=int(val)))
    return keeps


def check_keep_labels(keeps: Sequence[Keep], labels: Collection[str]) -> None:
    """Raise `ConfigError` for a label to keep that is none of `labels`."""
    for keep in keeps:
        if keep.label not in labels:
            known = ", ".join(sorted(set(labels)))
            raise ConfigError(f"keep: need a label of the cohort, got {keep.label!r}; try one of {known}")


def kept_scans(
    labels: Sequence[str], patients: Sequence[str], splits: Sequence[str], keeps: Sequence[Keep], *, seed: int
) -> list[bool]:
    """Return which scans stay; only scans of a kept label in train and val can go, test stays whole.

    Patients are drawn by `seed`; the draw of fewer patients is part of the draw of more. Raises `ConfigError` for an unknown
    label, and where more patients are asked for than there are.
    """
    check_keep_labels(keeps, labels)
    stays = [True] * len(labels)
    for keep in keeps:
        for split, number in (("train", keep.train), ("val", keep.val)):
            scans = [i for i in range(len(labels)) if labels[i] == keep.label and splits[i] == split]
            there = sorted({patients[i] for i in scans})
            if number > len(there):
                raise ConfigError(
                    f"keep {keep.label!r}: need at most the {len(there)} {split} patients that there are, got {number}; "
                    f"try {len(there)}"
                )
            drawn = numpy_generator(seed, "keep", keep.label, split).permutation(len(there))[:number]
            chosen = {there[position] for position in drawn}
            for i in scans:
                stays[i] = patients[i] in chosen
    return stays


def _without(items: Sequence[str], taken: Collection[str]) -> list[str]:
    """Return `items` less one of each of `taken`."""
    rest = list(items)
    for item in taken:
        rest.remove(item)
    return rest
