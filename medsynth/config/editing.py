"""Options of editing real scans."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class InpaintOptions:
    """Where and how a part of a donor is painted anew.

    Args:
        region: Where: `class` takes masks of training scans of the target class, at the place where they were, each once in
            random order before any again; `donor` the donor's own mask; anything else is the file of one mask for all, on the
            run's grid or that of the donors.
        margin_mm: Millimetres by which each region is widened, so that what surrounds a lesion is painted with it.
        blend_voxels: Voxels, inside the region, over which the donor passes into what was painted; 0 is a hard edge.
        repeats: How often each step of the solver is taken (RePaint, Lugmayr et al. 2022). With more, region and surroundings
            agree better, and a model that knows the class only loosely paints healthy tissue rather than a lesion; time grows
            with it.
    """

    region: str = "class"
    margin_mm: float = 5.0
    blend_voxels: int = 2
    repeats: int = 1


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """How the strength of counterfactuals is chosen (`--strength auto`).

    Args:
        strengths: Strengths to try; the smallest that suffices is taken.
        donors: Validation scans of the donor class that are edited at each strength, at most.
    """

    strengths: tuple[float, ...] = (0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0)
    donors: int = 32
