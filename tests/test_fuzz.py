"""A few hundred spoiled inputs for all readers; `python -m tests.slow.fuzz` makes ten thousand."""

from __future__ import annotations

import time

import pytest

from medsynth.errors import DataError
from tests.slow import fuzz
from tests.slow.fuzz_targets import Target, make_targets

COUNTS = {
    "nifti": 80, "png": 80, "npz": 80, "dicom": 60, "cohort": 100, "roots": 20, "labels": 15, "configuration": 15,
    "recipe": 15, "run": 10, "weights": 20, "patients": 20, "text": 40, "checkpoint": 20,
}  # fmt: skip


def named(found, name: str):
    return next(target for target in found if target.name == name)


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return make_targets(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize("name", COUNTS)
def test_spoiled_input_is_read_or_refused(name, targets, tmp_path):
    target = named(targets, name)
    outcomes = [fuzz.attempt(target, number, seed=1, folder=tmp_path) for number in range(COUNTS[name])]
    assert [outcome for outcome in outcomes if outcome.kind not in fuzz.FINE] == []
    assert {outcome.kind for outcome in outcomes} >= {"refused"}


@pytest.mark.parametrize("name", COUNTS)
def test_the_sound_files_are_read(name, targets, tmp_path):
    """Else every input would be refused for a reason of its own, and nothing be tried."""
    target = named(targets, name)
    for file, content in target.seeds[:1]:
        target.beside(tmp_path)
        (tmp_path / file).write_bytes(content)
        target.read(tmp_path / file)


def test_every_input_depends_on_seed_and_number_alone(targets, tmp_path):
    for name in ("png", "cohort"):
        target = named(targets, name)
        contents = []
        for turn in range(2):
            contents.append([])
            for number in (5, 6):
                folder = tmp_path / f"{name}-{turn}-{number}"
                folder.mkdir()
                chance = fuzz.random.Random(fuzz.derive_seed(0, "fuzz", name, number))
                contents[-1].append(target.write(chance, folder).read_bytes())
        assert contents[0] == contents[1]
        assert contents[0][0] != contents[0][1]


def faulty(read) -> Target:
    return Target(
        name="made", seeds=[("file", b"content")], spoils=[lambda content, chance: content], read=read, weight=1
    )


def test_each_kind_of_fault_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)

    def error(path):
        raise KeyError("x")

    def leave(path):
        path.with_name("other").touch()
        raise DataError("file: need a, got b")

    def unclear(path):
        raise DataError("something is wrong")

    def refuse(path):
        raise DataError(f"{path}: need\na, got \x1b[31m b")

    def endless(path):
        try:
            while True:
                time.sleep(0.001)
        except Exception:
            pass

    expected = {
        "error": error,
        "left": leave,
        "unclear": unclear,
        "refused": refuse,
        "hang": endless,
        "read": lambda path: None,
    }
    found = {kind: fuzz.attempt(faulty(read), 0, seed=0, folder=tmp_path) for kind, read in expected.items()}
    assert {kind: outcome.kind for kind, outcome in found.items()} == {kind: kind for kind in expected}
    assert found["refused"].said.endswith(r"file: need a, got \x1b[31m b")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_dies_is_a_crash_and_the_rest_goes_on(monkeypatch):
    """The second input kills its process; a new one begins with the third."""
    script = (
        "import json, os, sys\n"
        "for number in range(int(sys.argv[1]), 4):\n"
        "    if number == 1: os.abort()\n"
        "    print(json.dumps(dict(number=number, kind='read', said='', seconds=0.1)), flush=True)\n"
    )
    real = fuzz.subprocess.Popen

    def popen(command, **options):
        return real([fuzz.sys.executable, "-c", script, command[command.index("--first") + 1]], **options)

    monkeypatch.setattr(fuzz.subprocess, "Popen", popen)
    outcomes = list(fuzz.fuzz_target("png", 4, seed=0))
    assert [(outcome.number, outcome.kind) for outcome in outcomes] == [
        (0, "read"),
        (1, "crash"),
        (2, "read"),
        (3, "read"),
    ]


def test_shares_add_up(targets):
    shares = fuzz.share_out(targets, 10_000)
    assert shares.keys() == {target.name for target in targets}
    assert 10_000 <= sum(shares.values()) < 10_000 + len(targets)
