"""Checkpoints that are whole or absent, and a log that survives a resume."""

from __future__ import annotations

import csv
import errno
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path, write_text


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it and moves it there; the last one survives a full disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`, atomically; `DataError` says when the disk is full."""
        for state in checkpoint.get("callbacks", {}).values():
            # ModelCheckpoint notes absolute paths; a run folder holds none.
            if isinstance(state, dict) and "dirpath" in state:
                state.pop("dirpath")
                state |= {key: "" for key in state if key.endswith("_path")}
        try:
            with atomic_path(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as "unexpected pos" while it writes its archive.
            full = getattr(error, "errno", None) == errno.ENOSPC or "unexpected pos" in str(error)
            if not full:
                raise
            raise DataError(
                f"{path}: need free disk space for a checkpoint, got a full disk; the previous checkpoint is whole: try "
                "freeing space, then the same command again"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of this run without executing anything in it; URLs are refused (`ConfigError`)."""
        if "://" in str(path):
            raise ConfigError(f"{path}: need a local checkpoint, got a URL; try copying it to this machine first")
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


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
