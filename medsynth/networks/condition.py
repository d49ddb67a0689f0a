"""What a denoiser is told about a scan besides the noise level, and how it enters the network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Condition(NamedTuple):
    """Condition of a batch.

    `label` is `(N,)` int64, a class index, or the number of classes where the class is withheld; `augmentation` is
    `(N, parameters)`, the parameters of the change applied to each scan, zero where there was none.
    """

    label: Tensor
    augmentation: Tensor


class ConditionEmbedding(nn.Module):
    """Maps a `Condition` to `(N, features)`; it takes the place of the UNet's class embedding."""

    def __init__(self, classes: int, augmentation_parameters: int, features: int) -> None:
        super().__init__()
        self.classes = classes
        self.label = nn.Embedding(classes + 1, features)
        self.augmentation = (
            nn.Linear(augmentation_parameters, features, bias=False) if augmentation_parameters else None
        )
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(features, features))

    def forward(self, condition: Condition) -> Tensor:
        """Return the embedding of each row."""
        embedding = self.label(condition.label)
        if self.augmentation is not None:
            embedding = embedding + self.augmentation(condition.augmentation)
        return self.mix(embedding)

    def make(self, label: Tensor) -> Condition:
        """Return the condition of unaugmented scans of the given classes."""
        parameters = self.augmentation.in_features if self.augmentation is not None else 0
        return Condition(label, torch.zeros(len(label), parameters, device=label.device))

    def withhold_label(self, condition: Condition, where: Tensor | None = None) -> Condition:
        """Return the condition with the class withheld in the rows where `where` (bool `(N,)`) says so, or in all."""
        nothing = torch.full_like(condition.label, self.classes)
        return condition._replace(label=nothing if where is None else torch.where(where, nothing, condition.label))
