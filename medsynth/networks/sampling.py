"""From class labels, seeds and donors to scans in memory: the one place where a denoiser meets solver and guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medsynth.config import GuidanceOptions, SolverOptions
from medsynth.diffusion import SOLVERS, edit_sigmas, guide, karras_sigmas
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
    rivals: Tensor | None = None,
) -> Tensor:
    """Return `(N, *shape)` new scans in [-1, 1] of the classes `labels`, on the denoiser's device, float32.

    `shape` is `(channel, *spatial)`. Guidance steers away from the classes `rivals` `(N,)`, by default from no class. The
    denoiser should be in evaluation mode.
    """
    noise = draw_noise(seeds, denoiser.noise_shape(shape))
    return _solve(denoiser, labels, noise, karras_sigmas(solver), solver, guidance, rivals)


@torch.inference_mode()
def edit_scans(
    denoiser: Denoiser,
    donors: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    *,
    strength: float,
    solver: SolverOptions,
    guidance: GuidanceOptions,
    rivals: Tensor | None = None,
) -> Tensor:
    """Return `(N, C, *spatial)` edits of `donors` towards the classes `labels`, in [-1, 1], as `sample_scans` does.

    `donors` are `(N, C, *spatial)` float32 in [-1, 1]. Each is noised to the level `strength` (a sigma) and solved back to 0
    under its label: SDEdit (Meng et al. 2022, arXiv 2108.01073, algorithm 1). A small strength keeps the donor, one near
    `sigma_max` forgets it. Raises `ConfigError` as `edit_sigmas` does.
    """
    sigmas = edit_sigmas(solver, strength)
    # A solver multiplies by the first level: donor + strength * noise is where it begins.
    clean = denoiser.encode(donors.to(denoiser.sigma_data.device)).cpu()
    start = clean / strength + draw_noise(seeds, clean.shape[1:])
    return _solve(denoiser, labels, start, sigmas, solver, guidance, rivals)


def _solve(
    denoiser: Denoiser,
    labels: Tensor,
    noise: Tensor,
    sigmas: Tensor,
    solver: SolverOptions,
    guidance: GuidanceOptions,
    rivals: Tensor | None,
) -> Tensor:
    """Return the scans in [-1, 1] that the solver reaches from `sigmas[0] * noise`, on the denoiser's device."""
    device = denoiser.sigma_data.device
    condition = denoiser.embedding.make(labels.to(device))
    embedding = denoiser.embedding
    other = embedding.withhold_label(condition) if rivals is None else embedding.make(rivals.to(device))
    denoise = guide(denoiser, condition, other, guidance)
    return denoiser.decode(SOLVERS[solver.name](denoise, noise.to(device), sigmas)).clamp(-1, 1)
