"""Peers, used as their documentation does: their networks, noise schedules and solvers, in a plain training loop.

Optimiser, learning-rate schedule, gradient clipping, weight averaging, batch and precision are those of medsynth for all of them,
so that nothing but the method differs. Libraries are loaded when a peer is made: none is needed to read this module.
"""

from __future__ import annotations

import copy
import importlib
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks.speed.methods import Medsynth, MedsynthPixel, Method, Setting, Solver
from medsynth.training.module import make_optimiser

_TRAIN_STEPS = 1000  # noise levels of all these schedules
_HEAD_CHANNELS, _LARGEST_GRADIENT = 32, 1.0  # as medsynth has them


class Peer(ABC):
    """A network with a training loop of a few lines; subclasses say what the loss is and how noise becomes scans."""

    solvers: tuple[Solver, ...]
    slow_solvers: tuple[Solver, ...] = ()
    ranks: tuple[int, ...] = (2, 3)

    def __init__(self, setting: Setting) -> None:
        if setting.rank not in self.ranks:
            raise ImportError(f"{type(self).__name__} has no network for {setting.rank}D scans")
        self._setting = setting
        self._options = setting.options()
        prepared = setting.prepare()
        chosen = prepared.indices(split="train")
        self._scans = torch.from_numpy(prepared.scans[chosen].astype(np.float32)).to(setting.device)
        self._labels = torch.from_numpy(prepared.labels[chosen]).long().to(setting.device)
        self.classes = len(prepared.classes)
        self.shape = tuple(self._scans.shape[1:])
        torch.manual_seed(setting.seed)
        self.network = self.make_network(self._options.network).to(setting.device)
        self._averaged = self.network

    @property
    def parameters(self) -> int:
        """Weights of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @abstractmethod
    def make_network(self, options: Any) -> nn.Module:
        """Return an untrained network for scans of `self.shape`, as large as the options say."""

    @abstractmethod
    def loss(self, scans: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch."""

    @abstractmethod
    def solve(self, network: nn.Module, labels: Tensor, solver: Solver) -> Tensor:
        """Return scans of the classes, in [-1, 1] up to a little overshoot."""

    def train(self, steps: int) -> None:
        """Train on batches at random, in the precision of the setting; keep a moving average of the weights."""
        options = self._options.optimiser
        made = make_optimiser(self.network.parameters(), options, steps)
        optimiser, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        averaged = copy.deepcopy(self.network).requires_grad_(False)
        device = self._scans.device
        low = self._options.precision == "bf16-mixed"
        self.network.train()
        for step in range(steps):
            rows = torch.randint(len(self._scans), (self._setting.batch_size,), device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                loss = self.loss(self._scans[rows], self._labels[rows])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), _LARGEST_GRADIENT)
            optimiser.step()
            schedule.step()
            decay = min(options.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(averaged.parameters()), list(self.network.parameters()), 1 - decay)
        self._averaged = averaged

    def draw(self, labels: np.ndarray, solver: Solver, batch: int) -> np.ndarray:
        """Draw scans with the averaged weights."""
        network = self._averaged.eval()
        chosen = torch.from_numpy(labels).long().to(self._scans.device)
        with torch.inference_mode():
            parts = [self.solve(network, part, solver).clamp(-1, 1).float().cpu() for part in chosen.split(batch)]
        return torch.cat(parts).numpy()

    def _steps(self, count: int) -> Tensor:
        return torch.randint(_TRAIN_STEPS, (count,), device=self._scans.device)

    def _noise(self, count: int) -> Tensor:
        return torch.randn(count, *self.shape, device=self._scans.device)


