"""`kill -9` at moments spread over a training and a sampling, each followed by the same command: is the result the same?

    python -m tests.slow.kill_points --kills 40 --result benchmarks/results/kill_points.json

Every trial is a forked process that is killed after its share of the time that an undisturbed one takes, so the kills fall on
steps, validations, previews and the writing of weights, checkpoints and scans alike. After each kill whatever file is there must
be whole; then the same command runs to its end, and its weights or scans are compared byte for byte with the undisturbed ones.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import medsynth
from benchmarks.machine import describe_machine
from medsynth.files import hash_file, write_json
from medsynth.runs import load_run
from medsynth.scans import read_scan
from medsynth.training.checkpoints import AtomicCheckpointIO

_STEPS = 24


def train(cohort: Path, out: Path) -> None:
    """Train a tiny network with a checkpoint at every fourth step, a validation at every third and previews at every sixth."""
    medsynth.train(
        cohort=cohort,
        out=out,
        max_steps=_STEPS,
        batch_size=8,
        grid={"size": 16},
        intensity={"method": "range", "low": -1100, "high": 400},
        network={"channels": [32], "attention": [False], "dropout": 0.1},
        optimiser={"warmup_steps": 2},
        monitor={"log_every": 1, "validate_every": 3, "preview_every": 6, "checkpoint_every": 4},
        progress=False,
    )


def sample(run: Path, out: Path) -> None:
    """Sample a set of three classes."""
    medsynth.sample(run=run, count=12, out=out, batch_size=3, format="nifti", solver={"steps": 6}, progress=False)


def check_training(out: Path) -> dict[str, Any]:
    """Read every file of a run folder that a kill left; return where it was. Raises for a file that is not whole."""
    found: dict[str, Any] = {"checkpoint": None, "weights": False}
    if (out / "run.json").exists():
        load_run(out).load_denoiser()
        found["weights"] = True
    checkpoints = out / "checkpoints"
    for path in checkpoints.glob("[!.]*.ckpt"):
        step = AtomicCheckpointIO(checkpoints).load_checkpoint(path)["global_step"]
        found["checkpoint"] = max(step, found["checkpoint"] or 0)
    return found


def check_set(out: Path) -> dict[str, Any]:
    """Read every scan of a set that a kill left; return how many there are. Raises for a scan that is not whole."""
    scans = list(out.rglob("0*.nii.gz"))
    for path in scans:
        read_scan(path)
    return {"scans": len(scans), "cohort": (out / "cohort.csv").exists()}


def weights_of(out: Path) -> dict[str, str]:
    """Return the hash of the weights."""
    return {"model.safetensors": hash_file(out / "model.safetensors")}


def set_of(out: Path) -> dict[str, str]:
    """Return the hash of every file of a set."""
    return {path.relative_to(out).as_posix(): hash_file(path) for path in out.rglob("*") if path.is_file()}


def in_child(work: Callable[[], None], kill_after: float | None = None) -> tuple[int, float]:
    """Run `work` in a forked process, killed after so many seconds if it is not done; return exit code and seconds."""
    began = time.perf_counter()
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(kill_after)
    if child.is_alive() and child.pid is not None:
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    return child.exitcode or 0, time.perf_counter() - began


def try_kills(
    work: Callable[[Path], None],
    check: Callable[[Path], dict[str, Any]],
    result_of: Callable[[Path], dict[str, str]],
    folder: Path,
    kills: int,
) -> dict[str, Any]:
    """Kill `work` at `kills` moments, look at what is there, run it again and compare; return the counts and every trial."""
    in_child(lambda: work(folder / "first"))  # takes longer: what it loads stays in the memory of the system
    code, seconds = in_child(lambda: work(folder / "undisturbed"))
    assert code == 0, "the undisturbed process failed"
    expected = result_of(folder / "undisturbed")
    trials = []
    for number in range(kills):
        out = folder / str(number)
        after = seconds * (number + 0.5) / kills
        code, _ = in_child(lambda out=out: work(out), after)
        trial: dict[str, Any] = {"after_s": round(after, 3), "killed": code == -signal.SIGKILL}
        try:
            trial |= {"whole": True, **check(out)}
        except Exception as error:
            trial |= {"whole": False, "error": str(error)}
        code, _ = in_child(lambda out=out: work(out))
        left = [path.name for path in (*out.rglob(".partial*"), *folder.glob(f".{number}.lock"))]
        trial |= {"equal": code == 0 and result_of(out) == expected, "left": left}
        trials.append(trial)
        print(trial, flush=True)
    return {
        "seconds_undisturbed": round(seconds, 2),
        "kills": sum(trial["killed"] for trial in trials),
        "whole": sum(trial["whole"] for trial in trials),
        "equal": sum(trial["equal"] for trial in trials),
        "partial_files_left": sum(len(trial["left"]) for trial in trials),
        "trials": trials,
    }


def main() -> None:
    """Try training and sampling, print the counts and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="of either kind")
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {variable: str(folder / variable) for variable in ("XDG_CACHE_HOME", "XDG_DATA_HOME")}
        cohort = folder / "phantom" / "cohort.csv"
        medsynth.demo(out=folder / "phantom", scans=60, size=32, progress=False)
        in_child(lambda: train(cohort, folder / "first"))  # prepares the scans for all
        result = describe_machine() | {
            "steps": _STEPS,
            "train": try_kills(
                lambda out: train(cohort, out), check_training, weights_of, folder / "train", arguments.kills
            ),
            "sample": try_kills(
                lambda out: sample(folder / "first", out), check_set, set_of, folder / "sample", arguments.kills
            ),
        }
    for kind in ("train", "sample"):
        counts = {name: value for name, value in result[kind].items() if name != "trials"}
        print(kind, counts)
    if arguments.result:
        write_json(arguments.result, result)


if __name__ == "__main__":
    main()
