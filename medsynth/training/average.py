"""The moving average of the weights, which is what a run keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def average_share(decay: float, count: int) -> float:
    """Return how much of the current weights enters the average after `count` + 1 updates: all at first, 1 - `decay` in the end.

    The decay rises from 0.1 to `decay` as (1 + count) / (10 + count), so that the average soon forgets where training began.
    """
    return 1.0 if count == 0 else 1 - min(decay, (1 + count) / (10 + count))


class MovingAverage(AveragedModel):
    """Exponential moving average of a module's weights; buffers are those of the module.

    torch's own counts on the device and asks for the count several times a step, for which the host must wait until the device
    has caught up. This one counts on the host; what it stores is what torch's stores.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=False)
        self.requires_grad_(False)
        self._decay = decay
        self._count: int | None = None  # not known before weights are loaded, or after

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model`; the first time it takes them."""
        if self._count is None:
            self._count = int(self.n_averaged)
        share = average_share(self._decay, self._count)
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), share)
        for kept, current in zip(self.module.buffers(), model.buffers(), strict=True):
            kept.copy_(current)
        self._count += 1
        self.n_averaged += 1

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._count = None  # of this module or of one around it
        super()._load_from_state_dict(*args, **kwargs)
