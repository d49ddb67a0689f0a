"""The Lightning module: one diffusion training, usable under any `lightning.Trainer`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from medsynth.config import AugmentOptions, NoiseOptions, OptimiserOptions
from medsynth.diffusion import draw_sigma, loss_weight, match_rank
from medsynth.networks import Condition, Denoiser
from medsynth.seeds import derive_seed, torch_generator
from medsynth.training.augmentation import Augmentation

# Noise levels at which the validation loss is followed: from fine texture to layout.
VALIDATION_SIGMAS = (0.1, 0.3, 1.0, 3.0, 10.0)


class DiffusionModule(pl.LightningModule):
    """Trains a denoiser; batches are `{"scan": (N, C, *spatial) in [-1, 1], "label": (N,)}`.

    Batches of medsynth's own loader also carry `position`, the place of each scan in the global batch; without it, ranks
    take turns. Every random draw is a function of (seed, step, position), so it is the same after a resume and for any
    number of processes; only dropout masks differ between ranks. The loss is weighted by the scalar sigma_data of all
    pixels, also where the stem's bands have their own: a band counts with the energy that it has in the scans. `ema`
    holds the averaged weights, `averaged` the denoiser to use. The module clips gradients itself.
    """

    denoiser: Denoiser
    _validation_sum: Tensor
    _validation_count: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        classes: Sequence[str],
        total_steps: int,
        noise: NoiseOptions = NoiseOptions(),
        optimiser: OptimiserOptions = OptimiserOptions(),
        augment: AugmentOptions = AugmentOptions(),
        label_dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.ema = AveragedModel(denoiser, multi_avg_fn=_warm_average(optimiser.ema_decay), use_buffers=False)
        self.ema.requires_grad_(False)
        self.classes = tuple(classes)
        self.augmentation = Augmentation(augment, denoiser.rank)
        self._noise, self._optimiser, self._label_dropout = noise, optimiser, label_dropout
        self._total_steps, self._seed = total_steps, seed
        # The stem is orthonormal, so the mean of the bands' variances is the variance of the pixels.
        self._sigma_data = float(denoiser.sigma_data.square().mean().sqrt())
        shape = (len(self.classes), len(VALIDATION_SIGMAS))
        self.register_buffer("_validation_sum", torch.zeros(shape, dtype=torch.float64), persistent=False)
        self.register_buffer("_validation_count", torch.zeros(shape, dtype=torch.float64), persistent=False)

    @property
    def averaged(self) -> Denoiser:
        """The denoiser with averaged weights."""
        averaged = self.ema.module
        assert isinstance(averaged, Denoiser)
        return averaged

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the weighted denoising loss of a batch (Karras et al. 2022, equation 2 and table 1)."""
        scans, labels = batch["scan"], batch["label"]
        total = len(scans) * self.trainer.world_size
        keys = (self.global_step, batch_idx % self.trainer.accumulate_grad_batches)
        positions = batch.get("position")
        if positions is None:
            positions = torch.arange(self.global_rank, total, self.trainer.world_size, device=scans.device)
        torch.manual_seed(derive_seed(self._seed, "dropout", *keys, self.global_rank))
        generator = torch_generator(self._seed, "step", *keys, device=scans.device)
        # Every rank draws the small things for the whole global batch and keeps its places, and noise place by place: the
        # draws do not depend on the number of processes.
        sigma = draw_sigma(total, mean=self._noise.mean, std=self._noise.std, generator=generator)[positions]
        withheld = (torch.rand(total, generator=generator, device=scans.device) < self._label_dropout)[positions]
        parameters = self.augmentation.draw(total, generator)[positions]
        noise = self._draw_noise(scans, positions, *keys)

        clean = self.augmentation.apply(scans, parameters)
        condition = self.denoiser.embedding.withhold_label(Condition(labels, parameters), withheld)
        loss = self._losses(self.denoiser, clean, noise, sigma, condition).mean()
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(scans))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add up the loss of the averaged denoiser for each class and noise level, with fixed noise for each scan."""
        scans, labels = batch["scan"], batch["label"]
        condition = self.averaged.embedding.make(labels)
        numbers = batch.get("index")
        if numbers is None:
            numbers = torch.arange(len(scans)) + batch_idx * len(scans)
        for column, level in enumerate(VALIDATION_SIGMAS):
            noise = self._draw_noise(scans, numbers, "validation", column)
            sigma = torch.full((len(scans),), level, device=scans.device)
            losses = self._losses(self.averaged, scans, noise, sigma, condition).double()
            self._validation_sum[:, column].index_add_(0, labels, losses)
            self._validation_count[:, column].index_add_(0, labels, torch.ones_like(losses))

    def on_validation_epoch_end(self) -> None:
        """Log the validation loss: mean over classes and noise levels, and each of them."""
        total, count = self._over_ranks(self._validation_sum), self._over_ranks(self._validation_count)
        self._validation_sum.zero_()
        self._validation_count.zero_()
        seen = count[:, 0] > 0
        losses = total / count.clamp(min=1)
        self.log("val_loss", losses[seen].mean().float(), prog_bar=True, rank_zero_only=True)
        for row in torch.nonzero(seen).flatten().tolist():
            for column, level in enumerate(VALIDATION_SIGMAS):
                self.log(
                    f"val_loss/{self.classes[row]}/sigma_{level:g}", losses[row, column].float(), rank_zero_only=True
                )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimiser, then move the average; here, so that a checkpoint of this step holds both."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update_parameters(self.denoiser)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip the gradient's norm; here and not by the trainer, which refuses to clip for a fused optimiser."""
        limit = self._optimiser.gradient_clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), limit)
        self.log("gradient_norm", norm)

    def configure_optimizers(self) -> Any:
        """Return AdamW and the learning-rate schedule."""
        options = self._optimiser
        optimiser = torch.optim.AdamW(
            [parameter for parameter in self.denoiser.parameters() if parameter.requires_grad],
            lr=options.learning_rate,
            betas=options.betas,
            weight_decay=options.weight_decay,
            fused=True,
        )

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / max(1, options.warmup_steps))
            if options.schedule == "constant":
                return warm
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self._total_steps))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _draw_noise(self, scans: Tensor, places: Tensor, *keys: int | str) -> Tensor:
        """Standard normal noise like `scans`; each scan's depends on the seed, the keys and its place."""
        generator = torch.Generator(scans.device)
        noise = torch.empty_like(scans)
        for row, place in zip(noise, places.tolist(), strict=True):
            generator.manual_seed(derive_seed(self._seed, "noise", *keys, place))
            row.normal_(generator=generator)
        return noise

    def _over_ranks(self, values: Tensor) -> Tensor:
        """Sum of every rank's values; alone, `all_gather` adds no axis."""
        gathered = self.all_gather(values)
        assert isinstance(gathered, Tensor)
        return gathered.reshape(-1, *values.shape).sum(0)

    def _losses(self, denoiser: Denoiser, clean: Tensor, noise: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Loss of each scan, `(N,)` float32."""
        noisy = clean + match_rank(sigma, clean) * noise
        error = (denoiser(noisy, sigma, condition) - clean).square().flatten(1).mean(1)
        return loss_weight(sigma, self._sigma_data) * error


def _warm_average(decay: float) -> Any:
    """Exponential moving average whose decay rises from 0.1 to `decay` as (1 + n) / (10 + n)."""

    @torch.no_grad()
    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        steps = float(count)
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + steps) / (10 + steps)))

    return update
