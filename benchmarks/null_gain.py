"""How often a worthless set gets the verdict `gain`: the probe tier, repeated with duplicates of training scans as synthetic set.

Without `--cohort`, features are simulated: three Gaussian classes with a falling spectrum, of the sizes of X-ray-40. With it, a
cohort's own features are used (extracted once into `--features`); each repeat redraws the rare training patients, the rare
validation patients (`--validation`) and, with replacement, the test patients. The result has one JSON line for each repeat; a
second call continues. `--worth fresh` is the positive control: scans of other patients as the synthetic set.

python -m benchmarks.null_gain --out benchmarks/results/null_gain.jsonl
python -m benchmarks.null_gain --out benchmarks/results/null_gain_xray.jsonl --cohort cohort.csv --rare viral_pneumonia
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.machine import describe_machine
from medsynth.cohorts import prepare_cohort, read_cohort
from medsynth.config import DownstreamOptions, GridOptions, IntensityOptions
from medsynth.evaluation.downstream import Settings, make_task
from medsynth.evaluation.downstream.arms import baseline_arms, synthetic_arms
from medsynth.evaluation.downstream.experiment import Experiment, ProbeSettings
from medsynth.evaluation.downstream.judging import PRIMARY
from medsynth.evaluation.downstream.probe import ProbeData, train_probe
from medsynth.evaluation.downstream.tiers import ScoreBook, run_tier
from medsynth.evaluation.features import cached_features
from medsynth.files import user_folder
from medsynth.measures.distances import Projection
from medsynth.measures.features import EfficientNetLite0
from medsynth.seeds import numpy_generator

LIMIT = 18  # gains in 400 repeats that 2.5 % on one side allows
DIMS, GAP = 64, 2.0
NAMES = ("rare", "common 1", "common 2")
SIZES = {"train": (40, 781, 1510), "val": (20, 133, 311), "test": (392, 426, 696)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A real cohort of one repeat and features of scans of no patient in it, by class (the rare one is 0)."""

    features: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    patients: np.ndarray
    spare: list[np.ndarray]

    def as_scans(self) -> Any:
        """Return what `make_task` reads of a prepared cohort."""
        return SimpleNamespace(
            labels=self.labels,
            splits=self.splits,
            patients=self.patients,
            classes=NAMES,
            rows=(),
            key="",
            scans=self.labels,
        )


