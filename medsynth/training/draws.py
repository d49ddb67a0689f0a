"""Noise whose every draw is known by seed, step and place, and the optimiser: what all trainings share inside a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medsynth.config import OptimiserOptions
from medsynth.seeds import derive_seed


def place_noise(like: Tensor, places: Sequence[int], seed: int, *keys: int | str) -> Tensor:
    """Return standard normal noise like `like`; each row's depends on the seed, the keys and its place."""
    generator = torch.Generator(like.device)
    noise = torch.empty_like(like)
    for row, place in zip(noise, places, strict=True):
        generator.manual_seed(derive_seed(seed, "noise", *keys, place))
        row.normal_(generator=generator)
    return noise


def make_optimiser(parameters: Iterable[nn.Parameter], options: OptimiserOptions, total_steps: int) -> dict[str, Any]:
    """Return AdamW over those parameters that are trained, and its learning-rate schedule, as Lightning wants them."""
    optimiser = torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=options.learning_rate,
        betas=options.betas,
        weight_decay=options.weight_decay,
        fused=True,
    )

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, options.warmup_steps))
        if options.schedule == "constant":
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total_steps))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
