"""The chosen candidates on test scans: several draws of the rare patients, several generators of each.

    python -m benchmarks.rare_class.confirm --scans ../chest_xray --out runs/rare_class --candidate "against 2.5"

Each set is evaluated as a whole (`medsynth evaluate`: privacy gate, probe tier, ceiling of all real rare scans), with the one
synthetic arm that is named here, so that ten validation patients choose only the baseline. Prints a line for each set, and the
mean over sets with an interval over draws and test patients. Test scans are read here only, and not with `--development`, which
takes development scans instead. `--tier full` trains classifiers on pixels. Finished reports are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import medsynth
from benchmarks.machine import describe_machine
from benchmarks.markdown import head_of, row_of, shown
from benchmarks.rare_class.candidates import OPTIONS, Setting, candidates
from benchmarks.rare_class.cohorts import Draw, make_draw
from benchmarks.rare_class.making import make_set, train_common, train_rare
from medsynth.config import DownstreamOptions
from medsynth.files import write_json
from medsynth.measures.classification import ranking_metrics
from medsynth.measures.statistics import Resamples
from medsynth.seeds import numpy_generator

FIGURES = ("auroc", "auprc", "sensitivity")
_CHOSEN = ("candidate", "arm", "share", "patients", "tier", "development")


def read_row(path: Path) -> dict[str, Any]:
    """Return what a table needs of a report."""
    report = json.loads(path.read_text())
    privacy = report["privacy"]
    tier = report["downstream"]["tiers"][-1]
    arms = {arm["name"]: {name: arm["test"][name] for name in FIGURES} for arm in tier["arms"]}
    against = {each["against"]: each["figures"] for each in tier["differences"]}
    return {
        "privacy": privacy and report["verdict"]["privacy"]["verdict"],
        "flagged": [sum(row[name] for row in privacy["rows"]) for name in ("flagged", "judged")] if privacy else None,
        "verdict": report["verdict"]["downstream"]["verdict"],
        "baseline": tier["baseline"],
        "synthetic": tier["synthetic"],
        "gain_ci": {name: against["strongest cheap baseline"][name] for name in FIGURES},
        "arms": arms,
    }


def read_scores(trainings: Path, arm: str) -> np.ndarray:
    """Test scores `(trainings, N)` of an arm, which the evaluation leaves beside its report."""
    found = {}
    for file in sorted(trainings.glob("scores-*.npz")):
        with np.load(file, allow_pickle=False) as stored:
            # Arms of the full tier carry their network in their name already.
            if str(stored["arm"]) in (f"{arm} (probe)", f"{arm} ({arm.rpartition('(')[2]}"):
                found[int(file.stem.rsplit("-", 1)[1])] = stored["test"]
    return np.stack([found[repeat] for repeat in sorted(found)])


def over_sets(
    scores: list[tuple[int, np.ndarray, np.ndarray]], truth: np.ndarray, patients: np.ndarray, *, resamples: int = 2000
) -> dict[str, Any]:
    """Mean differences over sets with 95 % intervals of a two-way bootstrap: draws of the rare patients, and test patients.

    `scores` holds, for each set, the number of its draw and the test scores of its synthetic arm and of its baseline
    `(trainings, N)`. Sets of one draw go together, since they share their rare patients.
    """
    numbers = sorted({draw for draw, _, _ in scores})
    redraws = Resamples.draw(
        patients, len(numbers), generator=numpy_generator(0, "rare_class", "over sets"), resamples=resamples
    )
    parts = []
    for number in numbers:
        apart = [
            ranked(truth, synthetic, redraws.scans) - ranked(truth, baseline, redraws.scans)
            for draw, synthetic, baseline in scores
            if draw == number
        ]
        parts.append(np.mean(apart, axis=0))
    found = {}
    for place, name in enumerate(FIGURES[:2]):
        values = np.array([part[place] for part in parts])
        redrawn = (redraws.seeds.T * values[:, 1:]).sum(axis=0)
        low, high = np.quantile(redrawn, [0.025, 0.975])
        found[name] = {"value": float(values[:, 0].mean()), "low": float(low), "high": float(high)}
    return found | {"draws": len(numbers), "sets": len(scores)}


def by_draw(rows: list[dict[str, Any]], name: str) -> list[str]:
    """Return, for each draw, the mean difference over its generators, the smallest and the largest."""
    lines = []
    for number in sorted({row["draw"] for row in rows}):
        values = [row["gain_ci"][name]["value"] for row in rows if row["draw"] == number]
        lines.append(
            f"draw {number}: {np.mean(values):+.3f}, {min(values):+.3f} to {max(values):+.3f} over {len(values)} generators"
        )
    return lines


def ranked(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC and AUPRC, means over trainings, `(2, 1 + resamples)`: of all test scans, then of each resample."""
    whole = np.asfortranarray(np.concatenate([np.ones((1, len(truth))), weights]))
    return np.mean([ranking_metrics(truth, one, whole) for one in scores], axis=0)


