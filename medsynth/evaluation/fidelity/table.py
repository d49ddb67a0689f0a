"""The fidelity table: how far a synthetic set is from the real scans, class by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from medsynth.config import FidelityOptions
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.fidelity.comparison import TOO_FEW, Comparison, Group, Similarities, compare
from medsynth.evaluation.fidelity.copies import identical_scans
from medsynth.evaluation.fidelity.draws import half_size
from medsynth.measures.features import Extractor, extract_features
from medsynth.measures.neighbours import nearest_distances
from medsynth.measures.similarity import (
    Similarity,
    multiscale_levels,
    multiscale_similarity,
    multiscale_weights,
    pair_similarities,
    random_pairs,
    structural_similarity,
)
from medsynth.measures.texture import intensity_histograms, texture_features
from medsynth.seeds import numpy_generator

_SEEN = ("train", "val")
_HELD_OUT = ("test",)
# Fewer leave every figure untold: too few scans on a side, or no interval.
_LEAST = {"max_scans": 2 * TOO_FEW, "pca_dims": 1, "repeats": 10, "neighbours": 1, "ssim_pairs": 1, "sheet_scans": 0}
_DEFAULTS = FidelityOptions()
_SMALLEST_TEXTURE = 5  # pixels along each axis
_FID_WIDTH = 2048


class LabelledScans(Protocol):
    """Scans `(N, C, *spatial)` in [-1, 1], which may be a memory map, and `labels` `(N,)` as indices into `classes`."""

    @property
    def scans(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def classes(self) -> tuple[str, ...]: ...


class RealScans(LabelledScans, Protocol):
    """Real scans also have a split (`train`, `val`, `test`) and a patient, one number each: `(N,)`."""

    @property
    def splits(self) -> np.ndarray: ...

    @property
    def patients(self) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Counts:
    """All scans of one class, or of all classes together, before `max_scans` draws from them.

    `held_out_halves` is the number of scans that each of two halves of the held-out ones reaches without a common patient;
    `identical` of the synthetic scans equal a real scan of any class and split in every pixel of the grid.
    """

    synthetic: int
    identical: int
    held_out: int
    held_out_patients: int
    held_out_halves: int

    @classmethod
    def together(cls, counts: Sequence[Counts]) -> Counts:
        """Return the sum over classes; a patient with scans of two classes counts twice."""
        return cls(**{item.name: sum(getattr(each, item.name) for each in counts) for item in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class FidelityRow:
    """One class (`label`), or all classes together (`label` None).

    `held_out` is against the test split, `seen` against train and val, which the generator saw; `real_seen` has the real
    train and val scans in the place of the synthetic ones, against the test split: the best that a generator can
    do that knows only these. None where there are no such scans. `counts` is what there is to compare.
    """

    label: str | None
    counts: Counts
    held_out: Comparison | None
    seen: Comparison | None
    real_seen: Comparison | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """Scans of one class for a contact sheet, `(rows, C, *spatial)` each, in [-1, 1].

    `nearest` are the real training scans (of any class) nearest to `synthetic` in pixels, `distances` `(rows,)` how near;
    `real` are random real scans of the class, fewer where the class has fewer. `spacing` is the voxel size in millimetres along
    each spatial axis, where it is known; `ends` are the intensities that -1 and 1 stand for in the first channel.
    """

    label: str
    real: np.ndarray
    nearest: np.ndarray
    synthetic: np.ndarray
    distances: np.ndarray
    spacing: tuple[float, ...] | None = None
    ends: tuple[float, float] = (-1.0, 1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class FidelityResult:
    """The table, and the scans for one contact sheet a class; `absent` are the real classes without synthetic scans.

    `left_out` says why a measure is missing from all rows; `scales` are the exponents of MS-SSIM, from the finest scale.
    """

    rows: tuple[FidelityRow, ...]
    absent: tuple[str, ...]
    sheets: tuple[Sheet, ...]
    extractor: str
    extractor_title: str
    extractor_sha256: str
    feature_count: int
    left_out: dict[str, str]
    scales: tuple[float, ...]
    options: FidelityOptions
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Return the table for `report.json`: numbers, texts and None (where a figure cannot be told)."""
        described: dict[str, Any] = {
            "extractor": {
                "name": self.extractor,
                "title": self.extractor_title,
                "sha256": self.extractor_sha256,
                "features": self.feature_count,
            },
            "repeats": self.options.repeats,
            "ms_ssim_weights": list(self.scales),
            "left_out": self.left_out,
            "rows": [asdict(row) for row in self.rows],
        }
        return _without_nan(described)


