"""From noise to scans: solvers of the probability-flow equation, each `(denoise, noise, sigmas) -> scans`.

`denoise(noisy, sigma)` takes `(N, C, *spatial)` and `(N,)` and returns the denoised scans; `noise` is standard normal;
`sigmas` falls from the first to the last noise level, usually 0. Karras et al. 2022 (arXiv 2206.00364) with s(t) = 1 and
sigma(t) = t: d noisy / d sigma = (noisy - denoised) / sigma, equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from medsynth.config import SolverOptions
from medsynth.errors import ConfigError

Denoise = Callable[[Tensor, Tensor], Tensor]
Solver = Callable[[Denoise, Tensor, Tensor], Tensor]
# Fresh standard normal noise for the level of that number, `(N, C, *spatial)`.
Renoise = Callable[[int], Tensor]

_STEPS = {"consistency": 2}  # by default, of the others 20
_MANY_STEPS = 20


def settle_solver(options: SolverOptions, *, distilled: bool = False) -> SolverOptions:
    """Return the options with solver and steps named that they leave open, for a denoiser or a distilled model.

    Raises `ConfigError` where the two do not belong together: what a distilled model returns is no estimate that the
    probability-flow equation could be solved with, and what a denoiser returns after one evaluation is a mean of scans.
    """
    name = options.name
    if name == "auto":
        name = "consistency" if distilled else "dpmpp_2m"
    if distilled != (name == "consistency"):
        wanted = "consistency for a distilled run" if distilled else "a run of medsynth distill for consistency"
        raise ConfigError(f"solver.name: need {wanted}, got {name}; try solver.name auto")
    steps = _STEPS.get(name, _MANY_STEPS) if options.steps is None else options.steps
    return replace(options, name=name, steps=steps)


def noise_levels(options: SolverOptions) -> Tensor:
    """Return `(steps + 1,)` float64 noise levels for the solver that the options name, with 0 at the end.

    Those of `karras_sigmas`; for `consistency` those of one step more without sigma_min, from where there is nothing left to do.
    Raises `ConfigError` as `karras_sigmas` does.
    """
    if options.name != "consistency":
        return karras_sigmas(options)
    steps = _STEPS["consistency"] if options.steps is None else options.steps
    # Checked before there is one more of them.
    levels = karras_sigmas(replace(options, steps=steps + 1 if steps >= 1 else steps))
    return torch.cat([levels[:-2], levels[-1:]])


def karras_sigmas(options: SolverOptions) -> Tensor:
    """Return `(steps + 1,)` float64 noise levels after equation 5, with 0 at the end.

    Raises `ConfigError` for levels that do not fall or too few steps.
    """
    steps = _MANY_STEPS if options.steps is None else options.steps
    if steps < 1 or not 0 < options.sigma_min < options.sigma_max or options.rho <= 0:
        raise ConfigError(
            f"solver: need steps >= 1, rho > 0 and 0 < sigma_min < sigma_max, got steps={steps}, rho={options.rho}, "
            f"sigma_min={options.sigma_min}, sigma_max={options.sigma_max}; try the defaults"
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    inverse = 1 / options.rho
    levels = options.sigma_max**inverse + ramp * (options.sigma_min**inverse - options.sigma_max**inverse)
    return torch.cat([levels**options.rho, torch.zeros(1, dtype=torch.float64)])


def edit_sigmas(options: SolverOptions, strength: float) -> Tensor:
    """Return `(levels,)` float64 noise levels of an edit: `strength`, then what lies below it of the full schedule.

    `options.steps` is the length of the full schedule, so an edit takes fewer steps, as fine as those of a new scan. A level
    less than 1 % below `strength` is left out: the next step of a multistep solver would divide rounding errors by it.

    Raises `ConfigError` for a strength outside (0, sigma_max), or a schedule that `noise_levels` refuses.
    """
    schedule = noise_levels(options)
    if not 0 < strength < options.sigma_max:
        raise ConfigError(
            f"strength: need a noise level above 0 and below solver.sigma_max={options.sigma_max:g}, got {strength:g}; try 1"
        )
    return torch.cat([torch.tensor([strength], dtype=torch.float64), schedule[schedule < 0.99 * strength]])


def euler(denoise: Denoise, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Solve with Euler's first-order method; one evaluation a step."""
    levels = sigmas.tolist()
    noisy = noise * levels[0]
    for sigma, following in pairwise(levels):
        denoised = denoise(noisy, _level(sigma, noisy))
        noisy = denoised + (following / sigma) * (noisy - denoised)
    return noisy


def heun(denoise: Denoise, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Solve with Heun's second-order method (algorithm 1, no churn); two evaluations a step, one for a step to 0."""
    levels = sigmas.tolist()
    noisy = noise * levels[0]
    for sigma, following in pairwise(levels):
        slope = (noisy - denoise(noisy, _level(sigma, noisy))) / sigma
        guess = noisy + (following - sigma) * slope
        if following > 0:
            slope_ahead = (guess - denoise(guess, _level(following, noisy))) / following
            guess = noisy + (following - sigma) * (slope + slope_ahead) / 2
        noisy = guess
    return noisy


def dpmpp_2m(denoise: Denoise, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Solve with DPM-Solver++(2M), second order, one evaluation a step (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    With alpha = 1 the half log-SNR is -ln(sigma). The data prediction is extrapolated from the last two evaluations; the
    first step and a step to 0 are of first order.
    """
    levels = sigmas.tolist()
    noisy = noise * levels[0]
    previous, previous_step = None, 0.0
    for sigma, following in pairwise(levels):
        denoised = denoise(noisy, _level(sigma, noisy))
        if following == 0:
            return denoised
        step = math.log(sigma / following)
        target = denoised
        if previous is not None:
            target = denoised + (denoised - previous) * (step / (2 * previous_step))
        noisy = (following / sigma) * noisy - math.expm1(-step) * target
        previous, previous_step = denoised, step
    return noisy


def consistency(denoise: Denoise, noise: Tensor, sigmas: Tensor, renoise: Renoise) -> Tensor:
    """Sample from a distilled model, one evaluation a step (Song et al. 2023, arXiv 2303.01469, algorithm 1).

    From the first level straight to the data, then, for every further level, back to it with fresh noise `renoise(number)` and
    straight to the data again. `denoise` is a consistency function.
    """
    levels = sigmas.tolist()
    noisy = noise * levels[0]
    for number, (sigma, following) in enumerate(pairwise(levels), 1):
        denoised = denoise(noisy, _level(sigma, noisy))
        noisy = denoised + following * renoise(number) if following > 0 else denoised
    return noisy


# Of a denoiser; a distilled model has `consistency` instead, which also needs fresh noise.
SOLVERS: dict[str, Solver] = {"dpmpp_2m": dpmpp_2m, "heun": heun, "euler": euler}


def _level(sigma: float, noisy: Tensor) -> Tensor:
    return torch.full((noisy.shape[0],), sigma, dtype=noisy.dtype, device=noisy.device)
