"""`medsynth select`: the scans of a synthetic set that a classifier of real scans takes for their class, and that copy nobody."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from medsynth.cohorts import Cohort, PreparedCohort, hash_cohort, prepare_cohort, write_cohort
from medsynth.config import (
    FeatureOptions,
    GridOptions,
    IntensityOptions,
    PrivacyOptions,
    ProbeOptions,
    ReadingOptions,
    changed_options,
)
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.downstream.probe import rate_factor
from medsynth.evaluation.features import cached_features
from medsynth.evaluation.handover import root_row
from medsynth.evaluation.inputs import PROVENANCE_FILE, check_run, open_real, open_synthetic, read_provenance
from medsynth.evaluation.privacy.gate import donor_rows
from medsynth.evaluation.privacy.nearness import measure_nearness
from medsynth.files import write_json
from medsynth.measures.distances import Projection
from medsynth.measures.extractors import open_extractor
from medsynth.runs import Run
from medsynth.scans import Intensity, read_header
from medsynth.seeds import numpy_generator

SelectBy = Literal["classifier", "distance", "both"]
_FEW = 8  # held-out scans of a class below which those of all classes say what is near


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The selected set, its CSV, and of each class how many scans there were, left for either reason, and were kept."""

    cohort: Cohort
    file: Path
    classes: Mapping[str, Mapping[str, Any]]

    def summary(self) -> str:
        """Return what was kept, class by class."""
        lines = [
            f"{label}: {found['kept']} of {found['scans']} scans kept; {found['too_near']} nearer to a training scan than "
            f"held-out scans are, {found['less_likely']} less likely of their class"
            for label, found in self.classes.items()
        ]
        return "\n".join([*lines, f"cohort: {self.file}"])


