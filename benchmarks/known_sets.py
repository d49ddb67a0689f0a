"""The whole evaluation on sets whose truth is known, offered as synthetic to a cohort that keeps few rare patients.

    python -m benchmarks.known_sets --all all/cohort.csv --few few/cohort.csv --rare viral_pneumonia --out runs/known_sets

`fresh`: real scans of rare patients of the cohort `--all` that the cohort `--few` lacks; they should be as close as real scans,
pass the gate and give a gain. `copies`: real training scans of all classes; they should fail the gate. `shuffled`: the same with
permuted labels; the verdict should be `harm` or `no gain`. `noise`: pictures of noise; they should be further than real scans.
Finished reports are kept in --out; prints a Markdown table, and writes its figures as JSON with --result.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import medsynth
from benchmarks.machine import describe_machine
from benchmarks.markdown import head_of, row_of, shown
from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.files import write_json
from medsynth.scans import Scan
from medsynth.seeds import numpy_generator


def offer(cohort: Cohort, rows: Sequence[Row], labels: Sequence[str], folder: Path) -> Path:
    """Write copies of the files of a cohort's rows as a set to be judged, and return its CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    offered = []
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        file = cohort.file_of(row)
        name = f"{number:05d}{''.join(file.suffixes)}"
        shutil.copyfile(file, folder / name)
        offered.append(Row(path=name, label=label, patient_id=f"SET-{number}", split="train"))
    write_cohort(Cohort(folder=folder, rows=tuple(offered)), folder / "cohort.csv")
    return folder / "cohort.csv"


def make_sets(everything: Cohort, few: Cohort, rare: str, count: int, out: Path) -> dict[str, Path]:
    """Write the sets that are not there yet and return their CSVs."""
    random = numpy_generator(0, "known_sets")
    kept, held_out = {row.path for row in few.rows}, {row.patient_id for row in few.select(split=("val", "test")).rows}
    spare = [
        row
        for row in everything.select(split="train", label=rare).rows
        if row.path not in kept and row.patient_id not in held_out
    ]
    chosen = [spare[number] for number in random.permutation(len(spare))[:count]]
    train = few.select(split="train").rows
    picked = [train[number] for number in random.permutation(len(train))[: 2 * count]]
    picked += [row for row in train if row.label == rare and row not in picked]
    labels = [row.label for row in picked]
    shuffled = [labels[number] for number in random.permutation(len(labels))]
    sets = {
        "fresh": offer(everything, chosen, [rare] * len(chosen), out / "fresh"),
        "copies": offer(few, picked, labels, out / "copies"),
        "shuffled": offer(few, picked, shuffled, out / "shuffled"),
        "noise": out / "noise" / "cohort.csv",
    }
    if not sets["noise"].exists():
        rows = []
        for number in range(count):
            pixels = random.normal(128, 40, (1, 64, 64)).clip(0, 255).astype(np.uint8)
            medsynth.write_scan(Scan(array=pixels), out / "noise" / f"{number:04d}.png")
            rows.append(Row(path=f"{number:04d}.png", label=rare, patient_id=f"SET-{number}", split="train"))
        write_cohort(Cohort(folder=out / "noise", rows=tuple(rows)), sets["noise"])
    return sets


def main() -> None:
    """Evaluate what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", type=Path, required=True)
    parser.add_argument("--few", type=Path, required=True)
    parser.add_argument("--rare", required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--sets", nargs="+", default=["fresh", "shuffled", "noise", "copies"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path, help="JSON to write")
    options = parser.parse_args()
    everything, few = medsynth.read_cohort(options.all), medsynth.read_cohort(options.few)
    sets = make_sets(everything, few, options.rare, options.count, options.out)
    columns = ["set", "fidelity", "privacy gate", "flagged", "downstream", "Δ AUROC to the strongest cheap baseline"]
    print(head_of(columns))
    found: dict[str, Any] = {}
    for name in options.sets:
        folder = options.out / f"{name}_report"
        if not (folder / "report.json").exists():
            medsynth.evaluate(
                real=options.few,
                synthetic=sets[name],
                out=folder,
                grid={"size": 64},
                intensity={"method": "range", "low": 0, "high": 255},
                downstream={"rare_class": options.rare},
            )
        report = json.loads((folder / "report.json").read_text())
        found[name] = {
            "verdict": report["verdict"],
            "privacy": [
                {key: row[key] for key in ("label", "judged", "flagged", "power")} for row in report["privacy"]["rows"]
            ],
            "differences": report["downstream"]["tiers"][-1]["differences"],
            "versions": report["versions"],
        }
        print(_line(name, report), flush=True)
    if options.result:
        write_json(options.result, describe_machine() | {"sets": found})


def _line(name: str, report: dict[str, Any]) -> str:
    verdict = report["verdict"]
    fidelity = ", ".join(sorted({each["verdict"] for each in verdict["fidelity"]}))
    rows = report["privacy"]["rows"]
    flagged = f"{sum(row['flagged'] for row in rows)} of {sum(row['judged'] for row in rows)}"
    gain = report["downstream"]["tiers"][-1]["differences"][0]["figures"]["auroc"]
    privacy, downstream = (verdict[part]["verdict"] for part in ("privacy", "downstream"))
    return row_of([name, fidelity, privacy, flagged, downstream, shown(gain, sign=True)])


if __name__ == "__main__":
    main()
