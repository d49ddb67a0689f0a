"""Who started a process, what an earlier launcher left behind, and no process outlives the one that started it."""

import os
import signal
import socket
import sys
import time

import pytest

from medsynth.errors import ConfigError
from medsynth.processes import is_first_process, meeting, settle_environment
from tests.launching import finish, members, start

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc"),
    pytest.mark.timeout(600),
]
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.fixture
def listening():
    """A port of this machine that is taken."""
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        yield server.getsockname()[1]


def leave(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "1"}, {"LOCAL_RANK": "1", "NODE_RANK": "1"}, {"MASTER_PORT": "29500", "MASTER_ADDR": "gone"},
        {"RANK": "1", "WORLD_SIZE": "1"}, {"TORCHELASTIC_RUN_ID": "none"},
    ],
)  # fmt: skip
def test_what_a_launcher_left_is_dropped_in_a_line(monkeypatch, capsys, left):
    leave(monkeypatch, left)
    settle_environment()
    said = capsys.readouterr().err
    assert said.startswith("medsynth: ignoring ")
    assert said.count("\n") == 1
    assert not left.keys() & os.environ.keys()
    assert is_first_process()


@pytest.mark.parametrize(
    "left",
    [
        {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
        TORCHRUN | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, TORCHRUN | {"WORLD_SIZE": "2"},
        TORCHRUN | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "port"},
    ],
)  # fmt: skip
def test_several_processes_without_a_launcher_that_runs_are_refused(monkeypatch, left):
    leave(monkeypatch, left)
    with pytest.raises(
        ConfigError, match=r"need a torchrun.* that runs, got only variables .*; try unset .*WORLD_SIZE|RANK"
    ):
        settle_environment()


def test_a_torchrun_that_runs_is_believed(monkeypatch, listening):
    monkeypatch.setattr("medsynth.processes.end_with_parent", lambda: None)
    leave(monkeypatch, TORCHRUN | {"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listening)})
    settle_environment()
    assert not is_first_process()


def test_the_script_of_a_job_counts_as_started_by_hand(monkeypatch, capsys):
    leave(monkeypatch, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "sample"})
    settle_environment()
    assert "SLURM_NTASKS is 4, but srun did not start this command" in capsys.readouterr().err


def test_the_port_for_a_meeting_is_kept_free_and_the_environment_is_restored():
    before = dict(os.environ)
    with meeting(2):
        port = int(os.environ["MASTER_PORT"])
        os.environ["WORLD_SIZE"] = "2"  # as Lightning does
        with socket.socket() as thief, pytest.raises(OSError, match="Address already in use"):
            thief.bind(("", port))
    assert dict(os.environ) == before


FIRST_OF_TWO = {
    "JOB_ID": 1, "STEP_ID": 0, "JOB_NAME": "x", "NNODES": 1, "NTASKS": 2, "NTASKS_PER_NODE": 2, "NODELIST": "localhost",
    "PROCID": 0, "LOCALID": 0, "NODEID": 0,
}  # fmt: skip


def first_task(run, out, *before, **more):
    """The first of two tasks of a job of SLURM, and no other: exit code and errors."""
    words = [*before, "sample", "--run", run, "--count", "1", "--out", out, "--devices", "2", "--progress", "false"]
    job = {f"SLURM_{name}": value for name, value in FIRST_OF_TWO.items()}
    ((code, _, errors),) = finish([start(words, **job, **more)])
    return code, errors


def test_a_port_that_is_taken_is_named(tiny_run, tmp_path, listening):
    code, errors = first_task(tiny_run.folder, tmp_path / "set", "-m", "medsynth", MASTER_PORT=listening)
    assert (code, errors.count("\n")) == (2, 1)
    assert f"MASTER_PORT: need a free port, got {listening}, which is in use" in errors


def test_processes_that_do_not_meet_say_so_and_end(tiny_run, tmp_path):
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "from medsynth import processes\n"
        "from medsynth.cli import run_command\n"
        "processes._QUIET_SECONDS, processes._MEETING_SECONDS = 1, 3\n"
        "sys.exit(run_command(sys.argv[1:]))\n"
    )
    code, errors = first_task(tiny_run.folder, tmp_path / "set", tmp_path / "script.py")
    assert code == 2
    assert "waiting for all 2 processes to connect to" in errors
    assert "processes: need all 2, but after 0 minutes not all had connected" in errors


@pytest.mark.parametrize("signalled", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_of_sample_outlives_the_one_that_started_it(tiny_run, tmp_path, signalled):
    out = tmp_path / "set"
    words = [
        "sample",
        "--run",
        tiny_run.folder,
        "--count",
        "dark=5000",
        "--batch_size",
        "2",
        "--out",
        out,
        "--devices",
        "2",
    ]
    check_end(start(["-m", "medsynth", *words, "--progress", "false"]), lambda: list(out.rglob("0*.png")), signalled, 4)


def test_no_process_of_train_outlives_the_one_that_started_it(tiny_cohort, tiny_config, tmp_path):
    words = ["train", "--config", tiny_config, "--cohort", tiny_cohort, "--max_steps", "50000", "--num_workers", "1"]
    call = start(["-m", "medsynth", *words, "--devices", "2", "--out", tmp_path / "run", "--progress", "false"])
    check_end(
        call, lambda: [tmp_path / "run/run.json"] if (tmp_path / "run/run.json").exists() else [], signal.SIGKILL, 4
    )


def check_end(process, written, signalled, number):
    """Signal `process` when something was written: all `number` processes have to be gone soon, with an exit code."""
    until = time.time() + 200
    while not written() and process.poll() is None and time.time() < until:
        time.sleep(0.02)
    assert len(members(process.pid)) == number
    os.kill(process.pid, signalled)
    until = time.time() + 30
    while members(process.pid) and time.time() < until:
        time.sleep(0.05)
    left = members(process.pid)
    ((code, _, errors),) = finish([process])
    assert left == []
    assert code == -signalled
    assert "Traceback" not in errors


def test_a_killed_worker_that_loads_scans_ends_the_training_in_a_line(tiny_cohort, tiny_config, tmp_path):
    words = ["train", "--config", tiny_config, "--cohort", tiny_cohort, "--max_steps", "50000", "--num_workers", "1"]
    process = start(["-m", "medsynth", *words, "--out", tmp_path / "run", "--progress", "false"])
    until = time.time() + 200
    while not (tmp_path / "run/run.json").exists() and process.poll() is None and time.time() < until:
        time.sleep(0.02)
    os.kill(members(process.pid)[-1], signal.SIGKILL)
    ((code, _, errors),) = finish([process])
    assert code == 2
    assert errors.splitlines()[-1].startswith(
        "medsynth: num_workers: need processes that load scans until the end, but one ended"
    )
    assert "Traceback" not in errors
