"""Time and memory of index, preparation, fidelity, report and hand-over for many rows and many classes.

    python -m benchmarks.scale --part index --rows 100000 --classes 3 --folder /tmp/scale --result benchmarks/results/scale.json

Scans are noise of 8 x 8 pixels, so what grows is what medsynth does for each row and class, not the decoding of pictures;
features are the pixels. `index`, `open` and `augment` work on PNG files, which `--part files` writes; `gate` works on arrays
(enlarged to 64 x 64, 400 synthetic scans), as does `fidelity`, which includes the page of the report; its time grows with
--repeats, the random halvings of real scans, of which an evaluation makes 100. Seconds are processor seconds. One call measures
one part, since the peak is that of the process; the result file keeps those of other calls.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import zoom

from benchmarks.machine import describe_machine
from medsynth.cohorts import hash_cohort, index_scans, prepare_cohort, read_cohort
from medsynth.config import GridOptions, IndexOptions, IntensityOptions, Loading
from medsynth.evaluation import Evaluation, build_report
from medsynth.evaluation.arrays import ScanArrays
from medsynth.evaluation.fidelity import FidelitySettings, score_fidelity
from medsynth.evaluation.privacy import score_privacy
from medsynth.evaluation.reports import seal_report
from medsynth.files import write_json
from medsynth.reporting.report import write_report
from medsynth.sets import open_synthetic, write_augmented

SIDES = ("real", "made")
SPLITS = ("train", "train", "val", "test")
QUIET = Loading(progress=False)


class Pixels:
    """An extractor whose features are the pixels, for the head of a report."""

    name, title, sha256 = "Pixels", "all pixels", "0" * 64


def write_files(folder: Path, rows: int, classes: int) -> None:
    for number, side in enumerate(SIDES):
        random = np.random.default_rng(number)
        lines = ["path,label,patient_id,split"]
        (folder / side / "scans").mkdir(parents=True, exist_ok=True)
        for row in range(rows):
            name = f"scans/{row:06d}.png"
            Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / side / name)
            split = SPLITS[row // classes % 4] if side == "real" else "train"
            lines.append(f"{name},class_{row % classes:03d},{side}-{row},{split}")
        (folder / side / "labels.csv").write_text("\n".join(lines))
    (folder / "made" / "labels.csv").rename(folder / "made" / "cohort.csv")


def make_arrays(rows: int, classes: int, seed: int, splits: tuple[str, ...], side: int = 8) -> ScanArrays:
    """Noise on an 8 x 8 grid, enlarged to `side`."""
    scans = np.random.default_rng(seed).normal(0, 0.3, (rows, 1, 8, 8)).clip(-1, 1).astype(np.float16)
    if side > 8:
        larger = (1, 1, side / 8, side / 8)
        parts = (zoom(each.astype(np.float32), larger, order=1) for each in np.array_split(scans, 64))
        scans = np.concatenate([each.astype(np.float16) for each in parts])
    return ScanArrays(
        scans=scans,
        features=scans[..., :: max(1, side // 8), :: max(1, side // 8)].reshape(rows, -1).astype(np.float32),
        labels=np.arange(rows) % classes,
        classes=tuple(f"class_{number:03d}" for number in range(classes)),
        splits=np.array(splits)[np.arange(rows) // classes % len(splits)],
        patients=np.arange(rows),
    )


def measure(part: str, folder: Path, rows: int, classes: int, repeats: int) -> dict[str, Any]:
    """Run one part; return further facts about it."""
    real, made = folder / "real", folder / "made"
    if part == "index":
        index_scans(
            IndexOptions(
                scans=real, labels=real / "labels.csv", out=real / "cohort.csv", allow_tiny=True, progress=False
            )
        )
    elif part == "open":
        cohort = read_cohort(real / "cohort.csv")
        hash_cohort(cohort, loading=QUIET, anew=True)
        intensity = IntensityOptions(method="range", low=0, high=255)
        prepare_cohort(cohort, grid=GridOptions(size=(8, 8)), intensity=intensity, loading=QUIET)
    elif part == "augment":
        cohort = read_cohort(real / "cohort.csv")
        write_augmented(cohort, open_synthetic(made, cohort), folder / "augmented" / "cohort.csv")
    elif part == "gate":
        real_scans, made_scans = make_arrays(rows, classes, 0, SPLITS, 64), make_arrays(400, classes, 1, ("train",), 64)
        found = score_privacy(real_scans, made_scans, progress=False)
        return {"synthetic": 400, "side": 64, "verdict": found.verdict()["verdict"]}
    else:
        sides = make_arrays(rows, classes, 0, SPLITS), make_arrays(rows, classes, 1, ("train",))
        table = score_fidelity(*sides, extractor=Pixels(), settings=FidelitySettings(repeats=repeats), progress=False)  # type: ignore[arg-type]
        evaluation = Evaluation(report=seal_report(build_report(table)), sheets=table.sheets)
        files = write_report(folder / "report", evaluation)
        return {"repeats": repeats} | {
            f"{file.suffix[1:]}_mib": round(file.stat().st_size / 2**20, 1) for file in (files.html, files.json)
        }
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["files", "index", "open", "gate", "fidelity", "augment"], required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    if options.part == "files":
        write_files(options.folder, options.rows, options.classes)
        return
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.process_time()
    facts = measure(options.part, options.folder, options.rows, options.classes, options.repeats)
    row = {
        "part": options.part,
        "rows": options.rows,
        "classes": options.classes,
        "seconds": round(time.process_time() - began, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "imports_mib": round(before),
        **facts,
    }
    known = json.loads(options.result.read_text())["measured"] if options.result.exists() else []
    same = ("part", "rows", "classes")
    kept = [one for one in known if any(one[key] != row[key] for key in same)]
    write_json(options.result, {"machine": describe_machine(), "measured": [*kept, row]})
    print(row)


if __name__ == "__main__":
    main()
