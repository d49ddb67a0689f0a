"""One tier of the downstream comparison: arms are trained, the strongest are chosen on validation, and compared on test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medsynth.config import DownstreamOptions
from medsynth.evaluation.downstream.arms import Arm, Table, duplicate_control
from medsynth.evaluation.downstream.judging import (
    Comparer,
    Difference,
    Verdict,
    choose,
    estimate_dict,
    judge,
    validation_figures,
)
from medsynth.evaluation.downstream.scoring import ScoreBook, content_key
from medsynth.evaluation.downstream.task import Task, TaskScans


@dataclass(frozen=True, kw_only=True, eq=False)
class Tier:
    """All arms of one tier, trained; `baseline` and `synthetic` were chosen on validation, `control` duplicates the latter."""

    name: str
    book: ScoreBook
    comparer: Comparer
    real: str
    baseline: str
    synthetic: str
    control: str
    against_baseline: Difference
    against_control: Difference
    verdict: Verdict


def run_tier(
    name: str,
    task: Task,
    book: ScoreBook,
    baselines: Sequence[Arm],
    candidates: Callable[[Arm], Sequence[Arm]],
    *,
    options: DownstreamOptions,
    seed: int,
) -> Tier:
    """Train the baselines, choose the strongest on validation, train the candidates on top of it, choose again, compare.

    `baselines` begin with plain training on real scans (one for each network).
    """
    book.run(baselines)
    baseline = choose(task.validation, book.scores, [arm.name for arm in baselines])
    chosen = book.arms[baseline]
    synthetic = list(candidates(chosen))
    book.run(synthetic)
    best = choose(task.validation, book.scores, [arm.name for arm in synthetic])
    control = duplicate_control(book.arms[best])
    book.run([control])
    real = next(arm.name for arm in baselines if arm.recipe == baselines[0].recipe and arm.network == chosen.network)
    comparer = Comparer(task, book.scores, options=options, seed=seed)
    against_baseline, against_control = (
        comparer.difference(best, other, secondary=False) for other in (baseline, control.name)
    )
    return Tier(
        name=name,
        book=book,
        comparer=comparer,
        real=real,
        baseline=baseline,
        synthetic=best,
        control=control.name,
        against_baseline=against_baseline,
        against_control=against_control,
        verdict=judge(task, against_baseline, against_control, least_patients=options.least_patients),
    )


def full_tier(
    task: Task,
    table: Table,
    probe: Tier,
    real: TaskScans,
    synthetic: TaskScans,
    further: TaskScans | None,
    *,
    key: str,
    folder: Path,
    options: DownstreamOptions,
    seed: int,
    progress: bool,
) -> Tier:
    """Train the finalists of the probe tier on pixels: plain training and the best baselines, then the best synthetic arms.

    Baselines with every network compete on validation; the synthetic arms take the recipe and the network of the strongest.
    """
    # Only here: the networks take seconds to import.
    from medsynth.evaluation.downstream.classifier import PixelTrainer, usable_networks

    chosen = options.classifier
    networks = usable_networks(options, real.scans.ndim - 2)
    trainer = PixelTrainer(
        task,
        table,
        (real.scans, synthetic.scans, None if further is None else further.scans),
        options=options,
        seed=seed,
    )

    def train(arm: Arm, repeats: range) -> tuple[np.ndarray, np.ndarray]:
        found = [trainer(arm, repeat) for repeat in repeats]
        return np.stack([each[0] for each in found]), np.stack([each[1] for each in found])

    def best(kind: str) -> list[Arm]:
        known = [arm for arm in probe.book.arms.values() if arm.kind == kind]
        figures = {
            arm.name: validation_figures(task.validation, probe.book.scores[arm.name].validation)["criterion"]
            for arm in known
        }
        return sorted(known, key=lambda arm: -figures[arm.name])[: chosen.finalists]

    plain = probe.book.arms[probe.real]
    finalists = [plain, *(arm for arm in best("baseline") if arm != plain)]
    baselines = [arm.on(network) for arm in finalists for network in networks]
    trained = {name: value for name, value in asdict(chosen).items() if name not in ("networks", "finalists", "device")}
    with training_bar("training classifiers", progress) as bar:
        bar.total = options.seeds * (len(baselines) + len(best("synthetic")) + 1)
        book = ScoreBook(
            folder=folder,
            key=content_key(key, trained),
            train=train,
            seeds=options.seeds,
            sizes=(len(task.validation.rows), len(task.test.rows)),
            together=False,
            bar=bar,
        )
        return run_tier(
            "full",
            task,
            book,
            baselines,
            lambda base: [replace(arm, recipe=base.recipe).on(base.network) for arm in best("synthetic")],
            options=options,
            seed=seed,
        )


def tier_dict(tier: Tier, task: Task) -> dict[str, Any]:
    """Return the arms of a tier and the differences of the chosen one, for the report."""
    arms = []
    for name, arm in tier.book.arms.items():
        figures = tier.comparer.figures(name)
        arms.append(
            {
                "name": name,
                "kind": arm.kind,
                "network": arm.network,
                "recipe": arm.recipe.name,
                "rare_share": arm.rare_share,
                "common_share": arm.common_share,
                "chosen": {tier.baseline: "baseline", tier.synthetic: "synthetic"}.get(name),
                "validation": validation_figures(task.validation, tier.book.scores[name].validation),
                "test": {figure: estimate_dict(each.estimate()) for figure, each in figures.items()},
            }
        )
    against = {
        "strongest cheap baseline": tier.baseline,
        "duplicates of real scans": tier.control,
        "real scans alone": tier.real,
    }
    return {
        "name": tier.name,
        "baseline": tier.baseline,
        "synthetic": tier.synthetic,
        "arms": arms,
        "differences": [
            {"against": role, "arm": name, "figures": tier.comparer.difference(tier.synthetic, name).as_dict()}
            for role, name in against.items()
        ],
        "curves": [
            {"arm": arm, "role": role, **{kind: curve.as_dict() for kind, curve in tier.comparer.curves(arm).items()}}
            for role, arm in (("strongest cheap baseline", tier.baseline), ("with the synthetic set", tier.synthetic))
        ],
        "reading": tier.verdict.reading,
    }


def training_bar(description: str, progress: bool) -> tqdm:
    """Return a progress bar over trainings, whose `total` is still to be set."""
    return tqdm(total=0, desc=description, unit="training", disable=not progress)