def score_fidelity(
    real: RealScans,
    synthetic: LabelledScans,
    *,
    options: FidelityOptions,
    extractor: Extractor,
    real_features: np.ndarray | None = None,
    synthetic_features: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FidelityResult:
    """Return how faithful a synthetic set is, per class, each figure beside real against real at the same number of scans.

    Classes are matched by name; those without synthetic scans are left out. Everything is a function of `seed`. Features
    `(N, D)` of all scans of a side, which may be memory maps, are those of `extractor`; without them, those of the scans that are
    drawn are extracted. `ConfigError` for options that leave nothing to tell; `DataError` if the synthetic set is empty, has an
    unknown class or another grid, or if features do not fit the scans.
    """
    check_options(options)
    _check(real, synthetic)
    for name, features, scans in (("real", real_features, real), ("synthetic", synthetic_features, synthetic)):
        if features is not None and (features.ndim != 2 or len(features) != len(scans.scans)):
            raise DataError(
                f"{name} features: need one row for each of {len(scans.scans)} scans, got {features.shape}; "
                "try extracting them again"
            )
    made = _by_class(synthetic)
    labels = [label for label in real.classes if label in made]
    rows_of = _by_class(real)
    parts: dict[tuple[str, str], np.ndarray] = {}
    for label in labels:
        mine = rows_of.get(label, np.zeros(0, dtype=np.int64))
        splits = np.asarray(real.splits)[mine]
        parts["seen", label] = mine[np.isin(splits, _SEEN)]
        parts["held out", label] = mine[np.isin(splits, _HELD_OUT)]
        parts["made", label] = made[label]
    counts = _counts(real, synthetic, labels, parts)
    # A class draws the same scans whatever other classes there are.
    parts = {
        key: _some(indices, options.max_scans, numpy_generator(seed, "fidelity", "scans", *key))
        for key, indices in parts.items()
    }
    groups = _groups(
        real,
        {key: parts[key] for key in parts if key[0] != "made"},
        extractor, real_features, "real scans", options, seed, progress,
    )  # fmt: skip
    groups |= _groups(
        synthetic,
        {key: parts[key] for key in parts if key[0] == "made"},
        extractor, synthetic_features, "synthetic scans", options, seed, progress,
    )  # fmt: skip
    width = next(iter(groups.values())).features.shape[1]
    # FID is defined on one picture a scan: with several, features of all of them stand in a row.
    fid = bool(getattr(extractor, "fid", False)) and width == _FID_WIDTH
    levels = multiscale_levels(real.scans.shape[2:])
    subjects: list[str | None] = [*labels, None] if len(labels) > 1 else [*labels]
    return FidelityResult(
        rows=tuple(
            _row(label, labels, counts, groups, options, seed, fid=fid)
            for label in tqdm(subjects, desc="comparing", unit="class", disable=not progress)
        ),
        absent=tuple(label for label in rows_of if label not in made),
        sheets=tuple(
            _sheet(real, synthetic, label, parts, options, seed) for label in labels if options.sheet_scans > 0
        ),
        extractor=extractor.name,
        extractor_title=extractor.title,
        extractor_sha256=extractor.sha256,
        feature_count=width,
        left_out=_left_out(real.scans.shape[2:]),
        scales=multiscale_weights(levels) if levels > 1 else (),
        options=options,
        seed=seed,
    )


def check_options(options: FidelityOptions) -> None:
    """Raise `ConfigError` that names the first option below the least that lets anything be told."""
    for name, least in _LEAST.items():
        if (value := getattr(options, name)) < least:
            raise ConfigError(f"fidelity.{name}: need {least} or more, got {value}; try {getattr(_DEFAULTS, name)}")


def _check(real: RealScans, synthetic: LabelledScans) -> None:
    if len(synthetic.scans) == 0:
        raise DataError("synthetic set: need at least one scan, got none")
    unknown = sorted(set(_by_class(synthetic)) - set(real.classes))
    if unknown:
        raise DataError(
            f"synthetic set: need classes among {', '.join(real.classes)}, got {', '.join(unknown)}; try renaming labels"
        )
    if real.scans.shape[1:] != synthetic.scans.shape[1:]:
        raise DataError(
            f"synthetic set: need scans of shape {real.scans.shape[1:]} like the real ones, "
            f"got {synthetic.scans.shape[1:]}; try one grid for both"
        )


def _by_class(scans: LabelledScans) -> dict[str, np.ndarray]:
    """Return the indices of the scans of each class that has any."""
    labels = np.asarray(scans.labels)
    return {scans.classes[label]: np.flatnonzero(labels == label) for label in np.unique(labels)}


def _counts(
    real: RealScans, synthetic: LabelledScans, labels: list[str], parts: dict[tuple[str, str], np.ndarray]
) -> dict[str, Counts]:
    identical = identical_scans(synthetic.scans, real.scans)
    patients = np.asarray(real.patients)
    return {
        label: Counts(
            synthetic=len(parts["made", label]),
            identical=int(identical[parts["made", label]].sum()),
            held_out=len(parts["held out", label]),
            held_out_patients=len(np.unique(patients[parts["held out", label]])),
            held_out_halves=half_size(patients[parts["held out", label]]),
        )
        for label in labels
    }


def _some(indices: np.ndarray, limit: int, generator: np.random.Generator) -> np.ndarray:
    return indices if len(indices) <= limit else np.sort(generator.permutation(indices)[:limit])


def _left_out(spatial: tuple[int, ...]) -> dict[str, str]:
    """Return why a measure cannot be taken of scans of this size."""
    size = " x ".join(map(str, spatial))
    reasons = {}
    if multiscale_levels(spatial) < 2:
        reasons["ms_ssim"] = f"scans of {size} are too small for two scales of MS-SSIM"
    if min(spatial) < _SMALLEST_TEXTURE:
        reasons["texture"] = f"scans of {size} are too small for textures"
    return reasons


def _groups(
    scans: LabelledScans | RealScans,
    parts: dict[tuple[str, str], np.ndarray],
    extractor: Extractor,
    features: np.ndarray | None,
    description: str,
    options: FidelityOptions,
    seed: int,
    progress: bool,
) -> dict[tuple[str, str], Group]:
    """Return what is compared of each part, each scan looked at once. Synthetic scans count as a patient each."""
    wanted = np.unique(np.concatenate(list(parts.values())))
    if len(wanted) == 0:
        return {}
    rows = (
        np.asarray(features[wanted], dtype=np.float32)
        if features is not None
        else extract_features(
            extractor, scans.scans, wanted, progress=progress, description=f"features of {description}"
        )
    )
    left_out = _left_out(scans.scans.shape[2:])
    intensities = intensity_histograms(scans.scans, wanted, progress=progress)
    textures = None if "texture" in left_out else texture_features(scans.scans, wanted, progress=progress).values
    patients = np.asarray(getattr(scans, "patients", np.arange(len(scans.scans))))
    measures: dict[str, Similarity] = {"ssim": structural_similarity, "ms_ssim": multiscale_similarity}
    groups = {}
    for key, indices in tqdm(parts.items(), desc=f"likeness of {description}", unit="group", disable=not progress):
        at = np.searchsorted(wanted, indices)
        pairs = random_pairs(len(indices), options.ssim_pairs, numpy_generator(seed, "fidelity", "pairs", *key))
        groups[key] = Group(
            features=rows[at],
            patients=patients[indices],
            intensities=intensities[at],
            textures=None if textures is None else textures[at],
            similarities={
                name: Similarities(
                    pairs=pairs, values=pair_similarities(scans.scans, indices[pairs], measure), count=len(indices)
                )
                for name, measure in measures.items()
                if name not in left_out
            },
        )
    return groups


def _row(
    label: str | None,
    labels: list[str],
    counts: dict[str, Counts],
    groups: dict[tuple[str, str], Group],
    options: FidelityOptions,
    seed: int,
    *,
    fid: bool,
) -> FidelityRow:
    chosen = labels if label is None else [label]
    about = ("all classes",) if label is None else ("class", label)

    def compared(reference: str, candidate: str) -> Comparison | None:
        sides = [[groups[part, name] for name in chosen if (part, name) in groups] for part in (reference, candidate)]
        if not all(map(len, sides)):
            return None
        generator = numpy_generator(seed, "fidelity", "draws", *about, reference, candidate)
        shares = [options.max_scans / max(1, sum(map(len, side))) for side in sides]
        thinned = [
            [group.thinned(share, generator) for group in side] for side, share in zip(sides, shares, strict=True)
        ]
        return compare(*thinned, options=options, generator=generator, fid=fid)

    return FidelityRow(
        label=label,
        counts=Counts.together([counts[name] for name in chosen]),
        held_out=compared("held out", "made"),
        seen=compared("seen", "made"),
        real_seen=compared("held out", "seen"),
    )


def _sheet(
    real: RealScans,
    synthetic: LabelledScans,
    label: str,
    parts: dict[tuple[str, str], np.ndarray],
    options: FidelityOptions,
    seed: int,
) -> Sheet:
    generator = numpy_generator(seed, "fidelity", "sheet", label)
    shown = synthetic.scans[generator.permutation(parts["made", label])[: options.sheet_scans]]
    training = np.flatnonzero(np.asarray(real.splits) == "train")
    nearest, distances = np.zeros((0, *shown.shape[1:])), np.zeros(0)
    if len(training):
        distances, found = nearest_distances(shown, real.scans, among=training)
        nearest = real.scans[found]
    pool = np.concatenate([parts[part, label] for part in ("held out", "seen")])
    drawn = generator.permutation(pool)[: len(shown)]
    return Sheet(
        label=label,
        real=np.asarray(real.scans[drawn], dtype=np.float32),
        nearest=np.asarray(nearest, dtype=np.float32),
        synthetic=np.asarray(shown, dtype=np.float32),
        distances=distances,
    )


def _without_nan(content: Any) -> Any:
    """Return nested dicts and lists of plain values, with None in the place of NaN and infinities."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
