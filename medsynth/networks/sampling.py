"""From conditions, seeds and donors to scans in memory: the one place where a denoiser meets solver and guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from medsynth.config import GuidanceOptions, SolverOptions
from medsynth.diffusion import (
    SOLVERS,
    Denoise,
    autoguide,
    consistency,
    edit_sigmas,
    guide,
    noise_levels,
    settle_solver,
)
from medsynth.networks.condition import Condition
from medsynth.networks.denoiser import Denoiser, hold_given
from medsynth.seeds import torch_generator


def draw_noise(seeds: Sequence[int], shape: Sequence[int], *keys: int) -> Tensor:
    """Return `(N, *shape)` standard normal noise on the CPU; each scan's depends on its own seed and the keys only."""
    return torch.stack([torch.randn(*shape, generator=torch_generator(seed, "noise", *keys)) for seed in seeds])


@torch.inference_mode()
def sample_scans(
    denoiser: Denoiser,
    wanted: Condition | Tensor,
    seeds: Sequence[int],
    *,
    shape: Sequence[int],
    solver: SolverOptions,
    guidance: GuidanceOptions,
    rivals: Tensor | None = None,
    weak: Denoiser | None = None,
) -> Tensor:
    """Return `(N, *shape)` new scans in [-1, 1] as `wanted`, on the denoiser's device, float32.

    `wanted` is a condition or classes `(N,)`; channels that it gives come back as they are. `shape` is `(channel, *spatial)`.
    Guidance steers away from the classes `rivals` `(N,)` with the same attributes, by default from a scan of which neither class
    nor attributes are known; with `weak`, the denoiser of `guidance.weak` on the same device, from what that one makes of the
    same condition. The denoiser should be in evaluation mode; the solver `auto` takes it for one, and `consistency`
    for a consistency model.
    """
    sigmas = noise_levels(solver, voxels=math.prod(shape[1:]))
    noise = denoiser.start(draw_noise(seeds, denoiser.noise_shape(shape)), float(sigmas[0]))
    return _solve(denoiser, wanted, noise, sigmas, seeds, solver, guidance, rivals, weak)


@torch.inference_mode()
def edit_scans(
    denoiser: Denoiser,
    donors: Tensor,
    wanted: Condition | Tensor,
    seeds: Sequence[int],
    *,
    strength: float,
    solver: SolverOptions,
    guidance: GuidanceOptions,
    rivals: Tensor | None = None,
    weak: Denoiser | None = None,
) -> Tensor:
    """Return `(N, C, *spatial)` edits of `donors` towards the condition or classes `wanted`, in [-1, 1], as `sample_scans` does.

    `donors` are `(N, C, *spatial)` float32 in [-1, 1]. Each is noised to the level `strength` (a sigma) and solved back to 0
    under its condition: SDEdit (Meng et al. 2022, arXiv 2108.01073, algorithm 1). A small strength keeps the donor, one near
    `sigma_max` forgets it. Raises `ConfigError` as `edit_sigmas` does.
    """
    sigmas = edit_sigmas(solver, strength)
    # A solver multiplies by the first level: donor + strength * noise is where it begins.
    clean = denoiser.encode(donors.to(denoiser.sigma_data.device)).cpu()
    start = clean / strength + draw_noise(seeds, clean.shape[1:])
    return _solve(denoiser, wanted, start, sigmas, seeds, solver, guidance, rivals, weak)


def _solve(
    denoiser: Denoiser,
    wanted: Condition | Tensor,
    noise: Tensor,
    sigmas: Tensor,
    seeds: Sequence[int],
    solver: SolverOptions,
    guidance: GuidanceOptions,
    rivals: Tensor | None,
    weak: Denoiser | None,
) -> Tensor:
    """Return the scans in [-1, 1] that the solver reaches from `sigmas[0] * noise`, on the denoiser's device."""
    device = denoiser.sigma_data.device
    denoise, condition = steer(denoiser, wanted, guidance, rivals, weak, solver.precision)
    if solver.name == "consistency":
        shape = noise.shape[1:]
        solved = consistency(
            denoise, noise.to(device), sigmas, lambda number: draw_noise(seeds, shape, number).to(device)
        )
    else:
        solved = SOLVERS[settle_solver(solver).name](denoise, noise.to(device), sigmas)
    return denoiser.decode(hold_given(solved, condition)).clamp(-1, 1)


def steer(
    denoiser: Denoiser,
    wanted: Condition | Tensor,
    guidance: GuidanceOptions,
    rivals: Tensor | None,
    weak: Denoiser | None,
    precision: str,
) -> tuple[Denoise, Condition]:
    """Return what a solver evaluates, with guidance, and the condition, on the denoiser's device; options of `sample_scans`.

    Networks compute in `precision`; differences of near values, in solver, guidance and stem, stay in float32.
    """
    device, embedding = denoiser.sigma_data.device, denoiser.embedding
    condition = wanted.to(device) if isinstance(wanted, Condition) else embedding.make(wanted.to(device))
    if weak is not None:
        told = weak.embedding.make(condition.label, condition.attributes, condition.given)
        denoise = autoguide(partial(denoiser, condition=condition), partial(weak, condition=told), guidance)
        return _in_precision(denoise, precision, device), condition
    assert not guidance.weak or guidance.scale == 1, "autoguidance needs the weaker denoiser"
    other = embedding.withhold(condition) if rivals is None else condition._replace(label=rivals.to(device))
    return _in_precision(guide(denoiser, condition, other, guidance), precision, device), condition


def _in_precision(denoise: Denoise, precision: str, device: torch.device) -> Denoise:
    def compute(noisy: Tensor, sigma: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            return denoise(noisy, sigma)

    return compute
