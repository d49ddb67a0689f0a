"""A long sampling and its evaluation: does memory stay flat?

    python -m tests.slow.soak --run RUN --cohort COHORT.csv --scans 1000 --out WORK --result benchmarks/results/soak.json

Each command runs as a process of its own, whose resident memory is read from /proc (Linux) ten times a second, beside the number
of scans on the disk. Of the sampling, memory once a tenth of the scans is written is compared with that at the end; of the
evaluation, which takes its features in memory, the highest memory with that of an evaluation of a tenth of the scans.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import medsynth
from benchmarks.machine import describe_machine
from medsynth.files import write_json

_EVERY = 0.1  # seconds
_MIB = 1 << 10  # KiB of /proc in a MiB


def watch(command: list[str], counted: Path | None = None) -> dict[str, Any]:
    """Run a command of medsynth; return its seconds, and resident MiB with the number of files below `counted`, over time."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "medsynth", *command], stdout=subprocess.DEVNULL)
    track = []
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            break
        resident = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
        if resident:
            files = 0 if counted is None else sum(1 for _ in counted.glob("*/*"))
            track.append((time.perf_counter() - began, files, int(resident[0]) / _MIB))
        time.sleep(_EVERY)
    if process.wait() not in (0, 4):  # 4: the gate failed, which is a result
        raise SystemExit(f"medsynth {' '.join(command)}: exit code {process.returncode}")
    return {"seconds": time.perf_counter() - began, "track": track}


def flatness(track: list[tuple[float, int, float]], scans: int) -> dict[str, float]:
    """Return the median MiB while the second tenth of the scans and while the last tenth was written, and what grew a scan."""
    files, resident = np.array([row[1] for row in track]), np.array([row[2] for row in track])
    early = resident[(files >= 0.1 * scans) & (files < 0.2 * scans)]
    late = resident[files >= 0.9 * scans]
    after = files >= 0.1 * scans
    slope = np.polyfit(files[after], resident[after], 1)[0]
    return {"mib_early": float(np.median(early)), "mib_late": float(np.median(late)), "kib_a_scan": float(slope * 1024)}


def main() -> None:
    """Sample and evaluate as many scans as the options say, and write what memory did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=1000, help="scans in all, as many of each class")
    parser.add_argument("--parts", default="fidelity,privacy")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    classes = medsynth.load_run(arguments.run).spec.classes
    result: dict[str, Any] = {"machine": describe_machine(), "scans": arguments.scans, "evaluation": {}}
    for scans in (arguments.scans // 10, arguments.scans):
        each = scans // len(classes)
        folder = arguments.out / f"set_{scans}"
        command = ["sample", "--run", str(arguments.run), "--count", str(each), "--out", str(folder)]
        sampled = watch([*command, "--progress", "false"], folder)
        if scans == arguments.scans:
            made = each * len(classes)
            result["sampling"] = {"seconds": sampled["seconds"]} | flatness(sampled["track"], made)
        command = ["evaluate", "--real", str(arguments.cohort), "--synthetic", str(folder)]
        report = arguments.out / f"report_{scans}"
        judged = watch([*command, "--out", str(report), "--parts", arguments.parts, "--progress", "false"])
        highest = max(row[2] for row in judged["track"])
        result["evaluation"][str(scans)] = {"seconds": judged["seconds"], "mib_highest": highest}
    write_json(arguments.result, result)
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=2))


if __name__ == "__main__":
    main()
