"""Cohorts as features of known distribution: three Gaussian classes, one of them rare, and synthetic sets of known worth."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from medsynth.config import DownstreamOptions, ProbeOptions

CLASSES = ("common", "other", "rare")
DIMS = 16
QUICK = DownstreamOptions(
    seeds=3,
    shares=(0.5, 0.75),
    resamples=300,
    subgroups="none",
    probe=ProbeOptions(steps=80, batch_size=64, components=DIMS, learning_rate=0.05),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class MadeTask:
    """What `score_downstream` needs of a prepared cohort, and its features."""

    scans: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    patients: np.ndarray
    classes: tuple[str, ...]
    rows: tuple[SimpleNamespace, ...]
    key: str
    features: np.ndarray


def draw_class(label: int, count: int, generator: np.random.Generator, *, gap: float = 1.6) -> np.ndarray:
    """Features `(count, DIMS)` of a class: white noise about a mean at distance `gap` from the origin, in many axes."""
    directions = np.random.default_rng(99).normal(size=(3, DIMS))
    mean = gap * directions[label] / np.linalg.norm(directions[label])
    return (mean + generator.normal(size=(count, DIMS))).astype(np.float32)


def as_cohort(features: list[np.ndarray], labels: list[int], splits: list[str], key: str) -> MadeTask:
    """Return parts of equal label and split as one cohort, a patient a scan."""
    counts = [len(part) for part in features]
    whole = np.concatenate(features)
    return MadeTask(
        scans=np.zeros((len(whole), 1, 2, 2), dtype=np.float16),
        labels=np.repeat(labels, counts),
        splits=np.repeat(splits, counts),
        patients=np.arange(len(whole)),
        classes=CLASSES,
        rows=tuple(SimpleNamespace(attributes={}) for _ in whole),
        key=key,
        features=whole,
    )


def real_cohort(seed: int = 0, *, rare: int = 12, held_out: tuple[int, int] = (60, 60)) -> MadeTask:
    """Return a real cohort with `rare` rare training scans, and so many rare scans in val and in test."""
    generator = np.random.default_rng(seed)
    counts = {"train": (250, 150, rare), "val": (100, 60, held_out[0]), "test": (150, 90, held_out[1])}
    parts = [(split, label, count) for split, row in counts.items() for label, count in enumerate(row)]
    features = [draw_class(label, count, generator) for _, label, count in parts]
    return as_cohort(features, [part[1] for part in parts], [part[0] for part in parts], f"real-{seed}-{rare}")


def synthetic_set(real: MadeTask, worth: str, seed: int = 0, *, count: int = 120) -> MadeTask:
    """Return `count` scans of each class: `fresh` real ones, `duplicates` of training scans, `shuffled` labels, or `noise`."""
    generator = np.random.default_rng((seed, 7))
    features = []
    for label in range(3):
        own = np.flatnonzero((real.labels == label) & (real.splits == "train"))
        if worth == "fresh":
            features.append(draw_class(label, count, generator))
        elif worth == "duplicates":
            features.append(real.features[generator.choice(own, count)])
        elif worth == "shuffled":
            features.append(np.concatenate([draw_class(other, count // 3, generator) for other in range(3)]))
        else:
            features.append(2 * generator.normal(size=(count, DIMS)).astype(np.float32))
    return as_cohort(features, [0, 1, 2], ["train"] * 3, f"{worth}-{seed}")
