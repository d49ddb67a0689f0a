"""Noise levels in training and the preconditioning of the denoiser (Karras et al. 2022, arXiv 2206.00364).

All functions are pure, work on tensors of any rank and dtype, and know nothing of networks or files.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# ln(sigma) / 4 lies within [-2, 2] for every noise level in use (e^-8 to e^8); embeddings expect 0 to 1000.
_NOISE_CENTRE, _NOISE_SCALE = 2.0, 250.0


class Preconditioning(NamedTuple):
    """Coefficients of equation 7: denoised = skip * noisy + output * network(input * noisy, noise)."""

    skip: Tensor
    output: Tensor
    input: Tensor


def precondition(sigma: Tensor, sigma_data: Tensor | float) -> Preconditioning:
    """Return the coefficients of table 1 for noise level `sigma` and data standard deviation `sigma_data`, broadcast."""
    total = sigma**2 + sigma_data**2
    root = total.sqrt()
    return Preconditioning(skip=sigma_data**2 / total, output=sigma * sigma_data / root, input=1 / root)


def noise_embedding_position(sigma: Tensor) -> Tensor:
    """Return c_noise = ln(sigma) / 4 (table 1), shifted and scaled into the 0 to 1000 of sinusoidal step embeddings."""
    return (sigma.log() / 4 + _NOISE_CENTRE) * _NOISE_SCALE


def loss_weight(sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
    """Return lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (table 1), one over the squared output scale."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def draw_sigma(count: int, *, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Return `(count,)` noise levels with ln(sigma) ~ Normal(mean, std^2), on the generator's device.

    Within a batch the draws are stratified (one from each of `count` equally likely slices, in random order), which
    keeps the distribution and lowers the variance of the gradient.
    """
    device = generator.device
    order = torch.randperm(count, generator=generator, device=device)
    uniform = (order + torch.rand(count, generator=generator, device=device)) / count
    uniform = uniform.clamp(1e-6, 1 - 1e-6)
    normal = math.sqrt(2.0) * torch.erfinv(2 * uniform - 1)
    return (mean + std * normal).exp()


def match_rank(values: Tensor, like: Tensor) -> Tensor:
    """Return `values` of shape `(N,)` or `(N, C)` with trailing axes of length 1 up to the rank of `like`."""
    return values.reshape(*values.shape, *([1] * (like.ndim - values.ndim)))
