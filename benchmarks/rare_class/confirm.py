"""The chosen candidates on test scans: several draws of the rare patients, several generators of each.

    python -m benchmarks.rare_class.confirm --scans ../chest_xray --out runs/rare_class --candidate parent --arm all --share 0.25

Each set is evaluated whole (`medsynth evaluate`: privacy gate, probe tier, ceiling of all real rare scans), with the one
synthetic arm that is named here, so that ten validation patients choose the baseline alone. Prints a line a set, and the mean
over sets with Student's interval over draws: sets of one draw share patients. Test scans are read here only. Finished reports
are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import medsynth
from benchmarks.machine import describe_machine
from benchmarks.rare_class.candidates import SIZE, Setting, candidates
from benchmarks.rare_class.cohorts import make_draw
from benchmarks.rare_class.making import make_set, train_common, train_rare
from medsynth.config import DownstreamOptions, GridOptions, IntensityOptions, ProbeOptions
from medsynth.files import write_json

FIGURES = ("auroc", "auprc", "sensitivity")


def read_row(path: Path) -> dict[str, Any]:
    """Return what a table needs of a report."""
    report = json.loads(path.read_text())
    tier = report["downstream"]["tiers"][-1]
    arms = {arm["name"]: {name: arm["test"][name] for name in FIGURES} for arm in tier["arms"]}
    against = {each["against"]: each["figures"] for each in tier["differences"]}
    return {
        "privacy": report["verdict"]["privacy"]["reading"],
        "flagged": [sum(row[name] for row in report["privacy"]["rows"]) for name in ("flagged", "judged")],
        "reading": report["verdict"]["downstream"]["reading"],
        "baseline": tier["baseline"],
        "synthetic": tier["synthetic"],
        "gain_ci": {name: against["strongest cheap baseline"][name] for name in FIGURES},
        "arms": arms,
        "fidelity": [
            {name: row["held_out"][name] for name in ("kid", "frechet", "precision", "recall")}
            | {"label": row["label"]}
            for row in report["fidelity"]["rows"]
            if row.get("held_out")
        ],
    }


def over_sets(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean difference over draws with Student's 95 % interval; each draw counts with the mean of its sets."""
    found = {}
    for name in FIGURES:
        draws = sorted({row["draw"] for row in rows})
        means = [np.mean([row["gain_ci"][name]["value"] for row in rows if row["draw"] == draw]) for draw in draws]
        half = float("nan")
        if len(means) > 1:
            half = float(stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means)))
        mean = float(np.mean(means))
        found[name] = {"value": mean, "low": mean - half, "high": mean + half, "draws": len(means), "sets": len(rows)}
    return found


def main() -> None:
    """Make and evaluate what is missing; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, required=True, help="folder with the scans and labels.csv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--candidate", required=True)
    parser.add_argument("--arm", choices=("rare", "all", "pretrain"), default="all")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--generators", type=int, default=2)
    parser.add_argument("--result", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    setting = Setting()
    candidate = next(each for each in candidates(setting) if each.name == arguments.candidate)
    rows = []
    print(
        "| draw | generator | gate | flagged | baseline | Δ AUROC | Δ AUPRC | Δ sensitivity | ceiling Δ AUROC | verdict |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for seed in range(arguments.generators):
        for number in range(arguments.draws):
            draw = make_draw(arguments.scans, setting.rare, arguments.patients, number, arguments.out / "cohorts")
            # One common stage: what differs between generators is the rare stage.
            common = train_common(setting, draw.few, 0, arguments.out)
            run = train_rare(setting, candidate, draw.few, common, seed, arguments.out)
            made = make_set(setting, candidate, draw.few, run, seed, arguments.out)
            report = made.parent / f"report_{arguments.arm}_{arguments.share:g}"
            if not (report / "report.json").is_file():
                _evaluate(setting, draw.few, made, report, draw.everything, arguments)
            row = {"draw": number, "generator": seed} | read_row(report / "report.json")
            rows.append(row)
            print(_line(row), flush=True)
    whole = over_sets(rows)
    print(
        f"over {whole['auroc']['draws']} draws: " + ", ".join(f"Δ {name} {_interval(whole[name])}" for name in FIGURES)
    )
    if arguments.result:
        chosen = {name: getattr(arguments, name) for name in ("candidate", "arm", "share", "patients")}
        write_json(
            arguments.result,
            describe_machine() | chosen | {"setting": vars(setting), "size": SIZE, "gain_ci": whole, "rows": rows},
        )


def _evaluate(setting: Setting, few: Path, made: Path, report: Path, ceiling: Path, arguments: Any) -> None:
    medsynth.evaluate(
        real=few,
        synthetic=made,
        out=report,
        ceiling=ceiling,
        grid=GridOptions(size=SIZE),
        intensity=IntensityOptions(method="range", low=0, high=255),
        downstream=DownstreamOptions(
            rare_class=setting.rare,
            shares=(arguments.share,),
            arms=(arguments.arm,),
            probe=ProbeOptions(copies=1),
        ),
    )


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def _line(row: dict[str, Any]) -> str:
    gains = " | ".join(_interval(row["gain_ci"][name]) for name in FIGURES)
    ceiling = row["arms"].get("ceiling", {}).get("auroc", {}).get("value", float("nan"))
    room = ceiling - row["arms"][row["baseline"]]["auroc"]["value"]
    flagged = "{} of {}".format(*row["flagged"])
    return (
        f"| {row['draw']} | {row['generator']} | {row['privacy']} | {flagged} | {row['baseline']} | {gains} | {room:+.3f} | "
        f"{row['reading']} |"
    )


if __name__ == "__main__":
    main()
