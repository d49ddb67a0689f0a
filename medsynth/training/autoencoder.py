"""The Lightning module of the autoencoder behind the latent stem, and its previews."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import AutoencoderKL
from torch import Tensor
from torch.func import functional_call

from medsynth.cohorts import PreparedCohort
from medsynth.config import AugmentOptions, AutoencoderOptions, MonitorOptions, OptimiserOptions
from medsynth.networks import LatentCodec
from medsynth.networks.autoencoder import PatchCritic, divergence
from medsynth.scans.picture import captioned_rows, write_picture
from medsynth.seeds import torch_generator
from medsynth.training.augmentation import Augmentation
from medsynth.training.average import MovingAverage
from medsynth.training.draws import make_optimiser, place_noise
from medsynth.training.parts import PartwiseModule, part_slices
from medsynth.training.perceptual import PerceptualDistance
from medsynth.training.reconstruction import peak_ratio


class AutoencoderModule(PartwiseModule):
    """Trains an autoencoder; batches are those of `DiffusionModule`, and draws depend on seed, step and place alike.

    The loss is the mean absolute error plus, each with its weight, the divergence of the posterior a voxel, the perceptual
    distance and the discriminator's opinion. The discriminator learns in the same step, from scans and reconstructions that
    give no gradient to the autoencoder; nor does its opinion of them give one to the discriminator. `ema` holds the averaged
    weights, `averaged` the autoencoder to use.
    """

    _sums: Tensor

    def __init__(
        self,
        codec: LatentCodec,
        options: AutoencoderOptions,
        *,
        shape: Sequence[int],
        classes: Sequence[str],
        total_steps: int,
        optimiser: OptimiserOptions = OptimiserOptions(),
        augment: AugmentOptions = AugmentOptions(),
        accumulate: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.autoencoder: AutoencoderKL = codec.autoencoder.requires_grad_(True)
        self.ema = MovingAverage(self.autoencoder, optimiser.ema_decay)
        adversarial = options.adversarial_weight > 0
        self.critic = PatchCritic(channels=shape[0], size=shape[1:]) if adversarial else None
        self.classes = tuple(classes)
        self.augmentation = Augmentation(augment, len(shape) - 1)
        self._opinion = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)
        self._perceptual: PerceptualDistance | None = None
        self._options, self._optimiser = options, optimiser
        self._total_steps, self._accumulate, self._seed = total_steps, accumulate, seed
        # Of each class: scans, absolute error, peak ratio.
        self.register_buffer("_sums", torch.zeros(len(self.classes), 3, dtype=torch.float64), persistent=False)

    @property
    def averaged(self) -> LatentCodec:
        """The autoencoder with averaged weights, its latents not scaled."""
        averaged = self.ema.module
        assert isinstance(averaged, AutoencoderKL)
        return LatentCodec(averaged, self._options).to(self.device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        scans = batch["scan"]
        total = len(scans) * self.trainer.world_size
        keys = (self.global_step, batch_idx % self.trainer.accumulate_grad_batches)
        places, positions = self.places(batch, "position", range(self.global_rank, total, self.trainer.world_size))
        generator = torch_generator(self._seed, "step", *keys, device=scans.device)
        parameters = self.augmentation.draw(total, generator)[positions]
        means: dict[str, Tensor] = {}
        for part in part_slices(len(scans), self._accumulate):
            clean = self.augmentation.apply(scans[part], parameters[part])
            terms = self._terms(clean, places[part], keys)
            for name, value in terms.items():
                means[name] = means.get(name, torch.zeros((), device=scans.device)) + value.detach().sum() / len(scans)
            loss = self._weigh(terms) / len(scans)
            if part.stop < len(scans):
                self.add_gradient(loss)
        self.log("train_loss", self._weigh(means), prog_bar=True, batch_size=len(scans))
        for name, value in means.items():
            self.log(f"train_{name}", value, batch_size=len(scans))
        return loss  # of the last part, for the trainer's own backward pass

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add up what the averaged autoencoder loses of each class."""
        scans, labels = batch["scan"], batch["label"]
        codec = self.averaged
        rebuilt = codec.decode(codec.encode(scans)).clamp(-1, 1)
        error = (rebuilt - scans).abs().flatten(1).mean(1)
        found = torch.stack([torch.ones_like(error), error, peak_ratio(scans, rebuilt)], dim=1)
        self._sums.index_add_(0, labels, found.double())

    def on_validation_epoch_end(self) -> None:
        """Log the mean absolute error and the peak ratio: mean over classes, and the ratio of each of them."""
        sums = self.over_ranks(self._sums)
        self._sums.zero_()
        seen = sums[:, 0] > 0
        means = (sums / sums[:, :1].clamp(min=1)).float()
        self.log("val_loss", means[seen, 1].mean(), prog_bar=True, rank_zero_only=True)
        self.log("val_psnr", means[seen, 2].mean(), rank_zero_only=True)
        for row in torch.nonzero(seen).flatten().tolist():
            self.log(f"val_psnr/{self.classes[row]}", means[row, 2], rank_zero_only=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimiser, then move the average; here, so that a checkpoint of this step holds both."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update_parameters(self.autoencoder)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip the norms of both gradients, each by itself."""
        limit = self._optimiser.gradient_clip or float("inf")
        self.log("gradient_norm", torch.nn.utils.clip_grad_norm_(self.autoencoder.parameters(), limit))
        if self.critic is not None:
            torch.nn.utils.clip_grad_norm_(self.critic.parameters(), limit)

    def configure_optimizers(self) -> Any:
        """Return AdamW for both networks and the learning-rate schedule."""
        critic = [] if self.critic is None else list(self.critic.parameters())
        return make_optimiser([*self.autoencoder.parameters(), *critic], self._optimiser, self._total_steps)

    def _terms(self, clean: Tensor, places: Sequence[int], keys: tuple[int, int]) -> dict[str, Tensor]:
        """What the loss is made of, each without its weight, `(N,)`."""
        mean, deviation = (each.float() for each in self.autoencoder.encode(clean))
        latents = mean + deviation * place_noise(mean, places, self._seed, *keys)
        rebuilt = self.autoencoder.decode(latents).float()
        terms = {
            "error": (rebuilt - clean).abs().flatten(1).mean(1),
            "divergence": divergence(mean, deviation) / clean[0].numel(),
        }
        if self._options.perceptual_weight:
            if self._perceptual is None:
                self._perceptual = PerceptualDistance(clean.device)
            terms["perceptual"] = self._perceptual(clean, rebuilt, *keys)
        if self.critic is not None:
            still = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
            fooled = functional_call(self.critic, still, (rebuilt,))
            terms["adversarial"] = self._judge(fooled, real=True, learning=False)
            scores = self.critic(torch.cat([clean, rebuilt.detach()])).chunk(2)
            real, made = (self._judge(each, real=not number, learning=True) for number, each in enumerate(scores))
            terms["critic"] = (real + made) / 2
        return terms

    def _judge(self, scores: Tensor, *, real: bool, learning: bool) -> Tensor:
        """MONAI's loss of each scan's patches, `(N,)`."""
        losses = [
            self._opinion(each, target_is_real=real, for_discriminator=learning) for each in scores.float().split(1)
        ]
        return torch.stack(losses)

    def _weigh(self, terms: dict[str, Tensor]) -> Tensor:
        """The sum of all terms with their weights."""
        options = self._options
        begun = self.global_step >= options.adversarial_start
        weights = {
            "error": 1.0,
            "divergence": options.kl_weight,
            "perceptual": options.perceptual_weight,
            "adversarial": options.adversarial_weight * begun,
            "critic": 1.0,
        }
        return torch.stack([weights[name] * value.sum() for name, value in terms.items()]).sum()


class ReconstructionPreviews(Callback):
    """Pictures of real scans of every class beside what the autoencoder makes of them: they stay where the scans may be."""

    def __init__(self, prepared: PreparedCohort, options: MonitorOptions, folder: Path, *, last_step: int) -> None:
        self._prepared, self._every, self._folder, self._last_step = prepared, options.preview_every, folder, last_step
        self._rows = []
        for number, label in enumerate(prepared.classes):
            rows = [prepared.indices(split=split, label=number)[: options.preview_scans] for split in ("val", "train")]
            if len(chosen := rows[0] if len(rows[0]) else rows[1]):
                self._rows.append((label, chosen))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Draw when it is time."""
        step = trainer.global_step
        if not trainer.is_global_zero or (step % self._every and step != self._last_step):
            return
        assert isinstance(pl_module, AutoencoderModule)
        codec, shown = pl_module.averaged, []
        for label, rows in self._rows:
            scans = torch.from_numpy(np.asarray(self._prepared.scans[rows], dtype=np.float32))
            rebuilt = codec.decode(codec.encode(scans.to(pl_module.device))).clamp(-1, 1)
            shown += [(f"{label}: scans", scans.numpy()), (f"{label}: reconstructed", rebuilt.cpu().numpy())]
        spacing = np.linalg.norm(self._prepared.affine[:3, : self._prepared.scans.ndim - 2], axis=0)
        write_picture(self._folder / f"step_{step:07d}.png", captioned_rows(shown, spacing=spacing.tolist()))
