"""The strength of counterfactuals, chosen on validation scans: the smallest at which edits look like the target class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from medsynth.cohorts import Cohort, prepare_cohort
from medsynth.config import EditOptions, FeatureOptions
from medsynth.errors import DataError
from medsynth.evaluation.downstream.arms import Arm, Recipe, Table
from medsynth.evaluation.downstream.probe import ProbeData, train_probe
from medsynth.evaluation.downstream.task import HeldOut, Pool, Task
from medsynth.evaluation.features import cached_features
from medsynth.measures.classification import auroc
from medsynth.measures.extractors import open_extractor
from medsynth.measures.features import extract_features
from medsynth.measures.similarity import multiscale_levels, multiscale_similarity, structural_similarity
from medsynth.runs import Run

STRENGTHS = (0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0)  # to try
_TRAININGS = 5  # classifiers whose probabilities are averaged
_DIGITS = 6

Edit = Callable[[float], np.ndarray]


class Classifier(Protocol):
    """Recognises the target class; `describe` is what provenance says of it."""

    donors: np.ndarray
    targets: np.ndarray

    def __call__(self, scans: np.ndarray) -> np.ndarray:
        """Return the probability `(N,)` of the target class of scans `(N, C, *spatial)` in [-1, 1]."""
        ...

    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Strength:
    """Edits of one strength: median probability of the target class with its quartiles, and how like their donors they are.

    `distance` is the median root mean square difference, in units of [-1, 1]; `similarity` the median of `measure`.
    """

    strength: float
    probability: float
    low: float
    high: float
    distance: float
    similarity: float
    measure: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The strength that was chosen among those of `curve`; `reached` says whether edits of it look like real scans of the class.

    `wanted` is the median probability of the target class over its real validation scans, `unedited` that of the donors.
    """

    strength: float
    reached: bool
    wanted: float
    unedited: float
    donors: int
    curve: tuple[Strength, ...]
    classifier: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """Return what provenance says: plain values, the same after JSON."""
        facts = {name: value for name, value in asdict(self).items() if name != "strength"}
        return dict(_rounded(facts))

    def summary(self) -> str:
        """Return the choice and the curve as text."""
        lines = [f"{'strength':>8} {'probability':>12} {'distance':>9} {self.curve[0].measure:>8}"]
        lines += [
            f"{each.strength:>8g} {each.probability:>12.3f} {each.distance:>9.3f} {each.similarity:>8.3f}"
            for each in self.curve
        ]
        how = (
            f"the smallest whose edits reach the {self.wanted:.3f} of real validation scans of the class"
            if self.reached
            else f"none reaches the {self.wanted:.3f} of real validation scans of the class, this one comes nearest"
        )
        return "\n".join([*lines, f"strength {self.strength:g}: {how} (unedited donors: {self.unedited:.3f})"])


def choose_strength(
    classifier: Classifier, donors: np.ndarray, edit: Edit, strengths: Sequence[float] = STRENGTHS
) -> Choice:
    """Return the smallest strength whose edits have, in the median, the probability of real validation scans of the target class.

    `edit` returns edits of `donors` `(N, C, *spatial)` at a strength. Where no strength suffices, that with the highest median.
    """
    curve = tuple(_point(classifier, donors, edit(strength), strength) for strength in sorted(set(strengths)))
    wanted = float(np.median(classifier.targets))
    enough = [each for each in curve if each.probability >= wanted]
    chosen = enough[0] if enough else max(curve, key=lambda each: each.probability)
    return Choice(
        strength=chosen.strength,
        reached=bool(enough),
        wanted=wanted,
        unedited=float(np.median(classifier.donors)),
        donors=len(donors),
        curve=curve,
        classifier=classifier.describe(),
    )


def _point(classifier: Classifier, donors: np.ndarray, edits: np.ndarray, strength: float) -> Strength:
    low, middle, high = np.quantile(classifier(edits), [0.25, 0.5, 0.75])
    distance = np.sqrt(np.square(edits.astype(np.float64) - donors).reshape(len(donors), -1).mean(axis=1))
    multiscale = multiscale_levels(tuple(donors.shape[2:])) >= 2
    similarity = multiscale_similarity if multiscale else structural_similarity
    pairs = (torch.from_numpy(np.ascontiguousarray(each, dtype=np.float32)) for each in (donors, edits))
    return Strength(
        strength=float(strength),
        probability=float(middle),
        low=float(low),
        high=float(high),
        distance=float(np.median(distance)),
        similarity=float(np.median(similarity(*pairs))),
        measure="MS-SSIM" if multiscale else "SSIM",
    )


