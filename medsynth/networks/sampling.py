"""From conditions, seeds and donors to scans in memory: where a denoiser meets solver and guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from medsynth.config import GuidanceOptions
from medsynth.diffusion import SOLVERS, Denoise, Solver, autoguide, edit_sigmas, guide, inpaint, noise_levels
from medsynth.errors import ConfigError
from medsynth.networks.condition import Condition, ConditionMaker
from medsynth.networks.denoiser import Denoiser, hold_observed
from medsynth.seeds import torch_generator


class SamplableDenoiser(Protocol):
    """What sampling needs of a denoiser; see `Denoiser` for the methods, and `PlainDenoiser` for any other model."""

    @property
    def device(self) -> torch.device: ...

    @property
    def embedding(self) -> ConditionMaker: ...

    def __call__(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor: ...

    def noise_shape(self, scan: Sequence[int]) -> tuple[int, ...]: ...

    def initial_noise(self, noise: Tensor, sigma: float) -> Tensor: ...

    def encode(self, scans: Tensor) -> Tensor: ...

    def decode(self, denoised: Tensor) -> Tensor: ...


class PlainDenoiser:
    """Any function `denoise(noisy, sigma, condition) -> denoised` as a denoiser that can be sampled.

    `noisy` and the result are `(N, C, *spatial)`, `sigma` is `(N,)`, scans have the `shape` `(channel, *spatial)` and lie in
    [-1, 1]. `condition.label` is an index of `classes`, or their number where guidance withholds the class.
    """

    def __init__(
        self,
        denoise: Callable[[Tensor, Tensor, Condition], Tensor],
        *,
        classes: Sequence[str],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.classes = tuple(classes)
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self.embedding = ConditionMaker(len(self.classes))
        self._denoise = denoise

    def __call__(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return what the function returns."""
        return self._denoise(noisy, sigma, condition)

    def noise_shape(self, scan: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a scan."""
        return tuple(scan)

    def initial_noise(self, noise: Tensor, sigma: float) -> Tensor:
        """Return `noise`."""
        return noise

    def encode(self, scans: Tensor) -> Tensor:
        """Return `scans`."""
        return scans

    def decode(self, denoised: Tensor) -> Tensor:
        """Return `denoised`."""
        return denoised


def draw_noise(seeds: Sequence[int], shape: Sequence[int], *keys: int) -> Tensor:
    """Return `(N, *shape)` standard normal noise on the CPU; each scan's depends only on its own seed and the keys."""
    return torch.stack([torch.randn(*shape, generator=torch_generator(seed, "noise", *keys)) for seed in seeds])


@torch.inference_mode()
def sample_scans(
    denoiser: SamplableDenoiser,
    wanted: Condition | Tensor,
    seeds: Sequence[int],
    *,
    shape: Sequence[int],
    solver: Solver,
    guidance: GuidanceOptions,
    rivals: Tensor | None = None,
    weak: SamplableDenoiser | None = None,
) -> Tensor:
    """Return `(N, *shape)` new scans in [-1, 1], float32, on the denoiser's device.

    `wanted` is a condition, or the classes `(N,)`; channels that it observes come back unchanged. `shape` is
    `(channel, *spatial)`. Guidance steers away from the classes `rivals` `(N,)` under an otherwise equal condition, by default
    from the prediction without class, attributes and text; with `weak`, the denoiser of `guidance.weak` on the same device, from
    that one's prediction for the same condition. The denoiser should be in evaluation mode.
    """
    sigmas = noise_levels(solver)
    noise = denoiser.initial_noise(draw_noise(seeds, denoiser.noise_shape(shape)), float(sigmas[0]))
    denoise, condition = steer(denoiser, wanted, guidance, rivals, weak, solver.precision)
    solved = SOLVERS[solver.name](denoise, noise.to(denoiser.device), sigmas)
    return denoiser.decode(hold_observed(solved, condition)).clamp(-1, 1)


@torch.inference_mode()
def edit_scans(
    denoiser: SamplableDenoiser,
    donors: Tensor,
    wanted: Condition | Tensor,
    seeds: Sequence[int],
    *,
    strength: float,
    solver: Solver,
    guidance: GuidanceOptions,
    rivals: Tensor | None = None,
    weak: SamplableDenoiser | None = None,
) -> Tensor:
    """Return `(N, C, *spatial)` edits of `donors` towards the condition or classes `wanted`, in [-1, 1]; see `sample_scans`.

    `donors` are `(N, C, *spatial)` float32 in [-1, 1]. Noise is added up to the level `strength` (a sigma) and removed again
    under the condition: SDEdit (Meng et al. 2022, arXiv 2108.01073, algorithm 1). A small strength keeps the donor, one near
    `sigma_max` forgets it. Raises `ConfigError` as `edit_sigmas` does.
    """
    sigmas = edit_sigmas(solver, strength)
    # A solver multiplies the noise by the first level, so this starts it at donor + strength * noise.
    clean = denoiser.encode(donors.to(denoiser.device)).cpu()
    noise = clean / strength + draw_noise(seeds, clean.shape[1:])
    denoise, condition = steer(denoiser, wanted, guidance, rivals, weak, solver.precision)
    solved = SOLVERS[solver.name](denoise, noise.to(denoiser.device), sigmas)
    return denoiser.decode(hold_observed(solved, condition)).clamp(-1, 1)


@torch.inference_mode()
def inpaint_scans(
    denoiser: Denoiser,
    donors: Tensor,
    regions: Tensor,
    wanted: Condition | Tensor,
    seeds: Sequence[int],
    *,
    repeats: int,
    solver: Solver,
    guidance: GuidanceOptions,
    rivals: Tensor | None = None,
    weak: Denoiser | None = None,
) -> Tensor:
    """Return `donors` `(N, C, *spatial)` in [-1, 1], generated anew inside `regions` under the condition or classes `wanted`.

    `regions` is bool `(N, 1 or C, *spatial)`; outside of them donors come back unchanged, on the denoiser's device. `repeats` is
    that of `inpaint`; the other options are those of `sample_scans`. Raises `ConfigError` for a latent denoiser, whose decoder
    changes every voxel.
    """
    if denoiser.codec is not None:
        raise ConfigError(
            "method: need a run with network.stem haar or pixel to inpaint, got latent; try counterfactual"
        )
    device, sigmas = denoiser.device, noise_levels(solver)
    denoise, _ = steer(denoiser, wanted, guidance, rivals, weak, solver.precision)
    known, where = donors.to(device), regions.to(device)

    def draw(*keys: int) -> Tensor:
        noise = draw_noise(seeds, donors.shape[1:], *keys).to(device)
        return denoiser.initial_noise(noise, float(sigmas[0])) if keys == (0,) else noise

    solved = inpaint(SOLVERS[solver.name], denoise, known, where, sigmas, draw, repeats=repeats)
    return torch.where(where, solved.clamp(-1, 1), known)


def steer(
    denoiser: SamplableDenoiser,
    wanted: Condition | Tensor,
    guidance: GuidanceOptions,
    rivals: Tensor | None,
    weak: SamplableDenoiser | None,
    precision: str,
) -> tuple[Denoise, Condition]:
    """Return the guided denoiser that a solver evaluates, and the condition on its device; arguments as in `sample_scans`.

    Networks run in `precision`; solver, guidance and stem, which subtract near values, stay in float32.
    """
    device, embedding = denoiser.device, denoiser.embedding
    condition = wanted.to(device) if isinstance(wanted, Condition) else embedding.make(wanted.to(device))
    if weak is not None:
        same = weak.embedding.make(condition.label, condition.attributes, condition.observed, condition.text)
        guided = autoguide(
            lambda noisy, sigma: denoiser(noisy, sigma, condition),
            lambda noisy, sigma: weak(noisy, sigma, same),
            guidance,
        )
    else:
        assert not guidance.weak or guidance.scale == 1, "autoguidance needs the weaker denoiser"
        other = embedding.withhold(condition) if rivals is None else condition._replace(label=rivals.to(device))
        guided = guide(denoiser, condition, other, guidance)

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            return guided(noisy, sigma)

    return denoise, condition
