"""The downstream gain: what a classifier of the rare class gains from a synthetic set, or that it gains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsynth.config import DownstreamOptions
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.downstream.arms import (
    Table,
    baseline_arms,
    ceiling_arm,
    curve_arm,
    synthetic_arms,
    synthetic_only,
)
from medsynth.evaluation.downstream.judging import FEW_VALIDATION
from medsynth.evaluation.downstream.learning_curve import CurvePoint, curve_dict, parse_curve, worth_sentence
from medsynth.evaluation.downstream.perturbation import check_classical
from medsynth.evaluation.downstream.probe import ProbeData, augmented_features, train_probe
from medsynth.evaluation.downstream.scoring import ScoreBook, content_key
from medsynth.evaluation.downstream.sentences import verdict_sentence
from medsynth.evaluation.downstream.subgroups import Subgroup, attribute_columns, score_subgroups
from medsynth.evaluation.downstream.task import Task, TaskScans, make_task
from medsynth.evaluation.downstream.tiers import Tier, full_tier, run_tier, tier_dict, training_bar
from medsynth.measures.features import Extractor

_LEAST_SEEDS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class DownstreamResult:
    """What `score_downstream` found."""

    report: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the part `downstream` of `report.json`."""
        return self.report

    def verdict(self) -> dict[str, Any]:
        """Return `reading` (`gain`, `no gain`, `harm`, `cannot tell`) and `sentence`, which says it with its figures."""
        return dict(self.report["verdict"])


def check_downstream(options: DownstreamOptions) -> None:
    """Raise `ConfigError` for options that leave nothing to tell, before anything is read."""
    for name, value, least in (
        ("seeds", options.seeds, _LEAST_SEEDS),
        ("resamples", options.resamples, 100),
        ("least_patients", options.least_patients, 1),
        ("probe.steps", options.probe.steps, 1),
        ("probe.batch_size", options.probe.batch_size, 2),
        ("probe.components", options.probe.components, 1),
        ("probe.copies", options.probe.copies, 0),
        ("probe.augmented_scans", options.probe.augmented_scans, 1),
        ("classifier.steps", options.classifier.steps, 1),
        ("classifier.batch_size", options.classifier.batch_size, 2),
        ("classifier.finalists", options.classifier.finalists, 1),
        ("classifier.width", options.classifier.width, 4),
        ("classifier.lite0_side", options.classifier.lite0_side, 32),
    ):
        if value < least:
            raise ConfigError(f"downstream.{name}: need at least {least}, got {value}")
    if not options.shares or not all(0 < share <= 1 for share in options.shares):
        raise ConfigError(f"downstream.shares: need shares above 0 and up to 1, got {list(options.shares)}")
    if not options.arms:
        raise ConfigError("downstream.arms: need one of rare, all and pretrain, got none; try the default")
    if not 0 < options.specificity < 1:
        raise ConfigError(f"downstream.specificity: need a share between 0 and 1, got {options.specificity}")
    if options.mixup <= 0:
        raise ConfigError(f"downstream.mixup: need a number above 0, got {options.mixup}")
    parse_curve(options.learning_curve)