def main() -> None:
    """Make and evaluate what is missing; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True, help="folder with the scans and labels.csv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--candidate", required=True)
    parser.add_argument("--arm", choices=("rare", "all", "pretrain"), default="all")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--tier", choices=("probe", "full"), default="probe")
    parser.add_argument("--development", action="store_true", help="judge on development scans, not on test scans")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--generators", type=int, default=2)
    parser.add_argument("--result", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    setting = Setting()
    candidate = next(each for each in candidates(setting) if each.name == arguments.candidate)
    rows: list[dict[str, Any]] = []
    scores: list[tuple[int, np.ndarray, np.ndarray]] = []
    columns = ["draw", "generator", "gate", "flagged", "baseline", "Δ AUROC", "Δ AUPRC", "Δ sensitivity"]
    print(head_of([*columns, "ceiling Δ AUROC", "verdict"]))
    for seed in range(arguments.generators):
        for number in range(arguments.draws):
            draw = make_draw(arguments.scans, setting.rare, arguments.patients, number, arguments.out / "cohorts")
            # One common stage: what differs between generators is the rare stage.
            common = train_common(setting, draw.few, 0, arguments.out)
            run = train_rare(setting, candidate, draw.few, common, seed, arguments.out)
            made = make_set(setting, candidate, run, seed, arguments.out)
            report = made.parent / _report_name(arguments)
            if not (report / "report.json").is_file():
                _evaluate(setting, draw, made, report, arguments)
            row = {"draw": number, "generator": seed} | read_row(report / "report.json")
            rows.append(row)
            trainings = report / "trainings"
            scores.append((number, read_scores(trainings, row["synthetic"]), read_scores(trainings, row["baseline"])))
            print(_line(row), flush=True)
    for name in FIGURES:
        print(f"Δ {name}: " + "; ".join(by_draw(rows, name)))
    # Development scans are those that a draw left out, so there is no bootstrap over draws.
    whole = None if arguments.development else over_sets(scores, *_test_scans(setting, arguments))
    if whole is not None:
        figures = ", ".join(f"Δ {name} {shown(whole[name], sign=True)}" for name in FIGURES[:2])
        print(f"over {whole['sets']} sets: {figures}")
    if arguments.result:
        chosen = {name: getattr(arguments, name) for name in _CHOSEN}
        write_json(
            arguments.result,
            describe_machine()
            | chosen
            | {"setting": vars(setting), "size": OPTIONS["grid"]["size"], "gain_ci": whole, "rows": rows},
        )


def _test_scans(setting: Setting, arguments: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which test scans are rare, and their patients: no draw changes them."""
    draw = make_draw(arguments.scans, setting.rare, arguments.patients, 0, arguments.out / "cohorts")
    test = medsynth.read_cohort(draw.few).select(split="test").rows
    return np.array([row.label == setting.rare for row in test]), np.array([row.patient_id for row in test])


def _report_name(arguments: Any) -> str:
    name = f"report_{arguments.arm}_{arguments.share:g}"
    if arguments.tier == "full":
        name += "_full"
    return f"{name}_development" if arguments.development else name


def _evaluate(setting: Setting, draw: Draw, made: Path, report: Path, arguments: Any) -> None:
    medsynth.evaluate(
        real=draw.development if arguments.development else draw.few,
        synthetic=made,
        out=report,
        parts=("downstream",) if arguments.development else ("privacy", "downstream"),
        # All rare scans hold those of the development split.
        ceiling=None if arguments.development else draw.everything,
        grid=OPTIONS["grid"],
        intensity=OPTIONS["intensity"],
        downstream=DownstreamOptions(
            rare_class=setting.rare,
            shares=(arguments.share,),
            arms=(arguments.arm,),
            tier=arguments.tier,
            networks=("densenet",),
        ),
    )


def _line(row: dict[str, Any]) -> str:
    gains = [shown(row["gain_ci"][name], sign=True) for name in FIGURES]
    ceiling = row["arms"].get("ceiling", {}).get("auroc", {}).get("value", float("nan"))
    room = ceiling - row["arms"][row["baseline"]]["auroc"]["value"]
    flagged = "{} of {}".format(*row["flagged"]) if row["flagged"] else "not judged"
    facts = [str(row["draw"]), str(row["generator"]), str(row["privacy"]), flagged, row["baseline"]]
    return row_of([*facts, *gains, f"{room:+.3f}", row["verdict"]])


if __name__ == "__main__":
    main()
