"""Screen the candidates on development scans, which are no test scans, with the probe tier.

    python -m benchmarks.rare_class.screen --scans ../chest_xray --out runs/rare_class

Each candidate: one generator on the first draw of 40 patients (a common stage that all share, then a rare stage), 300 scans of
the rare class and 200 of each other, and probes in which these take a share of the draws, against the best of the cheap
baselines *on the development scans* (which favours the baseline). Beside the gain: how near the rare scans come to training
scans, KID, and how well they show their class. Finished parts are kept; the table is printed and written as JSON with --result.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

import medsynth
from benchmarks.machine import describe_machine
from benchmarks.markdown import head_of, row_of, shown
from benchmarks.rare_class.candidates import OPTIONS, Candidate, Setting, candidates
from benchmarks.rare_class.cohorts import Draw, make_draw
from benchmarks.rare_class.making import make_set, train_common, train_rare
from medsynth.cohorts import PreparedCohort, prepare_cohort
from medsynth.config import GridOptions, IntensityOptions, Loading
from medsynth.evaluation.downstream import Settings, make_task
from medsynth.evaluation.downstream.arms import Arm, Table, baseline_arms, duplicate_control, synthetic_arms
from medsynth.evaluation.downstream.experiment import ProbeSettings
from medsynth.evaluation.downstream.judging import Comparer, estimate_dict
from medsynth.evaluation.downstream.probe import ProbeData, train_probe
from medsynth.evaluation.downstream.tiers import ScoreBook
from medsynth.evaluation.features import cached_features
from medsynth.files import user_folder, write_json
from medsynth.measures.distances import Kernels, Projection, kernel_distance
from medsynth.measures.features import EfficientNetLite0
from medsynth.measures.neighbours import nearest_distances

SHARES = (0.25, 0.5)
SEEDS = 10


def prepare(cohort: Path) -> tuple[PreparedCohort, np.ndarray]:
    """Return a cohort on the grid of the experiment and its features."""
    prepared = prepare_cohort(
        medsynth.read_cohort(cohort),
        grid=GridOptions(**OPTIONS["grid"]),
        intensity=IntensityOptions(**OPTIONS["intensity"]),
        loading=Loading(progress=False),
    )
    return prepared, cached_features(prepared, EfficientNetLite0(), folder=user_folder("cache"))


def likeness(setting: Setting, real: PreparedCohort, synthetic: PreparedCohort) -> dict[str, float]:
    """Distances to the nearest rare training scan, grey-level root mean square in [-1, 1]: synthetic, and development scans."""
    rare = real.classes.index(setting.rare)
    train, held_out = (real.indices(split=split, label=rare) for split in ("train", "test"))
    made = synthetic.indices(label=synthetic.classes.index(setting.rare))
    found: dict[str, float] = {}
    for name, of, rows in (("synthetic", synthetic, made), ("development", real, held_out)):
        scans = np.asarray(of.scans[rows], dtype=np.float32)
        distances, _ = nearest_distances(scans, real.scans, among=train)
        distances = distances / np.sqrt(scans[0].size)
        found |= {f"{name}_median": float(np.median(distances)), f"{name}_p5": float(np.quantile(distances, 0.05))}
    return found


def class_signal(setting: Setting, draw: Draw, synthetic: PreparedCohort, features: np.ndarray) -> float:
    """AUROC with which a probe of *all* real rare training scans tells synthetic rare from synthetic common scans.

    It knows what the generator cannot know, so it says whether the synthetic scans show their class.
    """
    real, known = prepare(draw.everything)
    chosen = real.indices(split="train")
    axes = Projection.fit(known[chosen], ProbeSettings.components)
    head = LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced")
    head.fit(axes.project(known[chosen]), real.labels[chosen] == real.classes.index(setting.rare))
    rare = synthetic.labels == synthetic.classes.index(setting.rare)
    return float(roc_auc_score(rare, head.decision_function(axes.project(features))))


def judge(setting: Setting, draw: Draw, made: Path) -> dict[str, Any]:
    """Return what a set is worth on the development scans."""
    real, real_features = prepare(draw.development)
    synthetic, synthetic_features = prepare(made)
    task, settings = make_task(real, synthetic, rare_class=setting.rare), Settings()
    table = Table.of(task)
    data = ProbeData.of(task, table, [real_features, synthetic_features], components=settings.probe.components)
    book = ScoreBook(
        folder=None, key="", seeds=SEEDS, sizes=(len(task.validation.rows), len(task.test.rows)),
        train=lambda arm, repeats: train_probe(task, table, data, arm, seed=0, repeats=repeats, settings=settings),
        together=True, bar=tqdm(disable=True),
    )  # fmt: skip
    # Without augmented copies: their features take the longest.
    baselines = baseline_arms(augment=False)
    book.run(baselines)
    comparer = Comparer(task, book.scores, seeds=SEEDS, settings=settings, seed=0)

    def auroc(arm: Arm) -> float:
        return comparer.figures(arm.name)["auroc"].estimate().value

    baseline = max(baselines, key=auroc)
    arms = synthetic_arms(baseline.recipe, SHARES, common=True)
    book.run(arms)
    best = max(arms, key=auroc)
    control = duplicate_control(best)
    book.run([control])
    differences = {
        arm.name: {
            name: estimate_dict(each) for name, each in comparer.difference(arm.name, baseline.name).estimates.items()
        }
        for arm in (*arms, control)
    }
    rare = real.classes.index(setting.rare)
    held_out = real_features[real.indices(split="test", label=rare)]
    return {
        "class_signal": class_signal(setting, draw, synthetic, synthetic_features),
        "baseline": {"name": baseline.name, "auroc": auroc(baseline)},
        "best": best.name,
        "gain_ci": differences[best.name]["auroc"],
        "differences": differences,
        "likeness": likeness(setting, real, synthetic),
        "kid": kernel_distance(
            Kernels.of(synthetic_features[synthetic.indices(label=synthetic.classes.index(setting.rare))], held_out)
        ),
    }


def main() -> None:
    """Train, sample and judge what is missing; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True, help="folder with the scans and labels.csv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], help="names of candidates")
    parser.add_argument("--result", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    torch.set_num_threads(min(torch.get_num_threads(), 8))
    setting = Setting()
    draw = make_draw(arguments.scans, setting.rare, 40, 0, arguments.out / "cohorts")
    common = train_common(setting, draw.few, 0, arguments.out)
    rows = []
    columns = ["candidate", "nearest / development", "KID x 1000", "class signal", "best arm"]
    print(head_of([*columns, "Δ AUROC (95 %)", "Δ AUPRC (95 %)"]))
    for candidate in candidates(setting):
        if arguments.only and candidate.name not in arguments.only:
            continue
        row = _judged(setting, candidate, draw, common, arguments.out)
        rows.append(row)
        print(_line(row), flush=True)
    if arguments.result:
        write_json(
            arguments.result,
            describe_machine() | {"setting": vars(setting), "size": OPTIONS["grid"]["size"], "rows": rows},
        )


def _judged(setting: Setting, candidate: Candidate, draw: Draw, common: Any, out: Path) -> dict[str, Any]:
    stored = out / "screen" / f"{candidate.name.replace(' ', '_')}.json"
    if stored.is_file():
        return json.loads(stored.read_text())
    began = time.perf_counter()
    run = train_rare(setting, candidate, draw.few, common, 0, out)
    made = make_set(setting, candidate, run, 0, out)
    row = {"name": candidate.name, "about": candidate.about, "run": run.fingerprint[:16]} | judge(setting, draw, made)
    row["seconds"] = time.perf_counter() - began
    write_json(stored, row)
    return row


def _line(row: dict[str, Any]) -> str:
    near, gain = row["likeness"], row["gain_ci"]
    ratio = near["synthetic_median"] / near["development_median"]
    low = near["synthetic_p5"] / near["development_p5"]
    other = row["differences"][row["best"]]["auprc"]
    return row_of(
        [
            f"{row['name']} ({row['about']})",
            f"{ratio:.2f} (p5 {low:.2f})",
            f"{1000 * row['kid']:.0f}",
            f"{row['class_signal']:.3f}",
            row["best"],
            shown(gain, sign=True),
            shown(other, sign=True),
        ]
    )


if __name__ == "__main__":
    main()
