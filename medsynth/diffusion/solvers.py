"""From noise to scans: solvers of the probability-flow equation, each `(denoise, noise, sigmas) -> scans`.

`denoise(noisy, sigma)` takes `(N, C, *spatial)` and `(N,)` and returns the denoised scans; `noise` is standard normal;
`sigmas` falls from the first to the last noise level, usually 0. Karras et al. 2022 (arXiv 2206.00364) with s(t) = 1 and
sigma(t) = t: d noisy / d sigma = (noisy - denoised) / sigma, equation 1.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
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

# What a solver does where the options leave it open. Measured: docs/speed.md, noise levels.
_STEPS, _SIGMA_MIN = {"consistency": 2}, {"consistency": 0.3}
_MANY_STEPS, _SMALL_SIGMA, _LARGE_SIGMA = 20, 0.02, 80.0
# With fewer steps than this, which are better spent where there is most to decide.
_ENOUGH_STEPS, _SMALL_OF_FEW, _SEEN = 10, 0.05, 0.6


def settle_solver(
    options: SolverOptions, *, own: SolverOptions | None = None, voxels: int | None = None
) -> SolverOptions:
    """Return the options with everything named that they leave open, for a denoiser or a distilled model.

    `own` is the one solver that a distilled model has, `Run.solver`: of a consistency model its name alone, else its steps and
    noise levels too, which are then the only ones. `voxels` is how many values a scan has. The mean over them is what is seen
    last under noise, with a standard deviation of sigma divided by the root of their number; where that is 0.6, a few steps may
    begin.
    Raises `ConfigError` where the two do not belong together: what a distilled model returns is no estimate that the
    probability-flow equation could be solved with, and what a denoiser returns after one evaluation is a mean of scans.
    """
    if own is None:
        if options.name == "consistency":
            raise ConfigError(
                "solver.name: need a run of medsynth distill --method consistency for consistency, got another; try solver.name "
                "auto"
            )
        return _filled(replace(options, name="dpmpp_2m" if options.name == "auto" else options.name), voxels)
    if options.name not in ("auto", own.name):
        raise ConfigError(
            f"solver.name: need {own.name} for this distilled run, got {options.name}; try solver.name auto"
        )
    if own.steps is None:
        return _filled(replace(options, name=own.name), voxels)
    for field in ("steps", "sigma_min", "sigma_max", "rho"):
        wanted, only = getattr(options, field), getattr(own, field)
        if wanted not in (None, only):
            raise ConfigError(
                f"solver.{field}: need {only:g}, for which this run was distilled, got {wanted:g}; try leaving it out"
            )
    return replace(own, precision=options.precision)


def _filled(options: SolverOptions, voxels: int | None) -> SolverOptions:
    """The options with steps and noise levels, those of the solver that is named."""
    steps = _STEPS.get(options.name, _MANY_STEPS) if options.steps is None else options.steps
    first, last = options.sigma_max, options.sigma_min
    few = steps < _ENOUGH_STEPS
    if first is None:
        first = min(_LARGE_SIGMA, _SEEN * math.sqrt(voxels)) if few and voxels is not None else _LARGE_SIGMA
    if last is None:
        last = _SIGMA_MIN.get(options.name, _SMALL_OF_FEW if few else _SMALL_SIGMA)
    return replace(options, steps=steps, sigma_min=last, sigma_max=first)


def noise_levels(options: SolverOptions, *, voxels: int | None = None) -> Tensor:
    """Return `(steps + 1,)` float64 noise levels after equation 5, with 0 at the end, of scans of so many `voxels`.

    Raises `ConfigError` for levels that do not fall or too few steps.
    """
    options = _filled(options, voxels)
    steps, low, high, rho = options.steps, options.sigma_min, options.sigma_max, options.rho
    assert steps is not None
    assert low is not None
    assert high is not None
    if steps < 1 or not 0 < low < high or rho <= 0:
        raise ConfigError(
            "solver: need steps >= 1, rho > 0 and 0 < sigma_min < sigma_max, got "
            f"steps={steps}, rho={rho}, sigma_min={low}, sigma_max={high}; try the defaults"
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))
    return torch.cat([levels**rho, torch.zeros(1, dtype=torch.float64)])


def edit_sigmas(options: SolverOptions, strength: float) -> Tensor:
    """Return `(levels,)` float64 noise levels of an edit: `strength`, then what lies below it of the full schedule.

    `options.steps` is the length of the full schedule, so an edit takes fewer steps, as fine as those of a new scan. A level
    less than 1 % below `strength` is left out: the next step of a multistep solver would divide rounding errors by it.

    Raises `ConfigError` for a strength outside (0, sigma_max), or a schedule that `noise_levels` refuses.
    """
    schedule = noise_levels(options)
    largest = float(schedule[0].round(decimals=9))
    if not 0 < strength < largest:
        raise ConfigError(
            f"strength: need a noise level above 0 and below solver.sigma_max={largest:g}, got {strength:g}; try 1"
        )
    return torch.cat([torch.tensor([strength], dtype=torch.float64), schedule[schedule < 0.99 * strength]])


def euler(denoise: Denoise, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Solve with Euler's first-order method; one evaluation a step."""
    return _last(euler_path(denoise, noise, sigmas))


def euler_path(denoise: Denoise, noise: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Yield where `euler` is at every level of `sigmas` but the first, `(N, C, *spatial)` each; the last are the scans."""
    levels = sigmas.tolist()
    noisy = noise * levels[0]
    for sigma, following in pairwise(levels):
        denoised = denoise(noisy, _level(sigma, noisy))
        noisy = denoised + (following / sigma) * (noisy - denoised)
        yield noisy


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
    return _last(dpmpp_2m_path(denoise, noise, sigmas))


def dpmpp_2m_path(denoise: Denoise, noise: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """Yield where `dpmpp_2m` is at every level of `sigmas` but the first, `(N, C, *spatial)` each; the last are the scans."""
    levels = sigmas.tolist()
    noisy = noise * levels[0]
    previous, previous_step = None, 0.0
    for sigma, following in pairwise(levels):
        denoised = denoise(noisy, _level(sigma, noisy))
        if following == 0:
            yield denoised
            return
        step = math.log(sigma / following)
        target = denoised
        if previous is not None:
            target = denoised + (denoised - previous) * (step / (2 * previous_step))
        noisy = (following / sigma) * noisy - math.expm1(-step) * target
        previous, previous_step = denoised, step
        yield noisy


def consistency(denoise: Denoise, noise: Tensor, sigmas: Tensor, renoise: Renoise) -> Tensor:
    """Sample from a consistency model, one evaluation a step (Song et al. 2023, arXiv 2303.01469, algorithm 1).

    From the first level straight to the data, then, for every further level, back to it with fresh noise `renoise(number)` and
    straight to the data again. `denoise` is a consistency function.
    """
    levels = sigmas.tolist()
    noisy = noise * levels[0]
    for number, (sigma, following) in enumerate(pairwise(levels), 1):
        denoised = denoise(noisy, _level(sigma, noisy))
        noisy = denoised + following * renoise(number) if following > 0 else denoised
    return noisy


# A consistency model has `consistency` instead, which also needs fresh noise.
SOLVERS: dict[str, Solver] = {"dpmpp_2m": dpmpp_2m, "heun": heun, "euler": euler}


def _last(path: Iterator[Tensor]) -> Tensor:
    """Where a path ends."""
    return deque(path, maxlen=1)[0]


def _level(sigma: float, noisy: Tensor) -> Tensor:
    return torch.full((noisy.shape[0],), sigma, dtype=noisy.dtype, device=noisy.device)
