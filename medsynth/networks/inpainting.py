"""From donors, regions and seeds to scans in which the region is painted anew."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medsynth.config import GuidanceOptions, SolverOptions
from medsynth.diffusion import SOLVERS, euler, inpaint, noise_levels, settle_solver
from medsynth.errors import ConfigError
from medsynth.networks.condition import Condition
from medsynth.networks.denoiser import Denoiser
from medsynth.networks.sampling import draw_noise, steer


@torch.inference_mode()
def inpaint_scans(
    denoiser: Denoiser,
    donors: Tensor,
    regions: Tensor,
    wanted: Condition | Tensor,
    seeds: Sequence[int],
    *,
    repeats: int,
    solver: SolverOptions,
    guidance: GuidanceOptions,
    rivals: Tensor | None = None,
    weak: Denoiser | None = None,
) -> Tensor:
    """Return `donors` `(N, C, *spatial)` in [-1, 1] painted anew, under the condition or classes `wanted`, where `regions` say.

    `regions` is bool `(N, 1 or C, *spatial)`; outside of them donors come back as they are, on the denoiser's device. `repeats`
    is how often each step is taken, as in `inpaint`; the other options are those of `sample_scans`. Raises `ConfigError` for a
    latent denoiser, in whose latents no voxel keeps its place.
    """
    if denoiser.codec is not None:
        raise ConfigError(
            "method: need a run with network.stem haar or pixel to inpaint, got latent; try counterfactual"
        )
    device = denoiser.sigma_data.device
    denoise, _ = steer(denoiser, wanted, guidance, rivals, weak, solver.precision)
    known, where = donors.to(device), regions.to(device)
    distilled, sigmas = solver.name == "consistency", noise_levels(solver, voxels=math.prod(donors.shape[2:]))

    def draw(*keys: int) -> Tensor:
        noise = draw_noise(seeds, donors.shape[1:], *keys).to(device)
        return denoiser.start(noise, float(sigmas[0])) if keys == (0,) else noise

    solved = inpaint(
        euler if distilled else SOLVERS[settle_solver(solver).name],
        denoise,
        known,
        where,
        sigmas,
        draw,
        repeats=repeats,
        to_data=distilled,
    )
    return torch.where(where, solved.clamp(-1, 1), known)