def _rounded(content: Any) -> Any:
    """Return nested plain values as JSON keeps them, with rounded numbers."""
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_rounded(value) for value in content]
    return round(content, _DIGITS) if isinstance(content, float) else content


class ProbeClassifier:
    """Logistic regressions on features of a cohort's training split, the target class drawn as often as all others together.

    `donors` and `targets` are the probabilities of real validation scans of the two classes. Test scans are not used.
    """

    def __init__(self, run: Run, cohort: Cohort, options: EditOptions) -> None:
        """Extract features, which later calls find in the cache; `DataError` for a cohort without what is needed."""
        donor, target = options.donor_class, options.target_class
        rows = tuple(row for row in cohort.rows if row.split != "test" and row.label in run.classes)
        for split, label in (("train", target), ("val", target), ("val", donor)):
            if not any((row.split, row.label) == (split, label) for row in rows):
                raise DataError(
                    f"strength: need {split} scans of {label!r} to choose on, got none in the cohort; try a number, such as 1"
                )
        if all(row.label == target for row in rows if row.split == "train"):
            raise DataError(f"strength: need training scans of other classes than {target!r}, got none; try a number")
        self._prepared = prepare_cohort(
            replace(cohort, rows=rows),
            grid=run.grid,
            intensity=run.spec.image_intensity,
            loading=options,
            classes=run.classes,
        )
        self._extractor = open_extractor(FeatureOptions())
        folder = options.cache_folder(cohort.folder)
        self._features = np.asarray(
            cached_features(self._prepared, self._extractor, folder=folder, progress=options.progress)
        )
        self._options = options
        validation = self._prepared.splits == "val"
        labels = np.array(self._prepared.classes)[self._prepared.labels]
        scores = self._score(self._features)
        self.donors = scores[validation & (labels == donor)]
        self.targets = scores[validation & (labels == target)]

    def __call__(self, scans: np.ndarray) -> np.ndarray:
        """Return the probability of the target class of each scan."""
        progress = self._options.progress
        return self._score(extract_features(self._extractor, scans, progress=progress, description="edits"))

    def describe(self) -> dict[str, Any]:
        """Return what it is, and how well it separates real validation scans of the two classes (AUROC)."""
        truth = np.r_[np.ones(len(self.targets), dtype=bool), np.zeros(len(self.donors), dtype=bool)]
        area = auroc(truth, np.concatenate([self.targets, self.donors]), np.ones((1, len(truth))))
        return {
            "features": self._extractor.name,
            "sha256": self._extractor.sha256,
            "trainings": _TRAININGS,
            "auroc": round(float(area[0]), _DIGITS),
            "validation_scans": {"target_class": len(self.targets), "donor_class": len(self.donors)},
        }

    def _score(self, features: np.ndarray) -> np.ndarray:
        """Return the mean probability over the trainings, of any scans; none of them is trained on."""
        own = len(self._features)
        task = self._task(np.arange(own, own + len(features)))
        table = Table.of(task)
        nothing = np.zeros((0, features.shape[1]), dtype=np.float32)
        data = ProbeData.of(task, table, [np.concatenate([self._features, features]), nothing])
        arm = Arm(name="oversample", kind="baseline", recipe=Recipe(balance="oversample"))
        _, scores = train_probe(task, table, data, arm, seed=self._options.seed, repeats=range(_TRAININGS))
        return (1 / (1 + np.exp(-scores.astype(np.float64)))).mean(axis=0)

    def _task(self, rows: np.ndarray) -> Task:
        """Return the task of telling the target class from the rest, with `rows` as what is scored."""
        nothing, target = np.zeros(0, dtype=np.int64), self._options.target_class
        train = self._prepared.splits == "train"
        names = np.array(self._prepared.classes)[self._prepared.labels]
        order = [target, *(label for label in self._prepared.classes if label != target)]
        pools = tuple(
            Pool(
                label=label,
                rare=label == target,
                real=np.flatnonzero(train & (names == label)),
                patients=self._prepared.patients[train & (names == label)],
                synthetic=nothing,
                further=nothing,
                further_patients=nothing,
            )
            for label in order
            if (train & (names == label)).any()
        )
        scored = HeldOut(rows=rows, truth=np.zeros(len(rows), dtype=bool), patients=rows)
        empty = HeldOut(rows=nothing, truth=nothing.astype(bool), patients=nothing)
        return Task(rare_class=target, pools=pools, validation=empty, test=scored)