def select_scans(
    real: Path,
    synthetic: Path,
    out: Path,
    *,
    share: float = 0.5,
    by: SelectBy = "both",
    min_distance: float = 0.05,
    run: Run | None = None,
    grid: GridOptions | None = None,
    intensity: IntensityOptions | None = None,
    features: FeatureOptions = FeatureOptions(),
    reading: ReadingOptions = ReadingOptions(),
    cache_dir: Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Selection:
    """Write the cohort of the selected scans into the folder `out`, with the provenance of their set, and return it.

    First go scans nearer to a training scan than the quantile `min_distance` of held-out real ones, then of each class those
    with the lowest probability of it, until the `share` of the class is left. The classifier and the distances know real
    training scans only; of val scans nothing but their distances to these is used, class by class, and of test scans nothing.
    Scans stay where they are: rows name their folder as a root, and their probability and distance. The grid and the range are
    chosen as in `evaluate_cohorts`. A second call with the same options writes the same.

    Raises `ConfigError` for options that leave nothing to select by, or a folder with other files; `DataError` for cohorts that
    cannot be compared, a set of another run, or a class of which nothing would be left.
    """
    _check_options(share, by, min_distance)
    real_cohort = open_real(real)
    made = open_synthetic(synthetic, real_cohort)
    if run is not None:
        check_run(made, run)
    provenance = read_provenance(made)
    extractor = open_extractor(features)
    rule = {
        "by": by,
        "share": None if by == "distance" else share,
        "min_distance": None if by == "classifier" else min_distance,
        "features": None if by == "distance" else extractor.sha256,
        "seed": seed,
        **{
            name: hash_cohort(cohort, cache_dir=cache_dir, progress=progress)
            for name, cohort in (("real", real_cohort), ("synthetic", made))
        },
    }
    _refuse_other_files(out, rule)
    shared = grid or (run.grid if run else _grid_of(made, reading))
    chosen: IntensityOptions | Intensity = intensity or (run.spec.intensity if run else IntensityOptions())
    known = prepare_cohort(
        real_cohort, grid=shared, intensity=chosen, reading=reading, cache_dir=cache_dir, progress=progress
    )
    # As in an evaluation, whose files are used again.
    laid = replace(shared, centre="scan")
    new = prepare_cohort(
        made, grid=laid, intensity=known.intensity, reading=reading, cache_dir=cache_dir, progress=progress
    )
    labels = np.array([known.classes.index(label) for label in new.classes])[new.labels]
    probability = distance = limits = None
    if by != "distance":
        _check_classes(known, labels)
        one, other = (
            cached_features(
                prepared, extractor, folder=cohort.folder / ".medsynth_cache" if cache_dir is None else cache_dir,
                progress=progress, description=f"features of {name} scans",
            )
            for prepared, cohort, name in ((known, real_cohort, "real"), (new, made, "synthetic"))
        )  # fmt: skip
        train = known.indices("train")
        found = class_probabilities(
            one[train], known.labels[train], other, classes=len(known.classes), seed=seed, progress=progress
        )
        probability = found[np.arange(len(labels)), labels]
    if by != "classifier":
        distance, limits = _distances(known, new, labels, min_distance, progress=progress)
    near = np.zeros(len(labels), dtype=bool) if distance is None or limits is None else distance < limits[labels]
    kept = choose_scans(labels, near=near, probability=probability, share=share)
    classes = {
        known.classes[label]: _describe(labels == label, near, kept, probability, limits, label)
        for label in np.unique(labels)
    }
    for label, figures in classes.items():
        if not figures["kept"]:
            raise DataError(
                f"{synthetic}: need scans of {label} that are not too near to training scans, got none of {figures['scans']}; "
                "try a smaller --min_distance, or a generator trained for fewer steps"
            )
    columns = {"selection_probability": probability, "selection_distance": distance}
    roots: dict[str, Path] = {}
    rows = []
    for number in np.flatnonzero(kept):
        row = root_row(made.rows[number], made, "synthetic", "1", roots, made.rows[number].split)
        figures = {
            name: f"{values[number]:.5f}"
            for name, values in columns.items()
            if values is not None and np.isfinite(values[number])
        }
        rows.append(replace(row, attributes={**row.attributes, **figures}))
    cohort = Cohort(folder=out.absolute(), rows=tuple(rows), roots=roots)
    before = {"before": provenance["selection"]} if "selection" in provenance else {}
    selection = {"rule": rule, "classes": classes, **before}
    counts = {label: figures["kept"] for label, figures in classes.items()}
    write_json(out / PROVENANCE_FILE, {"synthetic": True} | provenance | {"counts": counts, "selection": selection})
    write_cohort(cohort, out / "cohort.csv")
    return Selection(cohort=cohort, file=out / "cohort.csv", classes=classes)


def choose_scans(
    labels: np.ndarray, *, near: np.ndarray, probability: np.ndarray | None = None, share: float = 1.0
) -> np.ndarray:
    """Return which scans are kept, bool `(M,)`: those not `near`, and of each class at most the `share` that is likeliest.

    `share` is of all scans of the class, at least one.
    """
    kept = ~near
    if probability is None:
        return kept
    for label in np.unique(labels):
        mine = labels == label
        left = np.flatnonzero(mine & kept)
        order = left[np.argsort(-probability[left], kind="stable")]
        kept[order[max(1, round(share * int(mine.sum()))) :]] = False
    return kept


def class_probabilities(
    features: np.ndarray,
    labels: np.ndarray,
    others: np.ndarray,
    *,
    classes: int,
    options: ProbeOptions = ProbeOptions(),
    seed: int = 0,
    progress: bool = False,
) -> np.ndarray:
    """Return the probability of each class for the scans behind `others` `(M, D)`, `(M, classes)`.

    A linear head with a softmax is trained as the probe of the downstream gain is, on `features` `(N, D)` of real training scans
    along their principal axes; scans are drawn so that each of the `labels` `(N,)` occurs equally often.
    """
    axes = Projection.fit(features, min(options.components, *features.shape))
    scale = float(np.sqrt(np.mean(np.square(axes.project(features))))) or 1.0
    own, new = (
        torch.from_numpy((axes.project(np.asarray(each)) / scale).astype(np.float32)) for each in (features, others)
    )
    truth = torch.from_numpy(labels.astype(np.int64))
    weights = 1.0 / np.bincount(labels, minlength=classes)[labels]
    draws = numpy_generator(seed, "selection", "draws")
    head = torch.nn.Linear(own.shape[1], classes)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimiser = torch.optim.AdamW(head.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    for step in tqdm(range(options.steps), desc="classifier of real scans", unit="step", disable=not progress):
        batch = torch.from_numpy(draws.choice(len(labels), options.batch_size, p=weights / weights.sum()))
        optimiser.param_groups[0]["lr"] = options.learning_rate * rate_factor(step, options.steps)
        optimiser.zero_grad()
        cross_entropy(head(own[batch]), truth[batch]).backward()
        optimiser.step()
    with torch.no_grad():
        logits = head(new)
    # A class without training scans is no answer.
    logits[:, np.bincount(labels, minlength=classes) == 0] = -torch.inf
    return logits.double().softmax(dim=1).numpy()


def selection_note(provenance: Mapping[str, Any]) -> str | None:
    """Return a sentence on the selection that the provenance of a set names; None for a set as it was made."""
    try:
        found = provenance["selection"]["classes"].values()
        kept, scans = (sum(int(figures[name]) for figures in found) for name in ("kept", "scans"))
        rule = provenance["selection"]["rule"]["by"]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    means = {"classifier": "a classifier of real training scans", "distance": "their distance to training scans"}
    words = " and ".join(means.values()) if rule == "both" else means.get(rule, "an unknown rule")
    return (
        f"{kept} of {scans} generated scans were selected by {words}: every figure is about these, and such a set is less varied "
        "than what its generator makes."
    )


def _distances(
    known: PreparedCohort, new: PreparedCohort, labels: np.ndarray, quantile: float, *, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each new scan to the nearest training scan, `(M,)`, and the limit of each class.

    Distances are those of the privacy gate, which a flip or a shift do not change; an edit's are to others than its donor.
    """
    held, train = known.indices("val"), known.indices("train")
    if len(held) == 0:
        raise DataError("real: need val scans to tell how near is too near, got none; try --by classifier")
    options = PrivacyOptions()
    donors = donor_rows(new, len(known.scans))
    found = measure_nearness(
        new.scans, known.scans, among=train, patients=known.patients, options=options,
        barred=np.where(donors >= 0, known.patients[donors], -1), progress=progress,
        title="synthetic against training scans",
    ).pixels  # fmt: skip
    typical = measure_nearness(
        known.scans, known.scans, rows=held, among=train, patients=known.patients, options=options, progress=progress,
        title="held-out against training scans",
    ).pixels  # fmt: skip
    limits = np.full(len(known.classes), np.quantile(typical, quantile))
    for label in np.unique(labels):
        of_class = typical[known.labels[held] == label]
        if len(of_class) >= _FEW:
            limits[label] = np.quantile(of_class, quantile)
    return found, limits


def _describe(
    mine: np.ndarray,
    near: np.ndarray,
    kept: np.ndarray,
    probability: np.ndarray | None,
    limits: np.ndarray | None,
    label: int,
) -> dict[str, Any]:
    """Return the counts and thresholds of a class, as plain values."""
    some = bool((mine & kept).any())
    return {
        "scans": int(mine.sum()),
        "too_near": int((mine & near).sum()),
        "less_likely": int((mine & ~near & ~kept).sum()),
        "kept": int((mine & kept).sum()),
        "share": round(float(kept[mine].mean()), 5),
        "distance": None if limits is None else round(float(limits[label]), 5),
        "probability": None if probability is None or not some else round(float(probability[mine & kept].min()), 5),
    }


def _check_options(share: float, by: str, min_distance: float) -> None:
    if not 0 < share <= 1:
        raise ConfigError(f"share: need a number above 0, up to 1, got {share}; try 0.5")
    if not 0 <= min_distance < 1:
        raise ConfigError(f"min_distance: need a quantile from 0 to below 1, got {min_distance}; try 0.05")
    if by == "classifier" and share == 1:
        raise ConfigError("share: need a share below 1 to select by the classifier, got 1; try 0.5")


def _check_classes(known: PreparedCohort, labels: np.ndarray) -> None:
    counts = np.bincount(known.labels[known.indices("train")], minlength=len(known.classes))
    if missing := [known.classes[label] for label in np.unique(labels) if not counts[label]]:
        raise DataError(f"real: need training scans of {missing[0]} for a classifier, got none; try --by distance")
    if (counts > 0).sum() < 2:
        raise DataError("real: need training scans of two classes for a classifier, got one; try --by distance")


def _refuse_other_files(out: Path, rule: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless `out` is a new folder, or one with this very selection."""
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        previous = json.loads((out / PROVENANCE_FILE).read_text(encoding="utf-8"))["selection"]["rule"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{out}: need a new folder or this selection again, got other files; try another --out"
        ) from error
    if changed := changed_options(previous, rule):
        raise ConfigError(
            f"{out}: need the options this selection was made with, got {'; '.join(changed)}; try another --out"
        )


def _grid_of(cohort: Cohort, reading: ReadingOptions) -> GridOptions:
    return GridOptions(size=read_header(cohort.file_of(cohort.rows[0]), reading=reading).shape[1:], fit="pad")
