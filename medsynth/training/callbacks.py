"""What is shown during training: the progress bar, the rate, and preview pictures with the memorisation curve."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from medsynth.cohorts import PreparedCohort
from medsynth.config import GuidanceOptions
from medsynth.diffusion import Solver
from medsynth.measures.neighbours import nearest_distances
from medsynth.networks import Denoiser, sample_scans
from medsynth.scans.picture import captioned_rows, write_picture
from medsynth.seeds import derive_seed
from medsynth.training.batches import Options
from medsynth.training.module import TrainingModule

# Scans of each class in a preview, and samples of the rarest class for the memorisation curve, by the number of spatial axes.
PREVIEW_SCANS, MEMORISATION_SCANS = {2: 8, 3: 4}, {2: 32, 3: 12}


class Progress(Callback):
    """One bar for the whole training: steps, rate, remaining time, and the last logged figures.

    Lightning's own bar loses its total when a training resumes within its only epoch.
    """

    _FIGURES = ("train_loss", "val_loss", "scans_per_s")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar at the current step."""
        first, total, hidden = trainer.global_step, trainer.max_steps, not trainer.is_global_zero
        self._bar = tqdm(initial=first, total=total, desc="train", unit="step", dynamic_ncols=True, disable=hidden)
        self._shown = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count the step; reading figures waits for the device, so they change at most every two seconds."""
        if time.perf_counter() - self._shown > 2:
            self._shown = time.perf_counter()
            known = trainer.callback_metrics
            figures = {name: f"{float(known[name]):.3g}" for name in self._FIGURES if name in known}
            self._bar.set_postfix(figures, refresh=False)
        self._bar.update()

    def on_train_end(self, *_: Any) -> None:
        self._bar.close()

    def on_exception(self, *_: Any) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()


class Throughput(Callback):
    """Logs scans per second and the share of time spent waiting for data, over the logging interval."""

    def __init__(self, every: int, batch_size: int) -> None:
        self._every, self._batch_size = every, batch_size
        self._began = self._left = time.perf_counter()
        self._waited, self._steps = 0.0, 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._waited += time.perf_counter() - self._left if self._steps else 0.0
        self._began = self._began if self._steps else time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._steps += 1
        self._left = time.perf_counter()
        if self._steps == self._every:
            elapsed = self._left - self._began
            pl_module.log("scans_per_s", self._steps * self._batch_size / elapsed, prog_bar=True, rank_zero_only=True)
            pl_module.log("data_wait_share", self._waited / elapsed, rank_zero_only=True)
            self._waited, self._steps = 0.0, 0

    def on_validation_start(self, *_: Any) -> None:
        """Begin a new interval, so that validation does not count as waiting."""
        self._waited, self._steps = 0.0, 0


class Previews(Callback):
    """Writes a picture of what `show` returns, every `monitor.preview_every` steps and at the end."""

    def __init__(self, prepared: PreparedCohort, options: Options) -> None:
        self.prepared, self.options = prepared, options
        self.rank = prepared.scans.ndim - 2

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step, options = trainer.global_step, self.options
        due = step % options.monitor.preview_every == 0 or step == options.max_steps
        if not due:
            return
        assert isinstance(pl_module, TrainingModule)
        pl_module.check_finite()
        if not trainer.is_global_zero:
            return
        spacing = np.linalg.norm(self.prepared.affine[:3, : self.rank], axis=0).tolist()
        path = Path(options.out) / "previews" / f"step_{step:07d}.png"
        write_picture(path, captioned_rows(self.show(trainer, pl_module), spacing=spacing))

    def show(self, trainer: pl.Trainer, module: TrainingModule) -> list[tuple[str, np.ndarray]]:
        """Return the rows of the picture: captions and scans `(N, C, *spatial)` in [-1, 1]."""
        raise NotImplementedError


class SamplePreviews(Previews):
    """Samples of every class, and the memorisation curve of the rarest class.

    The curve shows how far samples, and held-out real scans, are from the nearest training scan of the class (median and 5th
    percentile of the root mean square difference in [-1, 1]): samples much closer than other patients' scans are copies.
    """

    def __init__(self, prepared: PreparedCohort, options: Options, solver: Solver) -> None:
        super().__init__(prepared, options)
        counts = [len(prepared.indices(split="train", label=number)) for number in range(len(prepared.classes))]
        self._rarest = int(np.argmin([count or np.inf for count in counts]))
        self._classes = [number for number, count in enumerate(counts) if count]
        self._solver = solver

    def show(self, trainer: pl.Trainer, module: TrainingModule) -> list[tuple[str, np.ndarray]]:
        """Draw samples, log how near they are to training scans, and return some of each class and channel."""
        denoiser = module.averaged
        assert isinstance(denoiser, Denoiser)
        samples = {number: self._sample(denoiser.eval(), number) for number in self._classes}
        for logger in trainer.loggers:
            logger.log_metrics(self._memorisation(samples[self._rarest]), trainer.global_step - 1)
        rows, names = [], self.prepared.channels
        for number in self._classes:
            for place, name in enumerate(dict.fromkeys(names)):
                label = self.prepared.classes[number] + (f": {name}" if place else "")
                rows.append((label, samples[number][: PREVIEW_SCANS[self.rank], names.index(name) :]))
        return rows

    def _sample(self, denoiser: Denoiser, number: int) -> np.ndarray:
        """Return samples of a class, with attributes and texts of training scans; more of the rarest, for its curve."""
        together = PREVIEW_SCANS[self.rank]
        count = MEMORISATION_SCANS[self.rank] if number == self._rarest else together
        prepared, seed, parts = self.prepared, self.options.seed, []
        train = prepared.indices(split="train", label=number)
        for start in range(0, count, together):
            places = range(start, min(count, start + together))
            rows = [train[derive_seed(seed, "preview attributes", number, place) % len(train)] for place in places]
            attributes, text = (
                None if known is None else torch.from_numpy(known[rows])
                for known in (prepared.attributes, prepared.text)
            )
            scans = sample_scans(
                denoiser,
                denoiser.embedding.make(torch.full((len(places),), number), attributes, text=text),
                [derive_seed(seed, "preview", number, place) for place in places],
                shape=prepared.scans.shape[1:],
                solver=self._solver,
                guidance=GuidanceOptions(),
            )
            parts.append(scans.float().cpu().numpy())
        return np.concatenate(parts)

    def _memorisation(self, samples: np.ndarray) -> dict[str, float]:
        prepared, metrics = self.prepared, {}
        name = f"memorisation/{prepared.classes[self._rarest]}"
        # Without masks, which resemble each other in any case.
        images = len(prepared.channels) - prepared.channels.count("mask")
        train = prepared.scans[prepared.indices(split="train", label=self._rarest), :images].astype(np.float32)
        held_out = prepared.scans[prepared.indices(split="val", label=self._rarest)]
        for source, scans in {"sample": samples, "held_out": held_out}.items():
            if len(scans):
                distances = nearest_distances(scans[:, :images].astype(np.float32), train)[0] / np.sqrt(train[0].size)
                metrics[f"{name}/{source}_median"] = float(np.median(distances))
                metrics[f"{name}/{source}_p5"] = float(np.percentile(distances, 5))
        return metrics
