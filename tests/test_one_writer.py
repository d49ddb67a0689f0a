"""One writer for a place: a second call is refused, says who holds it, and changes nothing; a killed holder is forgotten."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import medsynth
from medsynth.cli import run_command
from medsynth.errors import ConfigError
from medsynth.files import one_writer
from tests.launching import environment

HOLD = """
import sys, time
from medsynth.files import one_writer
with one_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""
ANOTHER = "need a place that no other process writes to, got process"


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "out"`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def refused(place, words):
    with pytest.raises(ConfigError, match=words), one_writer(place):
        pass


def test_a_second_process_is_told_who_holds_the_place(tmp_path, holder):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for name in ("out", "link", "other/../out"):
        refused(tmp_path / name, f"{ANOTHER} {holder.pid} on {socket.gethostname()} since .*waiting for it")
    with one_writer(tmp_path / "elsewhere"):
        pass


def test_what_a_killed_process_held_is_free_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".out.lock").exists()
    with one_writer(tmp_path / "out"):
        assert json.loads((tmp_path / ".out.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_place_may_be_taken_again_by_its_holder_but_not_by_another_thread(tmp_path):
    found = []

    def other():
        refused(tmp_path / "out", f"{ANOTHER} {os.getpid()}")
        found.append(True)

    with one_writer(tmp_path / "out"):
        with one_writer(tmp_path / "out"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == [True]


@pytest.mark.parametrize(
    ("host", "boot", "taken"), [("far", "1", False), (socket.gethostname(), "1", True), ("far", None, True)]
)
def test_a_lock_of_another_machine_is_respected_and_one_of_an_earlier_start_or_container_is_not(
    tmp_path, host, boot, taken
):
    boot = boot or Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    content = {"host": host, "boot": boot, "pid": os.getpid(), "since": "2026-01-01 00:00:00"}
    (tmp_path / ".out.lock").write_text(json.dumps(content))
    if taken:
        with one_writer(tmp_path / "out"):
            pass
        return
    refused(tmp_path / "out", r"on far since .*deleting .*\.out\.lock if that machine or process is gone")
    assert json.loads((tmp_path / ".out.lock").read_text()) == content


def test_new_folders_above_stay_only_if_something_was_written(tmp_path):
    with one_writer(tmp_path / "a/b/cohort.csv"):
        pass
    assert list(tmp_path.iterdir()) == []
    with one_writer(tmp_path / "a/b/cohort.csv"):
        (tmp_path / "a/b/cohort.csv").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["cohort.csv"]


@pytest.mark.parametrize("place", ["cohort.csv", "set"])
def test_what_a_killed_call_left_is_removed_by_the_next_one_only(tmp_path, place):
    (tmp_path / "set").mkdir()
    own = tmp_path / ("set/.partial-abcdefgh-x.png" if place == "set" else ".partial-abcdefgh-cohort.csv")
    other = tmp_path / ".partial-abcdefgh-other.csv"
    for file in (own, other):
        file.touch()
    with one_writer(tmp_path / place):  # nobody was killed here
        assert own.exists()
    killed = {"host": socket.gethostname(), "boot": "b", "pid": 0, "since": "yesterday"}
    (tmp_path / f".{place}.lock").write_text(json.dumps(killed))
    with one_writer(tmp_path / place):
        assert not own.exists()
    assert other.exists()


@pytest.mark.skipif(os.getuid() == 0, reason="the superuser writes anywhere")
def test_a_folder_in_one_that_cannot_be_written_is_locked_itself(tmp_path):
    (tmp_path / "out").mkdir()
    tmp_path.chmod(0o500)
    with one_writer(tmp_path / "out"):
        assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    tmp_path.chmod(0o700)


def both(arguments):
    """Start a command twice at once; return exit code and errors of the one that succeeded, then of the other."""
    words = [sys.executable, "-m", "medsynth", *map(str, arguments), "--progress", "false"]
    started = [subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    return sorted((code, said) for said, code in ended)


def test_of_two_calls_of_sample_one_makes_the_set_of_one(tiny_run, tmp_path, monkeypatch):
    arguments = ["sample", "--run", tiny_run.folder, "--count", "bright=40", "--batch_size", "1", "--out"]
    (first, _), (second, said) = both([*arguments, tmp_path / "set"])
    assert (first, second) == (0, 2)
    assert len(said.splitlines()) == 1
    assert ANOTHER in said
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = subprocess.run(
        [sys.executable, "-m", "medsynth", *map(str, [*arguments, tmp_path / "alone"])], env=environment()
    )
    assert made.returncode == 0
    files = {path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*")}
    assert {path.relative_to(tmp_path / "set") for path in (tmp_path / "set").rglob("*")} == files
    for name in files:
        if (tmp_path / "set" / name).is_file():
            assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "set"]


def test_of_two_calls_of_train_one_trains(tiny_cohort, tiny_config, tmp_path):
    (first, _), (second, said) = both(
        ["train", "--config", tiny_config, "--cohort", tiny_cohort, "--max_steps", 60, "--out", tmp_path / "run"]
    )
    assert (first, second) == (0, 2)
    assert ANOTHER in said
    assert medsynth.load_run(tmp_path / "run").steps == 60


@pytest.mark.parametrize(
    "verb",
    [
        "index --scans D --out O", "demo --scans 4 --out O", "train --cohort D/cohort.csv --out O",
        "sample --run D --count 1 --out O",
        "edit --run D --cohort D --donor_class a --target_class b --count 1 --out O", "distill --run D --cohort D --out O",
        "evaluate --real D --synthetic D --out O", "augment --real D --synthetic D --report D --out O",
        "card --synthetic D --out O", "run quickstart --out O",
    ],
)  # fmt: skip
def test_every_verb_that_writes_is_refused(verb, tmp_path, holder, capsys):
    words = verb.replace("D", str(tmp_path / "missing")).replace("O", str(tmp_path / "out")).split()
    assert run_command(words) == 2
    assert f"{ANOTHER} {holder.pid}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
