"""One comparison of classifiers: its task, its scans and features, and how it is trained and judged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from tqdm import tqdm

from medsynth.cohorts import PreparedCohort
from medsynth.config import DownstreamOptions
from medsynth.errors import DataError
from medsynth.evaluation.downstream.arms import Table
from medsynth.evaluation.downstream.task import Task
from medsynth.files import atomic_path
from medsynth.scans.limits import damage_as_data_error

_FORMAT = 2  # raise it when the same arm would get other scores
_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class ClassicalSettings:
    """The strongest changes of classical augmentation; each kind is applied to half of the scans.

    `scale`, `contrast` and `gamma` are natural logarithms, `translate` is a share of the image size, and `noise` is the standard
    deviation of white noise on scans in [-1, 1].
    """

    rotate_degrees: float = 12.0
    scale: float = 0.12
    translate: float = 0.06
    contrast: float = 0.25
    gamma: float = 0.3
    noise: float = 0.05


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """The probe tier: a logistic regression on features, trained by minibatches, all arms equally long.

    It sees the leading principal `components` of the real training features; their number and the learning rate are the best on
    validation scans of X-ray-40 (`benchmarks/probe_settings.py`). `copies` augmented copies of at most `augmented_scans` training
    scans serve the arms with classical augmentation.
    """

    steps: int = 300
    batch_size: int = 256
    learning_rate: float = 0.002
    weight_decay: float = 0.1
    components: int = 128
    copies: int = 3
    augmented_scans: int = 4000


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """The full tier: classifiers trained on pixels, all arms equally long.

    `width` is the number of feature channels after the first convolution of `densenet`; scans are resized to `lite0_side` pixels
    a side for `lite0`.
    """

    steps: int = 600
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    width: int = 16
    lite0_side: int = 96
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is fixed in every evaluation; tests and benchmarks may pass other values.

    `specificity` on validation sets the threshold for the rare sensitivity, `mixup` is the parameter of its Beta distribution
    (Zhang et al. 2018), `resamples` the draws of the bootstrap, and `least_patients` the test patients of the rare class below
    which there is no verdict; a quarter of it for subgroups.
    """

    specificity: float = 0.9
    mixup: float = 0.4
    resamples: int = 2000
    least_patients: int = 20
    classical: ClassicalSettings = ClassicalSettings()
    probe: ProbeSettings = ProbeSettings()
    classifier: ClassifierSettings = ClassifierSettings()


class Side(Protocol):
    """The scans of one cohort, and the features `(N, D)` of its rows."""

    @property
    def prepared(self) -> PreparedCohort: ...

    @property
    def features(self) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """What all trainings of a comparison share; scores are kept below `folder`, every draw depends on `seed`.

    `further` holds real scans beyond the cohort, for the ceiling.
    """

    task: Task
    real: Side
    synthetic: Side
    further: Side | None
    options: DownstreamOptions
    settings: Settings
    folder: Path
    seed: int
    progress: bool

    @cached_property
    def table(self) -> Table:
        """All training scans."""
        return Table.of(self.task)

    @property
    def sides(self) -> Sequence[Side]:
        """The real, the synthetic and (if there are any) the further scans: the order of the entries of `table`."""
        return [side for side in (self.real, self.synthetic, self.further) if side is not None]

    def training_scans(self) -> list[tuple[np.ndarray, int]]:
        """Return the array and the row of each entry of `table`."""
        rows = (self.table.real, self.table.synthetic, self.table.further)
        return [(side.prepared.scans, row) for side, of in zip(self.sides, rows, strict=False) for row in of]

    @cached_property
    def key(self) -> str:
        """A hash of all that scores depend on, except the settings of the tier.

        The labels of the test split are no part of it, since no score depends on them.
        """
        task, table = self.task, self.table
        return content_key(
            self.real.prepared.key,
            self.synthetic.prepared.key,
            "" if self.further is None else self.further.prepared.key,
            *(side.features for side in self.sides),
            *(task.validation.truth, task.validation.rows, task.test.rows, table.real, table.synthetic, table.further),
            table.rare,
            task.rare.patients,
            task.rare.further_patients,
            [self.settings.mixup, asdict(self.settings.classical), self.seed],
        )

    def progress_bar(self, description: str, arms: int) -> tqdm:
        """Return a progress bar over the trainings of this number of arms."""
        return tqdm(total=arms * self.options.seeds, desc=description, unit="training", disable=not self.progress)


def write_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Write arrays by name as NPZ, atomically, for `read_arrays`."""
    with atomic_path(file) as temporary:
        np.savez(temporary, allow_pickle=False, written_as=np.array(file.name), **arrays)


def read_arrays(file: Path, *names: str) -> list[np.ndarray] | None:
    """Return the arrays that were written to this very file; None if there are none, or if they were damaged."""
    try:
        with damage_as_data_error(file.name, "NPZ"), np.load(file, allow_pickle=False) as stored:
            return [stored[name] for name in names] if stored["written_as"] == file.name else None
    except DataError:
        return None


def content_key(*parts: Any) -> str:
    """Return a hash of arrays and plain values; equal parts give equal keys."""
    digest = hashlib.sha256(f"format {_FORMAT}".encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            # In parts: features may be a memory map of many scans.
            for start in range(0, len(part), _ROWS):
                digest.update(np.ascontiguousarray(part[start : start + _ROWS]).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()