def score_downstream(
    real: TaskScans,
    synthetic: TaskScans,
    *,
    real_features: np.ndarray,
    synthetic_features: np.ndarray,
    options: DownstreamOptions,
    folder: Path,
    seed: int = 0,
    progress: bool = True,
    extractor: Extractor | None = None,
    further: TaskScans | None = None,
    further_features: np.ndarray | None = None,
) -> DownstreamResult:
    """Return what a synthetic set is worth for telling its rare class from the rest.

    Arms, all with the same classifier and optimiser steps: cheap baselines (ways of balancing, with and without classical
    augmentation and mixup), of which validation chooses the strongest; on top of it synthetic scans in several shares, and
    pretraining on them, of which validation chooses again; and controls. Features `(N, D)` are those of the cohorts' rows; with
    the `extractor` that made them, baselines with classical augmentation take part in the probe tier too. `further` are real
    scans beyond the cohort, whose rare class extends the learning curve and gives a ceiling. Scores of every training
    are written below `folder`, keyed by content, and read by a second call. Test scans choose nothing.

    Raises `ConfigError` for options that leave nothing to tell, `DataError` for cohorts without a task (`make_task`).
    """
    check_downstream(options)
    check_classical(options.classical, real.scans.ndim - 2)
    for name, scans, features in (
        ("real_features", real, real_features),
        ("synthetic_features", synthetic, synthetic_features),
        ("further_features", further, further_features),
    ):
        if scans is not None and (features is None or len(features) != len(scans.labels)):
            raise DataError(f"{name}: need a row for each of {len(scans.labels)} scans, got {_count(features)}")
    task = make_task(real, synthetic, rare_class=options.rare_class, further=further)
    columns = attribute_columns(real, task.test.rows, options.subgroups)
    table = Table.of(task)
    key = content_key(
        real.key,
        synthetic.key,
        "" if further is None else further.key,
        *(each for each in (real_features, synthetic_features, further_features) if each is not None),
        # Not the labels of the test split: nothing that is kept depends on them.
        *(task.validation.truth, task.validation.rows, task.test.rows, table.real, table.synthetic, table.further),
        table.rare,
        task.rare.patients,
        task.rare.further_patients,
        [options.mixup, asdict(options.classical), seed],
    )
    folder = Path(folder)
    copies = None
    if extractor is not None and options.probe.copies:
        copies = augmented_features(
            task,
            table,
            real.scans,
            synthetic.scans,
            extractor,
            options=options,
            folder=folder,
            key=content_key(key, extractor.sha256),
            seed=seed,
            progress=progress,
        )
    data = ProbeData.of(
        task,
        table,
        real_features,
        synthetic_features,
        further_features,
        components=options.probe.components,
        copies=copies,
    )
    curve = parse_curve(options.learning_curve)
    with training_bar("training probes", progress) as bar:
        book = ScoreBook(
            folder=folder,
            key=content_key(key, asdict(options.probe), extractor.sha256 if extractor and copies is not None else None),
            train=lambda arm, repeats: train_probe(task, table, data, arm, options=options, seed=seed, repeats=repeats),
            seeds=options.seeds,
            sizes=(len(task.validation.rows), len(task.test.rows)),
            together=True,
            bar=bar,
        )
        baselines = baseline_arms(augment=copies is not None)
        common = any(len(pool.synthetic) for pool in task.common)
        candidates = len(synthetic_arms(baselines[0].recipe, options.shares, common=common, kinds=options.arms))
        bar.total = options.seeds * (len(baselines) + candidates + 2 + len(curve) + (further is not None))
        probe = run_tier(
            "probe",
            task,
            book,
            baselines,
            lambda chosen: synthetic_arms(chosen.recipe, options.shares, common=common, kinds=options.arms),
            options=options,
            seed=seed,
        )
        recipe = book.arms[probe.baseline].recipe
        book.run([synthetic_only(recipe)])
        points, left_out = _curve_points(task, book, probe, curve, further is not None)
        bar.total = bar.n
    tiers = [probe]
    if options.tier == "full":
        tiers.append(
            full_tier(
                task, table, probe, real, synthetic, further, key=key, folder=folder, options=options, seed=seed,
                progress=progress,
            )
        )  # fmt: skip
    final = tiers[-1]
    groups, small = score_subgroups(
        final.comparer,
        task,
        columns,
        first=final.synthetic,
        second=final.baseline,
        least=max(5, options.least_patients // 4),
    )
    curve_part = None
    if points:
        own = len(np.unique(task.rare.patients))
        curve_part = curve_dict(points, probe.comparer.figures(probe.synthetic))
        curve_part["real_patients"] = own
        curve_part["sentence"] = worth_sentence(curve_part, own)
    report = {
        "task": task.counts(),
        "tier": final.name,
        "seeds": options.seeds,
        "specificity": options.specificity,
        "tiers": [tier_dict(tier, task) for tier in tiers],
        "subgroups": {"groups": [group.as_dict() for group in groups], "too_small": small},
        "learning_curve": curve_part,
        "notes": _notes(task, options, curve_left_out=left_out, augmented=copies is not None),
        "verdict": _verdict_dict(final, task, groups),
        "options": asdict(options),
    }
    return DownstreamResult(report=report)


def _curve_points(
    task: Task, book: ScoreBook, probe: Tier, curve: Sequence[int], beyond: bool
) -> tuple[list[CurvePoint], list[int]]:
    """Train the baseline with fewer (or further) rare patients; return the points, and the numbers that do not exist."""
    recipe = book.arms[probe.baseline].recipe
    own = len(np.unique(task.rare.patients))
    existing = own + len(np.unique(task.rare.further_patients))
    arms = {number: curve_arm(recipe, number) for number in curve if number <= existing and number != own}
    if beyond and existing > own:
        ceiling = ceiling_arm(recipe, existing)
        arms[existing] = ceiling
        book.run([ceiling])
    book.run(list(arms.values()))
    if not curve and not beyond:
        return [], []
    names = {number: arm.name for number, arm in arms.items()} | {own: probe.baseline}
    points = [
        CurvePoint(patients=number, figures=probe.comparer.figures(name)) for number, name in sorted(names.items())
    ]
    left_out = [number for number in curve if number > existing]
    return (points if len(points) > 1 else []), left_out


def _verdict_dict(tier: Tier, task: Task, groups: Sequence[Subgroup]) -> dict[str, Any]:
    harmed = [f"{group.column} = {group.value}" for group in groups if group.reading == "harm"]
    return {
        "reading": tier.verdict.reading,
        "figures": list(tier.verdict.figures),
        "harmed_subgroups": harmed,
        "sentence": verdict_sentence(
            tier.verdict, tier.against_baseline, task, baseline=tier.baseline, harmed=harmed, tier=tier.name
        ),
    }


def _notes(task: Task, options: DownstreamOptions, *, curve_left_out: Sequence[int], augmented: bool) -> list[str]:
    notes = []
    rare = task.validation.rare_patients
    if rare < FEW_VALIDATION:
        notes.append(
            f"Validation has {rare} {'patient' if rare == 1 else 'patients'} of {task.rare_class}: the choice of baseline "
            f"and share rests on few; {FEW_VALIDATION} or more would make it firmer."
        )
    if not any(len(pool.synthetic) for pool in task.common):
        notes.append(
            "The set has synthetic scans of the rare class only, so looking synthetic may become part of being rare."
        )
    if not augmented:
        notes.append(
            "No augmented copies were extracted: baselines with classical augmentation took no part in the probe."
        )
    if curve_left_out:
        numbers = ", ".join(str(number) for number in curve_left_out)
        notes.append(f"The learning curve leaves out {numbers}: there are not so many real rare training patients.")
    if options.seeds < 5:
        notes.append(f"{options.seeds} trainings of each arm say little about how they scatter; 5 or more are better.")
    return notes


def _count(features: np.ndarray | None) -> str:
    return "none" if features is None else str(len(features))
