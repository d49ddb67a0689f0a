"""Guidance: wrappers that turn conditional denoisers into one `denoise(noisy, sigma)` for the solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from medsynth.config import GuidanceOptions
from medsynth.diffusion.solvers import Denoise
from medsynth.errors import ConfigError

# A condition is a tuple of tensors with one row for each scan, or None; the maths only joins it and passes it on.
ConditionRows = TypeVar("ConditionRows", bound=tuple[Tensor | None, ...])
ConditionalDenoise = Callable[[Tensor, Tensor, ConditionRows], Tensor]


def guide(
    denoise: ConditionalDenoise[ConditionRows],
    condition: ConditionRows,
    unconditional: ConditionRows,
    options: GuidanceOptions,
) -> Denoise:
    """Return a denoiser with classifier-free guidance between two noise levels.

    For sigma in (sigma_low, sigma_high] the result is unconditional + scale * (conditional - unconditional) (Ho and
    Salimans 2022, arXiv 2207.12598, in the form of Karras et al. 2024), both evaluated in one batch; elsewhere, and for
    scale 1, it is the conditional denoiser alone (Kynkäänniemi et al. 2024, arXiv 2404.07724). Raises `ConfigError` as
    `check_guidance` does.
    """
    check_guidance(options)

    def guided(noisy: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma[0])
        if options.scale == 1 or not options.sigma_low < level <= options.sigma_high:
            return denoise(noisy, sigma, condition)
        both = join_conditions(condition, unconditional)
        with_condition, without = denoise(torch.cat([noisy, noisy]), torch.cat([sigma, sigma]), both).chunk(2)
        return without + options.scale * (with_condition - without)

    return guided


def autoguide(strong: Denoise, weak: Denoise, options: GuidanceOptions) -> Denoise:
    """Return a denoiser that is steered away from a weaker one with the same condition, between two noise levels.

    For sigma in (sigma_low, sigma_high] the result is weak + scale * (strong - weak) (Karras et al. 2024, arXiv 2406.02507):
    both make the same kind of errors, the stronger one fewer, so extrapolation from the weaker one corrects some of them.
    Elsewhere, and for scale 1, it is the stronger denoiser alone. Raises `ConfigError` as `check_guidance` does.
    """
    check_guidance(options)

    def guided(noisy: Tensor, sigma: Tensor) -> Tensor:
        denoised = strong(noisy, sigma)
        if options.scale == 1 or not options.sigma_low < float(sigma[0]) <= options.sigma_high:
            return denoised
        worse = weak(noisy, sigma)
        return worse + options.scale * (denoised - worse)

    return guided


def check_guidance(options: GuidanceOptions) -> None:
    """Raise `ConfigError` for a negative scale, which would steer away from the class, an empty interval, or two kinds."""
    if options.weak and options.against:
        raise ConfigError(
            f"guidance.weak: need one of weak and against, got both, {options.weak!r} and {options.against!r}; leave one out"
        )
    if options.scale < 0 or not 0 <= options.sigma_low < options.sigma_high:
        raise ConfigError(
            f"guidance: need scale >= 0 and 0 <= sigma_low < sigma_high, got scale={options.scale}, "
            f"sigma_low={options.sigma_low}, sigma_high={options.sigma_high}; try the defaults"
        )


def join_conditions(first: ConditionRows, second: ConditionRows) -> ConditionRows:
    """Return the rows of both conditions, in the type of the first (a tuple or named tuple); None where the first has None."""
    rows = [
        None if one is None or other is None else torch.cat([one, other])
        for one, other in zip(first, second, strict=True)
    ]
    make: Callable[..., ConditionRows] = getattr(type(first), "_make", type(first))
    return make(rows)
