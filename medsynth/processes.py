"""More than one process: who started them, which of them this is, and how they share work out.

Training leaves its processes to Lightning's trainer. Generation and features have work that falls into independent pieces:
`run_ranks` gives every process its pieces. Lightning Fabric brings the processes together; they exchange no tensors, only who
is done and what went wrong, and so do it over gloo whatever the device is.
"""

from __future__ import annotations

import atexit
import os
import re
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

# How long a process waits for the others, who may have more to do. One that died is noticed at once, by its closed connection.
_PATIENCE = timedelta(days=1)
_LOSS = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed out", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among `world`: `rank` is its number over all nodes, `local_rank` on its own; alone by default."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what belongs to all."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `world`th of the items, beginning with that of this rank."""
        return items[self.rank :: self.world]

    def place(self, device: torch.device) -> torch.device:
        """Return the device of this process: processes of one node take turns over the GPUs that it sees."""
        import torch

        if self.world == 1 or device.type != "cuda":
            return device
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def tell(self, value: T) -> T:
        """Return the value that the first process has; every process calls this."""
        import torch.distributed

        if self.world == 1:
            return value
        values = [value]
        with self._loss_told():
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that every process enters and that none leaves before all are done.

        A `MedsynthError` or `OSError` of one is raised in all of them, so that no process waits for one that gave up.
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
        with self._loss_told():
            torch.distributed.all_gather_object(failures, failure)
        if found := next((error for error in failures if error is not None), None):
            raise found

    @contextmanager
    def _loss_told(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_loss(error):
                raise
            raise lost_process(self.world) from error


def run_ranks(work: Callable[..., None], *args: Any, devices: int = 1, num_nodes: int = 1) -> None:
    """Call `work(ranks, *args)` in `devices` processes on each of `num_nodes` nodes, and return when all are done.

    Processes that `torchrun` or SLURM started take their ranks from it. Otherwise new ones are started on this machine, by
    `spawn`: `work` and `args` must be picklable, a script must guard its main part, and nothing of the caller runs twice. What
    `work` raises in a block of `Ranks.together` is raised here. Raises `ConfigError` for a number of processes other than the
    launcher's, and when a process dies.
    """
    check_world(devices=devices, num_nodes=num_nodes)
    world = devices * num_nodes
    if world == 1:
        work(Ranks(), *args)
        return
    launched = is_launched()
    if num_nodes > 1 and not launched:
        raise ConfigError(
            f"num_nodes: need processes that torchrun or srun started on {num_nodes} nodes, got this one alone; try --num_nodes 1"
        )
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy
    from torch.multiprocessing import ProcessExitedException

    try:
        fabric = Fabric(
            accelerator="cpu",
            devices=devices,
            num_nodes=num_nodes,
            strategy=DDPStrategy(
                process_group_backend="gloo", timeout=_PATIENCE, start_method="popen" if launched else "spawn"
            ),
            plugins=[cluster_environment()],
        )
    except RuntimeError as error:
        raise ConfigError(
            f"devices: need a script or the command line for {devices} processes, got a notebook; try --devices 1"
        ) from error
    try:
        # In one object: Fabric would take what it finds in a list of arguments apart, to look for networks.
        failure = fabric.launch(partial(_work_here, work=work, args=args))
    except ProcessExitedException as error:
        reason = error.signal_name or f"exit code {error.exit_code}"
        raise lost_process(world, f"number {error.error_index} ({reason})") from error
    if failure is not None:
        raise failure


def check_world(*, devices: int, num_nodes: int) -> None:
    """Refuse a launcher whose number of processes differs from what the options say (`ConfigError`)."""
    for option, number in (("devices", devices), ("num_nodes", num_nodes)):
        if number < 1:
            raise ConfigError(f"{option}: need a number above 0, got {number}")
    expected = {"WORLD_SIZE": devices * num_nodes}
    if "WORLD_SIZE" not in os.environ and _in_slurm():
        expected = {"SLURM_NTASKS": devices * num_nodes, "SLURM_NTASKS_PER_NODE": devices, "SLURM_NNODES": num_nodes}
        if devices * num_nodes > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ConfigError(
                f"SLURM_NTASKS_PER_NODE: need {devices}, got nothing; try sbatch --ntasks-per-node {devices}"
            )
    for name, number in expected.items():
        found = os.environ.get(name, str(number))
        if found != str(number):
            raise ConfigError(
                f"{name}: need {number} processes (devices={devices} x num_nodes={num_nodes}), got {found}; "
                "try --devices with the processes of one node and --num_nodes"
            )


def check_alone(devices: int) -> None:
    """Refuse to be one of several processes of a launcher, for a verb that starts its `devices` itself (`ConfigError`)."""
    if devices < 1:
        raise ConfigError(f"devices: need a number above 0, got {devices}")
    world = os.environ.get("WORLD_SIZE") or (os.environ["SLURM_NTASKS"] if _in_slurm() else "1")
    if world != "1":
        raise ConfigError(
            f"WORLD_SIZE: need one process that starts the others, got {world}; try the command without torchrun or srun"
        )


def is_launched() -> bool:
    """Return whether somebody else started the processes: torchrun, SLURM, or a training of this same program."""
    return _in_slurm() or ("WORLD_SIZE" in os.environ and "LOCAL_RANK" in os.environ)


def is_first_process() -> bool:
    """Return whether this is the first of all processes, as far as the environment tells."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def cluster_environment() -> ClusterEnvironment:
    """Return who knows ranks and addresses; named here, so that Lightning does not probe clusters that only look alike."""
    from lightning.fabric.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return TorchElasticEnvironment()
    # A requeued job goes on by the same command; Lightning's own way would write checkpoints of another kind.
    return SLURMEnvironment(auto_requeue=False) if _in_slurm() else LightningEnvironment()


def leave_group_at_exit() -> None:
    """Have this process leave its group before the interpreter ends.

    Threads of gloo that run still when the interpreter takes the group apart abort the process, now and then: exit code -6
    after work that was done. Lightning leaves groups of nccl by itself, those of gloo it does not.
    """
    atexit.register(_leave_group)


def is_loss(error: BaseException) -> bool:
    """Return whether an error says that another process cannot be reached any more."""
    import torch.distributed

    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and _LOSS.search(str(error)) is not None
    )


def _leave_group() -> None:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _work_here(fabric: Any, *, work: Callable[..., None], args: tuple[Any, ...]) -> BaseException | None:
    """Return what `work` raised and all processes know of; what only this one knows of is raised, and ends them all."""
    leave_group_at_exit()
    try:
        work(Ranks(rank=fabric.global_rank, local_rank=fabric.local_rank, world=fabric.world_size), *args)
    except (MedsynthError, OSError, KeyboardInterrupt) as error:
        return error
    return None


def lost_process(world: int, which: str = "another one") -> ConfigError:
    """Return the error for a process that died, after which the others cannot go on."""
    return ConfigError(
        f"processes: need all {world} until the end, got the loss of {which}; try the same command again: it goes on where "
        "this one stopped"
    )


def _in_slurm() -> bool:
    """Whether `srun` started this process; a shell within a job is not one of its tasks."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
