"""Checkpoints that are whole or absent and known by their checksums, and a log that survives a resume.

```
checkpoints/last.ckpt        where the same command goes on
checkpoints/previous.ckpt    the checkpoint before it
checkpoints/checksums.json   {sha256: step} of both
```
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path, hash_file, write_json, write_text

PREVIOUS, CHECKSUMS = "previous.ckpt", "checksums.json"
_URL = re.compile(r"[a-z][a-z0-9+.\-]+:/", re.IGNORECASE)
# What Lightning takes for granted in a checkpoint.
_PARTS = {"global_step", "state_dict", "optimizer_states", "loops", "callbacks", "pytorch-lightning_version"}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it and moves it there; the last one survives a full disk.

    Of `folder`, and of nothing else, checkpoints are read.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`, atomically; `ConfigError` says when the disk is full."""
        for state in checkpoint.get("callbacks", {}).values():
            # ModelCheckpoint notes absolute paths; a run folder holds none.
            if isinstance(state, dict) and "dirpath" in state:
                state.pop("dirpath")
                state |= {key: "" for key in state if key.endswith("_path")}
        path = Path(path)
        try:
            with atomic_path(path) as temporary:
                torch.save(checkpoint, temporary)
                _keep_previous(path)
                # Before the checkpoint takes its place: a kill in between leaves one whose checksum is known.
                _note_checksum(path.parent, hash_file(temporary), int(checkpoint.get("global_step", 0)))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ConfigError(
                f"{path}: need free disk space for a checkpoint, got a full disk; the last checkpoint is whole: try "
                "freeing space, then the same command again"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without executing anything in it.

        Raises `ConfigError` for a URL, and `DataError` for a file outside the run's own folder, or with other bytes than this
        training wrote.
        """
        check_checkpoint(Path(path), self._folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a pickle torch warns in several lines, before it refuses it
                content = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        # The unpickler of a damaged file trips over anything, and nothing has begun that could fail for another reason.
        except Exception as error:
            # What torch says of a pickle that it will not execute is long, and tells how to execute it.
            executes = isinstance(error, pickle.UnpicklingError)
            reason = "a pickle, which is never executed" if executes else f"a damaged file ({_first_line(error)})"
            raise DataError(f"{path}: need a checkpoint, got {reason}; {_way_out(path)}") from error
        if not isinstance(content, dict) or not content.keys() >= _PARTS:
            raise DataError(f"{path}: need a checkpoint of this training, got other content; {_way_out(path)}")
        return content


def check_checkpoint(path: Path, folder: Path) -> None:
    """Raise for a checkpoint that may not be read, as `AtomicCheckpointIO.load_checkpoint` says; nothing is unpickled.

    Checkpoints from before there were checksums pass.
    """
    if _URL.match(str(path)):
        raise ConfigError(f"{path}: need a local checkpoint, got a URL; try copying it to this machine first")
    if path.resolve().parent != folder.resolve():
        raise DataError(f"{path}: need a checkpoint in {folder}, got one from elsewhere; try another --out")
    known = read_checksums(folder)
    if known is not None and hash_file(path) not in known:
        raise DataError(
            f"{path}: need the bytes that the training wrote, got others (a damaged disk, or another file); {_way_out(path)}"
        )


def read_checksums(folder: Path) -> dict[str, int] | None:
    """Return the steps of the checkpoints in `folder` by their sha256; None without any, `DataError` if damaged."""
    path = folder / CHECKSUMS
    try:
        return {str(digest): int(step) for digest, step in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: need the checksums of the checkpoints, got damaged content; try another --out, to begin anew"
        ) from error


def _note_checksum(folder: Path, digest: str, step: int) -> None:
    try:
        known = read_checksums(folder) or {}
    except DataError:
        known = {}
    known.pop(digest, None)
    # Until the new checkpoint is in its place there are three files: the last, the previous and the new one.
    write_json(folder / CHECKSUMS, dict([*known.items(), (digest, step)][-3:]))


def _keep_previous(path: Path) -> None:
    """Give the checkpoint at `path`, if there is one, a second name, under which it stays when `path` is replaced."""
    if not path.exists():
        return
    with atomic_path(path.with_name(PREVIOUS)) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _way_out(path: Any) -> str:
    """Say what can be done about a checkpoint that cannot be read."""
    previous = Path(path).with_name(PREVIOUS)
    try:
        step = (read_checksums(previous.parent) or {}).get(hash_file(previous))
    except (OSError, DataError):
        step = None
    if step is None:
        return "try another --out, to begin anew"
    return f"try {previous.name}, of step {step}, in its place: mv {previous} {path}"


class MetricsLog(Logger):
    """Appends `step,name,value` rows to metrics.csv, `step` being the optimiser steps done.

    A resumed run first drops the rows of steps that it will repeat. A validation that a kill cut off leaves a gap.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @property
    def name(self) -> str:
        """Name that Lightning asks for."""
        return "metrics"

    @property
    def version(self) -> str:
        """Version that Lightning asks for."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        """There is no experiment object."""
        return None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append metrics; `step` counts from 0, as Lightning does."""
        new = not self._path.exists()
        with self._path.open("a", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")  # labels may hold commas and quotes
            if new:
                writer.writerow(["step", "name", "value"])
            rows = ([(step or 0) + 1, name, f"{value:.7g}"] for name, value in metrics.items() if name != "epoch")
            writer.writerows(rows)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Options are in run.json."""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop rows of more than `step` steps."""
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.reader(stream) if len(row) == 3]  # a kill may have torn the last one
        kept = [row for row in rows[1:] if int(row[0]) <= step]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([rows[0], *kept])
        write_text(self._path, text.getvalue())
