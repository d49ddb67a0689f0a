"""What a denoiser is told about a scan besides the noise level, and how it enters the network."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Maps a `Condition` to `(N, features)`; it takes the place of the UNet's class embedding.

    `parents[i]` is the class that class i resembles, or i itself. A class with a parent is embedded as its parent plus a row of
    its own, which begins at zero; above the noise level `gate_sigma` (0: never) it is its parent.
    """

    parents: Tensor

    def __init__(
        self,
        classes: int,
        augmentation_parameters: int,
        features: int,
        *,
        parents: Sequence[int] = (),
        gate_sigma: float = 0.0,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.gate_sigma = gate_sigma
        self.label = nn.Embedding(classes + 1, features)
        lineage = torch.tensor([*(parents or range(classes)), classes])
        self.register_buffer("parents", lineage, persistent=False)
        with torch.no_grad():
            self.label.weight[lineage != torch.arange(classes + 1)] = 0.0
        self.augmentation = (
            nn.Linear(augmentation_parameters, features, bias=False) if augmentation_parameters else None
        )
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(features, features))

    def forward(self, condition: Condition) -> Tensor:
        """Return the embedding of each row."""
        embedding = self.label(condition.label)
        parents = self.parents[condition.label]
        embedding = embedding + (parents != condition.label)[:, None] * self.label(parents)
        if self.augmentation is not None:
            embedding = embedding + self.augmentation(condition.augmentation)
        return self.mix(embedding)

    def gate(self, condition: Condition, sigma: Tensor) -> Condition:
        """Return the condition with each class replaced by its parent where `sigma` `(N,)` exceeds the gate."""
        if not self.gate_sigma:
            return condition
        label = torch.where(sigma > self.gate_sigma, self.parents[condition.label], condition.label)
        return condition._replace(label=label)

    def make(self, label: Tensor) -> Condition:
        """Return the condition of unaugmented scans of the given classes."""
        parameters = self.augmentation.in_features if self.augmentation is not None else 0
        return Condition(label, torch.zeros(len(label), parameters, device=label.device))

    def withhold_label(self, condition: Condition, where: Tensor | None = None) -> Condition:
        """Return the condition with the class withheld in the rows where `where` (bool `(N,)`) says so, or in all."""
        nothing = torch.full_like(condition.label, self.classes)
        return condition._replace(label=nothing if where is None else torch.where(where, nothing, condition.label))
