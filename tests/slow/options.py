"""Every option of every verb with values that nobody should type: each is refused in one line, or accepted and carried out.

    python -m tests.slow.options --count 1500 --out benchmarks/results/options.json
    python -m tests.slow.options --only train,sample --out result.json

The command line runs within a worker process, on a tiny cohort, run, set and report. What is accepted really runs; long work is
interrupted, as by Ctrl-C, at the second step of a training and the second of anything else that `_STOPS` names. A fault is
a `traceback`, a `hang` beyond 20 seconds, a `crash` (memory beyond the budget included), or `unclear`: a refusal in any other
form than one line. Values depend on the option alone, and `--count` takes an even share of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_origin
from unittest import mock

from benchmarks.machine import describe_machine
from medsynth.cli import run_command
from medsynth.config import OPTIONS, options_of
from medsynth.config.bounds import Bounds
from medsynth.config.declared import Option, choices_of, leaves
from medsynth.files import write_json
from tests.slow.fuzz import Hang, Outcome, _lines, _time_limit

SECONDS = 20
BUDGET = 6 << 30  # bytes of address space beyond what the libraries take
_NUMBERS = ("0", "-1", "1000000000000", "9" * 400, "1e300", "1e-300", ".nan", ".inf", "-.inf", "x", "")
_SWITCHES = ("7", "maybe", "1e300", ".nan", "")
_TEXTS = ("", "x" * 5000, "a\0b", "\udcff", "-1", "a=b=c", "https://example.org/x", "[1, {a: b}", "1e300")
_PATHS = (*_TEXTS, "no/such/file", "/dev/null", "pipe", "folder", "file.csv", "folder/..", "~")
# Their upper bound is allowed and takes a cluster, or minutes: it is not tried out here.
_LARGE = ("devices", "num_nodes", "num_workers", "grid.size", "network.channels")
# Each is interrupted when it is called for the second time: the step of a training, a chunk of scans, a scan of the phantom, ...
_STOPS = (
    "medsynth.training.module.TrainingModule.optimizer_step",
    "medsynth.training.distill.DrawTrajectories._draw",
    "medsynth.generation.sample.NewScans.make",
    "medsynth.generation.edit.Counterfactuals.make",
    "medsynth.generation.inpaint.Painting.make",
    "medsynth.cohorts.phantom.phantom_scan",
    "medsynth.evaluation.downstream.gain.train_probe",
)
_TINY = (
    "--grid.size=16", "--network.channels=32", "--network.attention=false", "--max_steps=4", "--batch_size=4",
    "--intensity.method=range", "--intensity.low=-1100", "--intensity.high=400", "--monitor.preview_every=0",
    "--condition.attributes=diameter_mm",
)  # fmt: skip
# What each verb needs to run at all.
_BASE: dict[str, tuple[str, ...]] = {
    "demo": ("--out=new", "--scans=4", "--size=16"),
    "index": ("--scans=phantom/scans", "--out=new/cohort.csv", "--labels=phantom/cohort.csv", "--allow_tiny"),
    "train": ("--cohort=phantom/cohort.csv", "--out=new", *_TINY),
    "distill": (
        "--run=run", "--cohort=phantom/cohort.csv", "--out=new", "--trajectories=2", "--teacher_steps=3", "--batch_size=4",
        "--monitor.preview_every=0",
    ),
    "sample": ("--run=run", "--count=1", "--out=new", "--solver.steps=2"),
    "edit": (
        "--run=run", "--cohort=phantom/cohort.csv", "--donor_class=normal", "--target_class=ground_glass", "--count=2",
        "--out=new", "--solver.steps=3", "--batch_size=2",
    ),
    "evaluate": ("--real=phantom/cohort.csv", "--synthetic=set", "--out=new", "--parts=fidelity"),
    "augment": ("--real=phantom/cohort.csv", "--synthetic=set", "--report=report", "--out=new/cohort.csv"),
    "card": ("--synthetic=set", "--report=report", "--out=new"),
    "doctor": ("--quick",),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One option of a verb with one value."""

    verb: str
    name: str
    value: str

    @property
    def arguments(self) -> list[str]:
        """The command line."""
        base = [each for each in _BASE[self.verb] if not each.startswith(f"--{self.name}=")]
        if self.verb == "evaluate" and self.name.startswith("downstream."):
            base = [*base[:-1], "--parts=downstream"] + (
                ["--downstream.seeds=2"] if self.name != "downstream.seeds" else []
            )
        if self.verb == "edit" and self.name.startswith("inpaint."):
            base += ["--method=inpaint"]
        quiet = [] if self.name == "progress" else ["--progress=false"]
        return [self.verb, *base, *quiet, f"--{self.name}={self.value}"]


