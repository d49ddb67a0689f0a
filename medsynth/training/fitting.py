"""What every training shares, whatever it fits: the folder that it owns, its batches, Lightning's trainer, and how it ends."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from medsynth.cohorts import PreparedCohort, ScanDataset
from medsynth.config import TrainingPlan, changed_options
from medsynth.errors import ConfigError
from medsynth.files import remove_partial
from medsynth.processes import cluster_environment, is_loss, leave_group_at_exit, lost_process
from medsynth.runs import ATTRIBUTES_FILE, EARLY_FILE, METRICS_FILE, PATIENTS_FILE, RUN_FILE, WEIGHTS_FILE
from medsynth.seeds import numpy_generator
from medsynth.training.batches import StepSampler, class_shares, make_loader
from medsynth.training.callbacks import Progress, RunKeeper, StopOnSignal, Throughput
from medsynth.training.checkpoints import AtomicCheckpointIO, MetricsLog, check_checkpoint

CHECKPOINT = Path("checkpoints") / "last.ckpt"
# Files of a run that was killed before its first run.json.
_OWN = (
    WEIGHTS_FILE,
    EARLY_FILE,
    PATIENTS_FILE,
    ATTRIBUTES_FILE,
    METRICS_FILE,
    "config.yaml",
    "previews",
    "checkpoints",
    "tensorboard",
    "trajectories",
)
# What may change between two calls of the same training. The numbers of processes and of parts of a batch change which dropout
# masks are drawn (and a GPU draws other noise than a CPU), so weights are the same to the last bit only where these stay.
_FREE = (
    "accelerator", "devices", "num_nodes", "num_workers", "accumulate", "activation_checkpointing", "monitor", "reading",
)  # fmt: skip
# malloc.h of glibc, and the largest threshold that it takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST_ON_HEAP = -1, -3, 32 << 20
# What trainings from before these were options did.
_ADDED = {"network": {"shrinkage": False, "centring": False}, "distilled": {"consistency": {"teacher": False}}}


class Trained(Protocol):
    """What a run folder says of the training that it holds."""

    @property
    def options(self) -> Mapping[str, Any]: ...

    @property
    def steps(self) -> int: ...


def plain_options(plan: TrainingPlan) -> dict[str, Any]:
    """Return the options as plain JSON and YAML values."""
    options: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(plan)))
    return options


def check_folder(out: Path, options: Mapping[str, Any], previous: Trained | None, *, free: Sequence[str] = ()) -> bool:
    """Return whether `out` holds a checkpoint from which the training with these options goes on.

    `previous` is what `run.json` there describes, `free` names options that may differ besides those that always may. Raises
    `ConfigError` for a folder with other files, or with a training with other options (it names them), and as
    `check_checkpoint` does.
    """
    checkpoint = out / CHECKPOINT
    resumed = checkpoint.is_file()
    if previous is not None:
        if changed := changed_options(previous.options, options, free=(*_FREE, *free), added=_ADDED):
            raise ConfigError(
                f"{out}: need the options that this run was started with, got {'; '.join(changed)}; try another --out"
            )
    elif resumed:
        raise ConfigError(f"{out}: need {RUN_FILE} beside the checkpoint, got none; try another --out")
    elif out.is_dir() and not all(_is_own(path.name) for path in out.iterdir()):
        raise ConfigError(
            f"{out}: need a new folder or a run to continue, got a folder with other files; try another --out"
        )
    if resumed and (previous is None or previous.steps < options["max_steps"]):
        check_checkpoint(checkpoint, checkpoint.parent)
    return resumed


def make_trainer(
    out: Path,
    plan: TrainingPlan,
    save: Callable[[Any, int], None],
    *,
    previews: Callback | None,
    validate: bool,
    progress: bool,
    before: Sequence[Callback] = (),
) -> tuple[pl.Trainer, StopOnSignal]:
    """Return the trainer and the callback that knows whether a signal stopped it; `save(module, step)` writes the run.

    `before` are callbacks that act before the run is written.
    Raises `ConfigError` for devices that are not there.
    """
    monitor = plan.monitor
    keeper = RunKeeper(save, monitor.checkpoint_every)
    stop = StopOnSignal(out / CHECKPOINT, keeper)
    callbacks: list[Callback] = [*before, stop, keeper]
    if progress:
        callbacks.append(Progress())
    if previews is not None:
        callbacks.append(previews)
    callbacks.append(Throughput(monitor.log_every, plan.batch_size))  # last, so that previews do not count as waiting
    callbacks.append(
        ModelCheckpoint(
            dirpath=out / CHECKPOINT.parent,
            filename=CHECKPOINT.stem,
            every_n_train_steps=monitor.checkpoint_every,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    leave_group_at_exit()
    try:
        trainer = pl.Trainer(
            accelerator=plan.accelerator,
            devices=plan.devices,
            num_nodes=plan.num_nodes,
            precision=plan.precision,
            max_steps=plan.max_steps,
            max_epochs=-1,
            deterministic=plan.deterministic,
            val_check_interval=min(monitor.validate_every, plan.max_steps) if validate else None,
            check_val_every_n_epoch=None,
            limit_val_batches=None if validate else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=min(monitor.log_every, plan.max_steps),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO(out / CHECKPOINT.parent), cluster_environment()],
            callbacks=callbacks,
            logger=[MetricsLog(out / METRICS_FILE), *_tensorboard(out, plan)],
            default_root_dir=out,
        )
    except MisconfigurationException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"accelerator: need devices that are there, got {plan.accelerator!r}: {reason}; try auto"
        ) from error
    return trainer, stop


def make_loaders(prepared: PreparedCohort, trainer: pl.Trainer, plan: TrainingPlan) -> tuple[Any, Any]:
    """Return the loaders of this rank: its part of every training batch, and of the validation scans (None without any)."""
    train = prepared.indices(split="train")
    labels = prepared.labels[train]
    shares = class_shares(np.bincount(labels, minlength=len(prepared.classes)), plan.balance)
    return rank_loaders(
        partial(ScanDataset, prepared), train, validation_scans(prepared, plan), labels, shares, trainer, plan
    )


def rank_loaders(
    make: Callable[[np.ndarray], Dataset[dict[str, Any]]],
    training: np.ndarray,
    validation: np.ndarray,
    labels: np.ndarray,
    shares: np.ndarray,
    trainer: pl.Trainer,
    plan: TrainingPlan,
) -> tuple[Any, Any]:
    """Return the loaders of this rank: its part of every batch of `training` rows, and of the `validation` rows (None without).

    `make` makes a dataset of rows; `labels` are those of the training rows, `shares` those of the classes in the draws.
    """
    sampler = StepSampler(
        labels,
        shares=shares,
        batch_size=plan.batch_size,
        total_steps=plan.max_steps,
        seed=plan.seed,
        first_step=lambda: trainer.global_step,
        rank=trainer.global_rank,
        world=trainer.world_size,
    )
    loader = make_loader(make(training), sampler, num_workers=plan.num_workers)
    # As many for every rank: a rank without any would miss the collective calls of validation.
    whole = len(validation) // trainer.world_size * trainer.world_size
    chosen = validation[:whole][trainer.global_rank :: trainer.world_size]
    return loader, DataLoader(make(chosen), batch_size=scans_together(trainer, plan)) if len(chosen) else None


def scans_together(trainer: pl.Trainer, plan: TrainingPlan) -> int:
    """Return how many scans of a step a process has in memory at once."""
    return max(1, plan.batch_size // trainer.world_size // plan.accumulate)


def validation_scans(prepared: PreparedCohort, plan: TrainingPlan) -> np.ndarray:
    """Return the rows of validation scans, as evenly over the classes as they allow, the same in every call."""
    groups = [prepared.indices(split="val", label=number) for number in range(len(prepared.classes))]
    share = math.ceil(plan.monitor.validation_scans / max(1, sum(len(group) > 0 for group in groups)))
    chosen = [
        numpy_generator(plan.seed, "validation", number).permutation(group)[:share]
        for number, group in enumerate(groups)
    ]
    return np.sort(np.concatenate(chosen))


def clear_partial(out: Path, trainer: pl.Trainer) -> None:
    """Make the folder and remove what a kill left there, on the first rank."""
    if trainer.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        remove_partial(out)


def fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    loaders: tuple[Any, Any],
    stop: StopOnSignal,
    checkpoint: Path | None,
) -> None:
    """Train to the last step, from `checkpoint` where there is one.

    `KeyboardInterrupt` after a signal stopped the training and a checkpoint was written; `ConfigError` when another process of
    the training died.
    """
    with warnings.catch_warnings(), _freed_memory_kept(trainer):
        for text in (".*does not have many workers.*", ".*tensorboard.*", ".*Checkpoint directory.*", ".*LeafSpec.*"):
            warnings.filterwarnings("ignore", text)
        # Everything in a run's own checkpoint is plain tensors and numbers; nothing else is loaded.
        try:
            trainer.fit(module, *loaders, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as error:  # Lightning's answer to a second Ctrl-C
            raise KeyboardInterrupt("at once; the same command continues from the last checkpoint") from error
        except RuntimeError as error:
            if trainer.world_size == 1 or not is_loss(error):
                raise
            raise lost_process(trainer.world_size) from error
        finally:
            stop.restore_signals()
    trainer.strategy.barrier()  # the first rank has written the run
    if stop.stopped:
        raise KeyboardInterrupt(f"stopped at step {trainer.global_step}; the same command continues from there")


@contextmanager
def _freed_memory_kept(trainer: pl.Trainer) -> Iterator[None]:
    """On a processor under Linux, do not give memory back to the system after each step, but all of it at the end.

    A step frees all that it computed, and glibc would return it: tens of thousands of page faults a step to have it again, an
    eighth of a processor's time at 64 x 64.
    """
    on_processor = trainer.strategy.root_device.type == "cpu"
    system = ctypes.CDLL(None) if sys.platform == "linux" and on_processor else None
    if not hasattr(system, "mallopt"):  # another library than glibc
        yield
        return
    assert system is not None
    system.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    system.mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
    try:
        yield
    finally:
        system.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_ON_HEAP)
        system.malloc_trim(0)


def _is_own(name: str) -> bool:
    return name in _OWN or name.startswith(".partial-")


def _tensorboard(out: Path, plan: TrainingPlan) -> list[Any]:
    if not plan.monitor.tensorboard:
        return []
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return [TensorBoardLogger(save_dir=out, name="tensorboard", version="")]
    except ModuleNotFoundError as error:
        raise ConfigError(
            "monitor.tensorboard: need the package tensorboard, got none; try pip install 'medsynth-diffusion[tensorboard]'"
        ) from error
