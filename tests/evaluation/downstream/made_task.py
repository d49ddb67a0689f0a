"""Cohorts as features of known distribution: three Gaussian classes, one of them rare, and synthetic sets of known worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from medsynth.config import DownstreamOptions
from medsynth.evaluation.downstream.experiment import Experiment, ProbeSettings, Settings
from medsynth.evaluation.downstream.task import make_task

CLASSES = ("common", "other", "rare")
DIMS = 16
QUICK = DownstreamOptions(
    seeds=3,
    shares=(0.5, 0.75),
    subgroups="none",
)
QUICK_SETTINGS = Settings(
    resamples=300, probe=ProbeSettings(steps=80, batch_size=64, components=DIMS, learning_rate=0.05)
)


@dataclass(frozen=True, kw_only=True, eq=False)
class MadeTask:
    """A side of `score_downstream`: what is needed of a prepared cohort, and its features."""

    scans: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    patients: np.ndarray
    classes: tuple[str, ...]
    rows: tuple[SimpleNamespace, ...]
    key: str
    features: np.ndarray

    @property
    def prepared(self) -> MadeTask:
        return self


def made_experiment(real: MadeTask, synthetic: MadeTask, settings: Settings, folder: Path) -> Experiment:
    """Return the experiment of two sides with the quick options."""
    return Experiment(
        task=make_task(real, synthetic),
        real=real,
        synthetic=synthetic,
        further=None,
        options=QUICK,
        settings=settings,
        folder=folder,
        seed=0,
        progress=False,
    )


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


def pictures(seed: int = 0, *, dims: int = 2, side: int = 16, contrast: float = 0.25) -> tuple[MadeTask, MadeTask]:
    """Real and synthetic cohorts whose rare scans have a bright corner; features are the pixels."""
    generator = np.random.default_rng(seed)
    cohorts = []
    for name in ("real", "synthetic"):
        task = (
            real_cohort(seed, held_out=(24, 24))
            if name == "real"
            else synthetic_set(cohorts[0], "fresh", seed, count=30)
        )
        scans = generator.normal(0, 0.3, size=(len(task.labels), 1, *[side] * dims)).clip(-1, 1)
        corner = (slice(None), 0, *[slice(0, side // 3)] * dims)
        scans[corner] += contrast * (task.labels == 2).reshape(-1, *[1] * dims)
        scans = scans.clip(-1, 1).astype(np.float16)
        flat = scans.reshape(len(scans), -1).astype(np.float32)
        cohorts.append(replace(task, scans=scans, features=flat, key=f"pictures-{name}-{seed}"))
    return cohorts[0], cohorts[1]
