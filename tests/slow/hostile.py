"""Runs, sets, reports and caches that were tampered with: nothing of it may pass, end in a traceback, or hang.

    python -m tests.slow.hostile --count 2000 --result benchmarks/results/hostile.json
    python -m tests.slow.hostile --only report,set --count 500

Everything begins with an honest cohort, run, set and report that passes and is handed over: the control, which is in the result.
A `wrong pass` is an `augment` or `card` that accepts what was changed after the evaluation, a hand-over of a set whose generator
saw test patients, an evaluation that was changed by its cache, and a set of copies whose evaluation does not fail. Other faults
are a `traceback`, a `hang` beyond 60 seconds, `unclear` (a refusal in another form than one line) and `left` (a refusal that
wrote a file). `refused` and `same` (accepted, since what counts is as it was) are fine. Inputs depend on seed, kind and number.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import hmac
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.machine import describe_machine
from medsynth.cli import run_command
from medsynth.cohorts import Cohort, Row, read_cohort, write_cohort
from medsynth.evaluation.reports import check_report
from medsynth.files import write_json
from medsynth.runs.patients import PatientsKey, own_key
from medsynth.scans import Scan, write_scan
from medsynth.seeds import derive_seed, numpy_generator
from tests.made_report import passed_report, write_sealed
from tests.slow.fuzz import Hang, _time_limit

SECONDS = 60
# How many of the inputs are of each kind; evaluations take seconds each.
SHARES = {"report": 0.83, "set": 0.13, "run": 0.03, "cache": 0.006, "copies": 0.004}
FINE = ("refused", "same")
_TINY = (
    "--grid.size=16", "--intensity.method=range", "--intensity.low=0", "--intensity.high=255", "--network.channels=32",
    "--network.attention=false", "--max_steps=4", "--batch_size=4", "--monitor.preview_every=0", "--progress=false",
)  # fmt: skip
_ODD = (None, True, False, 0, -1, 1.5, 10**30, 1e300, "", "pass", "0", [], {}, [[1]], {"a": 1})
_WORDS = {"pass": "fail", "fail": "pass", "cannot tell": "pass", "no": "yes", "flagged": "judged", "bad": "good"}


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What is tampered with: a real cohort, a set and its report that passes, and one about other scans.

    `failed` is a report of the same set that did not pass. The generator `leaky` saw the test patients, and made `leaked`, whose
    report passes. Evaluations are of the cohorts `few` (quick) and `many` (enough patients for a verdict).
    """

    real: Path
    made: Path
    passed: Path
    failed: Path
    other: Path
    leaky: Path | None = None
    leaked: Path | None = None
    sound: Path | None = None
    few: Path | None = None
    many: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one input: what was done to it, its fate, what was said, and the seconds that it took."""

    number: int
    deed: str
    fate: str
    said: str
    seconds: float


def reports_of(report: Path, folder: Path) -> dict[str, Path]:
    """Return the reports `passed`, `failed` and `other` of a ground, made from one that is sound, sealed with the key."""
    passed = passed_report(report, folder / "passed")
    content = json.loads((passed / "report.json").read_text())
    rows = check_report(content, passed).rows  # type: ignore[union-attr]
    failed = passed_report(report, folder / "failed", rows=tuple(replace(row, flagged=3, identical=2) for row in rows))
    other = content | {"sets": content["sets"] | {"synthetic": "0" * 64}}
    return {"passed": passed, "failed": failed, "other": write_sealed(other, folder / "other")}


def prepare(folder: Path) -> Ground:
    """Make everything below `folder`."""
    swap = {"train": "test", "test": "train", "val": "val"}
    few, many = _cohort(folder / "few", 64, 0), _cohort(folder / "many", 240, 0, size=32)
    cohort = read_cohort(few / "cohort.csv")
    swapped = replace(cohort, rows=tuple(replace(row, split=swap[row.split]) for row in cohort.rows))
    write_cohort(swapped, few / "swapped.csv")
    for name, table in (("run", "cohort"), ("leaky", "swapped")):
        _sound("train", f"--cohort={few / table}.csv", f"--out={folder / name}", *_TINY)
        made = folder / f"{name}-set"
        _sound("sample", f"--run={folder / name}", "--count=4", f"--out={made}", "--solver.steps=2", "--progress=false")
        # The one that names no run passes without it: hand-over asks for the run.
        named = (f"--run={folder / name}",) if name == "run" else ()
        both = (f"--real={few}", f"--synthetic={made}", "--parts=fidelity,privacy", "--progress=false")
        _sound("evaluate", *both, f"--out={folder / name}-report", *named)
    return Ground(
        real=few / "cohort.csv", made=folder / "run-set", **reports_of(folder / "run-report", folder / "reports"),
        leaky=folder / "leaky", leaked=passed_report(folder / "leaky-report", folder / "leaked"), sound=folder / "run",
        few=few, many=many,
    )  # fmt: skip


def _cohort(folder: Path, count: int, seed: int, split: str = "", size: int = 16) -> Path:
    """Write a cohort of square pictures of blobs in two classes; half of each is `train`, the others are held out."""
    rows = []
    for number in range(count):
        label, path = "bright" if number % 2 else "dark", f"scans/{number:03d}.png"
        write_scan(Scan(array=_picture(seed, number, 200 if number % 2 else 90, size)), folder / path)
        # Classifiers need a validation split, a verdict as many held-out patients as possible.
        usual = (
            ("train", "train", "val", "test")[number // 2 % 4] if count < 100 else ("train", "test")[number // 2 % 2]
        )
        chosen = split or usual
        rows.append(Row(path=path, label=label, patient_id=f"person-{seed}-{number}", split=chosen))
    write_cohort(Cohort(folder=folder, rows=tuple(rows), roots={}), folder / "cohort.csv")
    return folder


def _picture(seed: int, number: int, level: int, size: int) -> np.ndarray:
    random_, (y, x) = numpy_generator(seed, "hostile", number), np.mgrid[:size, :size] / size
    array = 20 + random_.normal(0, 5, (size, size))
    for _ in range(8):
        (top, left), width = random_.uniform(0.05, 0.95, size=2), random_.uniform(0.005, 0.05)
        array += level * random_.uniform(0.3, 1) * np.exp(-((y - top) ** 2 + (x - left) ** 2) / width)
    pixels: np.ndarray = array.clip(0, 255).astype(np.uint8)[None]
    return pixels


def _sound(*arguments: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run_command([*arguments])
    if code != 0 and arguments[0] != "evaluate":
        raise AssertionError(said.getvalue())


def ask(*arguments: str, out: Path | None = None) -> tuple[int, str, str]:
    """Run a command; return its exit code, a fault (empty for none), and what it said. A refusal must write no `out`."""
    said, heard = io.StringIO(), io.StringIO()
    try:
        with (
            _time_limit(SECONDS), warnings.catch_warnings(), contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(heard),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            code = run_command([*arguments, "--progress=false"])
    except BaseException as error:  # a SystemExit is a fault, too
        where = [f"{Path(each.filename).name}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)[2:]]
        text = f"{type(error).__name__}: {error} ({' < '.join(where[:-7:-1])})"
        return -1, "hang" if isinstance(error, Hang) else "traceback", " ".join(text.split())[:400]
    line = said.getvalue().strip()
    if code and arguments[0] != "evaluate":
        fault = "" if code in (2, 3, 4) and line.startswith("medsynth: ") and line.isprintable() else "unclear"
        return code, fault or ("left" if out is not None and out.exists() else ""), line[:300]
    return code, "", line[:300]


def hand_over(
    ground: Ground, folder: Path, *, made: Path, report: Path, fine: tuple[str, ...] = (), run: Path | None = None
) -> tuple[str, str]:
    """Give a set and a report to `augment` and `card`, of which only those in `fine` may accept; return the fate."""
    both = (f"--synthetic={made}", f"--report={report}")
    fates = []
    for verb, own in (("augment", (f"--real={ground.real}",)), ("card", ())):
        out = folder / verb / "cohort.csv" if verb == "augment" else folder / verb
        more = (f"--run={run}",) if run is not None and verb == "augment" else ()
        code, fault, said = ask(verb, *both, *own, *more, f"--out={out}", out=out)
        fate = fault or ("refused" if code else "same" if verb in fine else "wrong pass")
        fates.append((fate, said if fate != "wrong pass" else f"{verb} accepted it"))
    return next((each for each in fates if each[0] not in FINE), fates[0])


# Reports


def tamper_report(ground: Ground, folder: Path, chance: random.Random) -> tuple[str, str, str]:
    """Change a report once or more, seal it anew without the key, and hand it over."""
    source = chance.choice(("passed", "passed", "failed"))
    original = json.loads((getattr(ground, source) / "report.json").read_text())
    content = json.loads(json.dumps(original))
    deeds = [chance.choice(_DEEDS)(content, chance) for _ in range(chance.choice((1, 1, 1, 2, 4)))]
    if source == "failed" and chance.random() < 0.5:
        content = json.loads((ground.passed / "report.json").read_text()) | {"seal": original["seal"]}
        deeds = ["the figures of a report that passes"]
    deeds.append(_reseal(content, chance))
    text = json.dumps(content)
    if chance.random() < 0.2:
        text, deed = _spoil_text(text, chance)
        deeds.append(deed)
    if chance.random() < 0.02:
        text, deeds = (ground.other / "report.json").read_text(), ["the report of another set"]
    (folder / "report.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    same = _meaning(text) == _meaning(json.dumps(original))
    fine = () if not same else ("card",) if source == "failed" else ("augment", "card")
    fate, said = hand_over(ground, folder, made=ground.made, report=folder, fine=fine)
    return f"{source}: {', '.join(deeds)}", fate, said


def _meaning(text: str) -> object:
    """Return what counts of a report, None for none: its content and the three parts of its seal."""
    try:
        content = json.loads(text.removeprefix("\ufeff"))
        seal = content.pop("seal")
        return json.dumps(content, sort_keys=True), [seal[name] for name in ("sha256", "key", "hmac")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _places(node: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*way, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*way, key))


def _somewhere(content: dict[str, Any], chance: random.Random, *within: str) -> tuple[Any, Any]:
    """Return a list or dictionary of a report, and a key of it; those of the gate and the verdict more often."""
    ways = [way for way in _places(content) if not within or way[0] in within]
    way = chance.choice(ways) if ways else ("schema",)
    node: Any = content
    for key in way[:-1]:
        node = node[key]
    return node, way[-1]


def _change(content: dict[str, Any], chance: random.Random) -> str:
    within = ("privacy", "verdict", "identical", "sets", "settings") if chance.random() < 0.6 else ()
    node, key = _somewhere(content, chance, *within)
    value = node.get(key) if isinstance(node, dict) else node[key]
    if isinstance(value, bool):
        node[key] = not value
    elif isinstance(value, int | float):
        node[key] = chance.choice((0, 1, -1, value + 1, value * (1 + 1e-12), -value, value / 2, 10**12))
    elif isinstance(value, str):
        node[key] = chance.choice((value + " ", value[:-1], value.upper(), "pass", "x" * 3000, "", value[::-1]))
    else:
        node[key] = chance.choice(_ODD)
    return f"{key} changed"


def _retype(content: dict[str, Any], chance: random.Random) -> str:
    node, key = _somewhere(content, chance)
    value = node.get(key) if isinstance(node, dict) else node[key]
    node[key] = chance.choice((str(value), [value], {"value": value}, None, bool(value), *_ODD))
    if isinstance(value, int | float) and chance.random() < 0.5:
        node[key] = float(value) if isinstance(value, int) else int(value)
    return f"{key} retyped"


def _remove(content: dict[str, Any], chance: random.Random) -> str:
    node, key = _somewhere(content, chance)
    if isinstance(node, dict):
        node.pop(key, None)
    else:
        del node[key]
    return f"{key} removed"


def _double(content: dict[str, Any], chance: random.Random) -> str:
    node, key = _somewhere(content, chance)
    if isinstance(node, list):
        node.insert(key, json.loads(json.dumps(node[key])))
    else:
        node[f"{key}2"] = node.get(key)
    return f"{key} doubled"


def _swap_words(content: dict[str, Any], chance: random.Random) -> str:
    old, new = chance.choice([*_WORDS.items()])
    text = json.dumps(content).replace(old, new)
    content.clear()
    content.update(json.loads(text))
    return f"{old} for {new}"


def _loosen(content: dict[str, Any], chance: random.Random) -> str:
    options = (content.get("privacy") or {}).get("options") if isinstance(content.get("privacy"), dict) else None
    if not isinstance(options, dict) or not options:
        return "nothing"
    key = chance.choice([*options])
    options[key] = chance.choice((0, 1, 1e9, options[key] / 2 if isinstance(options[key], int | float) else None, -1))
    return f"threshold {key}"


def _mix(content: dict[str, Any], chance: random.Random) -> str:
    """Put a part of the report into the place of another."""
    (one, first), (two, second) = (_somewhere(content, chance, "privacy", "verdict", "fidelity") for _ in range(2))
    value = two.get(second) if isinstance(two, dict) else two[second]
    one[first] = json.loads(json.dumps(value))
    return f"{second} in place of {first}"


def _nothing(content: dict[str, Any], chance: random.Random) -> str:
    return "nothing"


_DEEDS = (_nothing, _change, _change, _change, _retype, _remove, _double, _swap_words, _loosen, _mix)


def _reseal(content: dict[str, Any], chance: random.Random) -> str:
    """Seal a report as somebody without the key would; return how."""
    key = own_key()
    strange = PatientsKey(key.path, chance.randbytes(32))
    content.setdefault("seal", {})
    rest = {name: value for name, value in content.items() if name != "seal"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    seal = dict(content["seal"]) if isinstance(content["seal"], dict) else {}
    stamps = {
        "kept": seal.get("hmac"),
        "plain hash": hashlib.sha256(digest.encode()).hexdigest(),
        "other key": hmac.digest(strange.derive("report"), digest.encode(), "sha256").hex(),
        "no key": hmac.digest(b"", digest.encode(), "sha256").hex(),
        "name of the key": hmac.digest(key.id.encode(), digest.encode(), "sha256").hex(),
        "empty": "",
        "odd": chance.choice(_ODD),
    }
    how = chance.choice(("old seal", "no seal", "odd seal", *stamps))
    if how == "no seal":
        content.pop("seal")
    elif how == "odd seal":
        content["seal"] = chance.choice(_ODD)
    elif how != "old seal":
        whose = strange.id if how == "other key" and chance.random() < 0.5 else key.id
        content["seal"] = {"sha256": digest, "key": whose, "hmac": stamps[how]}
    return how


def _spoil_text(text: str, chance: random.Random) -> tuple[str, str]:
    place, deed = (
        chance.randrange(len(text)),
        chance.choice(("cut", "letter", "NaN", "twice", "deep", "BOM", "spaces", "huge")),
    )
    spoiled = {
        "cut": text[:place],
        "letter": text[:place] + chr(chance.randrange(1, 0x300)) + text[place + 1 :],
        "NaN": text.replace("null", chance.choice(("NaN", "Infinity", "-Infinity")), chance.randint(1, 3)),
        "twice": '{"privacy": null, "identical": 0, ' + text[1:],
        "deep": '{"deep": ' + "[" * 5000 + "]" * 5000 + ", " + text[1:],
        "BOM": "\ufeff" + text,
        "spaces": text.replace(", ", " ,\n\t"),
        "huge": text.replace(": 0", ": " + "9" * 5000, 1),
    }
    return spoiled[deed], deed


# Sets


def tamper_set(ground: Ground, folder: Path, chance: random.Random) -> tuple[str, str, str]:
    """Change a set after its evaluation and hand it over with the report that passes."""
    made = folder / "set"
    shutil.copytree(ground.made, made)
    before = _content(made)
    real = [*read_cohort(ground.real).rows]
    scans = [ground.real.parent / row.path for row in real]
    deed = chance.choice([*_SET_DEEDS])
    _SET_DEEDS[deed](made, scans, chance)
    fine = ("augment", "card") if _content(made) == before else ()
    fate, said = hand_over(ground, folder, made=made, report=ground.passed, fine=fine)
    return deed, fate, said


def _content(made: Path) -> object:
    """Return what counts of a set, read with the standard library alone; None if it cannot be read."""
    try:
        columns, table = _table(made)
        if len(set(columns)) < len(columns):
            return None
        people: dict[str, int] = {}
        rows = []
        for cells in table:
            facts = {name: value for name, value in cells.items() if name not in ("patient_id", "root")}
            for name in facts:
                if name in ("path", "mask") or name.startswith("path_"):
                    facts[name] = hashlib.sha256((made / facts[name]).read_bytes()).hexdigest() if facts[name] else ""
            person = people.setdefault(cells["patient_id"].strip(), len(people))
            rows.append([person, sorted((name, value.strip()) for name, value in facts.items() if value.strip())])
        return rows, json.loads((made / "provenance.json").read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _table(made: Path) -> tuple[list[str], list[dict[str, str]]]:
    with (made / "cohort.csv").open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        table = [*reader]
    return [*(reader.fieldnames or ())], table


def _edit_table(change: Callable[[list[dict[str, str]], random.Random], None]) -> Callable[..., None]:
    def deed(made: Path, scans: list[Path], chance: random.Random) -> None:
        _, table = _table(made)
        change(table, chance)
        columns = [*dict.fromkeys(name for cells in table for name in cells)]
        with (made / "cohort.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, restval="")
            writer.writeheader()
            writer.writerows(table)

    return deed


def _cell(name: str, *values: str, every: bool = False) -> Callable[..., None]:
    """Return a deed that writes one of `values` into the column `name` of a row, or of every row."""

    def change(table: list[dict[str, str]], chance: random.Random) -> None:
        value = chance.choice(values)
        for cells in table if every else [chance.choice(table)]:
            cells[name] = value

    return _edit_table(change)


def _drop_column(table: list[dict[str, str]], chance: random.Random) -> None:
    name = chance.choice([*table[0]])
    for cells in table:
        del cells[name]


def _swap_cells(table: list[dict[str, str]], chance: random.Random) -> None:
    one, other = chance.sample(table, 2)
    name = chance.choice([*one])
    one[name], other[name] = other[name], one[name]


def _pixel(made: Path, scans: list[Path], chance: random.Random) -> None:
    file = chance.choice(_files(made))
    facts, content = file.stat(), bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _swap_files(made: Path, scans: list[Path], chance: random.Random) -> None:
    one, other = chance.sample(_files(made), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def _replace_file(way: Callable[[Path, Path], object]) -> Callable[..., None]:
    def deed(made: Path, scans: list[Path], chance: random.Random) -> None:
        file, scan = chance.choice(_files(made)), chance.choice(scans)
        file.unlink()
        way(scan, file)

    return deed


def _root(made: Path, scans: list[Path], chance: random.Random) -> None:
    folder = scans[0].parent
    target = chance.choice((str(folder), os.path.relpath(folder, made), "link", "."))
    (made / "cohort.yaml").write_text(f"roots: {{x: {json.dumps(target)}}}\n")
    if target == "link":
        (made / "link").symlink_to(folder)

    def change(table: list[dict[str, str]], chance: random.Random) -> None:
        for cells in table:
            cells["root"] = ""
        chance.choice(table).update({"root": "x", "path": chance.choice(scans).name})

    _edit_table(change)(made, scans, chance)


def _provenance(made: Path, scans: list[Path], chance: random.Random) -> None:
    file = made / "provenance.json"
    content = json.loads(file.read_text())
    odd = {
        "contains_real_pixels": True, "edit": "inpaint", "method": "edit", "run": "0" * 64, "purpose": "release",
        "steps_trained": 10**6, "training_patients": {"dark": 10**4}, "donors": {"scans": 1}, "format": "medsynth-set/1",
    }  # fmt: skip
    way = chance.randrange(5)
    if way == 0:
        chance.choice((_change, _retype, _remove, _double))(content, chance)
    elif way == 1:
        name = chance.choice([*odd])
        content[name] = odd[name]
    elif way == 2:
        content.pop(chance.choice([*content]))
    text = json.dumps(content)
    if way == 3:
        text = chance.choice(("", "[]", "{}", "null", text[: len(text) // 2], "[" * 9999, '{"run": 5}'))
    file.unlink() if way == 4 else file.write_text(text)


def _spoil_csv(made: Path, scans: list[Path], chance: random.Random) -> None:
    file = made / "cohort.csv"
    content = bytearray(file.read_bytes())
    for _ in range(chance.randint(1, 3)):
        content[chance.randrange(len(content))] = chance.choice(b'\x00,"\n\r;x0123456789/.\xff ')
    file.write_bytes(content)


def _plant(made: Path, scans: list[Path], chance: random.Random) -> None:
    """A cache that came with the set: it changes nothing."""
    shutil.copytree(Path(os.environ["XDG_CACHE_HOME"]), made / ".medsynth_cache", dirs_exist_ok=True)


def _csv_link(made: Path, scans: list[Path], chance: random.Random) -> None:
    (made / "cohort.csv").unlink()
    (made / "cohort.csv").symlink_to(scans[0].parents[1] / "cohort.csv")


def _add_row(made: Path, scans: list[Path], chance: random.Random) -> None:
    file = chance.choice(_files(made))
    shutil.copy(chance.choice((*scans, file)), file.with_name("more.png"))

    def change(table: list[dict[str, str]], chance: random.Random) -> None:
        path = file.with_name("more.png").relative_to(made).as_posix()
        table.insert(chance.randrange(len(table)), chance.choice(table) | {"path": path, "patient_id": "SYNTH-99"})

    _edit_table(change)(made, scans, chance)


def _files(made: Path) -> list[Path]:
    return [made / cells["path"] for cells in _table(made)[1]]


_SET_DEEDS: dict[str, Callable[[Path, list[Path], random.Random], None]] = {
    "a pixel, with size and time of before": _pixel,
    "two files exchanged": _swap_files,
    "a copy of a real scan": _replace_file(shutil.copyfile),
    "a link to a real scan": _replace_file(lambda scan, file: file.symlink_to(scan)),
    "a hard link to a real scan": _replace_file(lambda scan, file: os.link(scan, file)),
    "rows in another order": _edit_table(lambda table, chance: table.append(table.pop(0))),
    "rows shuffled": _edit_table(lambda table, chance: chance.shuffle(table)),
    "a row left out": _edit_table(lambda table, chance: table.remove(chance.choice(table)) if table else None),
    "a row added": _add_row,
    "two cells exchanged": _edit_table(_swap_cells),
    "a column left out": _edit_table(_drop_column),
    "label": _cell("label", "dark", "bright", "other", ""),
    "synthetic": _cell("synthetic", "0", "", "yes", every=True),
    "synthetic of one": _cell("synthetic", "0", "", "yes"),
    "contains_real_pixels": _cell("contains_real_pixels", "0", "1", ""),
    "donor": _cell("donor", "0", "5", "x", every=True),
    "mask": _cell("mask", "cohort.csv", "no.png", "scans"),
    "a further sequence": _cell("path_t2", "cohort.csv", "no.png"),
    "run": _cell("run", "0" * 16, "", every=True),
    "seed": _cell("seed", "1", "", "x"),
    "split": _cell("split", "test", "val", "", every=True),
    "patient": _cell("patient_id", "person-0-2", "SYNTH-0", ""),
    "path": _cell("path", "../few/scans/000.png", "/etc/passwd", "", "no.png", "cohort.csv"),
    "a new column": _cell("age", "44", "nan", every=True),
    "cohort.yaml": _root,
    "provenance": _provenance,
    "provenance again": _provenance,
    "letters of the CSV": _spoil_csv,
    "a planted cache": _plant,
    "the CSV is a link": _csv_link,
}


# Runs


def tamper_run(ground: Ground, folder: Path, chance: random.Random) -> tuple[str, str, str]:
    """Change a run that saw the test patients, or name another, and hand over what it made."""
    assert ground.leaky is not None
    assert ground.leaked is not None
    assert ground.sound is not None
    run = folder / "run"
    source = ground.sound if chance.random() < 0.15 else ground.leaky
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("checkpoints", "previews"))
    deed = (
        "another run"
        if source == ground.sound
        else chance.choice(("run.json", "patients.json", "files", "key", "text"))
    )
    environment: dict[str, str] = {}
    if deed in ("run.json", "patients.json"):
        content = json.loads((run / deed).read_text())
        what = chance.choice((_change, _retype, _remove, _double))(content, chance)
        (run / deed).write_text(json.dumps(content))
        deed += f": {what}"
    elif deed == "files":
        name = chance.choice(("patients.json", "run.json", "model.safetensors"))
        if chance.random() < 0.3:
            (run / name).unlink()
        else:
            shutil.copyfile(ground.sound / name, run / name)
        deed += f": {name}"
    elif deed == "key":
        (folder / "key").write_bytes(
            chance.choice((chance.randbytes(32).hex().encode(), b"", b"x" * 64, chance.randbytes(64)))
        )
        environment["MEDSYNTH_PATIENTS_KEY"] = str(chance.choice((folder / "key", folder, folder / "new.key")))
    elif deed == "text":
        file = run / chance.choice(("run.json", "patients.json"))
        text, what = _spoil_text(file.read_text(), chance)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        deed += f": {what}"
    made, fine = ground.leaky.with_name("leaky-set"), ("card",)  # a card compares no patients
    with mock.patch.dict(os.environ, environment):
        fate, said = hand_over(ground, folder, made=made, report=ground.leaked, run=run, fine=fine)
    return deed, fate, said


# Caches


def tamper_cache(ground: Ground, folder: Path, chance: random.Random) -> tuple[str, str, str]:
    """Damage the cache between two evaluations; the second must find what the first found."""
    part = chance.choice(("privacy", "fidelity", "downstream"))
    warm, first = _evaluated(ground, part, folder / "report")
    shutil.copytree(warm, folder / "cache")
    deed = f"{part}: {_damage(folder / 'cache', chance)}"
    code, fault, said = _evaluate(ground, part, folder / "cache", folder / "report")
    if fault or code not in (0, 4):
        return deed, fault or "refused", said
    second = _findings(folder / "report")
    where = [name for name in first if json.dumps(first[name]) != json.dumps(second.get(name))]
    return deed, "wrong pass" if where else "same", f"differs in {', '.join(where)}" if where else ""


@cache
def _evaluated(ground: Ground, part: str, report: Path) -> tuple[Path, dict[str, Any]]:
    """Return the cache of an evaluation, and what it found."""
    warm = ground.made.parent / f"cache-{part}"
    code, fault, said = _evaluate(ground, part, warm, report)
    if fault or code not in (0, 4):
        raise AssertionError(said)
    findings = _findings(report)
    shutil.rmtree(report)
    return warm, findings


def _evaluate(ground: Ground, part: str, cache: Path, report: Path) -> tuple[int, str, str]:
    both = (f"--real={ground.few}", f"--synthetic={ground.made}", f"--parts={part}", f"--out={report}")
    more = ("--downstream.seeds=2", "--downstream.shares=0.5", "--downstream.arms=rare") if part == "downstream" else ()
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(cache)}):
        return ask("evaluate", *both, *more)


def _findings(report: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((report / "report.json").read_text())
    return {name: value for name, value in content.items() if name not in ("cost", "seal")}


def _damage(cache: Path, chance: random.Random) -> str:
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    kinds = sorted({_kind(path) for path in files})
    wanted = chance.choice(kinds)
    file = chance.choice([path for path in files if _kind(path) == wanted])
    content = bytearray(file.read_bytes())
    deed = chance.choice(("bits", "cut", "empty", "zeros", "other", "folder", "values", "values", "values"))
    if deed == "values" and file.suffix == ".json":
        facts = json.loads(content)
        deed = chance.choice((_change, _retype, _remove, _double))(facts, chance)
        file.write_text(json.dumps(facts))
    elif deed in ("bits", "values"):
        for _ in range(20):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
    elif deed == "cut":
        file.write_bytes(content[: chance.randrange(len(content))])
    elif deed == "empty":
        file.write_bytes(b"")
    elif deed == "zeros":
        half = len(content) // 2
        file.write_bytes(content[:half] + bytes(len(content) - half))
    elif deed == "other":
        file.write_bytes(chance.choice(files).read_bytes())
    else:
        file.unlink()
        file.mkdir()
    return f"{wanted}: {deed}"


def _kind(path: Path) -> str:
    stem = path.stem.split("-")[0] if "-" in path.stem else "scans"
    return f"{path.parent.name[:9] if 'trainings' in str(path) else stem}{path.suffix}"


# Copies


def tamper_copies(ground: Ground, folder: Path, chance: random.Random) -> tuple[str, str, str]:
    """Evaluate a set in which real training scans were put, as they are or changed a little, with made-up donors."""
    assert ground.many is not None
    made = _cohort(folder / "set", 16, 1 + chance.randrange(1000), split="train", size=32)
    real = read_cohort(ground.many / "cohort.csv")
    rows = [row for row in real.rows if row.split == "train"]
    part = chance.choice(("fidelity", "fidelity", "privacy"))
    looks = ("as it is", "as another file") if part == "fidelity" else ("as it is", "as another file", *_LOOKS)
    look = chance.choice(looks)
    _, table = _table(made)
    for cells in chance.sample(table, 8):
        row = chance.choice([row for row in rows if row.label == cells["label"]])
        target, scan = made / cells["path"], ground.many / row.path
        if look == "as it is":
            shutil.copyfile(scan, target)
        else:
            from medsynth import read_scan

            array = read_scan(scan).array.astype(np.float32)
            array = _LOOKS.get(look, lambda each: each)(array)
            target.unlink()
            write_scan(Scan(array=array.clip(0, 255).astype(np.uint8), provenance={"synthetic": "YES"}), target)
        cells |= {"synthetic": "1", "donor": str(real.rows.index(row)), "method": "edit"}
    said_of = {"format": "medsynth-set/2", "run": "0" * 64, "synthetic": True, "contains_real_pixels": False}
    if chance.random() < 0.7:
        digest = json.loads((ground.passed / "report.json").read_text())["sets"]["real"]
        said_of |= {"method": "edit", "donor_class": "dark", "donors": {"cohort": digest, "scans": 8}}
    (made / "provenance.json").write_text(json.dumps(said_of))
    _edit_table(lambda old, _: old.__setitem__(slice(None), table))(made, [], chance)
    arguments = (f"--real={ground.many}", f"--synthetic={made}", f"--parts={part}", f"--out={folder / 'report'}")
    code, fault, said = ask("evaluate", *arguments)
    return f"{part}: {look}", fault or ("refused" if code in (3, 4) else "wrong pass"), said or f"exit {code}"


_LOOKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored": lambda array: array[..., ::-1].copy(),
    "shifted": lambda array: np.roll(array, 1, axis=-1),
    "brighter": lambda array: 1.08 * array + 2,
    "noisy": lambda array: array + np.random.default_rng(0).normal(0, 3, array.shape),
    "turned": lambda array: np.rot90(array, axes=(-2, -1)).copy(),
}

KINDS = {
    "report": tamper_report, "set": tamper_set, "run": tamper_run, "cache": tamper_cache, "copies": tamper_copies,
}  # fmt: skip


def attempt(ground: Ground, kind: str, number: int, *, seed: int, folder: Path) -> Outcome:
    """Make input `number` of a kind below the empty `folder`, try it, and clear the folder again."""
    began = time.perf_counter()
    deed, fate, said = KINDS[kind](ground, folder, random.Random(derive_seed(seed, "hostile", kind, number)))
    for each in folder.iterdir():
        shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
    seconds = round(time.perf_counter() - began, 3)
    return Outcome(number=number, deed=deed[:200], fate=fate, said=said.replace(str(folder), "."), seconds=seconds)


def controls(ground: Ground, folder: Path) -> dict[str, str]:
    """Return the fates of what is honest: all `same`, else nothing was shown."""
    fates = {
        "report and set": hand_over(ground, folder, made=ground.made, report=ground.passed, fine=("augment", "card"))
    }
    if ground.sound is not None:
        fates["report, set and run"] = hand_over(
            ground, folder, made=ground.made, report=ground.passed, run=ground.sound, fine=("augment", "card")
        )
    if ground.many is not None:
        made = _cohort(folder / "set", 16, 5000, split="train", size=32)
        both = (f"--real={ground.many}", f"--synthetic={made}", "--parts=fidelity,privacy")
        code, fault, _ = ask("evaluate", *both, f"--out={folder / 'report'}")
        verdict = json.loads((folder / "report" / "report.json").read_text())["verdict"]["privacy"]
        fates["a set without copies"] = (
            fault or ("same" if code == 0 and verdict["verdict"] == "pass" else verdict["verdict"]),
            verdict["sentence"],
        )
    return {name: fate if fate == "same" else f"{fate}: {said}" for name, (fate, said) in fates.items()}


def known_gaps(ground: Ground, folder: Path) -> dict[str, str]:
    """Return the fates of what is known to get through, `refused` once it no longer does.

    `run.json` is under no seal: whoever may write to a run folder can give it the patients of another run of the same user.
    """
    assert ground.leaky is not None
    assert ground.leaked is not None
    assert ground.sound is not None
    run = folder / "run"
    shutil.copytree(ground.leaky, run)
    shutil.copyfile(ground.sound / "patients.json", run / "patients.json")
    content = json.loads((run / "run.json").read_text())
    content["checksums"]["patients.json"] = hashlib.sha256((run / "patients.json").read_bytes()).hexdigest()
    (run / "run.json").write_text(json.dumps(content))
    made = ground.leaky.with_name("leaky-set")
    fate, _ = hand_over(ground, folder, made=made, report=ground.leaked, run=run, fine=("card",))
    return {"patients.json of another run, with its checksum in run.json": fate}


def main() -> None:
    """Tamper, print the faults and the table, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="inputs over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds, comma-separated; all by default")
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else [*KINDS]
    faults, rows = [], []
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as work:
        os.environ |= dict.fromkeys(("XDG_CACHE_HOME", "XDG_DATA_HOME"), home)
        ground, folder = prepare(Path(home) / "ground"), Path(work)
        (folder / "control").mkdir()
        (folder / "gap").mkdir()
        control, gaps = controls(ground, folder / "control"), known_gaps(ground, folder / "gap")
        for name in ("control", "gap"):
            shutil.rmtree(folder / name)
        print(control, gaps, flush=True)
        for kind in wanted:
            outcomes = []
            for number in range(round(arguments.count * SHARES[kind] / sum(SHARES[each] for each in wanted))):
                outcome = attempt(ground, kind, number, seed=arguments.seed, folder=folder)
                outcomes.append(outcome)
                if outcome.fate not in FINE:
                    faults.append({"kind": kind, **asdict(outcome)})
                    print(
                        f"{kind} {number}: {outcome.fate}: {outcome.deed}: {outcome.said}", file=sys.stderr, flush=True
                    )
            fates = Counter(outcome.fate for outcome in outcomes)
            other = fates.total() - sum(fates[name] for name in (*FINE, "wrong pass", "traceback", "hang"))
            rows.append(
                {
                    "kind": kind, "inputs": fates.total(), "refused": fates["refused"], "same": fates["same"],
                    "wrong_passes": fates["wrong pass"], "tracebacks": fates["traceback"], "hangs": fates["hang"],
                    "other_faults": other, "slowest_s": max((each.seconds for each in outcomes), default=0.0),
                }
            )  # fmt: skip
            print(" ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    total = sum(row["inputs"] for row in rows)
    print(f"{total} inputs, {len(faults)} faults")
    if arguments.result:
        facts = {
            "seed": arguments.seed,
            "limit_seconds": SECONDS,
            "inputs": total,
            "controls": control,
            "known_gaps": gaps,
        }
        write_json(arguments.result, describe_machine() | facts | {"rows": rows, "faults": faults})


if __name__ == "__main__":
    main()
