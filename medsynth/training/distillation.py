"""The Lightning module of `medsynth distill`: a trained denoiser becomes a consistency model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from medsynth.config import ConsistencyOptions, NoiseOptions
from medsynth.diffusion import consistency_losses, lower_sigma, stage_of
from medsynth.networks import Condition, Denoiser
from medsynth.training.module import DiffusionModule


class DistillationModule(DiffusionModule):
    """Tunes a denoiser to a consistency function; batches, draws, condition and average are those of `DiffusionModule`.

    The loss is that of `consistency_losses`, with student and target in one network and under the same dropout masks, and with
    the stage that the step has reached; validation is always under the last stage, so that its losses can be compared. A
    `teacher` in evaluation mode says where trajectories lead. `averaged` is the consistency model to use.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        total_steps: int,
        consistency: ConsistencyOptions = ConsistencyOptions(),
        teacher: Denoiser | None = None,
        **others: Any,
    ) -> None:
        noise = NoiseOptions(mean=consistency.mean, std=consistency.std)
        super().__init__(denoiser, total_steps=total_steps, noise=noise, **others)
        self._consistency = consistency
        # In a list, it is no part of the module: checkpoints do not hold it.
        self._teachers = [] if teacher is None else [teacher]

    def _losses(self, denoiser: Denoiser, clean: Tensor, noise: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        options = self._consistency
        step = self.global_step if self.training else self._total_steps
        lower = lower_sigma(sigma, stage_of(step, self._total_steps, options.stages), options)
        devices = [clean.device] if clean.is_cuda else []

        def student(noisy: Tensor, level: Tensor) -> Tensor:
            return denoiser(noisy, level, condition)

        def target(noisy: Tensor, level: Tensor) -> Tensor:
            # Whatever it draws, the student draws again.
            with torch.random.fork_rng(devices=devices):
                return denoiser(noisy, level, condition)

        teacher = partial(self._teachers[0].to(clean.device), condition=condition) if self._teachers else None
        return consistency_losses(student, target, clean, noise, sigma, lower, huber=options.huber, teacher=teacher)
