"""Promise 2: a synthetic set does not depend on the number of processes, and the loss of one is reported."""

import os
import signal
import sys
import time

import pytest
import torch

import medsynth
from medsynth.cli import run_command
from medsynth.errors import ConfigError, DataError
from medsynth.processes import Ranks, check_world, is_first_process, run_ranks
from tests.launching import by_torchrun, finish, ranks_of, start

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc"),
    pytest.mark.timeout(600),
]
SAMPLE = {"count": "bright=5,dark=4", "batch_size": 2}
EDIT = {"donor_class": "bright", "target_class": "dark", "count": 7, "batch_size": 2}


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def words(out, **options):
    pairs = {"out": out, "progress": "false", **options}
    return ["-m", "medsynth", "sample", *(part for name, value in pairs.items() for part in (f"--{name}", value))]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """The last bits of a scan depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(tiny_run, tmp_path_factory):
    """The files of one process."""
    out = tmp_path_factory.mktemp("alone") / "set"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    medsynth.sample(run=tiny_run.folder, out=out, progress=False, **SAMPLE)
    torch.set_num_threads(threads)
    return content(out)


def test_two_processes_of_its_own_write_the_files_of_one(alone, tiny_run, tmp_path, capfd):
    """From Python, too, and nothing of the caller runs twice."""
    made = medsynth.sample(run=tiny_run.folder, out=tmp_path / "set", devices=2, **SAMPLE)
    assert content(tmp_path / "set") == alone
    assert [row.label for row in made.rows] == ["bright"] * 5 + ["dark"] * 4
    bars = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("sample")]
    assert bars[-1].startswith("sample: 100%"), "the first process counts the scans of both"
    assert "9/9" in bars[-1]


def test_two_processes_of_torchrun_write_the_files_of_one(alone, tiny_run, tmp_path):
    ((code, said, errors),) = by_torchrun(
        words(tmp_path / "set", run=tiny_run.folder, devices=2, **SAMPLE), nodes=1, devices=2
    )
    assert code == 0, errors
    assert said.count("every scan is synthetic") == 1, "only the first process speaks"
    assert content(tmp_path / "set") == alone


def test_two_processes_edit_what_one_does(tiny_run, tiny_cohort, tmp_path):
    for devices in (1, 2):
        out, cache = tmp_path / str(devices), tmp_path / f"cache {devices}"
        medsynth.edit(
            run=tiny_run.folder, cohort=tiny_cohort, out=out, cache_dir=cache, devices=devices, progress=False, **EDIT
        )
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_a_killed_process_ends_the_others_and_the_same_command_completes_the_set(tiny_run, tmp_path):
    many = {"run": tiny_run.folder, "count": "dark=60", "batch_size": 2}
    process = start(words(tmp_path / "set", devices=2, **many))
    until = time.time() + 200
    while not list((tmp_path / "set").glob("dark/0*.png")) and process.poll() is None and time.time() < until:
        time.sleep(0.01)
    *_, last = ranks_of(process, 3)
    began = time.time()
    os.kill(last, signal.SIGKILL)
    ((code, _, errors),) = finish([process])
    assert time.time() - began < 60
    assert code == 2, errors
    assert "processes: need all 2 until the end, but process 1 (SIGKILL) ended; run the same command again" in errors
    assert not (tmp_path / "set" / "cohort.csv").exists()
    assert 0 < len(list((tmp_path / "set").glob("dark/0*.png"))) < 60
    for name in ("set", "whole"):
        medsynth.sample(out=tmp_path / name, progress=False, **many)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


def share_numbers(ranks, folder):
    """Each rank notes its numbers, then the last one gives up."""
    first = ranks.tell(f"from {ranks.rank}")
    (folder / str(ranks.rank)).write_text(f"{first}: {list(ranks.share(range(5)))}")
    with ranks.together():
        if ranks.rank == ranks.world - 1:
            raise DataError("number 4: need an even number, got 4; try another")


def test_what_one_process_refuses_all_do(tmp_path):
    with pytest.raises(DataError, match="number 4: need an even number"):
        run_ranks(share_numbers, tmp_path, devices=2)
    assert (tmp_path / "0").read_text() == "from 0: [0, 2, 4]"
    assert (tmp_path / "1").read_text() == "from 0: [1, 3]"


def test_processes_leave_their_group_before_the_interpreter_ends(tmp_path):
    """Threads of gloo that outlive the interpreter abort it, in a fifth of 10 trials."""
    (tmp_path / "script.py").write_text(
        "import atexit, sys, torch.distributed\n"
        "from medsynth.processes import run_ranks\n"
        "def say(when):\n"
        "    sys.stdout.write(f'{when}: {torch.distributed.is_initialized()}\\n')\n"
        "def work(ranks):\n"
        "    atexit.register(say, 'first')\n"
        "if __name__ == '__main__':\n"
        "    atexit.register(say, 'last')\n"
        "    run_ranks(work, devices=2)\n"
    )
    ((code, said, errors),) = by_torchrun([tmp_path / "script.py"], nodes=1, devices=2)
    assert code == 0, errors
    assert sorted(said.splitlines()) == ["first: True"] * 2 + ["last: False"] * 2


def test_another_number_of_processes_than_the_launcher_has_is_refused(tiny_run, tmp_path, monkeypatch, capsys):
    arguments = words(tmp_path / "set", run=tiny_run.folder, count="dark=1")[2:]
    for name, value in {"NTASKS": "2", "PROCID": "0", "STEP_ID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert run_command(list(map(str, arguments))) == 2
    assert "SLURM_NTASKS: need 1 processes (devices=1 x num_nodes=1), got 2" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS_PER_NODE: need 2, got nothing; try sbatch --ntasks-per-node 2"),
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"}, "SLURM_NTASKS: need 2 processes"),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2"}, "SLURM_NTASKS_PER_NODE: need 2"),
        ({"WORLD_SIZE": "3", "SLURM_NTASKS": "2"}, "WORLD_SIZE: need 2 processes"),
    ],
)
def test_jobs_of_slurm_that_do_not_fit(monkeypatch, variables, message):
    for name, value in ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "0"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        check_world(devices=2, num_nodes=1)


@pytest.mark.parametrize("variables", [{"SLURM_JOB_NAME": "bash", "SLURM_STEP_ID": "0"}, {"SLURM_JOB_NAME": "train"}])
def test_a_shell_within_a_job_and_its_script_are_no_tasks_of_it(monkeypatch, variables):
    for name, value in ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"} | variables).items():
        monkeypatch.setenv(name, value)
    check_world(devices=2, num_nodes=1)


def test_several_nodes_need_a_launcher(tmp_path):
    with pytest.raises(ConfigError, match="num_nodes: need processes that torchrun or srun started on 2 nodes"):
        run_ranks(share_numbers, tmp_path, num_nodes=2)


@pytest.mark.parametrize(("name", "first"), [("RANK", False), ("SLURM_PROCID", False), ("SLURM_NODEID", True)])
def test_the_first_process_is_known_by_its_environment(monkeypatch, name, first):
    assert is_first_process()
    monkeypatch.setenv(name, "1")
    assert is_first_process() is first


def test_one_process_shares_with_nobody():
    ranks = Ranks()
    assert (ranks.first, ranks.tell(3), list(ranks.share([1, 2]))) == (True, 3, [1, 2])
    assert ranks.place(torch.device("cuda", 1)) == torch.device("cuda", 1)
