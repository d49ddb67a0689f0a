"""How a training is kept: checkpoints that are whole or absent, the run folder, a log that survives a resume, and signals.

```
checkpoints/last.ckpt        from which the same command continues
checkpoints/previous.ckpt    the checkpoint before it
checkpoints/checksums.json   {sha256: step} of both
```
"""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import pickle
import re
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path, hash_file, read_bytes, read_json, write_json, write_text
from medsynth.runs import EARLY_FILE, DivergedError, RunSpec, first_not_finite, save_early, save_run
from medsynth.training.module import TrainingModule

CHECKPOINT = Path("checkpoints") / "last.ckpt"
PREVIOUS, CHECKSUMS = "previous.ckpt", "checksums.json"
_URL = re.compile(r"[a-z][a-z0-9+.\-]+:/", re.IGNORECASE)
_HEADER = ("step", "name", "value")  # of metrics.csv
# What Lightning expects in a checkpoint.
_PARTS = {"global_step", "state_dict", "optimizer_states", "loops", "callbacks", "pytorch-lightning_version"}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, so that the last one survives a full disk, and reads them from `folder` only."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`, atomically; `ConfigError` if the disk is full or a number in it is not finite."""
        for state in checkpoint.get("callbacks", {}).values():
            # ModelCheckpoint stores absolute paths, which a run folder must not hold.
            if isinstance(state, dict) and "dirpath" in state:
                state.pop("dirpath")
                state |= {key: "" for key in state if key.endswith("_path")}
        path = Path(path)
        if name := _not_finite(checkpoint):
            raise DivergedError(f"{path}: need finite numbers, got NaN or infinity in {name}")
        try:
            with atomic_path(path) as temporary:
                torch.save(checkpoint, temporary)
                _keep_previous(path)
                # Before the checkpoint is moved: a kill in between leaves one whose checksum is known.
                _note_checksum(path.parent, hash_file(temporary), int(checkpoint.get("global_step", 0)))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ConfigError(
                f"{path}: the disk is full; the last checkpoint is intact: free some space, then repeat the command"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without executing anything in it.

        Raises `ConfigError` for a URL, and `DataError` for a file outside the run folder or one that this training did not write.
        """
        check_checkpoint(Path(path), self._folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about a pickle in several lines before it refuses it
                content = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        # A damaged file can raise anything in the unpickler, and nothing else runs here.
        except Exception as error:
            # torch's own message is long and explains how to execute the pickle.
            executes = isinstance(error, pickle.UnpicklingError)
            line = next(iter(str(error).splitlines()), type(error).__name__)
            reason = "a pickle, which is never executed" if executes else f"a damaged file ({line})"
            raise DataError(f"{path}: need a checkpoint, got {reason}; {_way_out(path)}") from error
        if not isinstance(content, dict) or not content.keys() >= _PARTS:
            raise DataError(f"{path}: need a checkpoint of this training, got other content; {_way_out(path)}")
        if name := _not_finite(content):
            raise DataError(f"{path}: need finite numbers, got NaN or infinity in {name}; {_way_out(path)}")
        return content


def _not_finite(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the name of the first weight, or state of the optimiser, that is not finite; None if all are."""
    return first_not_finite(dict(_tensors({name: checkpoint.get(name) for name in ("state_dict", "optimizer_states")})))


def _tensors(content: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a checkpoint with their names."""
    if isinstance(content, torch.Tensor):
        yield name, content
    elif isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _tensors(value, f"{name}.{key}".lstrip("."))


def check_checkpoint(path: Path, folder: Path) -> None:
    """Raise as `AtomicCheckpointIO.load_checkpoint` does for a checkpoint that must not be read; nothing is unpickled."""
    if _URL.match(str(path)):
        raise ConfigError(f"{path}: need a local checkpoint, got a URL; try copying it to this machine first")
    if path.resolve().parent != folder.resolve():
        raise DataError(f"{path}: need a checkpoint in {folder}, got one from elsewhere; try another --out")
    if hash_file(path) not in read_checksums(folder):
        raise DataError(
            f"{path}: need the checkpoint that the training wrote, got a damaged or other file; {_way_out(path)}"
        )


def read_checksums(folder: Path) -> dict[str, int]:
    """Return the steps of the checkpoints in `folder` by their sha256; empty without a file, `DataError` if it is damaged."""
    path = folder / CHECKSUMS
    try:
        return {str(digest): int(step) for digest, step in read_json(path).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: need the checksums of the checkpoints, got damaged content; try another --out to start again"
        ) from error


def _note_checksum(folder: Path, digest: str, step: int) -> None:
    try:
        known = read_checksums(folder)
    except DataError:
        known = {}
    known.pop(digest, None)
    # Until the new checkpoint is moved there are three files: the last, the previous and the new one.
    write_json(folder / CHECKSUMS, dict([*known.items(), (digest, step)][-3:]))


def _keep_previous(path: Path) -> None:
    """Give the checkpoint at `path`, if there is one, a second name that remains when `path` is replaced."""
    if not path.exists():
        return
    with atomic_path(path.with_name(PREVIOUS)) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)


def _way_out(path: Any) -> str:
    """Return what to do about a checkpoint that cannot be read."""
    previous = Path(path).with_name(PREVIOUS)
    try:
        step = read_checksums(previous.parent)[hash_file(previous)]
    except (OSError, DataError, KeyError):
        return "try another --out to start again"
    return f"try {previous.name}, of step {step}, instead: mv {previous} {path}"


class MetricsLog(Logger):
    """Appends rows `step,name,value` to metrics.csv; `step` counts finished optimiser steps.

    A resumed run first drops the rows of steps that it will repeat. An interrupted validation leaves a gap.
    """

    name, version = "metrics", ""  # Lightning requires both

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append metrics; `step` counts from 0, as Lightning does."""
        header = [] if self._path.exists() else [_HEADER]
        known = {name: value for name, value in metrics.items() if name != "epoch" and math.isfinite(value)}
        rows = [((step or 0) + 1, name, f"{value:.7g}") for name, value in known.items()]
        with self._path.open("a", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([*header, *rows])  # labels may hold commas and quotes

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: options are in run.json."""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows of later steps, and whatever a killed process left incomplete."""
        if not self._path.exists():
            return
        stored = csv.reader(io.StringIO(read_bytes(self._path).decode("utf-8"), newline=""))
        rows = [row for row in stored if len(row) == 3 and row[0].isdecimal() and int(row[0]) <= step]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([_HEADER, *rows])
        write_text(self._path, text.getvalue())


class RunKeeper(Callback):
    """Writes the run folder when a checkpoint is due and at the end, so that it can be used during training."""

    def __init__(self, out: Path, spec: RunSpec, options: Mapping[str, Any], every: int) -> None:
        self._out, self._spec, self._options, self._every = out, spec, options, every
        self.kept = 0  # step of the last checkpoint

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop what was logged after the checkpoint."""
        self.kept = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLog):
                logger.rewind(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step % self._every == 0:
            self.write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write(trainer, pl_module)

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        pl_module.check_finite()
        if trainer.is_global_zero:
            save_run(self._out, self._spec, pl_module.averaged, options=self._options, steps=trainer.global_step)
        self.kept = trainer.global_step


class EarlyWeights(Callback):
    """Keeps the averaged weights of one early step in `folder`: that after a `share` of all steps; with 0, none."""

    def __init__(self, folder: Path, share: float) -> None:
        self._folder, self._share = folder, share

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove a file written after the checkpoint, or by a training killed before its first."""
        if trainer.is_global_zero and trainer.global_step < max(1, self._step(trainer)):
            (self._folder / EARLY_FILE).unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step(trainer):
            assert isinstance(pl_module, TrainingModule)
            pl_module.check_finite()
            if trainer.is_global_zero:
                save_early(self._folder, pl_module.averaged)

    def _step(self, trainer: pl.Trainer) -> int:
        return max(1, round(self._share * trainer.max_steps)) if self._share else 0


class StopOnSignal(Callback):
    """Ctrl-C and SIGTERM end the training after the current step, with a checkpoint; a second Ctrl-C at once."""

    def __init__(self, checkpoint: Path, keeper: RunKeeper) -> None:
        self._checkpoint, self._keeper = checkpoint, keeper
        self._received: int | None = None
        # The caller's handlers: Lightning restores them before `restore_signals`, so they are noted here.
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._taken = False
        self.stopped = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals in the main thread; here, because Lightning sets its own handlers before."""
        if threading.current_thread() is threading.main_thread():
            self._taken = True
            for number in self._previous:
                signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop all ranks if any received a signal; several ranks compare notes at every tenth step."""
        if self.stopped or (trainer.world_size > 1 and trainer.global_step % 10):
            return
        if trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            self.stopped = trainer.should_stop = True
            trainer.limit_val_batches = 0  # without a last validation
            self._keeper.write(trainer, pl_module)  # a checkpoint is never without its run
            trainer.save_checkpoint(self._checkpoint)

    def restore_signals(self) -> None:
        if self._taken:
            self._taken = False
            for number, handler in self._previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number