def made_up(repeat: int) -> Drawn:
    """Return Gaussian features."""
    # A sequence that nobody looked at before the rule of the verdict was fixed.
    generator = numpy_generator(repeat, "null_gain", "made up", 2)
    spectrum = 1 / np.sqrt(1 + np.arange(DIMS) / 4)
    means = generator.normal(size=(3, DIMS))
    means *= GAP / np.linalg.norm(means, axis=1, keepdims=True)

    def draw(label: int, count: int) -> np.ndarray:
        return ((means[label] + generator.normal(size=(count, DIMS))) * spectrum).astype(np.float32)

    parts = [(split, label, count) for split, row in SIZES.items() for label, count in enumerate(row)]
    counts = [part[2] for part in parts]
    return Drawn(
        features=np.concatenate([draw(label, count) for _, label, count in parts]),
        labels=np.repeat([part[1] for part in parts], counts),
        splits=np.repeat([part[0] for part in parts], counts),
        patients=np.arange(sum(counts)),
        spare=[draw(label, 400) for label in range(3)],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Features of a whole cohort, with the rare class as label 0."""

    features: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    patients: np.ndarray

    @classmethod
    def of(cls, path: Path, rare: str, folder: Path, components: int) -> Source:
        """Read a cohort, extract its features once, and keep some more axes than the probe will."""
        prepared = prepare_cohort(
            read_cohort(path), grid=GridOptions(size=64), intensity=IntensityOptions(method="range", low=0, high=255)
        )
        features = np.asarray(cached_features(prepared, EfficientNetLite0(), folder=folder))
        order = [rare, *(label for label in prepared.classes if label != rare)]
        axes = Projection.fit(features[prepared.splits == "train"], 2 * components)
        return cls(
            features=axes.project(features).astype(np.float32),
            labels=np.array([order.index(prepared.classes[label]) for label in prepared.labels]),
            splits=prepared.splits,
            patients=prepared.patients,
        )

    def draw(self, repeat: int, rare: int, validation: int) -> Drawn:
        """Return a cohort with so many rare patients in train and val, and a bootstrap of the test patients."""
        generator = numpy_generator(repeat, "null_gain", "cohort")
        of_rare = self.labels == 0
        kept = np.ones(len(self.labels), dtype=bool)
        for split, count in (("train", rare), ("val", validation)):
            known = np.unique(self.patients[of_rare & (self.splits == split)])
            chosen = generator.permutation(known)[: count or None]
            kept &= ~of_rare | (self.splits != split) | np.isin(self.patients, chosen)
        spare = ~kept & (self.splits == "train")
        test = [
            np.flatnonzero((self.splits == "test") & (self.patients == one))
            for one in np.unique(self.patients[self.splits == "test"])
        ]
        redrawn = [test[number] for number in generator.integers(len(test), size=len(test))]
        held = np.flatnonzero(kept & (self.splits != "test"))
        rows = np.concatenate([held, *redrawn])
        # A patient drawn twice is two patients, as in any bootstrap.
        fresh = 1 + self.patients.max() + np.repeat(np.arange(len(redrawn)), [len(each) for each in redrawn])
        return Drawn(
            features=self.features[rows],
            labels=self.labels[rows],
            splits=self.splits[rows],
            patients=np.concatenate([self.patients[held], fresh]),
            spare=[self.features[spare & (self.labels == label)] for label in range(3)],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """A side of the comparison: features, and what is read of a prepared cohort."""

    prepared: Any
    features: np.ndarray


def run_repeat(
    drawn: Drawn, *, worth: str, count: int, options: DownstreamOptions, settings: Settings, repeat: int
) -> dict[str, Any]:
    """Return verdict, choices and differences of one repeat."""
    generator = numpy_generator(repeat, "null_gain", "set")
    pools = [drawn.features[(drawn.labels == label) & (drawn.splits == "train")] for label in range(3)]
    if worth == "fresh":
        # Classes without spare scans get duplicates.
        pools = [spare if len(spare) else pool for spare, pool in zip(drawn.spare, pools, strict=True)]
    made = np.concatenate([pool[generator.integers(len(pool), size=count)] for pool in pools])
    real = Features(prepared=drawn.as_scans(), features=drawn.features)
    labels = SimpleNamespace(labels=np.repeat(np.arange(3), count), classes=NAMES)
    synthetic = Features(prepared=labels, features=made)
    task = make_task(real.prepared, synthetic.prepared, rare_class="rare")
    experiment = Experiment(
        task=task, real=real, synthetic=synthetic, further=None, options=options, settings=settings, folder=Path(),
        seed=repeat, progress=False,
    )  # fmt: skip
    data = ProbeData.of(task, experiment.table, [drawn.features, made], components=settings.probe.components)
    book = ScoreBook(
        folder=None,
        key="",
        train=lambda arm, repeats: train_probe(
            task, experiment.table, data, arm, seed=repeat, repeats=repeats, settings=settings
        ),
        seeds=options.seeds,
        sizes=(len(task.validation.rows), len(task.test.rows)),
        together=True,
        bar=tqdm(disable=True),
    )
    tier = run_tier(
        "probe",
        experiment,
        book,
        baseline_arms(augment=False),
        lambda chosen: synthetic_arms(chosen.recipe, options.shares, common=True),
    )
    differences = {"baseline": tier.against_baseline, "control": tier.against_control}
    return {
        "repeat": repeat,
        "verdict": tier.judgement.verdict,
        "figures": tier.judgement.figures,
        "baseline": tier.baseline,
        "synthetic": tier.synthetic,
        # What the verdict would have been without the duplicates as a second hurdle.
        "higher_than_baseline": [name for name in PRIMARY if tier.against_baseline.significant(name, 1)],
        "differences": {
            role: {
                name: [getattr(difference.estimates[name], part) for part in ("value", "low", "high", "p_value")]
                for name in PRIMARY
            }
            for role, difference in differences.items()
        },
    }


def main() -> None:
    """Run what is missing, then print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--worth", choices=("duplicates", "fresh"), default="duplicates")
    parser.add_argument("--count", type=int, default=200, help="synthetic scans of each class")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--cohort", type=Path)
    parser.add_argument("--rare", default="viral_pneumonia", help="the rare class of --cohort")
    parser.add_argument("--patients", type=int, default=40, help="rare training patients of --cohort")
    parser.add_argument("--validation", type=int, default=0, help="rare validation patients of --cohort; 0 keeps all")
    parser.add_argument(
        "--features", type=Path, default=user_folder("cache"), help="where features of --cohort are kept"
    )
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    options = DownstreamOptions(seeds=chosen.seeds)
    settings = Settings(resamples=chosen.resamples, probe=ProbeSettings(components=DIMS))
    source = None
    if chosen.cohort is not None:
        source = Source.of(chosen.cohort, chosen.rare, chosen.features, settings.probe.components)
    done: dict[int, dict[str, Any]] = {}
    if chosen.out.exists():
        for line in chosen.out.read_text().splitlines():
            try:
                found = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a call that was killed
            if "repeat" in found:
                done[found["repeat"]] = found
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with chosen.out.open("a") as out:
        if not done:
            head = {"machine": describe_machine(), "options": asdict(options), "settings": asdict(settings)}
            out.write(json.dumps(head) + "\n")
        else:
            out.write("\n")
        for repeat in tqdm(range(chosen.repeats), desc="repeats", unit="repeat"):
            if repeat in done:
                continue
            drawn = made_up(repeat) if source is None else source.draw(repeat, chosen.patients, chosen.validation)
            done[repeat] = run_repeat(
                drawn, worth=chosen.worth, count=chosen.count, options=options, settings=settings, repeat=repeat
            )
            out.write(json.dumps(done[repeat]) + "\n")
            out.flush()
    found = [done[repeat] for repeat in sorted(done)[: chosen.repeats]]
    verdicts = Counter(each["verdict"] for each in found)
    print(
        f"{len(found)} repeats, worth: {chosen.worth}: "
        + ", ".join(f"{count} {name}" for name, count in verdicts.most_common())
    )
    alone = sum(bool(each["higher_than_baseline"]) for each in found)
    print(f"higher than the strongest cheap baseline alone (Holm): {alone}")
    if chosen.worth == "duplicates":
        limit = LIMIT * len(found) / 400
        print(
            f"gain {verdicts['gain']} times, at most {limit:.0f} allowed: {'yes' if verdicts['gain'] <= limit else 'NO'}"
        )


if __name__ == "__main__":
    main()
