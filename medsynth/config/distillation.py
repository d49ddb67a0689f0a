"""Options of the distillation to a model of few steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConsistencyOptions:
    """How a denoiser is tuned to reach the data in one step (Easy Consistency Tuning, Geng et al. 2024, arXiv 2406.14548).

    Args:
        mean: Mean of ln(sigma) of the noise levels in training.
        std: Standard deviation of ln(sigma); wide, since samples begin at the largest noise level.
        stages: Stages, all equally long; in each the gap between a noise level and the lower one of its target is `base` times
            smaller than in the one before.
        base: How many times smaller.
        widening: How many times wider the gap is at small noise levels than at large ones, less one half of itself.
        slope: How soon, as sigma grows, the gap is no longer wider.
        teacher: Follow the trajectories of the run that is distilled (consistency distillation, Song et al. 2023, algorithm 2)
            rather than draw them from scans and noise; one more network evaluation a step.
        huber: Difference of a voxel, in [-1, 1], above which the metric is linear rather than quadratic; 0 makes it the L2 norm.
    """

    mean: float = -1.1
    std: float = 2.0
    stages: int = 8
    base: float = 2.0
    widening: float = 8.0
    slope: float = 1.0
    teacher: bool = False
    huber: float = 0.0