def make_cases() -> list[Case]:
    """Return all cases, verb by verb."""
    found = []
    for verb, cls in OPTIONS.items():
        for name, option in options_of(cls).items():
            found += [Case(verb=verb, name=name, value=value) for value in dict.fromkeys(values_of(option))]
    return found


def values_of(option: Option) -> Iterator[str]:
    """Yield the values to try: those of its kind, and the ends of its range."""
    kinds, bounds = leaves(option.kind), next((rule for rule in option.rules if isinstance(rule, Bounds)), None)
    if bounds is not None:
        yield from _NUMBERS
        if option.is_list:
            yield from ("1,,2", "[1", ",".join("1" * 40), "1,.nan")
        if option.name not in _LARGE:
            yield from (f"{bounds.low}", f"{bounds.high}")
    elif Path in kinds:
        yield from _PATHS
    elif choices := choices_of(option.kind):
        yield from ("nonsense", "", "0", ".nan", *choices)
    elif bool in kinds:
        yield from _SWITCHES
    else:
        assert get_origin(option.kind) is not Literal
        yield from _TEXTS


def prepare(folder: Path) -> None:
    """Make what the verbs read in `folder`: a cohort, a run, a set and a report, and things that are none of them."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        commands = [
            ["demo", "--out=phantom", "--scans=40", "--size=16", "--rare_share=0.3"],
            ["train", "--cohort=phantom/cohort.csv", "--out=run", *_TINY],
            ["sample", "--run=run", "--count=3", "--out=set", "--solver.steps=2"],
            ["evaluate", "--real=phantom/cohort.csv", "--synthetic=set", "--out=report", "--parts=fidelity,privacy"],
        ]
        for command in commands:
            if run_command([*command, "--progress=false"]) not in (0, 4):
                raise AssertionError(said.getvalue())
        os.mkfifo("pipe")
        Path("folder").mkdir()
        Path("file.csv").write_text("a,b\n1,2\n")


def attempt(case: Case, number: int) -> Outcome:
    """Run a case in the working directory, made by `prepare`, and remove what it wrote.

    It is `refused`, `done`, `stopped` where it was interrupted, or a fault.
    """
    said, heard = io.StringIO(), io.StringIO()
    before = {path.name for path in Path().iterdir()}
    began = time.perf_counter()
    try:
        with (
            _time_limit(SECONDS), _stops(), warnings.catch_warnings(), contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(heard),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            code = run_command(case.arguments)
        lines = [line for line in said.getvalue().splitlines() if line]
        if code in (2, 3):
            clear = len(lines) == 1 and lines[0].startswith("medsynth: ") and ": " in lines[0][10:]
            kind, text = "refused" if clear else "unclear", said.getvalue()
        else:
            kind, text = {0: "done", 4: "done", 130: "stopped"}.get(code, "unclear"), said.getvalue()[-300:]
    except BaseException as error:  # a SystemExit is a fault, too
        where = [f"{Path(each.filename).name}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)[2:]]
        kind = "hang" if isinstance(error, Hang) else "traceback"
        text = f"{type(error).__name__}: {error} ({' < '.join([*where[:-7:-1]])})"
    for path in Path().iterdir():
        if path.name not in before:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    seconds = round(time.perf_counter() - began, 3)
    return Outcome(number=number, kind=kind, said=" ".join(text.split())[:400], seconds=seconds)


@contextlib.contextmanager
def _stops() -> Iterator[None]:
    """Interrupt each of `_STOPS` when it is called for the second time."""
    with contextlib.ExitStack() as stack:
        for name in _STOPS:
            stack.enter_context(mock.patch(name, _stopped(_find(name))))
        yield


def _stopped(plain: Callable[..., Any]) -> Callable[..., Any]:
    calls = []

    def stop(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    return stop


def _find(name: str) -> Callable[..., Any]:
    from pkgutil import resolve_name

    found: Callable[..., Any] = resolve_name(name)
    return found


def work(first: int, count: int, seed: int, only: str) -> None:
    """Run the chosen cases from number `first` within the memory budget, and print each outcome as JSON."""
    cases = choose(count, seed, only)
    real = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that a library prints may come between
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + BUDGET, resource.RLIM_INFINITY))
        with contextlib.chdir(folder):
            for number in range(first, len(cases)):
                print(json.dumps(asdict(attempt(cases[number], number))), file=real, flush=True)


def choose(count: int, seed: int, only: str) -> list[Case]:
    """Return an even share of all cases, `count` of them, in their order; 0 for all."""
    wanted = set(only.split(",")) if only else set(OPTIONS)
    cases = [case for case in make_cases() if case.verb in wanted]
    if not count or count >= len(cases):
        return cases
    return [cases[place] for place in sorted(random.Random(seed).sample(range(len(cases)), count))]


def try_out(cases: Sequence[Case], count: int, seed: int, only: str) -> Iterator[Outcome]:
    """Yield the outcome of every case, run in a process that is replaced when it dies."""
    number = 0
    while number < len(cases):
        command = [
            sys.executable,
            "-m",
            "tests.slow.options",
            "--worker",
            "--first",
            str(number),
            "--count",
            str(count),
        ]
        command += ["--seed", str(seed), "--only", only]
        with tempfile.TemporaryDirectory() as home:
            homes = dict.fromkeys(("XDG_CACHE_HOME", "XDG_DATA_HOME"), home)
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | homes
            )
            for line in _lines(process, 6 * SECONDS):
                outcome = Outcome(**json.loads(line))
                number = outcome.number + 1
                yield outcome
            killed = process.poll() is None and number < len(cases)
            if killed:
                process.kill()
            code = process.wait()
        if number < len(cases):
            yield Outcome(
                number=number, kind="hang" if killed else "crash", said=f"exit {code}", seconds=6.0 * SECONDS * killed
            )
            number += 1


def main() -> None:
    """Try the options out, print the faults and the table, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=0, help="cases in all; 0 for every one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="verbs, comma-separated; all by default")
    parser.add_argument("--out", "--result", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.first, arguments.count, arguments.seed, arguments.only)
        return
    cases, faults = choose(arguments.count, arguments.seed, arguments.only), []
    kinds: dict[str, Counter[str]] = {}
    slowest: Counter[str] = Counter()
    for outcome in try_out(cases, arguments.count, arguments.seed, arguments.only):
        case = cases[outcome.number]
        kinds.setdefault(case.verb, Counter())[outcome.kind] += 1
        slowest[case.verb] = max(slowest[case.verb], outcome.seconds)  # type: ignore[assignment]
        if outcome.kind not in ("refused", "done", "stopped"):
            shown = case.value if len(case.value) < 60 else f"{case.value[:20]}... ({len(case.value)} characters)"
            faults.append({"verb": case.verb, "option": case.name, "value": repr(shown), **asdict(outcome)})
            print(f"{case.verb} --{case.name}={shown!r}: {outcome.kind}: {outcome.said}", file=sys.stderr, flush=True)
    rows = [
        {
            "verb": verb, "inputs": found.total(), "refused": found["refused"], "done": found["done"],
            "stopped": found["stopped"], "tracebacks": found["traceback"], "hangs": found["hang"],
            "other_faults": found["crash"] + found["unclear"], "slowest_s": slowest[verb],
        }
        for verb, found in kinds.items()
    ]  # fmt: skip
    for row in rows:
        print(" ".join(f"{name} {value}" for name, value in row.items()))
    print(f"{len(cases)} inputs, {len(faults)} faults")
    if arguments.out:
        limits = {"seconds": SECONDS, "mib_beyond_libraries": BUDGET >> 20}
        facts = {"seed": arguments.seed, "limits": limits, "inputs": len(cases), "rows": rows, "faults": faults}
        write_json(arguments.out, describe_machine() | facts)


if __name__ == "__main__":
    main()
