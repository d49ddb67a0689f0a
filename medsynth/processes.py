"""Work on several processes: who started them, which one this is, and how they divide the work.

Training leaves its processes to Lightning's trainer. Generation and features consist of independent pieces, which `run_ranks`
divides among processes started with Lightning Fabric. The processes exchange no tensors, only their progress and errors, so
they communicate over gloo on any device.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from medsynth.errors import ConfigError, MedsynthError

if TYPE_CHECKING:
    import torch
    from lightning.fabric.plugins.environments import ClusterEnvironment

T = TypeVar("T")

# How long a process waits for others that have more to do. A process that died is noticed at once: its connection closes.
_PATIENCE = timedelta(days=1)
# How long processes that a launcher started wait for each other at first, and after how many seconds they say so.
_MEETING_SECONDS, _QUIET_SECONDS = 1800.0, 20.0
# What a launcher sets for each process, and the process that started another one on this machine.
_LAUNCHER = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)  # fmt: skip
_STARTED_BY = "MEDSYNTH_STARTED_BY"
_PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
_LOSS = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed out", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among `world`: `rank` counts over all nodes, `local_rank` within its node. The default is a single process."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes shared files."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `world`-th item, beginning with number `rank`."""
        return items[self.rank :: self.world]

    def place(self, device: torch.device) -> torch.device:
        """Return the device of this process: the processes of a node are spread over its visible GPUs."""
        import torch

        if self.world == 1 or device.type != "cuda":
            return device
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def tell(self, value: T) -> T:
        """Return the value that the first process passed; every process must call this."""
        import torch.distributed

        if self.world == 1:
            return value
        values = [value]
        with self._name_lost_process():
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block in every process; none leaves it before all are done.

        A `MedsynthError` or `OSError` in one process is raised in all, so that none waits for a process that gave up.
        """
        import torch.distributed

        failure: Exception | None = None
        try:
            yield
        except (MedsynthError, OSError) as error:
            if self.world == 1:
                raise
            failure = error
        if self.world == 1:
            return
        failures: list[Exception | None] = [None] * self.world
        with self._name_lost_process():
            torch.distributed.all_gather_object(failures, failure)
        if found := next((error for error in failures if error is not None), None):
            raise found

    @contextmanager
    def _name_lost_process(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_loss(error):
                raise
            raise lost_process(self.world) from error


def run_ranks(work: Callable[..., None], *args: Any, devices: int = 1, num_nodes: int = 1) -> None:
    """Call `work(ranks, *args)` in `devices` processes on each of `num_nodes` nodes, and return when all are done.

    Processes started by `torchrun` or SLURM take their ranks from it. Otherwise new processes are spawned on this machine, so
    `work` and `args` must be picklable and a script must guard its main part. What `work` raises in a block of
    `Ranks.together` is raised here. Raises `ConfigError` if the launcher started another number of processes, or if one dies.
    """
    check_world(devices=devices, num_nodes=num_nodes)
    world = devices * num_nodes
    if world == 1:
        work(Ranks(), *args)
        return
    launched = is_launched()
    if num_nodes > 1 and not launched:
        need = f"processes that torchrun or srun started on {num_nodes} nodes"
        raise ConfigError(f"num_nodes: need {need}, got one; try --num_nodes 1")
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy
    from torch.multiprocessing import ProcessExitedException

    try:
        method: Any = "popen" if launched else "spawn"
        strategy = DDPStrategy(process_group_backend="gloo", timeout=_PATIENCE, start_method=method)
        plugins: Any = [cluster_environment()]
        fabric = Fabric(accelerator="cpu", devices=devices, num_nodes=num_nodes, strategy=strategy, plugins=plugins)
    except RuntimeError as error:
        raise ConfigError(
            f"devices: need a script or the command line for {devices} processes, got a notebook; try --devices 1"
        ) from error
    try:
        with meeting(world):
            # As one object: Fabric would search separate arguments for networks.
            failure = fabric.launch(partial(_work_here, work=work, args=args, parent=None if launched else os.getpid()))
    except ProcessExitedException as error:
        reason = error.signal_name or f"exit code {error.exit_code}"
        raise lost_process(world, f"process {error.error_index} ({reason})") from error
    except RuntimeError as error:
        if not launched or not is_loss(error):
            raise
        raise lost_process(world, cause=error) from error
    if failure is not None:
        raise failure


def settle_environment() -> None:
    """Find out who started this process, end with it, and drop what an earlier launcher left in the environment, in a line.

    Raises `ConfigError` for variables of several processes without a launcher, which would wait for each other.
    """
    started_by = os.environ.get(_STARTED_BY)
    if started_by == str(os.getppid()):
        end_with_parent()
        return
    if "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and not _is_reachable():
            raise _left_behind("torchrun")
        end_with_parent()
        return
    if _in_slurm():
        return
    if (tasks := os.environ.get("SLURM_NTASKS", "1")) != "1" and not _is_shell():
        print(
            f"medsynth: SLURM_NTASKS is {tasks}, but srun did not start this command: it counts as started by hand",
            file=sys.stderr,
        )
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise _left_behind("torchrun or srun")
    if found := [name for name in _LAUNCHER if os.environ.pop(name, None) is not None]:
        print(f"medsynth: ignoring {', '.join(found)}, which no launcher set for this process", file=sys.stderr)


def _left_behind(launcher: str) -> ConfigError:
    found = [name for name in _LAUNCHER if name in os.environ]
    return ConfigError(
        f"{found[0]}: need a {launcher} that runs, got only variables of an earlier one; try unset {' '.join(found)}"
    )


def _is_reachable() -> bool:
    """Whether the torchrun that the environment names still listens."""
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        with socket.create_connection(place, timeout=60):
            return True
    except (OSError, KeyError, ValueError, OverflowError):
        return False


def end_with_parent(parent: int | None = None) -> None:
    """Let the system end this process when its parent ends in whatever way (Linux); at once if `parent` has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os._exit(1)


