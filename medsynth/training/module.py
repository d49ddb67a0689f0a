"""The Lightning modules: what all trainings share within a step, and the training of a denoiser under any `lightning.Trainer`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from medsynth.config import AugmentationOptions, ConditionOptions, NoiseOptions, OptimiserOptions
from medsynth.diffusion import draw_sigma, loss_weight, match_rank
from medsynth.errors import ConfigError
from medsynth.networks import Condition, Denoiser, draw_observed, observe_channels
from medsynth.runs import DivergedError, first_not_finite
from medsynth.seeds import derive_seed, seed_layers, torch_generator
from medsynth.training.augmentation import Augmentation

Network = TypeVar("Network", bound=nn.Module)

# AdamW without weight decay, and the largest norm of the gradient.
_BETAS, _LARGEST_GRADIENT = (0.9, 0.99), 1.0
# Noise levels of the validation loss: from fine texture to layout.
VALIDATION_SIGMAS = (0.1, 0.3, 1.0, 3.0, 10.0)


def average_share(decay: float, count: int) -> float:
    """Return the share of the current weights in the average after `count` + 1 updates: 1 at first, 1 - `decay` in the end.

    The decay rises from 0.1 to `decay`, so the average soon forgets the initial weights.
    """
    return 1.0 if count == 0 else 1 - min(decay, (1 + count) / (10 + count))


class MovingAverage(AveragedModel):
    """Exponential moving average of a module's weights; buffers are copied.

    It stores what torch's own stores, but counts on the host: torch's makes it wait for the device several times a step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=False)
        self.requires_grad_(False)
        self._decay = decay
        self._count: int | None = None  # unknown until the first update after weights were loaded

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model`; the first update copies them."""
        if self._count is None:
            self._count = int(self.n_averaged)
        share = average_share(self._decay, self._count)
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), share)
        for kept, current in zip(self.module.buffers(), model.buffers(), strict=True):
            kept.copy_(current)
        self._count += 1
        self.n_averaged += 1

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._count = None
        super()._load_from_state_dict(*args, **kwargs)


def place_noise(like: Tensor, places: Sequence[int], seed: int, *keys: int | str) -> Tensor:
    """Return standard normal noise like `like`; each row depends on the seed, the keys and its place only."""
    generator = torch.Generator(like.device)
    noise = torch.empty_like(like)
    for row, place in zip(noise, places, strict=True):
        generator.manual_seed(derive_seed(seed, "noise", *keys, place))
        row.normal_(generator=generator)
    return noise


def make_optimiser(parameters: Iterable[nn.Parameter], options: OptimiserOptions, total_steps: int) -> dict[str, Any]:
    """Return AdamW and its learning-rate schedule (linear warm-up, cosine decay to 0), as Lightning expects them."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=options.learning_rate, betas=_BETAS, weight_decay=0.0, fused=True)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, options.warmup_steps))
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total_steps))))

    schedule = LambdaLR(optimiser, factor)
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def batch_parts(count: int, parts: int) -> Iterator[slice]:
    """Yield slices that divide `count` rows into about `parts` parts of at least one row."""
    size = math.ceil(count / parts)
    return (slice(first, min(count, first + size)) for first in range(0, count, size))


class Places(NamedTuple):
    """Where the scans of a rank lie in the global batch of `total` scans, and the keys of the draws."""

    total: int
    keys: tuple[int, int]
    host: Sequence[int]
    device: Tensor


class TrainingModule(pl.LightningModule, Generic[Network]):
    """Base of all trainings: parts of a batch, the optimiser, the moving average, and validation losses for each class.

    A training step adds the gradients of all parts of a batch but the last, which is left to the trainer. Apart from rounding and
    dropout masks, nothing depends on the number of parts.
    """

    _totals: Tensor  # sums and numbers of validation losses, `(2, classes, columns)`

    def __init__(
        self,
        network: Network,
        *,
        classes: Sequence[str],
        validated: Sequence[str],
        total_steps: int,
        optimiser: OptimiserOptions,
        accumulate_grad_batches: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.ema = MovingAverage(network, optimiser.ema_decay)
        self.classes = tuple(classes)
        self._validated, self._optimiser = tuple(validated), optimiser
        self._total_steps, self._accumulate, self._seed = total_steps, accumulate_grad_batches, seed
        # The last step, the norm of its gradient on the host, and when that has arrived from a GPU.
        self._gradient: tuple[int, Tensor, torch.cuda.Event | None] | None = None
        totals = torch.zeros(2, len(self.classes), len(self._validated), dtype=torch.float64)
        self.register_buffer("_totals", totals, persistent=False)

    @property
    def averaged(self) -> Network:
        """The network with averaged weights."""
        return cast(Network, self.ema.module)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Keep a copy of the scans' places on the host: noise is drawn from them, and reading them from a GPU would stall it."""
        if isinstance(batch, dict):
            batch |= {f"{name} here": batch[name].tolist() for name in ("position", "index") if name in batch}
        return batch

    def places(self, batch: Mapping[str, Any], batch_idx: int) -> Places:
        """Return the places of a training batch; ranks take turns where the loader did not store any."""
        total = len(batch["label"]) * self.trainer.world_size
        keys = (self.global_step, batch_idx % self.trainer.accumulate_grad_batches)
        if "position" in batch:
            return Places(total, keys, batch.get("position here") or batch["position"].tolist(), batch["position"])
        turns = range(self.global_rank, total, self.trainer.world_size)
        return Places(total, keys, turns, torch.tensor(list(turns), device=self.device))

    def on_train_start(self) -> None:
        """Drop gradients left by a training that was stopped within a step, and take the learning rate of the options.

        A checkpoint holds the one that it was written with, perhaps one that diverged.
        """
        self.zero_grad()
        schedule, rate = self.lr_schedulers(), self._optimiser.learning_rate
        if isinstance(schedule, LambdaLR) and schedule.base_lrs != [rate]:
            schedule.base_lrs = [rate]
            for group in schedule.optimizer.param_groups:
                group |= {"initial_lr": rate, "lr": rate * schedule.lr_lambdas[0](schedule.last_epoch)}

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Keep the gradients: the trainer calls this after the training step has added those of the first parts."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Step the optimiser, drop the gradients, and move the average, so that a checkpoint of this step holds both."""
        super().optimizer_step(epoch, batch_idx, optimizer, *args, **kwargs)
        optimizer.zero_grad()
        self.ema.update_parameters(self.network)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip the norm of the gradient; the trainer itself cannot clip for a fused optimiser.

        Raises `DivergedError` if that of the step before was not finite: waiting for that of this step would stall a GPU. The
        norm is the same in all processes, so all of them stop.
        """
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), _LARGEST_GRADIENT)
        self.log("gradient_norm", norm)
        self._check_gradient()
        arrived = torch.cuda.Event() if norm.is_cuda else None
        self._gradient = self.global_step + 1, norm.detach().to("cpu", non_blocking=True), arrived
        if arrived is not None:
            arrived.record()

    def check_finite(self) -> None:
        """Raise `DivergedError` if the last gradient, a weight or an average of weights is not finite; the same in all processes.

        Call it before anything is written from the weights.
        """
        self._check_gradient()
        if name := first_not_finite(self.state_dict()):
            raise DivergedError(f"the training diverged at step {self.global_step}: {name} is no longer finite")

    def on_train_end(self) -> None:
        """Raise as `check_finite`."""
        self.check_finite()

    def _check_gradient(self) -> None:
        if self._gradient is None:
            return
        step, norm, arrived = self._gradient
        if arrived is not None:
            arrived.synchronize()
        if not norm.isfinite():
            raise DivergedError(f"the training diverged at step {step}: loss or gradient became {float(norm)}")

    def configure_optimizers(self) -> Any:
        return make_optimiser(self.network.parameters(), self._optimiser, self._total_steps)

    def add_gradient(self, loss: Tensor) -> None:
        """Add the gradient of one part of the batch; processes exchange the sum once, with the last part."""
        with torch.autocast(loss.device.type, enabled=False):  # as around the trainer's own backward pass
            (loss / self.trainer.accumulate_grad_batches).backward()
        torch.clear_autocast_cache()  # it holds weights of a graph that is used up

    def count_losses(self, batch: Mapping[str, Any], column: int, losses: Tensor) -> None:
        """Add losses `(N,)` of a batch of validation scans, those that count, to one column of the validation losses."""
        losses = losses.double()
        counted = batch.get("counted", torch.ones_like(losses)).double()
        self._totals[:, :, column].index_add_(1, batch["label"], torch.stack([losses * counted, counted]))

    def on_validation_epoch_end(self) -> None:
        """Log the validation losses of all ranks."""
        sums, counts = cast(Tensor, self.trainer.strategy.reduce(self._totals.clone(), reduce_op="sum"))
        self._totals.zero_()
        self.log_validation(sums / counts.clamp(min=1), torch.nonzero(counts[:, 0] > 0).flatten())

    def log_validation(self, losses: Tensor, seen: Tensor) -> None:
        """Log the mean of losses `(classes, columns)` float64, and each, of the classes with validation scans, `seen`."""
        self.log("val_loss", losses[seen].mean().float(), prog_bar=True, rank_zero_only=True)
        for row in seen.tolist():
            for column, name in enumerate(self._validated):
                self.log(f"val_loss/{self.classes[row]}/{name}", losses[row, column].float(), rank_zero_only=True)


class DiffusionModule(TrainingModule[Denoiser]):
    """Trains a denoiser; batches are `{"scan": (N, C, *spatial) in [-1, 1], "label": (N,)}`.

    ```python
    from medsynth.config import NetworkOptions

    denoiser = medsynth.build_denoiser(NetworkOptions(), channels=1, size=(64, 64), classes=2)
    module = medsynth.DiffusionModule(denoiser, classes=("benign", "malignant"), total_steps=1000)
    lightning.Trainer(max_steps=1000).fit(module, loader)
    module.averaged  # the denoiser to use
    ```

    A network with attributes or text also needs `"attributes": (N, attributes)` or `"text": (N, dimensions)`, NaN where unknown.
    Scans are augmented only for a network that is conditioned on it, else the changes would show in its samples
    (`build_denoiser(..., augmentation_parameters=Augmentation(augment, rank).parameters)`).

    The loss is that of Karras et al. 2022 (equation 2, table 1), weighted by the scalar sigma_data of all pixels, on scans or
    latents. Every draw is a function of (seed, step, place in the global batch): it is the same after a resume and for any
    number of processes. Only dropout masks differ between processes.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        classes: Sequence[str],
        total_steps: int,
        noise: NoiseOptions = NoiseOptions(),
        optimiser: OptimiserOptions = OptimiserOptions(),
        augment: AugmentationOptions = AugmentationOptions(),
        condition: ConditionOptions = ConditionOptions(),
        label_dropout: float = 0.1,
        accumulate_grad_batches: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(
            denoiser,
            classes=classes,
            validated=[f"sigma_{level:g}" for level in VALIDATION_SIGMAS],
            total_steps=total_steps,
            optimiser=optimiser,
            accumulate_grad_batches=accumulate_grad_batches,
            seed=seed,
        )
        conditioned = denoiser.embedding.augmentation_parameters
        augment = augment if conditioned else replace(augment, probability=0.0)
        self.augmentation = Augmentation(augment, denoiser.rank, mask=condition.mask)
        if conditioned not in (0, self.augmentation.parameters):
            raise ConfigError(
                f"augmentation_parameters: need {self.augmentation.parameters} for {denoiser.rank}D scans, or 0 for no "
                f"augmentation, got {conditioned}"
            )
        self._noise, self._condition, self._label_dropout = noise, condition, label_dropout
        # The stem is orthonormal, so the mean of the bands' variances is the variance of the pixels.
        self._sigma_data = float(denoiser.sigma_data.square().mean().sqrt())

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the weighted denoising loss of a batch."""
        scans = batch["scan"]
        places = self.places(batch, batch_idx)
        seed_layers(self._seed, "dropout", *places.keys, self.global_rank, device=scans.device)
        generator = torch_generator(self._seed, "step", *places.keys, device=scans.device)
        # Small draws are made for the whole global batch, and noise place by place: neither depends on the number of processes.
        sigma = draw_sigma(places.total, mean=self._noise.mean, std=self._noise.std, generator=generator)[places.device]
        withheld = self._hide(self._label_dropout, places, (), generator)
        parameters = self.augmentation.draw(places.total, generator)[places.device]
        attributes, text, dropout = batch.get("attributes"), batch.get("text"), self._condition.dropout
        if attributes is not None:
            hidden = self._hide(dropout, places, (attributes.shape[1],), generator)
            attributes = attributes.masked_fill(hidden, torch.nan)
        if text is not None:
            text = text.masked_fill(self._hide(dropout, places, (1,), generator), torch.nan)
        condition = Condition(batch["label"], parameters, attributes, text=text)
        condition = self.network.embedding.withhold(condition, withheld)
        if self.network.observed:
            observed = draw_observed(places.total, scans.shape[1], self._condition.observed, generator)[places.device]

        mean = torch.zeros((), device=scans.device)
        for part in batch_parts(len(scans), self._accumulate):
            clean = self.network.encode(self.augmentation.apply(scans[part], parameters[part]))
            noise = place_noise(clean, places.host[part], self._seed, *places.keys)
            seen = condition.rows(part)
            if self.network.observed:
                seen = seen._replace(observed=observe_channels(clean, observed[part]))
            loss = self._losses(self.network, clean, noise, sigma[part], seen).sum() / len(scans)
            mean += loss.detach()
            if part.stop < len(scans):
                self.add_gradient(loss)
        self.log("train_loss", mean, prog_bar=True, batch_size=len(scans))
        return loss  # of the last part, for the trainer's own backward pass

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add the losses of the averaged denoiser for each class and noise level, with fixed noise for each scan."""
        scans, labels = self.averaged.encode(batch["scan"]), batch["label"]
        condition = self.averaged.embedding.make(labels, batch.get("attributes"), text=batch.get("text"))
        numbers = batch.get("index here", range(batch_idx * len(scans), (batch_idx + 1) * len(scans)))
        for column, level in enumerate(VALIDATION_SIGMAS):
            noise = place_noise(scans, numbers, self._seed, "validation", column)
            sigma = torch.full((len(scans),), level, device=scans.device)
            self.count_losses(batch, column, self._losses(self.averaged, scans, noise, sigma, condition))

    def _hide(self, probability: float, places: Places, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return what is hidden of this rank's scans, bool `(N, *shape)`."""
        drawn = torch.rand(places.total, *shape, generator=generator, device=generator.device)
        return (drawn < probability)[places.device]

    def _losses(self, denoiser: Denoiser, clean: Tensor, noise: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return loss_weight(sigma, self._sigma_data) * denoising_errors(denoiser, clean, noise, sigma, condition)


def denoising_errors(denoiser: Denoiser, clean: Tensor, noise: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """Return the mean squared error of each denoised scan (or latent) over what is not observed, `(N,)` float32."""
    noisy = clean + match_rank(sigma, clean) * noise
    errors = (denoiser(noisy, sigma, condition) - clean).square()
    if condition.observed is None:
        return errors.flatten(1).mean(1)
    free = 1 - condition.observed.chunk(2, dim=1)[1]
    return (errors * free).flatten(1).sum(1) / free.flatten(1).sum(1).clamp(min=1)
