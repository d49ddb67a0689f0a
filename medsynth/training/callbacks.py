"""What happens around the steps: progress bar, previews, memorisation curve, the run folder kept usable, signals."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from medsynth.cohorts import PreparedCohort
from medsynth.config import GuidanceOptions, MonitorOptions, SolverOptions
from medsynth.measures.neighbours import nearest_distances
from medsynth.networks import Condition, sample_scans
from medsynth.runs import EARLY_FILE, save_early
from medsynth.scans.picture import captioned_rows, write_picture
from medsynth.seeds import derive_seed
from medsynth.training.checkpoints import MetricsLog
from medsynth.training.module import DiffusionModule


class Progress(Callback):
    """One bar for the whole training: steps, rate, time to go, and the last logged figures.

    Lightning's own bar loses its total when a training resumes within its only epoch.
    """

    _FIGURES = ("train_loss", "val_loss", "scans_per_s")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar at the step where training begins or continues."""
        self._bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            disable=not trainer.is_global_zero,
        )
        self._shown = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count the step; reading figures waits for the device, so they change once in two seconds at most."""
        if time.perf_counter() - self._shown > 2:
            self._shown = time.perf_counter()
            figures = {
                name: float(trainer.callback_metrics[name])
                for name in self._FIGURES
                if name in trainer.callback_metrics
            }
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()}, refresh=False)
        self._bar.update()

    def on_train_end(self, *_: Any) -> None:
        """Close the bar."""
        self._bar.close()

    def on_exception(self, *_: Any) -> None:
        """Leave the bar where it is and free the line."""
        if hasattr(self, "_bar"):
            self._bar.close()


class Throughput(Callback):
    """Logs scans per second and the share of the time spent waiting for data, over the logging interval."""

    def __init__(self, every: int, batch_size: int) -> None:
        self._every, self._batch_size = every, batch_size
        self._began = self._left = time.perf_counter()
        self._waited, self._steps = 0.0, 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Add the time since the last batch ended to the waiting time."""
        self._waited += time.perf_counter() - self._left if self._steps else 0.0
        self._began = self._began if self._steps else time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Log when the interval is full."""
        self._steps += 1
        self._left = time.perf_counter()
        if self._steps == self._every:
            elapsed = self._left - self._began
            pl_module.log("scans_per_s", self._steps * self._batch_size / elapsed, prog_bar=True, rank_zero_only=True)
            pl_module.log("data_wait_share", self._waited / elapsed, rank_zero_only=True)
            self._waited, self._steps = 0.0, 0

    def on_validation_start(self, *_: Any) -> None:
        """Begin a new interval, so that validations do not count as waiting."""
        self._waited, self._steps = 0.0, 0


class Previews(Callback):
    """Pictures of every class, and the memorisation curve of the rarest class.

    The curve follows the distance of samples to the nearest training scan of the class (median and 5th percentile of the
    root mean square difference in [-1, 1]) beside that of held-out real scans: samples that come much closer than other
    patients' scans are copies.
    """

    def __init__(
        self,
        prepared: PreparedCohort,
        options: MonitorOptions,
        folder: Path,
        *,
        seed: int,
        last_step: int,
        solver: SolverOptions = SolverOptions(),
    ) -> None:
        counts = [len(prepared.indices(split="train", label=number)) for number in range(len(prepared.classes))]
        self._rarest = int(np.argmin([count or np.inf for count in counts]))
        self._classes = [number for number, count in enumerate(counts) if count]
        self._prepared, self._options, self._folder = prepared, options, folder
        self._seed, self._last_step, self._solver = seed, last_step, solver

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Draw samples when it is time."""
        step = trainer.global_step
        due = step % self._options.preview_every == 0 or step == self._last_step
        if not due or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, DiffusionModule)
        samples = self._sample(pl_module)
        shown = [
            (title, samples[number][: self._options.preview_scans, channel:])
            for number in self._classes
            for channel, title in self._rows(self._prepared.classes[number])
        ]
        spacing = np.linalg.norm(self._prepared.affine[:3, : self._prepared.scans.ndim - 2], axis=0)
        write_picture(self._folder / f"step_{step:07d}.png", captioned_rows(shown, spacing=spacing.tolist()))
        for logger in trainer.loggers:
            logger.log_metrics(self._memorisation(samples[self._rarest][: self._options.memorisation_scans]), step - 1)

    def _rows(self, label: str) -> list[tuple[int, str]]:
        """The channels that are shown of a class, each with the first of its file, and their captions."""
        names = self._prepared.channels
        return [
            (names.index(name), f"{label}: {name}" if number else label)
            for number, name in enumerate(dict.fromkeys(names))
        ]

    def _sample(self, module: DiffusionModule) -> dict[int, np.ndarray]:
        options = self._options
        result = {}
        for number in self._classes:
            count = max(options.preview_scans, options.memorisation_scans if number == self._rarest else 0)
            parts = []
            for start in range(0, count, options.preview_scans):
                places = range(start, min(count, start + options.preview_scans))
                scans = sample_scans(
                    module.averaged.eval(),
                    self._wanted(module, number, places),
                    [derive_seed(self._seed, "preview", number, place) for place in places],
                    shape=self._prepared.scans.shape[1:],
                    solver=self._solver,
                    guidance=GuidanceOptions(),
                )
                parts.append(scans.float().cpu().numpy())
            result[number] = np.concatenate(parts)
        return result

    def _wanted(self, module: DiffusionModule, number: int, places: range) -> Condition:
        """The condition of some preview scans of a class, with the attributes of training scans."""
        attributes = None
        if self._prepared.attributes is not None:
            train = self._prepared.indices(split="train", label=number)
            rows = [
                train[derive_seed(self._seed, "preview attributes", number, place) % len(train)] for place in places
            ]
            attributes = torch.from_numpy(self._prepared.attributes[rows])
        return module.averaged.embedding.make(torch.full((len(places),), number), attributes)

    def _memorisation(self, samples: np.ndarray) -> dict[str, float]:
        prepared = self._prepared
        name = f"memorisation/{prepared.classes[self._rarest]}"
        images = len(prepared.channels) - prepared.channels.count(
            "mask"
        )  # masks are alike for other reasons than copying
        train = prepared.scans[prepared.indices(split="train", label=self._rarest), :images].astype(np.float32)
        metrics = {}
        sources = {"sample": samples, "held_out": prepared.scans[prepared.indices(split="val", label=self._rarest)]}
        for source, scans in sources.items():
            if len(scans):
                distances, _ = nearest_distances(scans[:, :images].astype(np.float32), train)
                distances = distances / np.sqrt(train[0].size)
                metrics[f"{name}/{source}_median"] = float(np.median(distances))
                metrics[f"{name}/{source}_p5"] = float(np.percentile(distances, 5))
        return metrics


