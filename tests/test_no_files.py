"""Pipes, sockets, devices, folders and dangling links where a file should be, and JSON and YAML that nobody would write.

Each is refused in a line by every verb that reads the file; none is waited for.
"""

import os
import shutil
import socket
from pathlib import Path

import pytest

import medsynth
from medsynth.cli import run_command
from medsynth.files import hash_file, parse_yaml, read_bytes, read_json, read_yaml, write_json

DEEP = "[" * 30_000
CONTENT = {
    "deep": lambda text: DEEP.encode(),
    "deep enough to be read": lambda text: (
        text.rstrip().rstrip("}") + ', "x": ' + "[" * 200 + "]" * 200 + "}"
    ).encode(),
    "huge": lambda text: b" " * (65 << 20) + text.encode(),
    "NaN": lambda text: (text.rstrip().rstrip("}") + ', "x": NaN}').encode(),
    "infinite": lambda text: (text.rstrip().rstrip("}") + ', "x": 1e999}').encode(),
    "a long number": lambda text: (text.rstrip().rstrip("}") + f', "x": {"9" * 5000}}}').encode(),
    "a large number": lambda text: (text.rstrip().rstrip("}") + f', "x": {"9" * 400}}}').encode(),
    "a key twice": lambda text: (text.rstrip().rstrip("}") + ', "x": 1, "x": 2}').encode(),
    "half a surrogate": lambda text: (text.rstrip().rstrip("}") + ', "x": "\\ud800"}').encode(),
    "other bytes": lambda text: b"\xff\xfe\x00\xff",
    "nothing": lambda text: b"",
    "a list": lambda text: b"[1, 2]",
    "a text": lambda text: b'"text"',
    "null": lambda text: b"null",
}
# Each line is eight times the one before.
BOMB = "x: &x [1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 8)}]\n" for before, name in zip("xabcdef", "abcdefg", strict=True)
)
KINDS = ("pipe", "socket", "zeros", "folder", "dangling link")


def put(kind: str, path: Path) -> None:
    """Put something that is no file, or JSON of some kind, in the place of a file."""
    text = path.read_text(errors="ignore") if path.is_file() and kind in CONTENT else ""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(path.with_name("nothing"))
    else:
        path.write_bytes(CONTENT[kind](text))


@pytest.fixture(scope="module")
def good(tiny_run, tiny_cohort, tiny_config, tmp_path_factory):
    """A run, a cohort with its set and report, a configuration, a recipe, labels and statements; not to be changed."""
    folder = tmp_path_factory.mktemp("good")
    medsynth.sample(run=tiny_run.folder, count="bright=4,dark=3", out=folder / "set", progress=False)
    (folder / "report").mkdir()
    (folder / "report/report.json").write_text('{"a": 1}')  # whatever else is in it is read later
    shutil.copytree(tiny_run.folder, folder / "run")
    shutil.copytree(tiny_cohort.parent, folder / "cohort")
    shutil.copy(tiny_config, folder / "tiny.yaml")
    (folder / "recipe.yaml").write_text("steps:\n- demo: {scans: 2, out: '{out}/phantom'}\n")
    (folder / "labels.csv").write_text("path,label\nscans/secret-name-000.png,a\n")
    (folder / "source.yaml").write_text("source: {name: x}\n")
    (folder / "answers.csv").write_text("case,real\n1,1\n")
    return folder


