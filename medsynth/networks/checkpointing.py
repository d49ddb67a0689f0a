"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): memory of a training step for about a third more time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks.blocks import SpatialAttentionBlock
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(network: nn.Module) -> None:
    """Let the residual and attention blocks of `network` keep only what goes into them, while it is trained.

    The gradient computes the rest again, with the same dropout masks, and is the same. Names and values of the weights stay
    as they are, evaluation too.
    """
    for module in network.modules():
        for kind, frugal in _FRUGAL.items():
            if type(module) is kind:
                module.__class__ = frugal


class _ResidualBlock(DiffusionUNetResnetBlock):
    """MONAI's residual block, computed again for the gradient."""

    def forward(self, *inputs: Any) -> Tensor:
        return _compute(self, super().forward, *inputs)


class _AttentionBlock(SpatialAttentionBlock):
    """MONAI's attention block, computed again for the gradient."""

    def forward(self, *inputs: Any) -> Tensor:
        return _compute(self, super().forward, *inputs)


# A subclass and not a wrapper, in whose state_dict every weight would have another name.
_FRUGAL: dict[type[nn.Module], type[nn.Module]] = {
    DiffusionUNetResnetBlock: _ResidualBlock,
    SpatialAttentionBlock: _AttentionBlock,
}


def _compute(block: nn.Module, forward: Callable[..., Tensor], *inputs: Any) -> Tensor:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    result: Tensor = checkpoint(forward, *inputs, use_reentrant=False)
    return result
