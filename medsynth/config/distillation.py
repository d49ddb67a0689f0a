"""Options of the distillation to a model of few steps: along trajectories, or to a consistency model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrajectoryOptions:
    """How a student of few steps learns where the solver of its teacher goes (after Luhman and Luhman 2021, arXiv 2101.02388).

    Args:
        evaluations: Network evaluations of the student for a scan, 1 to 4; it can be sampled with no other number.
        steps: Steps of DPM-Solver++(2M) that the teacher takes for the same.
        count: Trajectories that are drawn, once, before training; on the disk each takes `evaluations` scans of 2 bytes a voxel
            until training ends. The classes have equal shares.
        guidance: Scale of the autoguidance under which they are drawn, by what the teacher was early in its training; 1 for none.
            The student needs none then.
    """

    evaluations: int = 2
    steps: int = 12
    count: int = 20000
    guidance: float = 1.0


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
