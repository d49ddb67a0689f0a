"""Small made-up cohorts of smooth random pictures, and an extractor that only looks at pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from medsynth.evaluation.arrays import ScanArrays


@dataclass(frozen=True, kw_only=True, eq=False)
class MadeScans:
    """What `score_fidelity` needs; features are the pixels, unless there are others."""

    scans: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    patients: np.ndarray
    classes: tuple[str, ...]
    others: np.ndarray | None = None
    rows_of = ScanArrays.rows_of

    @property
    def features(self) -> np.ndarray:
        return self.scans.reshape(len(self.scans), -1).astype(np.float32) if self.others is None else self.others


class Pixels:
    """Features are the pixels."""

    name = "Pixels"
    title = "all pixels"
    sha256 = "0" * 64

    def __call__(self, scans: torch.Tensor) -> torch.Tensor:
        return scans.flatten(1)


def smooth_pictures(count: int, generator: np.random.Generator, *, side: int = 12) -> np.ndarray:
    noise = gaussian_filter(generator.normal(size=(count, 1, side, side)), (0, 0, 2, 2))
    return np.clip(0.3 * noise / noise.std(), -1, 1).astype(np.float16)


def made_cohort(counts: dict[str, dict[str, int]], seed: int, *, brighter: float = 0.0) -> MadeScans:
    """Return `counts[class][split]` scans; each class is brighter than the one before, all by `brighter`; one scan a patient."""
    generator = np.random.default_rng(seed)
    scans, labels, splits = [], [], []
    for label, per_split in enumerate(counts.values()):
        for split, count in per_split.items():
            scans.append(smooth_pictures(count, generator) + np.float16(0.1 * label + brighter))
            labels += [label] * count
            splits += [split] * count
    return MadeScans(
        scans=np.concatenate(scans),
        labels=np.array(labels),
        splits=np.array(splits),
        patients=np.arange(len(labels)),
        classes=tuple(counts),
    )


def pixels(scans: torch.Tensor) -> torch.Tensor:
    """Return the pixels as features."""
    return scans.flatten(1)
