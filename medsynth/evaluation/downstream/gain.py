"""The downstream gain: what a classifier of the rare class gains from a synthetic set, or that it gains nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsynth.config import DownstreamOptions
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.downstream.arms import Arm, baseline_arms, synthetic_arms
from medsynth.evaluation.downstream.experiment import Experiment, Settings, Side, content_key
from medsynth.evaluation.downstream.judging import FEW_VALIDATION, verdict_sentence
from medsynth.evaluation.downstream.probe import ProbeData, augmented_features, train_probe
from medsynth.evaluation.downstream.subgroups import attribute_columns, score_subgroups
from medsynth.evaluation.downstream.task import Task, make_task
from medsynth.evaluation.downstream.tiers import ScoreBook, Tier, full_tier, run_tier, tier_dict
from medsynth.measures.features import Extractor


@dataclass(frozen=True, kw_only=True, eq=False)
class DownstreamResult:
    """What `score_downstream` found."""

    report: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the part `downstream` of `report.json`."""
        return self.report

    def verdict(self) -> dict[str, Any]:
        """Return `verdict` (`gain`, `no gain`, `harm`, `cannot tell`) and `sentence`, which states it with its figures."""
        return dict(self.report["verdict"])


def check_downstream(options: DownstreamOptions) -> None:
    """Raise `ConfigError` for options that allow no verdict, before anything is read."""
    if not options.shares:
        raise ConfigError("downstream.shares: need a share, got none; try 0.25,0.5,0.75")
    if not options.arms:
        raise ConfigError("downstream.arms: need one of rare, all and pretrain, got none")


def score_downstream(
    real: Side,
    synthetic: Side,
    *,
    options: DownstreamOptions,
    folder: Path,
    seed: int = 0,
    progress: bool = True,
    extractor: Extractor | None = None,
    further: Side | None = None,
    settings: Settings = Settings(),
) -> DownstreamResult:
    """Return what a synthetic set is worth for detecting its rare class.

    Arms, all with the same classifier and optimiser steps: cheap baselines (ways of balancing, with and without classical
    augmentation and mixup), of which validation chooses the strongest; on top of it synthetic scans in several shares, and
    pretraining on them, of which validation chooses again; and controls. With the `extractor` that made the features, baselines
    with classical augmentation take part in the probe tier too. `further` are real scans beyond the cohort; the baseline with
    those of the rare class is the ceiling. Scores of every training are written below `folder`, keyed by content, and read by a
    second call. Test scans choose nothing.

    Raises `ConfigError` for options that allow no verdict, `DataError` for cohorts without a task (`make_task`).
    """
    check_downstream(options)
    for name, side in (("real", real), ("synthetic", synthetic), ("further", further)):
        if side is not None and len(side.features) != len(side.prepared.labels):
            raise DataError(
                f"{name}: need a row of features for each of {len(side.prepared.labels)} scans, got {len(side.features)}"
            )
    task = make_task(
        real.prepared,
        synthetic.prepared,
        rare_class=options.rare_class,
        further=None if further is None else further.prepared,
    )
    columns = attribute_columns(real.prepared, task.test.rows, options.subgroups)
    experiment = Experiment(
        task=task, real=real, synthetic=synthetic, further=further, options=options, settings=settings,
        folder=Path(folder), seed=seed, progress=progress,
    )  # fmt: skip
    copies = None
    if extractor is not None and settings.probe.copies:
        copies = augmented_features(experiment, extractor, content_key(experiment.key, extractor.sha256))
    used = extractor.sha256 if extractor is not None and copies is not None else None
    probe = _probe_tier(experiment, copies, content_key(experiment.key, asdict(settings.probe), used))
    tiers = [probe]
    if options.tier == "full":
        tiers.append(full_tier(experiment, probe))
    final = tiers[-1]
    subgroups = score_subgroups(
        final.comparer,
        task,
        columns,
        first=final.synthetic,
        second=final.baseline,
        least=max(5, settings.least_patients // 4),
    )
    harmed = [f"{group['column']} = {group['value']}" for group in subgroups["groups"] if group["verdict"] == "harm"]
    judgement = final.judgement
    sentence = verdict_sentence(
        judgement, final.against_baseline, task, baseline=final.baseline, harmed=harmed, tier=final.name
    )
    report = {
        "task": task.counts(),
        "tier": final.name,
        "seeds": options.seeds,
        "specificity": settings.specificity,
        "tiers": [tier_dict(tier, task) for tier in tiers],
        "subgroups": subgroups,
        "notes": _notes(task, options, augmented=copies is not None),
        "verdict": {
            "verdict": judgement.verdict,
            "figures": list(judgement.figures),
            "harmed_subgroups": harmed,
            "sentence": sentence,
        },
        "options": asdict(options),
        "settings": asdict(settings),
    }
    return DownstreamResult(report=report)


def _probe_tier(experiment: Experiment, copies: np.ndarray | None, key: str) -> Tier:
    """Return the probe tier with all arms trained, also those that take no part in the choice."""
    task, options, settings = experiment.task, experiment.options, experiment.settings
    features = [side.features for side in experiment.sides]
    data = ProbeData.of(task, experiment.table, features, components=settings.probe.components, copies=copies)
    common = any(len(pool.synthetic) for pool in task.common)
    baselines = baseline_arms(augment=copies is not None)

    def train(arm: Arm, repeats: range) -> tuple[np.ndarray, np.ndarray]:
        return train_probe(task, experiment.table, data, arm, seed=experiment.seed, repeats=repeats, settings=settings)

    def candidates(baseline: Arm) -> list[Arm]:
        return synthetic_arms(baseline.recipe, options.shares, common=common, kinds=options.arms)

    further = len(task.rare.further) > 0
    arms = len(baselines) + len(candidates(baselines[0])) + 2 + further
    with experiment.progress_bar("training probes", arms) as bar:
        book = ScoreBook(
            folder=experiment.folder,
            key=key,
            train=train,
            seeds=options.seeds,
            sizes=(len(task.validation.rows), len(task.test.rows)),
            together=True,
            bar=bar,
        )
        probe = run_tier("probe", experiment, book, baselines, candidates)
        # Real scans only of classes that the set lacks.
        recipe = book.arms[probe.baseline].recipe
        book.run([Arm(name="synthetic_only", kind="control", recipe=recipe, rare_share=1.0, common_share=1.0)])
        if further:
            book.run([Arm(name="ceiling", kind="ceiling", recipe=recipe, further=True)])
    return probe


def _notes(task: Task, options: DownstreamOptions, *, augmented: bool) -> list[str]:
    notes = []
    rare = task.validation.rare_patients
    if rare < FEW_VALIDATION:
        notes.append(
            f"The choice of baseline and share is uncertain: validation has {rare} "
            f"{'patient' if rare == 1 else 'patients'} of {task.rare_class}, {FEW_VALIDATION} or more would be better."
        )
    if not any(len(pool.synthetic) for pool in task.common):
        notes.append(
            "The set has synthetic scans of the rare class only, so a classifier may learn that synthetic means rare."
        )
    if not augmented:
        notes.append("The probe tier has no baselines with classical augmentation: no augmented copies were extracted.")
    if options.seeds < 5:
        notes.append(f"{options.seeds} trainings of each arm show little of how results vary; 5 or more are better.")
    return notes