VERBS = {
    "sample": "sample --run run --count 1 --out out",
    "resume": "sample --run run --count bright=4,dark=3 --out set",
    "edit": "edit --run run --cohort cohort/cohort.csv --donor_class bright --target_class dark --count 1 --out out",
    "train": "train --config tiny.yaml --cohort cohort/cohort.csv --out out --max_steps 1",
    "start": "train --config tiny.yaml --start run --cohort cohort/cohort.csv --out out --max_steps 1",
    "distill": "distill --run run --cohort cohort/cohort.csv --out out --max_steps 1",
    "evaluate": "evaluate --real cohort --synthetic set --run run --out out --parts fidelity --fidelity_scans 20",
    "reader": "evaluate --real cohort --synthetic set --out report --parts fidelity --reader_answers answers.csv",
    "weights": "evaluate --real cohort --synthetic set --out out --features.extractor radimagenet --features.weights w.pt",
    "augment": "augment --real cohort --synthetic set --report report --out out.csv",
    "card": "card --synthetic set --report report --source source.yaml --out out",
    "check": "card --check card.md",
    "index": "index --scans cohort --labels labels.csv --out out.csv",
    "run": "run recipe.yaml --out out",
    "demo": "demo --scans 2 --out phantom",
}
# Files, and the verbs that read them; the first one is the cheapest.
READS = {
    "run/run.json": ("sample", "start", "distill", "evaluate"),
    "run/model.safetensors": ("sample", "start"),
    "run/patients.json": ("start", "evaluate"),
    "cohort/cohort.csv": ("train", "edit", "evaluate", "augment"),
    "cohort/cohort.yaml": ("train", "evaluate"),
    "cohort/scans/secret-name-000.png": ("train", "index", "evaluate"),
    "set/cohort.csv": ("card", "augment", "evaluate"),
    "set/cohort.yaml": ("card", "evaluate"),
    "set/provenance.json": ("card", "augment", "resume", "evaluate"),
    "report/report.json": ("card", "augment"),
    "report/reader_study_key.json": ("reader",),
    "answers.csv": ("reader",),
    "w.pt": ("weights",),
    "tiny.yaml": ("train",),
    "recipe.yaml": ("run",),
    "source.yaml": ("card",),
    "card.md": ("check",),
    "labels.csv": ("index",),
    "phantom/phantom.json": ("demo",),
}
# As if the file were not there, or said nothing.
_EMPTY = ("dangling link", "nothing", "null")
MAY_BE_MISSING = {"cohort/cohort.yaml": _EMPTY, "set/cohort.yaml": _EMPTY, "source.yaml": ("nothing", "null")}
MAY_BE_MISSING |= {"set/provenance.json": ("dangling link", "a list", "a text", "null")}
IN_EVERY_RUN = ("pipe", "zeros", "deep enough to be read", "half a surrogate")


def cases():
    for file, verbs in READS.items():
        structured = file.endswith((".json", ".yaml"))
        kinds = (*KINDS, *CONTENT) if structured else (*KINDS, "other bytes", "nothing")
        for verb in verbs:
            for kind in kinds:
                usual = verb == verbs[0] and kind in IN_EVERY_RUN
                yield pytest.param(file, verb, kind, marks=() if usual else pytest.mark.slow)


@pytest.mark.timeout(60, func_only=True)
@pytest.mark.parametrize(("file", "verb", "kind"), cases())
def test_what_is_no_such_file_is_refused_in_a_line(good, file, verb, kind, tmp_path, monkeypatch, capsys):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    if kind in CONTENT and (path.suffix == ".yaml" or not path.exists()):
        path.write_text('{"a": 1}')
    put(kind, path)
    capsys.readouterr()
    code = run_command([*VERBS[verb].split(), *([] if verb in ("check", "run") else ["--progress", "false"])])
    if kind in MAY_BE_MISSING.get(file, ()) and code == 0:
        return
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medsynth: ")]
    assert (code in (2, 3, 4), len(lines)) == (True, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_named_and_not_opened(tmp_path, kind):
    put(kind, tmp_path / "file")
    words = {
        "pipe": "a pipe",
        "socket": "a socket",
        "zeros": "a device",
        "folder": "a folder",
        "dangling link": "No such file",
    }
    for read in (read_bytes, read_json, read_yaml, hash_file):
        with pytest.raises(OSError, match=words[kind]):
            read(tmp_path / "file")


@pytest.mark.parametrize("kind", [kind for kind in CONTENT if kind not in ("a list", "a text", "null", "huge")])
def test_json_that_nobody_writes_is_refused(tmp_path, kind):
    (tmp_path / "file").write_bytes(CONTENT[kind]('{"a": [1, -2.5e3, 18446744073709551615]}'))
    with pytest.raises(ValueError, match=r".+"):
        read_json(tmp_path / "file")


def test_json_that_is_written_is_read(tmp_path):
    content = {"a": [1, -2500.0, 18446744073709551615, None, True, "😀"], "b": {}}
    write_json(tmp_path / "file", content)
    assert read_json(tmp_path / "file") == content
    with pytest.raises(ValueError, match="more than 0 KiB"):
        read_bytes(tmp_path / "file", limit=10)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: {c: 2, c: 3}", "the key 'c' twice"), ("[" * 1000, "deep nesting"), ("[" * 60 + "]" * 60, "deep nesting"),
        ("&a [*a]", "by references"), ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "several documents"), ("? [1]\n: 2", "unhashable"), ('"\\ud800"', "surrogates"), ("a: [", "expected"),
        (BOMB, "more than 100000 values by references"),
    ],
)  # fmt: skip
def test_yaml_that_does_harm_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)


def test_yaml_that_people_write_is_read():
    assert parse_yaml("---\nbase: &b {x: 1}\nmore: {<<: *b, y: [a, 2.5]}\n") == {
        "base": {"x": 1}, "more": {"x": 1, "y": ["a", 2.5]}
    }  # fmt: skip
    assert parse_yaml("") is None