def pixel_network(options: Any, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return MONAI's UNet for scans of `shape` `(channel, *spatial)`, with the options that medsynth gives to its own."""
    from monai.networks.nets import DiffusionModelUNet

    last = len(options.channels) - 1
    network: nn.Module = DiffusionModelUNet(
        spatial_dims=len(shape) - 1,
        in_channels=shape[0],
        out_channels=shape[0],
        channels=options.channels,
        attention_levels=options.attention,
        num_res_blocks=options.residual_blocks,
        num_head_channels=[
            _HEAD_CHANNELS if attends or level == last else 0 for level, attends in enumerate(options.attention)
        ],
        norm_num_groups=options.norm_groups,
        num_class_embeds=classes,
        use_flash_attention=True,
    )
    return network


class MonaiDiffusion(Peer):
    """MONAI's UNet with its DDPM and DDIM schedulers: linear betas, 1000 steps, the network predicts the noise."""

    solvers = (Solver("DDIM", 50), Solver("DDIM", 20))
    slow_solvers: tuple[Solver, ...] = (Solver("DDPM", _TRAIN_STEPS),)

    def make_network(self, options: Any) -> nn.Module:
        """Return the network that medsynth has inside, on pixels."""
        from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

        self._schedulers = {"DDPM": DDPMScheduler(_TRAIN_STEPS), "DDIM": DDIMScheduler(_TRAIN_STEPS)}
        return pixel_network(options, self.shape, self.classes)

    def loss(self, scans: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error of the predicted noise."""
        noise, steps = torch.randn_like(scans), self._steps(len(scans))
        noisy = self._schedulers["DDPM"].add_noise(original_samples=scans, noise=noise, timesteps=steps)
        return mse_loss(self.network(noisy, steps, class_labels=labels).float(), noise)

    def solve(self, network: nn.Module, labels: Tensor, solver: Solver) -> Tensor:
        """Step through the scheduler's noise levels."""
        scheduler, scans = self._schedulers[solver.name], self._noise(len(labels))
        scheduler.set_timesteps(solver.steps)
        for step in scheduler.timesteps:
            predicted = network(scans, torch.full((len(labels),), int(step), device=scans.device), class_labels=labels)
            scans, _ = scheduler.step(predicted, int(step), scans)
        return scans


class MonaiFlow(MonaiDiffusion):
    """MONAI's UNet with its rectified flow: the network predicts the velocity from noise to scan."""

    solvers = tuple(Solver("RFlow", steps) for steps in (20, 10, 7, 5))
    slow_solvers = ()

    def make_network(self, options: Any) -> nn.Module:
        """Return the same network, with the scheduler of its documentation's example."""
        from monai.networks.schedulers import RFlowScheduler

        self._flow = RFlowScheduler(_TRAIN_STEPS, use_discrete_timesteps=True, sample_method="logit-normal")
        return super().make_network(options)

    def loss(self, scans: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error of the velocity."""
        noise, steps = torch.randn_like(scans), self._flow.sample_timesteps(scans)
        noisy = self._flow.add_noise(original_samples=scans, noise=noise, timesteps=steps)
        return mse_loss(self.network(noisy, steps, class_labels=labels).float(), scans - noise)

    def solve(self, network: nn.Module, labels: Tensor, solver: Solver) -> Tensor:
        """Step along the velocity."""
        scans = self._noise(len(labels))
        self._flow.set_timesteps(solver.steps, input_img_size_numel=int(np.prod(self.shape[1:])))
        levels = self._flow.timesteps.tolist()
        for step, following in zip(levels, [*levels[1:], 0], strict=True):
            predicted = network(scans, torch.full((len(labels),), step, device=scans.device), class_labels=labels)
            scans, _ = self._flow.step(predicted, step, scans, following)
        return scans


class Diffusers(Peer):
    """UNet2DModel of diffusers, trained as DDPM (linear betas, predicts the noise), drawn with DPM-Solver++ or DDIM."""

    solvers = (
        Solver("DPMSolverMultistep", 20),
        Solver("DPMSolverMultistep, Karras sigmas", 20),
        Solver("DPMSolverMultistep", 10),
    )
    ranks = (2,)

    def make_network(self, options: Any) -> nn.Module:
        """Return a network of the same channels, attention and blocks."""
        from diffusers import DDPMScheduler, UNet2DModel

        self._scheduler = DDPMScheduler(num_train_timesteps=_TRAIN_STEPS)
        kinds = ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in options.attention]
        return UNet2DModel(
            sample_size=self.shape[-1],
            in_channels=self.shape[0],
            out_channels=self.shape[0],
            layers_per_block=options.residual_blocks,
            block_out_channels=options.channels,
            down_block_types=tuple(kinds),
            up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
            attention_head_dim=_HEAD_CHANNELS,
            norm_num_groups=options.norm_groups,
            num_class_embeds=self.classes,
        )

    def loss(self, scans: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error of the predicted noise."""
        noise, steps = torch.randn_like(scans), self._steps(len(scans))
        noisy = self._scheduler.add_noise(scans, noise, steps)
        return mse_loss(self.network(noisy, steps, class_labels=labels).sample.float(), noise)

    def solve(self, network: nn.Module, labels: Tensor, solver: Solver) -> Tensor:
        """Step through the noise levels of the solver."""
        from diffusers import DPMSolverMultistepScheduler

        scheduler = DPMSolverMultistepScheduler.from_config(
            self._scheduler.config, use_karras_sigmas="Karras" in solver.name
        )
        scheduler.set_timesteps(solver.steps, device=labels.device)
        scans = self._noise(len(labels))
        for step in scheduler.timesteps:
            predicted = network(scans, step, class_labels=labels).sample
            scans = scheduler.step(predicted, step, scans).prev_sample
        return scans


class DenoisingDiffusion(Peer):
    """The class-conditional Unet and GaussianDiffusion of denoising-diffusion-pytorch (cosine betas, predicts the noise).

    Its width is the one that comes nearest to the number of weights of the others, since it has blocks of its own kind. Guidance
    is off. The package wants torchvision, of which only its Trainer makes use: where that is missing, an empty module stands in
    for it while the package loads.
    """

    solvers = (Solver("DDIM", 50), Solver("DDIM", 20))
    ranks = (2,)

    def make_network(self, options: Any) -> nn.Module:
        """Return the diffusion model, which holds its network and computes its loss."""
        package = _load_denoising_diffusion()

        class Unguided(package.Unet):  # type: ignore[name-defined]
            """At scale 1 version 2.3.4 returns one prediction where its sampler unpacks two."""

            def forward_with_cond_scale(self, *inputs: Any, **_: Any) -> tuple[Tensor, Tensor]:
                predicted = self.forward(*inputs, cond_drop_prob=0.0)
                return predicted, predicted

        wanted = sum(each.numel() for each in pixel_network(options, self.shape, self.classes).parameters())
        factors = tuple(width // options.channels[0] for width in options.channels)

        def make(width: int) -> nn.Module:
            network: nn.Module = Unguided(
                dim=width,
                num_classes=self.classes,
                cond_drop_prob=self._options.label_dropout,
                dim_mults=factors,
                channels=self.shape[0],
            )
            return network

        def distance(width: int) -> int:
            return abs(sum(each.numel() for each in make(width).parameters()) - wanted)

        width = min(range(8, 129, 4), key=distance)
        torch.manual_seed(self._setting.seed)
        diffusion: nn.Module = package.GaussianDiffusion(
            make(width), image_size=self.shape[-1], timesteps=_TRAIN_STEPS, ddim_sampling_eta=0.0
        )
        return diffusion

    def loss(self, scans: Tensor, labels: Tensor) -> Tensor:
        """The model's own loss; it expects scans in [0, 1]."""
        loss: Tensor = self.network((scans + 1) / 2, classes=labels)
        return loss

    def solve(self, network: Any, labels: Tensor, solver: Solver) -> Tensor:
        """The model's own sampler; with fewer steps than in training it is DDIM."""
        network.sampling_timesteps, network.is_ddim_sampling = solver.steps, solver.steps < _TRAIN_STEPS
        scans: Tensor = network.sample(classes=labels, cond_scale=1.0, rescaled_phi=0.0)
        return scans * 2 - 1


METHODS: dict[str, Callable[[Setting], Method]] = {
    "medsynth": Medsynth,
    "medsynth-pixel": MedsynthPixel,
    "monai-ddpm": MonaiDiffusion,
    "monai-rflow": MonaiFlow,
    "diffusers": Diffusers,
    "ddpm-pytorch": DenoisingDiffusion,
}  # a peer that is not installed raises `ImportError` once it is made


def _load_denoising_diffusion() -> Any:
    """Return the module with the class-conditional model; `ImportError` where the package is missing."""
    # These look for torchvision and must not find the stand-in.
    for name in ("accelerate", "ema_pytorch", "torchmetrics"):
        importlib.import_module(name)
    missing = {} if find_spec("torchvision") else {
        name: types.ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchvision.utils")
    }  # fmt: skip
    for name, module in missing.items():
        module.__spec__ = ModuleSpec(name, None)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(missing[parent], child, module)
    sys.modules.update(missing)
    try:
        return importlib.import_module("denoising_diffusion_pytorch.classifier_free_guidance")
    finally:
        for name in missing:
            sys.modules.pop(name, None)
