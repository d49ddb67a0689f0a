"""Several processes on this machine, started as torchrun starts them, as SLURM would, or by medsynth itself."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 250


def environment(**more):
    """One thread in every process, and nothing of a launcher that may have started the tests."""
    theirs = (
        "SLURM_",
        "TORCHELASTIC_",
        "RANK",
        "LOCAL_",
        "GROUP_",
        "ROLE_",
        "NODE_RANK",
        "WORLD_SIZE",
        "MASTER_",
        "OMP_",
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    return plain | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in more.items()}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(words, **more):
    """A process in a session of its own, with whatever it starts."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(processes):
    """Wait for all; return `(exit code, standard output, standard error)` of each. None outlives this."""
    try:
        return [
            (process.returncode, *said)
            for process, said in [(process, process.communicate(timeout=SECONDS)) for process in processes]
        ]
    finally:
        for process in processes:
            if members(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


def kill_when_there(command, path, *, seconds=200):
    """Start `command` and `kill -9` it as soon as `path` is there, which it has to be."""
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    deadline = time.time() + seconds
    while not path.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.exists()


def by_torchrun(words, *, nodes, devices):
    """As many calls of torchrun as there are nodes, which meet at a port of this machine; `words` begin with `-m` or a file."""
    port = free_port()
    meeting = ["--nnodes", nodes, "--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}"]
    agent = ["-m", "torch.distributed.run", "--nproc_per_node", devices, *(meeting if nodes > 1 else ["--standalone"])]
    module = ["-m"] if words[0] == "-m" else []
    words = words[len(module) :]
    return finish([start([*agent, *module, "--", *words]) for _ in range(nodes)])


def by_slurm(words, *, nodes, devices):
    """The processes that `srun` would start, with the variables that it would give them."""
    job = {
        "SLURM_JOB_ID": 1, "SLURM_STEP_ID": 0, "SLURM_JOB_NAME": "medsynth", "SLURM_NNODES": nodes,
        "SLURM_NTASKS": nodes * devices, "SLURM_NTASKS_PER_NODE": devices, "SLURM_NODELIST": "localhost",
        "MASTER_PORT": free_port(),
    }  # fmt: skip
    return finish(
        [
            start(words, **job, SLURM_PROCID=rank, SLURM_LOCALID=rank % devices, SLURM_NODEID=rank // devices)
            for rank in range(nodes * devices)
        ]
    )


def members(group):
    """Processes of a group that run still, from `/proc`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return sorted(found)


def ranks_of(process, devices):
    """The processes below `process` that run medsynth, as soon as there are `devices` of them or it ended."""
    until = time.time() + SECONDS
    while process.poll() is None and time.time() < until:
        found = [number for number in members(process.pid) if _runs(number)]
        if len(found) == devices:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{process.args}: ended with {process.poll()}")


def _runs(number):
    """Whether a process does the work: neither Python's resource tracker nor a parent that only waits for its workers."""
    try:
        words = Path(f"/proc/{number}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return False
    return "resource_tracker" not in " ".join(words)
