"""Options of generation: solver, guidance, observed channels, inpainting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from medsynth.config.bounds import Bounds

NoiseLevel = Annotated[float | None, Bounds(1e-6, 1e6)]


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """How noise becomes a scan. `auto`, and whatever is left open, suits the run.

    Args:
        name: `dpmpp_2m` (DPM-Solver++(2M), Lu et al. 2022), `heun` (Karras et al. 2022, algorithm 1) or `euler`. `auto`
            is `dpmpp_2m`; a run of `medsynth distill` has one solver of its own, which `auto` takes.
        steps: Steps. Heun evaluates the network about twice a step, the others once. [default: 20]
        sigma_min: Last noise level before zero. [default: 0.02, or 0.05 with fewer than ten steps]
        sigma_max: First noise level. [default: 80, or less with fewer than ten steps]
    """

    name: Literal["auto", "dpmpp_2m", "heun", "euler"] = "auto"
    steps: Annotated[int | None, Bounds(1, 1000)] = None
    sigma_min: NoiseLevel = None
    sigma_max: NoiseLevel = None


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """Guidance within an interval of noise levels (Kynkäänniemi et al. 2024): classifier-free, or autoguidance.

    Args:
        scale: Strength of the guidance; 1 is none. Larger values make the class clearer and the scans less varied.
        sigma_low: Guidance acts above this noise level.
        sigma_high: Guidance acts up to this noise level.
        against: Steer classes away from others, such as `viral=bacterial,bacterial=viral`. [default: away from the
            prediction without a class]
        weak: Autoguidance (Karras et al. 2024): steer away from a weaker model, `early` for this run's own early
            weights, or the run folder of a smaller or less trained model. Not together with `against`.
    """

    scale: Annotated[float, Bounds(0, 100)] = 1.0
    sigma_low: Annotated[float, Bounds(0, 1e6)] = 0.2
    sigma_high: Annotated[float, Bounds(0, 1e6)] = 5.0
    against: str = ""
    weak: str = ""


@dataclass(frozen=True, kw_only=True)
class ObservedOptions:
    """Channels taken from real scans: masks to fill, or sequences from which a missing one is generated.

    Args:
        cohort: Cohort CSV with the scans to observe, for a run trained with `condition.observed`.
        channels: Channels to observe, such as `mask` or `t1,t2`; the others are generated to fit.
        split: Split of the observed scans; the new scans belong to it, so nothing of a test patient is trained on.
        change: Turn, scale and shift each observed mask a little, so that it is no longer a patient's mask.
    """

    cohort: str = ""
    channels: str = ""
    split: Literal["train", "val", "test"] = "train"
    change: bool = False


@dataclass(frozen=True, kw_only=True)
class InpaintOptions:
    """Where `--method inpaint` paints.

    Args:
        region: `class` takes the masks of training scans of the target class, at their places; `donor` takes the
            donor's own mask; anything else is the path of one mask for all donors.
        margin_mm: Widen each region by this many millimetres.
        repeats: Repetitions of each solver step (RePaint, Lugmayr et al. 2022). More make region and surroundings agree
            better, and take as much longer.
    """

    region: str = "class"
    margin_mm: Annotated[float, Bounds(0, 1000)] = 5.0
    repeats: Annotated[int, Bounds(1, 1000)] = 1
