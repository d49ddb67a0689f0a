"""The Lightning module: one diffusion training, usable under any `lightning.Trainer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medsynth.config import AugmentOptions, ConditionOptions, NoiseOptions, OptimiserOptions
from medsynth.diffusion import draw_sigma, loss_weight, match_rank
from medsynth.networks import Condition, Denoiser, draw_given, give_channels
from medsynth.seeds import seed_layers, torch_generator
from medsynth.training.augmentation import Augmentation
from medsynth.training.average import MovingAverage
from medsynth.training.draws import make_optimiser, place_noise
from medsynth.training.parts import PartwiseModule, part_slices

# Noise levels at which the validation loss is followed: from fine texture to layout.
VALIDATION_SIGMAS = (0.1, 0.3, 1.0, 3.0, 10.0)
_VALIDATED = tuple(f"sigma_{level:g}" for level in VALIDATION_SIGMAS)


class DiffusionModule(PartwiseModule):
    """Trains a denoiser; batches are `{"scan": (N, C, *spatial) in [-1, 1], "label": (N,)}`.

    A network with attributes also needs `"attributes": (N, attributes)`. Batches of medsynth's own loader carry `position`,
    the place of each scan in the global batch; without it, ranks take turns. Every random draw is a function of
    (seed, step, position), so it is the same after a resume and for any
    number of processes; only dropout masks differ between ranks. The loss is weighted by the scalar sigma_data of all
    pixels, also where the stem's bands have their own: a band counts with the energy that it has in the scans. Augmentation
    acts on scans, noise and loss on what the denoiser makes of them (`Denoiser.encode`). `validated` names the columns of the
    validation loss. `ema` holds the averaged weights, `averaged` the denoiser to use. The module clips gradients itself, and
    works a batch off in `accumulate` parts, which changes nothing but rounding and dropout masks.
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
        condition: ConditionOptions = ConditionOptions(),
        label_dropout: float = 0.1,
        accumulate: int = 1,
        seed: int = 0,
        validated: Sequence[str] = _VALIDATED,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.ema = MovingAverage(denoiser, optimiser.ema_decay)
        self.classes = tuple(classes)
        self.augmentation = Augmentation(augment, denoiser.rank, mask=condition.mask)
        self._noise, self._optimiser, self._label_dropout = noise, optimiser, label_dropout
        self._condition = condition
        self._total_steps, self._accumulate, self._seed = total_steps, accumulate, seed
        # The stem is orthonormal, so the mean of the bands' variances is the variance of the pixels.
        self._sigma_data = float(denoiser.sigma_data.square().mean().sqrt())
        self._validated = tuple(validated)
        shape = (len(self.classes), len(self._validated))
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
        places, positions = self.places(batch, "position", range(self.global_rank, total, self.trainer.world_size))
        seed_layers(self._seed, "dropout", *keys, self.global_rank, device=scans.device)
        generator = torch_generator(self._seed, "step", *keys, device=scans.device)
        # Every rank draws the small things for the whole global batch and keeps its places, and noise place by place: the
        # draws do not depend on the number of processes.
        sigma = draw_sigma(total, mean=self._noise.mean, std=self._noise.std, generator=generator)[positions]
        withheld = (torch.rand(total, generator=generator, device=scans.device) < self._label_dropout)[positions]
        parameters = self.augmentation.draw(total, generator)[positions]
        condition = Condition(labels, parameters, batch.get("attributes"))
        if condition.attributes is not None:
            unknown = torch.rand(total, condition.attributes.shape[1], generator=generator, device=scans.device)
            hidden = (unknown < self._condition.dropout)[positions]
            condition = condition._replace(attributes=condition.attributes.masked_fill(hidden, torch.nan))
        condition = self.denoiser.embedding.withhold(condition, withheld)
        known = None
        if self.denoiser.given:
            known = draw_given(total, scans.shape[1], self._condition.given, generator)[positions]

        mean = torch.zeros((), device=scans.device)
        for part in part_slices(len(scans), self._accumulate):
            clean = self.denoiser.encode(self.augmentation.apply(scans[part], parameters[part]))
            noise = self._draw_noise(clean, places[part], *keys)
            told = condition.rows(part)
            if known is not None:
                told = told._replace(given=give_channels(clean, known[part]))
            loss = self._losses(self.denoiser, clean, noise, sigma[part], told).sum() / len(scans)
            mean += loss.detach()
            if part.stop < len(scans):
                self.add_gradient(loss)
        self.log("train_loss", mean, prog_bar=True, batch_size=len(scans))
        return loss  # of the last part, for the trainer's own backward pass

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add up the loss of the averaged denoiser for each class and noise level, with fixed noise for each scan."""
        scans, labels = self.averaged.encode(batch["scan"]), batch["label"]
        condition = self.averaged.embedding.make(labels, batch.get("attributes"))
        first = batch_idx * len(scans)
        numbers, _ = self.places(batch, "index", range(first, first + len(scans)))
        for column, level in enumerate(VALIDATION_SIGMAS):
            noise = self._draw_noise(scans, numbers, "validation", column)
            sigma = torch.full((len(scans),), level, device=scans.device)
            self._count_losses(labels, column, self._losses(self.averaged, scans, noise, sigma, condition))

    def _count_losses(self, labels: Tensor, column: int, losses: Tensor) -> None:
        """Add losses `(N,)` of validation scans of these classes to one column of what is validated."""
        self._validation_sum[:, column].index_add_(0, labels, losses.double())
        self._validation_count[:, column].index_add_(0, labels, torch.ones_like(losses, dtype=torch.float64))

    def on_validation_epoch_end(self) -> None:
        """Log the validation loss: mean over classes and columns (noise levels), and each of them."""
        total, count = self.over_ranks(self._validation_sum), self.over_ranks(self._validation_count)
        self._validation_sum.zero_()
        self._validation_count.zero_()
        seen = count[:, 0] > 0
        losses = total / count.clamp(min=1)
        self.log("val_loss", losses[seen].mean().float(), prog_bar=True, rank_zero_only=True)
        for row in torch.nonzero(seen).flatten().tolist():
            for column, name in enumerate(self._validated):
                self.log(f"val_loss/{self.classes[row]}/{name}", losses[row, column].float(), rank_zero_only=True)

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
        return make_optimiser(self.denoiser.parameters(), self._optimiser, self._total_steps)

    def _draw_noise(self, scans: Tensor, places: Sequence[int], *keys: int | str) -> Tensor:
        """Standard normal noise like `scans`; each scan's depends on the seed, the keys and its place."""
        return place_noise(scans, places, self._seed, *keys)

    def _losses(self, denoiser: Denoiser, clean: Tensor, noise: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Loss of each scan, `(N,)` float32."""
        return loss_weight(sigma, self._sigma_data) * denoising_errors(denoiser, clean, noise, sigma, condition)


def denoising_errors(denoiser: Denoiser, clean: Tensor, noise: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """Return the mean squared error of each denoised scan (or latent) over what is not given, `(N,)` float32."""
    noisy = clean + match_rank(sigma, clean) * noise
    errors = (denoiser(noisy, sigma, condition) - clean).square()
    if condition.given is None:
        return errors.flatten(1).mean(1)
    free = 1 - condition.given.chunk(2, dim=1)[1]
    return (errors * free).flatten(1).sum(1) / free.flatten(1).sum(1).clamp(min=1)
