"""The privacy gate on sets whose truth is known, made from a real cohort: what it finds, and what it flags wrongly.

    nice python -m benchmarks.privacy_calibration --cohort cohort.csv --low 0 --high 255

Half of the test patients leave the cohort and are offered as "synthetic": `fresh` should pass. `copies` are training scans
(exact, mirrored, shifted, contrast and brightness changed, noised, all at once) and should fail, as should `half`: copies
and fresh scans in equal parts. `dropped` is `half` with its flagged scans set aside. `few` keeps 20 training and 15 test
patients of each class; its verdict should be `cannot tell`. Finished sets are kept in --out, so the same command continues after
an interruption; it prints a Markdown table at the end. `--scans 60` uses at most 60 patients of each class and split.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.markdown import head_of, row_of
from medsynth.cohorts import prepare_cohort, read_cohort
from medsynth.config import GridOptions, IntensityOptions
from medsynth.evaluation.arrays import SEEN, ScanArrays
from medsynth.evaluation.features import cached_features
from medsynth.evaluation.privacy import GateSettings, score_privacy
from medsynth.evaluation.privacy.controls import PLANTED, plant_copies
from medsynth.evaluation.privacy.result import Share
from medsynth.evaluation.verdict import without_nan
from medsynth.files import user_folder, write_json
from medsynth.measures.features import EfficientNetLite0, extract_features
from medsynth.seeds import numpy_generator

FEW = {"train": 20, "val": 0, "test": 15}  # patients of each class


def keep(real: ScanArrays, rows: np.ndarray) -> ScanArrays:
    """Return the scans at `rows` as a cohort of their own."""
    names = ("scans", "features", "labels", "splits", "patients")
    return dataclasses.replace(real, **{name: np.asarray(getattr(real, name))[rows] for name in names})


def limited(real: ScanArrays, most: dict[str, int], seed: int) -> np.ndarray:
    """Return rows of at most `most[split]` random patients of each class and split."""
    rows = []
    for number, label in enumerate(real.classes):
        for split, count in most.items():
            found = real.rows_of(label, (split,))
            patients = numpy_generator(seed, "limited", number, split).permutation(np.unique(real.patients[found]))
            rows.append(found[np.isin(real.patients[found], patients[:count])])
    return np.sort(np.concatenate(rows))


def judge(name: str, real: ScanArrays, fresh: ScanArrays, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the gate said of one set, and what was true."""
    settings = GateSettings()
    if name == "few":
        real = keep(real, limited(real, FEW, args.seed))
    scans, labels, vectors, kinds, donors = [], [], [], [], []
    if name in ("copies", "half", "dropped"):
        for label in range(len(real.classes)):
            # Not those of the gate's own control.
            planted, origin, kind = plant_copies(real, label, settings, args.seed + 1000)
            scans.append(planted)
            labels.append(np.full(len(planted), label))
            kinds.append(kind)
            donors.append(origin)
        made = np.concatenate(scans)
        vectors.append(extract_features(EfficientNetLite0(), made) if args.features == "lite0" else thumbnails(made))
    copies = sum(map(len, scans))
    if name != "copies":
        some = np.arange(len(fresh.scans))
        if copies:
            some = numpy_generator(args.seed, "half").permutation(some)[:copies]
        scans.append(fresh.scans[some])
        labels.append(fresh.labels[some])
        vectors.append(fresh.features[some])
    count = sum(map(len, scans))
    offered = ScanArrays(
        scans=np.concatenate(scans),
        features=np.concatenate(vectors),
        labels=np.concatenate(labels),
        classes=real.classes,
        splits=np.full(count, "train"),
        patients=np.arange(count),
    )
    start = time.perf_counter()
    result = score_privacy(real, offered, settings=settings, drop_copies=name == "dropped", seed=args.seed)
    seconds = time.perf_counter() - start
    found = {copy.synthetic_row: copy.donor_row for copy in result.copies}
    all_kinds = np.concatenate([np.zeros(0, dtype=int), *kinds])
    all_donors = np.concatenate([np.zeros(0, dtype=int), *donors])
    hit = np.array([row in found for row in range(copies)], dtype=bool)
    measured = [row.false_alarms for row in result.rows]
    facts = {
        **result.verdict(),
        "classes": {row.label: row.verdict(settings, len(result.rows)) for row in result.rows},
        "training_scans": int(np.isin(real.splits, SEEN).sum()),
        "copies_found": Share(int(hit.sum()), copies).as_dict(),
        "right_donor": int(sum(found[row] == all_donors[row] for row in np.flatnonzero(hit))),
        "by_kind": {
            kind: Share(int(hit[all_kinds == number].sum()), int((all_kinds == number).sum())).as_dict()
            for number, kind in enumerate(PLANTED)
            if copies
        },
        "fresh_flagged": Share(sum(row >= copies for row in found), count - copies).as_dict(),
        "false_alarms": Share(sum(share.found for share in measured), sum(share.of for share in measured)).as_dict(),
        "rows": result.as_dict()["rows"],
        "seconds": round(seconds, 1),
    }
    return dict(without_nan(facts))


