"""From noise to scans: solvers of the probability-flow equation, each `(denoise, noise, sigmas) -> scans`.

`denoise(noisy, sigma)` takes `(N, C, *spatial)` and `(N,)` and returns the denoised scans; `noise` is standard normal;
`sigmas` falls from the first to the last noise level, usually 0. Karras et al. 2022 (arXiv 2206.00364) with s(t) = 1 and
sigma(t) = t: d noisy / d sigma = (noisy - denoised) / sigma, equation 1.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from medsynth.config import SolverOptions
from medsynth.errors import ConfigError

Denoise = Callable[[Tensor, Tensor], Tensor]
Solve = Callable[[Denoise, Tensor, Tensor], Tensor]

# Defaults of the options. Measured: docs/speed.md, noise levels.
_MANY_STEPS, _SMALL_SIGMA, _LARGE_SIGMA = 20, 0.02, 80.0
# With fewer steps than this, levels that decide nothing are skipped at both ends.
_ENOUGH_STEPS, _SMALL_OF_FEW, _VISIBLE_MEAN = 10, 0.05, 0.6


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A solver with its steps and noise levels: `SolverOptions` with every value decided.

    `name` is a key of `SOLVERS`, `precision` that of the network, `32-true` or `bf16-mixed`.
    """

    name: str
    steps: int
    sigma_min: float
    sigma_max: float
    rho: float = 7.0
    precision: str = "32-true"


def resolve_solver(
    options: SolverOptions, *, own: Solver | None = None, voxels: int | None = None, precision: str = "32-true"
) -> Solver:
    """Return the solver that the options describe, with defaults that suit the run.

    `own` is the only solver of a distilled run (`Run.solver`). `voxels` is the number of voxels of a scan. Noise of level sigma
    shifts the mean over them by sigma / sqrt(voxels) (standard deviation); few steps begin where this is 0.6, since above it
    not even the mean is visible. Raises `ConfigError` for options that differ from `own`, and for noise levels that do not fall.
    """
    if own is not None:
        for field in ("name", "steps", "sigma_min", "sigma_max"):
            wanted, only = getattr(options, field), getattr(own, field)
            if wanted not in (None, "auto", only):
                raise ConfigError(
                    f"solver.{field}: need {only}, for which this run was distilled, got {wanted}; try leaving it out"
                )
        return replace(own, precision=precision)
    steps = _MANY_STEPS if options.steps is None else options.steps
    low, high = options.sigma_min, options.sigma_max
    few = steps < _ENOUGH_STEPS
    if high is None:
        high = min(_LARGE_SIGMA, _VISIBLE_MEAN * math.sqrt(voxels)) if few and voxels is not None else _LARGE_SIGMA
    if low is None:
        low = _SMALL_OF_FEW if few else _SMALL_SIGMA
    if steps < 1 or not 0 < low < high:
        raise ConfigError(
            f"solver: need steps >= 1 and 0 < sigma_min < sigma_max, got steps={steps}, sigma_min={low}, sigma_max={high}; "
            "try the defaults"
        )
    name = "dpmpp_2m" if options.name == "auto" else options.name
    return Solver(name=name, steps=steps, sigma_min=low, sigma_max=high, precision=precision)


def noise_levels(solver: Solver) -> Tensor:
    """Return the `(steps + 1,)` float64 noise levels of equation 5, with 0 at the end."""
    low, high, rho = solver.sigma_min, solver.sigma_max, solver.rho
    ramp = torch.linspace(0, 1, solver.steps, dtype=torch.float64)
    levels = high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))
    return torch.cat([levels**rho, torch.zeros(1, dtype=torch.float64)])


def edit_sigmas(solver: Solver, strength: float) -> Tensor:
    """Return the `(levels,)` float64 noise levels of an edit: `strength`, then the levels of the full schedule below it.

    `solver.steps` is the length of the full schedule, so an edit takes fewer steps, which are as fine as those of a new scan. A
    level less than 1 % below `strength` is left out: the next step of a multistep solver would divide rounding errors by it.

    Raises `ConfigError` for a strength outside (0, sigma_max).
    """
    schedule = noise_levels(solver)
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
    """Yield the state of `euler` at each level of `sigmas` after the first, each `(N, C, *spatial)`; the last is the scans."""
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
    """Yield the state of `dpmpp_2m` at each level of `sigmas` after the first, each `(N, C, *spatial)`; the last is the scans."""
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


SOLVERS: dict[str, Solve] = {"dpmpp_2m": dpmpp_2m, "heun": heun, "euler": euler}


def _last(path: Iterator[Tensor]) -> Tensor:
    """Return the end of a path."""
    return deque(path, maxlen=1)[0]


def _level(sigma: float, noisy: Tensor) -> Tensor:
    return torch.full((noisy.shape[0],), sigma, dtype=noisy.dtype, device=noisy.device)
