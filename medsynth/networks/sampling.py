"""From class labels and seeds to scans in memory: the one place where a denoiser meets solver and guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medsynth.config import GuidanceOptions, SolverOptions
from medsynth.diffusion import SOLVERS, guide, karras_sigmas
from medsynth.networks.denoiser import Denoiser
from medsynth.seeds import torch_generator


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return `(N, *shape)` standard normal noise on the CPU; each scan depends on its own seed only."""
    return torch.stack([torch.randn(*shape, generator=torch_generator(seed, "noise")) for seed in seeds])


@torch.inference_mode()
def sample_scans(
    denoiser: Denoiser,
    labels: Tensor,
    seeds: Sequence[int],
    *,
    shape: Sequence[int],
    solver: SolverOptions,
    guidance: GuidanceOptions,
) -> Tensor:
    """Return `(N, *shape)` new scans in [-1, 1] of the classes `labels`, on the denoiser's device, float32.

    `shape` is `(channel, *spatial)`. The denoiser should be in evaluation mode.
    """
    device = denoiser.sigma_data.device
    condition = denoiser.embedding.make(labels.to(device))
    unconditional = denoiser.embedding.withhold_label(condition)
    denoise = guide(denoiser, condition, unconditional, guidance)
    scans = SOLVERS[solver.name](denoise, draw_noise(seeds, shape).to(device), karras_sigmas(solver))
    return scans.clamp(-1, 1)
