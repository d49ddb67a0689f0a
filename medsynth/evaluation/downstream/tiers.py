"""One tier of the comparison: arms are trained once and kept, the strongest chosen on validation, and compared on test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medsynth.evaluation.downstream.arms import Arm, duplicate_control
from medsynth.evaluation.downstream.experiment import Experiment, content_key, read_arrays, write_arrays
from medsynth.evaluation.downstream.judging import (
    Comparer,
    Difference,
    Judgement,
    Scores,
    choose,
    estimate_dict,
    judge,
    validation_figures,
)
from medsynth.evaluation.downstream.task import Task

# Returns validation and test scores `(repeats, N)` of these trainings of an arm, numbered from 0.
Trainer = Callable[[Arm, range], tuple[np.ndarray, np.ndarray]]


@dataclass(kw_only=True)
class ScoreBook:
    """The scores of one tier, in memory and below `folder` (None: in memory only); `key` is a hash of what they depend on.

    `sizes` are the numbers of validation and test scans. `together`: the trainer is fast, and gets all repeats of an arm at once,
    otherwise one at a time.
    """

    folder: Path | None
    key: str
    train: Trainer
    seeds: int
    sizes: tuple[int, int]
    together: bool
    bar: tqdm
    scores: dict[str, Scores] = field(default_factory=dict)
    arms: dict[str, Arm] = field(default_factory=dict)

    def run(self, arms: Sequence[Arm]) -> None:
        """Train all arms that are not known yet; files of other content, or broken ones, are trained again."""
        for arm in arms:
            if arm.name in self.scores:
                assert self.arms[arm.name] == arm, "two arms have one name"
                continue
            self.bar.set_postfix_str(arm.name, refresh=False)
            files = [self._file(arm, repeat) for repeat in range(self.seeds)]
            found = [self._read(file) for file in files]
            missing = [repeat for repeat in range(self.seeds) if found[repeat] is None]
            batches = [range(self.seeds)] if self.together and missing else [range(one, one + 1) for one in missing]
            self.bar.update(self.seeds - len(missing))
            for batch in batches:
                validation, test = self.train(arm, batch)
                for row, repeat in enumerate(batch):
                    if found[repeat] is None:
                        found[repeat] = validation[row], test[row]
                        self._write(files[repeat], arm, validation[row], test[row])
                        self.bar.update(1)
            rows = [each for each in found if each is not None]
            self.scores[arm.name] = Scores(
                validation=np.stack([row[0] for row in rows]), test=np.stack([row[1] for row in rows])
            )
            self.arms[arm.name] = arm

    def _file(self, arm: Arm, repeat: int) -> Path | None:
        if self.folder is None:
            return None
        # Not the name: the same training under two names is one.
        parts: Mapping[str, Any] = {name: value for name, value in asdict(arm).items() if name not in ("name", "kind")}
        return self.folder / f"scores-{content_key(self.key, parts)[:24]}-{repeat}.npz"

    def _read(self, file: Path | None) -> tuple[np.ndarray, np.ndarray] | None:
        if file is None:
            return None
        if (found := read_arrays(file, "validation", "test")) is None:
            return None
        validation, test = found
        fits = (validation.shape, test.shape) == tuple((size,) for size in self.sizes)
        return (validation, test) if fits and all(np.isfinite(part).all() for part in found) else None

    def _write(self, file: Path | None, arm: Arm, validation: np.ndarray, test: np.ndarray) -> None:
        if file is None:
            return
        # The arm is stored for whoever compares several sets; a second call knows the file by its key.
        write_arrays(file, validation=validation, test=test, arm=np.array(f"{arm.name} ({arm.network})"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Tier:
    """All arms of one tier, trained; `baseline` and `synthetic` were chosen on validation, `control` duplicates the latter.

    All four are names of arms; `real` is plain training on real scans.
    """

    name: str
    book: ScoreBook
    comparer: Comparer
    real: str
    baseline: str
    synthetic: str
    control: str
    against_baseline: Difference
    against_control: Difference
    judgement: Judgement


def run_tier(
    name: str,
    experiment: Experiment,
    book: ScoreBook,
    baselines: Sequence[Arm],
    candidates: Callable[[Arm], Sequence[Arm]],
) -> Tier:
    """Train the baselines, choose the strongest on validation, train the candidates on top of it, choose again, compare.

    `baselines` begin with plain training on real scans (one for each network).
    """
    task, settings = experiment.task, experiment.settings
    book.run(baselines)
    baseline = choose(task.validation, book.scores, [arm.name for arm in baselines])
    chosen = book.arms[baseline]
    synthetic = list(candidates(chosen))
    book.run(synthetic)
    best = choose(task.validation, book.scores, [arm.name for arm in synthetic])
    control = duplicate_control(book.arms[best])
    book.run([control])
    real = next(arm.name for arm in baselines if arm.recipe == baselines[0].recipe and arm.network == chosen.network)
    comparer = Comparer(task, book.scores, seeds=experiment.options.seeds, settings=settings, seed=experiment.seed)
    against_baseline, against_control = (comparer.difference(best, other) for other in (baseline, control.name))
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
        judgement=judge(task, against_baseline, against_control, least_patients=settings.least_patients),
    )


def full_tier(experiment: Experiment, probe: Tier) -> Tier:
    """Train the finalists of the probe tier on pixels: plain training and the best baseline, then the best synthetic arm.

    Baselines with every network compete on validation; the synthetic arm takes the recipe and the network of the strongest.
    """
    # Only here: the networks take seconds to import.
    from medsynth.evaluation.downstream.classifier import PixelTrainer, usable_networks

    task, options, settings = experiment.task, experiment.options, experiment.settings.classifier
    networks = usable_networks(options.networks, experiment.real.prepared.scans.ndim - 2)
    finalists = dict.fromkeys((probe.real, probe.baseline))
    baselines = [probe.book.arms[name].on(network) for name in finalists for network in networks]
    synthetic = probe.book.arms[probe.synthetic]
    trained = {name: value for name, value in asdict(settings).items() if name != "device"}
    with experiment.progress_bar("training classifiers", len(baselines) + 2) as bar:
        book = ScoreBook(
            folder=experiment.folder,
            key=content_key(experiment.key, trained),
            train=PixelTrainer(experiment),
            seeds=options.seeds,
            sizes=(len(task.validation.rows), len(task.test.rows)),
            together=False,
            bar=bar,
        )
        return run_tier(
            "full", experiment, book, baselines, lambda base: [replace(synthetic, recipe=base.recipe).on(base.network)]
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
    differences = (
        ("strongest cheap baseline", tier.baseline, tier.against_baseline),
        ("duplicates of real scans", tier.control, tier.against_control),
        ("real scans alone", tier.real, tier.comparer.difference(tier.synthetic, tier.real)),
    )
    curves = (("strongest cheap baseline", tier.baseline), ("with the synthetic set", tier.synthetic))
    return {
        "name": tier.name,
        "baseline": tier.baseline,
        "synthetic": tier.synthetic,
        "arms": arms,
        "differences": [
            {"against": role, "arm": name, "figures": found.as_dict()} for role, name, found in differences
        ],
        "curves": [
            {"arm": arm, "role": role, **{kind: curve.as_dict() for kind, curve in tier.comparer.curves(arm).items()}}
            for role, arm in curves
        ],
        "verdict": tier.judgement.verdict,
    }