@contextmanager
def meeting(world: int) -> Iterator[None]:
    """Let the `world` processes of a block meet: at a port that is kept free for them, or where their launcher says.

    Those of a launcher say that they wait, and end in time if the others do not come. The environment is restored afterwards.
    """
    if world == 1:
        yield
        return
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    if is_launched():
        threading.Thread(target=_wait_for_others, args=(world,), daemon=True).start()
        yield
        return
    before = {name: os.environ.get(name) for name in (*_LAUNCHER, _STARTED_BY)}
    # Until the first process listens there, nobody else is given this port: it is bound, and both say SO_REUSEADDR.
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("", 0))
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(kept.getsockname()[1]),
            _STARTED_BY: str(os.getpid()),
        }
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                os.environ |= {} if value is None else {name: value}


def _wait_for_others(world: int) -> None:
    """Say that the others have not come yet, and end the process if they do not come at all."""
    import torch.distributed

    began, said = time.monotonic(), False
    place = f"{os.environ.get('MASTER_ADDR', 'the first node')}:{os.environ.get('MASTER_PORT', 'its port')}"
    while not torch.distributed.is_initialized():
        waited = time.monotonic() - began
        if waited > _QUIET_SECONDS and not said:
            print(f"medsynth: waiting for all {world} processes to connect to {place}", file=sys.stderr, flush=True)
            said = True
        if waited > _MEETING_SECONDS:
            print(
                f"medsynth: processes: need all {world}, but after {waited / 60:.0f} minutes not all had connected to "
                f"{place}; try starting them at the same time",
                file=sys.stderr,
                flush=True,
            )
            os._exit(ConfigError.exit_code)
        time.sleep(0.5)


