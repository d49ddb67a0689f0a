"""The full tier: classifiers trained on pixels, one a training, all trained alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.networks.nets import DenseNet
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.downstream.arms import Arm, draw_training
from medsynth.evaluation.downstream.experiment import ClassifierSettings, Experiment
from medsynth.evaluation.downstream.training import gather, loss_slope, perturb, rate_factor, start_bias
from medsynth.measures.features import lite0_colours, lite0_network, pictures
from medsynth.seeds import derive_seed, numpy_generator, torch_generator

_SCORED_AT_ONCE = 32
_BLOCKS = (2, 2, 2)
_LITE0_RATE = 0.2  # fine-tuning goes in smaller steps than training from scratch
_CLIP = 1.0  # largest norm of the gradient


class Lite0Classifier(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights and a new linear head on the mean features of a scan's pictures."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.backbone = lite0_network()
        self.head = nn.Linear(1280, 1)
        self._side = side

    def forward(self, scans: Tensor) -> Tensor:
        """Return logits `(N, 1)` of scans `(N, C, height, width)` in [-1, 1]."""
        shown = pictures(scans)
        count, views = shown.shape[:2]
        grey = interpolate(shown.flatten(0, 1).unsqueeze(1), (self._side, self._side), mode="bilinear", antialias=True)
        pooled = self.backbone.extract_features(lite0_colours(grey)).mean(dim=(2, 3))
        return self.head(pooled.reshape(count, views, -1).mean(dim=1))


def usable_networks(names: Sequence[str], rank: int) -> tuple[str, ...]:
    """Return the networks among `names` that suit scans of `rank` spatial axes; `ConfigError` if none does."""
    usable = tuple(name for name in names if name != "lite0" or rank == 2)
    if not usable:
        raise ConfigError(f"downstream.networks: need a network for {rank}D scans, got {list(names)}; try densenet")
    return usable


def build_network(name: str, channels: int, rank: int, settings: ClassifierSettings) -> nn.Module:
    """Return a new network `(N, C, *spatial) -> (N, 1)`: `densenet` or `lite0`."""
    if name == "lite0":
        return Lite0Classifier(settings.lite0_side)
    return DenseNet(
        spatial_dims=rank,
        in_channels=channels,
        out_channels=1,
        init_features=settings.width,
        growth_rate=max(4, settings.width // 2),
        block_config=_BLOCKS,
        bn_size=2,
    )


class PixelTrainer:
    """Trains classifiers on the pixels of an experiment's scans."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._settings = experiment, experiment.settings.classifier
        self._sources = experiment.training_scans()
        self._real = experiment.real.prepared.scans
        device = self._settings.device
        self._device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)

    def __call__(self, arm: Arm, repeats: range) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores (logits) of validation and test scans, float32 `(repeats, N)` each, of these trainings.

        `DataError` if a training diverged.
        """
        found = [self._scores(arm, repeat) for repeat in repeats]
        return np.stack([each[0] for each in found]), np.stack([each[1] for each in found])

    def _scores(self, arm: Arm, repeat: int) -> tuple[np.ndarray, np.ndarray]:
        task, seed, settings = self._experiment.task, self._experiment.seed, self._settings
        entries, rare_rate = draw_training(
            task, arm, steps=settings.steps, batch=settings.batch_size, seed=seed, repeat=repeat
        )
        channels, *spatial = self._real.shape[1:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "downstream", "network", arm.network, repeat))
            network = build_network(arm.network, channels, len(spatial), settings)
            head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
            nn.init.constant_(head.bias, start_bias(arm, rare_rate))
            network.to(self._device).train()
            self._train(network, arm, entries, rare_rate, repeat)
        network.eval()
        scored = [self._score(network, part.rows) for part in (task.validation, task.test)]
        if not all(np.isfinite(part).all() for part in scored):
            raise DataError(f"{arm.name}: need finite scores, got NaN; the training of this classifier diverged")
        return scored[0], scored[1]

    def _train(self, network: nn.Module, arm: Arm, entries: np.ndarray, rare_rate: float, repeat: int) -> None:
        settings, shared, seed = self._settings, self._experiment.settings, self._experiment.seed
        peak = settings.learning_rate * (_LITE0_RATE if arm.network == "lite0" else 1)
        optimiser = torch.optim.AdamW(network.parameters(), lr=peak, weight_decay=settings.weight_decay)
        truth = torch.from_numpy(self._experiment.table.rare.astype(np.float32))
        rate = torch.tensor(rare_rate)
        for step, batch in enumerate(entries):
            scans, targets = gather([self._sources[entry] for entry in batch]), truth[batch]
            if arm.recipe.augment:
                scans = perturb(scans, shared.classical, torch_generator(seed, "downstream", "augment", repeat, step))
            if arm.recipe.mixup:
                draw = numpy_generator(seed, "downstream", "mixup", repeat, step)
                lam = draw.beta(shared.mixup, shared.mixup, len(scans))
                share = torch.from_numpy(np.maximum(lam, 1 - lam).astype(np.float32))
                scans = torch.lerp(scans.roll(1, 0), scans, share.reshape(-1, *[1] * (scans.ndim - 1)))
                targets = torch.lerp(targets.roll(1, 0), targets, share)
            optimiser.param_groups[0]["lr"] = peak * rate_factor(step, settings.steps)
            optimiser.zero_grad(set_to_none=True)
            logits = network(scans.to(self._device))[:, 0]
            # The same loss as in the probe tier, through its derivative.
            slope = loss_slope(arm, logits.detach().cpu(), targets, rate) / len(scans)
            logits.backward(slope.to(self._device))
            nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
            optimiser.step()

    @torch.inference_mode()
    def _score(self, network: nn.Module, rows: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(rows), _SCORED_AT_ONCE):
            scans = np.asarray(self._real[rows[start : start + _SCORED_AT_ONCE]], dtype=np.float32)
            parts.append(network(torch.from_numpy(scans).to(self._device))[:, 0].float().cpu().numpy())
        return np.concatenate(parts).astype(np.float32)