def thumbnails(scans: np.ndarray) -> np.ndarray:
    """Return every eighth pixel along each axis: fast features for a first try."""
    return np.asarray(
        scans[(slice(None), slice(None), *[slice(None, None, 8)] * (scans.ndim - 2))], np.float32
    ).reshape(len(scans), -1)


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    titles = ["set", "verdict", "copies found", "fresh scans flagged", "held-out false alarms", "seconds"]
    lines = [head_of(titles)]
    for name, result in results.items():
        shares = [result[key] for key in ("copies_found", "fresh_flagged", "false_alarms")]
        cells = [
            f"{share['found']} of {share['of']} ({100 * share['low']:.1f} to {100 * share['high']:.1f} %)"
            if share["of"]
            else "–"
            for share in shares
        ]
        lines.append(row_of([name, result["verdict"], *cells, f"{result['seconds']:.0f}"]))
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--low", type=float, help="fixed intensity range; percentiles of the training split without")
    parser.add_argument("--high", type=float)
    parser.add_argument("--scans", type=int, default=0, help="patients of each class and split at most; 0: all")
    parser.add_argument("--features", choices=("lite0", "thumbnails"), default="lite0")
    parser.add_argument("--sets", nargs="+", default=["fresh", "copies", "half", "dropped", "few"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/privacy_calibration.json"))
    args = parser.parse_args()
    intensity = IntensityOptions()
    if args.low is not None and args.high is not None:
        intensity = IntensityOptions(method="range", low=args.low, high=args.high)
    prepared = prepare_cohort(read_cohort(args.cohort), grid=GridOptions(size=args.size), intensity=intensity)
    if args.features == "lite0":
        features = cached_features(prepared, EfficientNetLite0(), folder=user_folder("cache"))
    else:
        features = thumbnails(prepared.scans)
    everything = ScanArrays(
        features=features,
        **{name: getattr(prepared, name) for name in ("scans", "labels", "classes", "splits", "patients")},
    )
    if args.scans:
        most = dict.fromkeys(("train", "val", "test"), args.scans)
        everything = keep(everything, limited(everything, most, args.seed))
    test = everything.splits == "test"
    patients = numpy_generator(args.seed, "fresh").permutation(np.unique(everything.patients[test]))
    leaves = np.isin(everything.patients, patients[: len(patients) // 2])
    fresh = keep(everything, np.flatnonzero(leaves & test))
    real = keep(everything, np.flatnonzero(~leaves))
    settings = {name: getattr(args, name) for name in ("size", "low", "high", "scans", "features", "seed")}
    done: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    if done.get("settings") != settings:
        done = {"settings": settings, "machine": describe_machine(), "results": {}}
    for name in args.sets:
        if name not in done["results"]:
            done["results"][name] = judge(name, real, fresh, args)
            write_json(args.out, done)
    print(table(done["results"]))


if __name__ == "__main__":
    main()
