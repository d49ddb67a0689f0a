"""What a denoiser is told about a scan besides the noise level, and how it enters the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Periods of the Fourier features of a continuous attribute, in its standard deviations: from its whole range to a detail of it.
_PERIODS = (16.0, 8.0, 4.0, 2.0)


class Condition(NamedTuple):
    """Condition of a batch.

    `label` is `(N,)` int64, a class index, or the number of classes where the class is withheld; `augmentation` is
    `(N, parameters)`, the parameters of the change applied to each scan, zero where there was none. `attributes` is
    `(N, attributes)` float32, standardised values and numbers of categories, NaN where one is not known; None of a network that
    has none. `given` is `(N, 2 C, *spatial)`: values in [-1, 1] of those channels that are known, and 1 where they are, else 0;
    None where nothing is.
    """

    label: Tensor
    augmentation: Tensor
    attributes: Tensor | None = None
    given: Tensor | None = None

    def rows(self, chosen: slice | Tensor) -> Condition:
        """Return the condition of some scans of the batch."""
        return self._change(lambda values: values[chosen])

    def to(self, device: torch.device | str) -> Condition:
        """Return the condition on a device."""
        return self._change(lambda values: values.to(device))

    def _change(self, change: Callable[[Tensor], Tensor]) -> Condition:
        attributes = None if self.attributes is None else change(self.attributes)
        given = None if self.given is None else change(self.given)
        return Condition(change(self.label), change(self.augmentation), attributes, given)


class AttributeEmbedding(nn.Module):
    """Maps `(N, attributes)` to `(N, features)`: the sum of what each attribute adds.

    `categories[i]` is how many values attribute i has, 0 where it is continuous: then a linear map of its value and of Fourier
    features. What is not known (NaN) has a row of its own.
    """

    periods: Tensor

    def __init__(self, categories: Sequence[int], features: int) -> None:
        super().__init__()
        self.register_buffer("periods", torch.tensor(_PERIODS), persistent=False)
        width = 1 + 2 * len(_PERIODS)
        self.each = nn.ModuleList(
            nn.Embedding(count, features) if count else nn.Linear(width, features) for count in categories
        )
        self.unknown = nn.Parameter(torch.zeros(len(categories), features))

    def forward(self, attributes: Tensor) -> Tensor:
        """Return the embedding of each row."""
        parts = []
        for module, values, unknown in zip(self.each, attributes.unbind(1), self.unknown, strict=True):
            numbers = values.nan_to_num(0.0)
            known = module(numbers.long() if isinstance(module, nn.Embedding) else self._features(numbers))
            parts.append(torch.where(values.isnan()[:, None], unknown, known))
        return torch.stack(parts).sum(0)

    def _features(self, values: Tensor) -> Tensor:
        angles = 2 * torch.pi * values[:, None] / self.periods
        return torch.cat([values[:, None], angles.sin(), angles.cos()], dim=1)


class ConditionEmbedding(nn.Module):
    """Maps a `Condition` to `(N, features)`; it takes the place of the UNet's class embedding.

    `parents[i]` is the class that class i resembles, or i itself. A class with a parent is embedded as its parent plus a row of
    its own, which begins at zero; above the noise level `gate_sigma` (0: never) it is its parent. `categories` are those of
    `AttributeEmbedding`. Given channels enter the network beside the noisy ones and not here.
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
        categories: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.classes = classes
        self.gate_sigma = gate_sigma
        self.categories = tuple(categories)
        self.label = nn.Embedding(classes + 1, features)
        lineage = torch.tensor([*(parents or range(classes)), classes])
        self.register_buffer("parents", lineage, persistent=False)
        with torch.no_grad():
            self.label.weight[lineage != torch.arange(classes + 1)] = 0.0
        self.augmentation = (
            nn.Linear(augmentation_parameters, features, bias=False) if augmentation_parameters else None
        )
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(features, features))
        self.attributes = AttributeEmbedding(categories, features) if categories else None

    def forward(self, condition: Condition) -> Tensor:
        """Return the embedding of each row."""
        embedding = self.label(condition.label)
        parents = self.parents[condition.label]
        embedding = embedding + (parents != condition.label)[:, None] * self.label(parents)
        if self.augmentation is not None:
            embedding = embedding + self.augmentation(condition.augmentation)
        if self.attributes is not None:
            embedding = embedding + self.attributes(self._attributes_of(condition))
        return self.mix(embedding)

    def gate(self, condition: Condition, sigma: Tensor) -> Condition:
        """Return the condition with each class replaced by its parent where `sigma` `(N,)` exceeds the gate."""
        if not self.gate_sigma:
            return condition
        label = torch.where(sigma > self.gate_sigma, self.parents[condition.label], condition.label)
        return condition._replace(label=label)

    def make(self, label: Tensor, attributes: Tensor | None = None, given: Tensor | None = None) -> Condition:
        """Return the condition of unaugmented scans of the given classes; attributes that are not given are not known."""
        parameters = self.augmentation.in_features if self.augmentation is not None else 0
        condition = Condition(label, torch.zeros(len(label), parameters, device=label.device), attributes, given)
        return condition._replace(attributes=self._attributes_of(condition)) if self.categories else condition

    def withhold(self, condition: Condition, where: Tensor | None = None) -> Condition:
        """Return the condition with class and attributes withheld in the rows where `where` (bool `(N,)`) says so, or in all."""
        where = torch.ones_like(condition.label, dtype=torch.bool) if where is None else where
        label = torch.where(where, self.classes, condition.label)
        if not self.categories:
            return condition._replace(label=label)
        attributes = self._attributes_of(condition).masked_fill(where[:, None], torch.nan)
        return condition._replace(label=label, attributes=attributes)

    def _attributes_of(self, condition: Condition) -> Tensor:
        if condition.attributes is not None:
            return condition.attributes
        return torch.full((len(condition.label), len(self.categories)), torch.nan, device=condition.label.device)


def give_channels(scans: Tensor, known: Tensor) -> Tensor:
    """Return `Condition.given` of scans `(N, C, *spatial)` whose channels `known` (bool `(N, C)`) are given."""
    where = known.to(scans.dtype).reshape(*known.shape, *[1] * (scans.ndim - 2)).expand_as(scans)
    return torch.cat([scans * where, where], dim=1)


def draw_given(count: int, channels: int, probability: float, generator: torch.Generator) -> Tensor:
    """Return which channels are given of each scan, bool `(count, channels)`: with the probability some, but never all."""
    device = generator.device
    order = torch.rand(count, channels, generator=generator, device=device).argsort(1).argsort(1)
    number = 1 + torch.floor(torch.rand(count, 1, generator=generator, device=device) * (channels - 1))
    chosen = torch.rand(count, 1, generator=generator, device=device) < probability
    return (order < number) & chosen & torch.tensor(channels > 1, device=device)