class RunKeeper(Callback):
    """Calls `save(module, step)` whenever a checkpoint is due and at the end, so the run folder is usable while training."""

    def __init__(self, save: Callable[[Any, int], None], every: int) -> None:
        self._save, self._every = save, every

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget what was logged after the checkpoint."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLog):
                logger.rewind(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save when due."""
        if trainer.global_step % self._every == 0:
            self.write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end."""
        self.write(trainer, pl_module)

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save now, on the first rank."""
        if trainer.is_global_zero:
            self._save(pl_module, trainer.global_step)


class EarlyWeights(Callback):
    """Keeps in `folder` the averaged weights of one step, the `share` of all; with a share of 0, none.

    A training that goes on from before that step comes there again and writes the same file.
    """

    def __init__(self, folder: Path, share: float) -> None:
        self._folder, self._share = folder, share

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove what a training left here that was killed before its first checkpoint, or after the last."""
        if trainer.is_global_zero and trainer.global_step < max(1, self._step(trainer)):
            (self._folder / EARLY_FILE).unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Write the file when it is time, on the first rank."""
        if trainer.is_global_zero and trainer.global_step == self._step(trainer):
            assert isinstance(pl_module, DiffusionModule)
            save_early(self._folder, pl_module.averaged)

    def _step(self, trainer: pl.Trainer) -> int:
        return max(1, round(self._share * trainer.max_steps)) if self._share else 0


class StopOnSignal(Callback):
    """Ctrl-C and SIGTERM end the training after the current step, with a checkpoint; a second Ctrl-C at once."""

    def __init__(self, checkpoint: Path, keeper: RunKeeper) -> None:
        self._checkpoint, self._keeper = checkpoint, keeper
        self._received: int | None = None
        # Those from before the training: Lightning puts them back when it ends, ahead of `restore_signals`.
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._taken = False
        self.stopped = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals, where this is the main thread; here, because Lightning sets its own before."""
        if threading.current_thread() is threading.main_thread():
            self._taken = True
            for number in self._previous:
                signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop all ranks if a signal came to any; several ranks ask each other at every tenth step only."""
        if self.stopped or (trainer.world_size > 1 and trainer.global_step % 10):
            return
        if trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            self.stopped = trainer.should_stop = True
            trainer.limit_val_batches = 0  # leave at once, without a last validation
            self._keeper.write(trainer, pl_module)  # a checkpoint never stands without the run that it belongs to
            trainer.save_checkpoint(self._checkpoint)

    def restore_signals(self) -> None:
        """Give the signals back to whom they belonged before the training."""
        if self._taken:
            self._taken = False
            for number, handler in self._previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number