def check_world(*, devices: int, num_nodes: int) -> None:
    """Raise `ConfigError` if the launcher started another number of processes than the options say."""
    for option, number in (("devices", devices), ("num_nodes", num_nodes)):
        if number < 1:
            raise ConfigError(f"{option}: need a number above 0, got {number}")
    expected = {"WORLD_SIZE": devices * num_nodes}
    if "WORLD_SIZE" not in os.environ and _in_slurm():
        per_node = "SLURM_NTASKS_PER_NODE"
        expected = {"SLURM_NTASKS": devices * num_nodes, per_node: devices, "SLURM_NNODES": num_nodes}
        if devices * num_nodes > 1 and per_node not in os.environ:
            raise ConfigError(f"{per_node}: need {devices}, got nothing; try sbatch --ntasks-per-node {devices}")
    for name, number in expected.items():
        found = os.environ.get(name, str(number))
        if found != str(number):
            need = f"{number} processes (devices={devices} x num_nodes={num_nodes})"
            hint = "--devices with the processes of one node and --num_nodes"
            raise ConfigError(f"{name}: need {need}, got {found}; try {hint}")


def check_alone(devices: int) -> None:
    """Raise `ConfigError` in a process of `torchrun` or SLURM: for verbs that start their `devices` processes themselves."""
    if devices < 1:
        raise ConfigError(f"devices: need a number above 0, got {devices}")
    world = os.environ.get("WORLD_SIZE") or (os.environ["SLURM_NTASKS"] if _in_slurm() else "1")
    if world != "1":
        hint = "the command without torchrun or srun"
        raise ConfigError(f"WORLD_SIZE: need one process that starts the others, got {world}; try {hint}")


def is_launched() -> bool:
    """Return whether the environment says that torchrun, SLURM or a training of this program started the processes."""
    return _in_slurm() or ("WORLD_SIZE" in os.environ and "LOCAL_RANK" in os.environ)


def is_first_process() -> bool:
    """Return whether the environment says that this is the first of all processes."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def cluster_environment() -> ClusterEnvironment:
    """Return Lightning's source of ranks and addresses, chosen here so that Lightning does not guess a cluster."""
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return TorchElasticEnvironment()
    # A requeued job continues by the same command; Lightning's own requeue would write checkpoints of another kind.
    return SLURMEnvironment(auto_requeue=False) if _in_slurm() else LightningEnvironment()


def leave_group_at_exit() -> None:
    """Let this process leave its group before the interpreter ends.

    Otherwise gloo's threads sometimes abort the process while the interpreter shuts down: exit code -6 after finished work.
    Lightning leaves nccl groups, but not gloo groups.
    """

    def leave() -> None:
        import torch.distributed

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    atexit.register(leave)


def is_loss(error: BaseException) -> bool:
    """Return whether an error says that another process can no longer be reached."""
    import torch.distributed

    lost = isinstance(error, RuntimeError) and _LOSS.search(str(error)) is not None
    return lost or isinstance(error, torch.distributed.DistError)


def _work_here(
    fabric: Any, *, work: Callable[..., None], args: tuple[Any, ...], parent: int | None
) -> BaseException | None:
    """Return an error of `work` that all processes know; any other error is raised and ends all processes.

    A process that `parent` spawned ends with it.
    """
    if parent is not None:
        end_with_parent(parent)
    leave_group_at_exit()
    try:
        work(Ranks(rank=fabric.global_rank, local_rank=fabric.local_rank, world=fabric.world_size), *args)
    except (MedsynthError, OSError, KeyboardInterrupt) as error:
        return error
    return None


def lost_process(world: int, which: str = "another process", *, cause: BaseException | None = None) -> ConfigError:
    """Return the error for a process that died, after which the others cannot continue; `cause` is what this one noticed."""
    if cause is not None and _PORT_TAKEN.search(str(cause)):
        port = os.environ.get("MASTER_PORT", "the one that was chosen")
        return ConfigError(f"MASTER_PORT: need a free port, got {port}, which is in use; try another MASTER_PORT")
    return ConfigError(
        f"processes: need all {world} until the end, but {which} ended; run the same command again to continue"
    )


def _in_slurm() -> bool:
    """Whether `srun` started this process; a shell within a job does not count, nor the script of a job."""
    return {"SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID"} <= os.environ.keys() and not _is_shell()


def _is_shell() -> bool:
    return os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
