"""The fidelity table: how far a synthetic set is from the real scans, class by class."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from tqdm import tqdm

from medsynth.errors import DataError
from medsynth.evaluation.arrays import HELD_OUT, SEEN, ScanArrays
from medsynth.evaluation.fidelity.comparison import (
    Comparison,
    FidelitySettings,
    Group,
    Similarities,
    compare_groups,
    half_size,
)
from medsynth.evaluation.privacy.nearness import equal_rows
from medsynth.measures.features import Extractor
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

_SMALLEST_TEXTURE = 5  # pixels along each axis
_FID_WIDTH = 2048

Parts = dict[tuple[str, str], np.ndarray]  # rows by (seen, held out or made) and class


@dataclass(frozen=True, kw_only=True)
class Counts:
    """All scans of one class, or of all classes together, before `max_scans` draws from them.

    `held_out_halves` is the number of scans that each of two halves of the held-out ones reaches without a common patient;
    `identical` of the synthetic scans equal a real scan of any class and split in every pixel of the grid. Of all classes, a
    patient with scans of two classes counts twice.
    """

    synthetic: int
    identical: int
    held_out: int
    held_out_patients: int
    held_out_halves: int


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
    """The table, and the scans for contact sheets of the rarest classes; `absent` are the real classes without synthetic scans.

    `left_out` says why a measure is missing from all rows; `scales` are the exponents of MS-SSIM, from the finest scale.
    """

    rows: tuple[FidelityRow, ...]
    absent: tuple[str, ...]
    sheets: tuple[Sheet, ...]
    extractor: Extractor
    feature_count: int
    left_out: dict[str, str]
    scales: tuple[float, ...]
    settings: FidelitySettings

    def as_dict(self) -> dict[str, Any]:
        """Return the table for `report.json`: plain values, NaN among them where a figure is not known."""
        return {
            "extractor": {
                "name": self.extractor.name,
                "title": self.extractor.title,
                "sha256": self.extractor.sha256,
                "features": self.feature_count,
            },
            "repeats": self.settings.repeats,
            "ms_ssim_weights": list(self.scales),
            "left_out": self.left_out,
            "rows": [asdict(row) for row in self.rows],
        }


def score_fidelity(
    real: ScanArrays,
    synthetic: ScanArrays,
    *,
    extractor: Extractor,
    settings: FidelitySettings = FidelitySettings(),
    seed: int = 0,
    progress: bool = True,
) -> FidelityResult:
    """Return how faithful a synthetic set is, per class, each figure beside real against real at the same number of scans.

    Classes are matched by name; those without synthetic scans are left out. Everything is a function of `seed`; features are
    those of `extractor`. `DataError` if the synthetic set is empty, has an unknown class or another grid, or if features do not
    fit the scans.
    """
    _check(real, synthetic)
    labels = [label for label in real.classes if len(synthetic.rows_of(label))]
    parts = {("made", label): synthetic.rows_of(label) for label in labels}
    for label in labels:
        parts["seen", label], parts["held out", label] = real.rows_of(label, SEEN), real.rows_of(label, HELD_OUT)
    identical = equal_rows(synthetic.scans, real.scans) >= 0
    counts = {}
    for label in labels:
        patients = real.patients[parts["held out", label]]
        counts[label] = Counts(
            synthetic=len(parts["made", label]),
            identical=int(identical[parts["made", label]].sum()),
            held_out=len(patients),
            held_out_patients=len(np.unique(patients)),
            held_out_halves=half_size(patients),
        )
    # A class draws the same scans whatever other classes there are.
    parts = {
        key: rows
        if len(rows) <= settings.max_scans
        else np.sort(numpy_generator(seed, "fidelity", "scans", *key).permutation(rows)[: settings.max_scans])
        for key, rows in parts.items()
    }
    made = {key: rows for key, rows in parts.items() if key[0] == "made"}
    seen_or_held_out = {key: rows for key, rows in parts.items() if key not in made}
    groups = _groups(real, seen_or_held_out, "real scans", settings, seed, progress)
    groups |= _groups(synthetic, made, "synthetic scans", settings, seed, progress)
    width = real.features.shape[1]
    # FID is defined on one picture per scan: with several, their features are concatenated.
    fid = bool(getattr(extractor, "fid", False)) and width == _FID_WIDTH
    levels = multiscale_levels(real.scans.shape[2:])
    subjects: list[str | None] = [*labels, None] if len(labels) > 1 else [*labels]
    return FidelityResult(
        rows=tuple(
            _row(label, counts, groups, settings, seed, fid=fid)
            for label in tqdm(subjects, desc="comparing", unit="class", disable=not progress)
        ),
        absent=tuple(label for label in real.classes if len(real.rows_of(label)) and label not in labels),
        sheets=_sheets(real, synthetic, labels, parts, settings, seed),
        extractor=extractor,
        feature_count=width,
        left_out=_left_out(real.scans.shape[2:]),
        scales=multiscale_weights(levels) if levels > 1 else (),
        settings=settings,
    )


def _check(real: ScanArrays, synthetic: ScanArrays) -> None:
    if len(synthetic.scans) == 0:
        raise DataError("synthetic set: need at least one scan, got none")
    if unknown := sorted({synthetic.classes[label] for label in np.unique(synthetic.labels)} - set(real.classes)):
        raise DataError(
            f"synthetic set: need classes among {', '.join(real.classes)}, got {', '.join(unknown)}; try renaming labels"
        )
    if real.scans.shape[1:] != synthetic.scans.shape[1:]:
        raise DataError(
            f"synthetic set: need scans of shape {real.scans.shape[1:]} like the real ones, "
            f"got {synthetic.scans.shape[1:]}; try one grid for both"
        )
    for name, side in (("real", real), ("synthetic", synthetic)):
        if side.features.ndim != 2 or len(side.features) != len(side.scans):
            raise DataError(
                f"{name} features: need one row for each of {len(side.scans)} scans, got {side.features.shape}; "
                "try extracting them again"
            )


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
    scans: ScanArrays, parts: Parts, title: str, settings: FidelitySettings, seed: int, progress: bool
) -> dict[tuple[str, str], Group]:
    """Return what is compared of each part, looking at each scan once."""
    wanted = np.unique(np.concatenate(list(parts.values())))
    if len(wanted) == 0:
        return {}
    left_out = _left_out(scans.scans.shape[2:])
    intensities = intensity_histograms(scans.scans, wanted, progress=progress)
    textures = None if "texture" in left_out else texture_features(scans.scans, wanted, progress=progress)
    measures: dict[str, Similarity] = {"ssim": structural_similarity, "ms_ssim": multiscale_similarity}
    groups = {}
    for key, rows in tqdm(parts.items(), desc=f"similarity of {title}", unit="group", disable=not progress):
        at = np.searchsorted(wanted, rows)
        pairs = random_pairs(len(rows), settings.ssim_pairs, numpy_generator(seed, "fidelity", "pairs", *key))
        groups[key] = Group(
            features=np.asarray(scans.features[rows], dtype=np.float32),
            patients=scans.patients[rows],
            intensities=intensities[at],
            textures=None if textures is None else textures[at],
            similarities={
                name: Similarities(pairs, pair_similarities(scans.scans, rows[pairs], measure), len(rows))
                for name, measure in measures.items()
                if name not in left_out
            },
        )
    return groups


def _row(
    label: str | None,
    counts: dict[str, Counts],
    groups: dict[tuple[str, str], Group],
    settings: FidelitySettings,
    seed: int,
    *,
    fid: bool,
) -> FidelityRow:
    chosen = list(counts) if label is None else [label]
    about = ("all classes",) if label is None else ("class", label)

    def compared(reference: str, candidate: str) -> Comparison | None:
        sides = [[groups[part, name] for name in chosen if (part, name) in groups] for part in (reference, candidate)]
        if not all(map(len, sides)):
            return None
        generator = numpy_generator(seed, "fidelity", "draws", *about, reference, candidate)
        thinned = []
        for side in sides:
            share = settings.max_scans / max(1, sum(map(len, side)))
            thinned.append([group.thinned(share, generator) for group in side])
        return compare_groups(*thinned, settings=settings, generator=generator, fid=fid)

    return FidelityRow(
        label=label,
        counts=Counts(
            **{item.name: sum(getattr(counts[name], item.name) for name in chosen) for item in fields(Counts)}
        ),
        held_out=compared("held out", "made"),
        seen=compared("seen", "made"),
        real_seen=compared("held out", "seen"),
    )


def _sheets(
    real: ScanArrays, synthetic: ScanArrays, labels: list[str], parts: Parts, settings: FidelitySettings, seed: int
) -> tuple[Sheet, ...]:
    """Return the contact sheets of the rarest classes, in the order of `labels`; all real training scans are read once."""
    pools = {label: np.concatenate([parts[part, label] for part in ("held out", "seen")]) for label in labels}
    rarest = set(sorted(labels, key=lambda label: len(pools[label]))[: settings.sheet_classes])
    training = np.flatnonzero(real.splits == "train")
    shown: dict[str, np.ndarray] = {}
    others: dict[str, np.ndarray] = {}
    for label in (label for label in labels if label in rarest and settings.sheet_scans):
        generator = numpy_generator(seed, "fidelity", "sheet", label)
        shown[label] = generator.permutation(parts["made", label])[: settings.sheet_scans]
        others[label] = generator.permutation(pools[label])[: len(shown[label])]
    if not shown:
        return ()
    made = np.asarray(synthetic.scans[np.concatenate(list(shown.values()))], dtype=np.float32)
    nearest, distances = np.zeros((0, *made.shape[1:]), dtype=np.float32), np.zeros(0)
    if len(training):
        distances, found = nearest_distances(made, real.scans, among=training)
        nearest = np.asarray(real.scans[found], dtype=np.float32)
    ends = np.cumsum([len(rows) for rows in shown.values()])
    return tuple(
        Sheet(
            label=label,
            real=np.asarray(real.scans[others[label]], dtype=np.float32),
            nearest=nearest[end - len(rows) : end],
            synthetic=made[end - len(rows) : end],
            distances=distances[end - len(rows) : end],
        )
        for (label, rows), end in zip(shown.items(), ends, strict=True)
    )
