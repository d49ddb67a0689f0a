"""Damaged and hostile input, made from sound files by seeded mutation: every reader must read it or refuse it, and be quick.

    python -m tests.slow.fuzz --count 10000 --result benchmarks/results/fuzz.json
    python -m tests.slow.fuzz --targets nifti,png --count 500 --keep failures

An input is `read`, or `refused` with one line that names the file or key. Everything else is a fault: an error without that form,
a `hang` beyond five seconds, a `crash` (memory beyond the budget included), or a file that a reader left behind. Inputs depend
only on the seed, the target and their number; `--keep` writes those that showed a fault.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.machine import describe_machine
from medsynth.errors import MedsynthError
from medsynth.files import write_json
from medsynth.seeds import derive_seed
from tests.slow.fuzz_targets import Target, make_targets

SECONDS = 5
_DYING = 5  # seconds between the last word of a process that dies and its end
BUDGET = 2 << 30  # bytes of address space beyond what the libraries take
FINE = ("read", "refused")


class Hang(BaseException):
    """The time limit passed; no `except Exception` of a reader may catch it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one input: a kind, what was said, and how long it took."""

    number: int
    kind: str
    said: str
    seconds: float


def attempt(target: Target, number: int, *, seed: int, folder: Path) -> Outcome:
    """Make input `number` of a target below `folder`, give it to the reader, and clear the folder again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name twice in an archive is meant
        path = target.write(random.Random(derive_seed(seed, "fuzz", target.name, number)), folder)
    before = {each for each in folder.rglob("*") if each.is_file()}
    began = time.perf_counter()
    said = ""
    try:
        with _time_limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)
        kind = "read"
    except MedsynthError as error:
        said = str(error)
        # One line that names a file or a key and says what is wrong with it.
        kind = "refused" if ": " in said and said.isprintable() else "unclear"
    except Hang:
        kind = "hang"
    except Exception as error:
        kind, said = "error", f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - began
    if kind == "refused" and {each for each in folder.rglob("*") if each.is_file()} - before:
        kind = "left"
    for each in folder.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    return Outcome(number=number, kind=kind, said=" ".join(said.split())[:300], seconds=round(seconds, 4))


def share_out(targets: Sequence[Target], count: int) -> dict[str, int]:
    """Return how many inputs each target gets, in proportion to its weight and rounded up."""
    total = sum(target.weight for target in targets)
    return {target.name: math.ceil(count * target.weight / total) for target in targets}


def fuzz_target(name: str, count: int, *, seed: int) -> Iterator[Outcome]:
    """Yield the outcome of every input of a target, read in a process of its own that is replaced when it dies."""
    number = 0
    while number < count:
        command = [sys.executable, "-m", "tests.slow.fuzz", "--worker", name, "--first", str(number)]
        command += ["--count", str(count), "--seed", str(seed)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for line in _lines(process, 12 * SECONDS):
            outcome = Outcome(**json.loads(line))
            number = outcome.number + 1
            yield outcome
        if number < count:
            try:
                process.wait(_DYING)
                killed = False
            except subprocess.TimeoutExpired:
                killed = True
                process.kill()
            code = process.wait()
            yield Outcome(
                number=number,
                kind="hang" if killed else "crash",
                said=f"exit {code}",
                seconds=float(killed * 12 * SECONDS),
            )
            number += 1
        else:
            process.wait()


def _lines(process: subprocess.Popen[bytes], limit: float) -> Iterator[bytes]:
    """Yield the lines that a process writes; end with it, or when it has been silent for `limit` seconds."""
    assert process.stdout is not None
    waiting = selectors.DefaultSelector()
    waiting.register(process.stdout, selectors.EVENT_READ)
    rest = b""
    while waiting.select(limit):
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def work(name: str, first: int, count: int, seed: int) -> None:
    """Read the inputs `first` to `count` of a target within the memory budget, and print each outcome as JSON."""
    with tempfile.TemporaryDirectory() as kept, tempfile.TemporaryDirectory() as folder:
        (target,) = make_targets(Path(kept), only=(name,))
        attempt(target, 0, seed=seed, folder=Path(folder))  # what is loaded on first use, before memory is limited
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + BUDGET, resource.RLIM_INFINITY))
        for number in range(first, count):
            print(json.dumps(vars(attempt(target, number, seed=seed, folder=Path(folder)))), flush=True)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)  # whoever runs the tests has a limit, too


def main() -> None:
    """Fuzz, print the table, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="inputs over all targets")
    parser.add_argument("--targets", help="comma-separated; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the inputs that showed a fault")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.first, arguments.count, arguments.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        targets = make_targets(Path(folder), only=arguments.targets.split(",") if arguments.targets else ())
        shares = share_out(targets, arguments.count)
        rows, faults = [], []
        for target in targets:
            outcomes = []
            for outcome in fuzz_target(target.name, shares[target.name], seed=arguments.seed):
                outcomes.append(outcome)
                if outcome.kind not in FINE:
                    faults.append({"target": target.name, **vars(outcome)})
                    print(
                        f"{target.name} {outcome.number}: {outcome.kind}: {outcome.said}", file=sys.stderr, flush=True
                    )
                    if arguments.keep:
                        place = arguments.keep / f"{target.name}-{outcome.number}"
                        place.mkdir(parents=True, exist_ok=True)
                        target.write(
                            random.Random(derive_seed(arguments.seed, "fuzz", target.name, outcome.number)), place
                        )
            rows.append(_row(target.name, outcomes))
            print(_table(rows[-1:], head=len(rows) == 1), flush=True)
    total = sum(row["inputs"] for row in rows)
    print(f"{total} inputs, {len(faults)} faults")
    if arguments.result:
        limits = {"seconds": SECONDS, "mib_beyond_libraries": BUDGET >> 20}
        write_json(
            arguments.result,
            describe_machine()
            | {"seed": arguments.seed, "limits": limits, "inputs": total, "rows": rows, "faults": faults},
        )


def _row(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    kinds = Counter(outcome.kind for outcome in outcomes)
    return {
        "target": name,
        "inputs": len(outcomes),
        "read": kinds["read"],
        "refused": kinds["refused"],
        "faults": len(outcomes) - kinds["read"] - kinds["refused"],
        "slowest_s": max(outcome.seconds for outcome in outcomes),
        "mean_ms": round(1000 * sum(outcome.seconds for outcome in outcomes) / len(outcomes), 2),
    }


def _table(rows: Sequence[dict[str, Any]], *, head: bool) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])] if head else []
    return "\n".join([*lines, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)])


if __name__ == "__main__":
    main()
