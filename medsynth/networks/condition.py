"""The condition of a denoiser, everything besides the noise level, and how it enters the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Periods of the Fourier features of a continuous attribute, in its standard deviations: from its whole range to a detail of it.
_PERIODS = (16.0, 8.0, 4.0, 2.0)


class Condition(NamedTuple):
    """Condition of a batch.

    `label` is `(N,)` int64, a class index, or the number of classes where the class is withheld. `augmentation` is
    `(N, parameters)`, the parameters of the change applied to each scan, zero where there was none. `attributes` is
    `(N, attributes)` float32: standardised values and indices of categories, NaN where unknown. `observed` is
    `(N, 2 C, *spatial)`: the observed channels' values in [-1, 1], then 1 where a channel is observed and 0 elsewhere. `text` is
    `(N, D)` float32, the encoded sentence of each scan, NaN where there is none. The last three are None for networks without.
    """

    label: Tensor
    augmentation: Tensor
    attributes: Tensor | None = None
    observed: Tensor | None = None
    text: Tensor | None = None

    def rows(self, chosen: slice | Tensor) -> Condition:
        """Return the condition of some scans of the batch."""
        return self._change(lambda values: values[chosen])

    def to(self, device: torch.device | str) -> Condition:
        """Return the condition on a device."""
        return self._change(lambda values: values.to(device))

    def _change(self, change: Callable[[Tensor], Tensor]) -> Condition:
        return Condition._make(None if values is None else change(values) for values in self)


class ConditionMaker:
    """Makes conditions for a model with these numbers of classes, augmentation parameters, attributes and text dimensions."""

    def __init__(
        self, classes: int, *, augmentation_parameters: int = 0, attribute_count: int = 0, text_dimensions: int = 0
    ) -> None:
        self.classes = classes
        self.augmentation_parameters = augmentation_parameters
        self.attribute_count = attribute_count
        self.text_dimensions = text_dimensions

    def make(
        self,
        label: Tensor,
        attributes: Tensor | None = None,
        observed: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Condition:
        """Return the condition of unaugmented scans of the given classes; attributes and text default to unknown."""
        parameters = torch.zeros(len(label), self.augmentation_parameters, device=label.device)
        return self.complete(Condition(label, parameters, attributes, observed, text))

    def complete(self, condition: Condition) -> Condition:
        """Return the condition with NaN for attributes and text that the model takes and the condition lacks."""
        rows, device = len(condition.label), condition.label.device
        if self.attribute_count and condition.attributes is None:
            condition = condition._replace(
                attributes=torch.full((rows, self.attribute_count), torch.nan, device=device)
            )
        if self.text_dimensions and condition.text is None:
            condition = condition._replace(text=torch.full((rows, self.text_dimensions), torch.nan, device=device))
        return condition

    def withhold(self, condition: Condition, where: Tensor | None = None) -> Condition:
        """Return the condition without class, attributes and text in the rows `where` (bool `(N,)`), or in all rows."""
        where = torch.ones_like(condition.label, dtype=torch.bool) if where is None else where
        condition = self.complete(condition)
        return condition._replace(
            label=torch.where(where, self.classes, condition.label),
            attributes=_hide(condition.attributes, where),
            text=_hide(condition.text, where),
        )


class AttributeEmbedding(nn.Module):
    """Maps `(N, attributes)` to `(N, features)`: the sum of one embedding for each attribute.

    `categories[i]` is the number of categories of attribute i, 0 for a continuous one, which enters as a linear map of its value
    and of Fourier features. A missing value (NaN) has a learnt row.
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


class TextEmbedding(nn.Module):
    """Maps encoded sentences `(N, D)` to `(N, features)`, linearly; a missing sentence (NaN) has a learnt row."""

    def __init__(self, dimensions: int, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dimensions, features)
        self.unknown = nn.Parameter(torch.zeros(features))

    def forward(self, text: Tensor) -> Tensor:
        """Return the embedding of each row."""
        missing = text.isnan().any(1, keepdim=True)
        return torch.where(missing, self.unknown, self.linear(text.nan_to_num(0.0)))


class ConditionEmbedding(nn.Module, ConditionMaker):
    """Maps a `Condition` to `(N, features)` in place of the UNet's class embedding, and makes the conditions of its denoiser.

    `categories` are those of `AttributeEmbedding`, `text` is the number of dimensions of encoded sentences, 0 for none. Observed
    channels enter the network beside the noisy ones, not here.
    """

    def __init__(
        self, classes: int, augmentation_parameters: int, features: int, categories: Sequence[int] = (), text: int = 0
    ) -> None:
        nn.Module.__init__(self)
        ConditionMaker.__init__(
            self,
            classes,
            augmentation_parameters=augmentation_parameters,
            attribute_count=len(categories),
            text_dimensions=text,
        )
        self.label = nn.Embedding(classes + 1, features)
        self.augmentation = (
            nn.Linear(augmentation_parameters, features, bias=False) if augmentation_parameters else None
        )
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(features, features))
        self.attributes = AttributeEmbedding(categories, features) if categories else None
        self.text = TextEmbedding(text, features) if text else None

    def forward(self, condition: Condition) -> Tensor:
        """Return the embedding of each row."""
        condition = self.complete(condition)
        embedding: Tensor = self.label(condition.label)
        if self.augmentation is not None:
            embedding = embedding + self.augmentation(condition.augmentation)
        if self.attributes is not None:
            embedding = embedding + self.attributes(condition.attributes)
        if self.text is not None:
            embedding = embedding + self.text(condition.text)
        mixed: Tensor = self.mix(embedding)
        return mixed


def observe_channels(scans: Tensor, known: Tensor) -> Tensor:
    """Return `Condition.observed` of scans `(N, C, *spatial)` of which the channels `known` (bool `(N, C)`) are observed."""
    where = known.to(scans.dtype).reshape(*known.shape, *[1] * (scans.ndim - 2)).expand_as(scans)
    return torch.cat([scans * where, where], dim=1)


def draw_observed(count: int, channels: int, probability: float, generator: torch.Generator) -> Tensor:
    """Return which channels of each scan are observed, bool `(count, channels)`: with `probability` some of them, never all."""
    device = generator.device
    order = torch.rand(count, channels, generator=generator, device=device).argsort(1).argsort(1)
    number = 1 + torch.floor(torch.rand(count, 1, generator=generator, device=device) * (channels - 1))
    chosen = torch.rand(count, 1, generator=generator, device=device) < probability
    return (order < number) & chosen & torch.tensor(channels > 1, device=device)


def _hide(values: Tensor | None, where: Tensor) -> Tensor | None:
    return None if values is None else values.masked_fill(where[:, None], torch.nan)
