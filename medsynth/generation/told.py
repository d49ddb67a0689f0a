"""What the network is told of edited scans besides their class: attributes that are wanted, or none."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsynth.generation.generate import name_values
from medsynth.generation.where import AttributeDraw, WhereFrom, plan_attributes
from medsynth.runs import Run


@dataclass(frozen=True, kw_only=True)
class Told:
    """Attributes of edited scans, drawn as `attributes` does, or all of them not known; `where` is what was wanted."""

    attributes: AttributeDraw | None = None
    where: str = ""

    def draw(self, label: str, seeds: Sequence[int]) -> list[tuple[str, ...]] | None:
        """Return the attributes of each scan as text, None where none is told."""
        return None if self.attributes is None else [self.attributes.draw(label, seed) for seed in seeds]

    def encode(self, drawn: Sequence[Sequence[str]] | None) -> Tensor | None:
        """Return what the network is told, `(N, attributes)`."""
        if self.attributes is None or drawn is None:
            return None
        return torch.tensor([self.attributes.encode(values) for values in drawn])

    def columns(self, label: str, seed: int) -> dict[str, str]:
        """Return what the network was told of a scan, by name."""
        if self.attributes is None:
            return {}
        names = [attribute.name for attribute in self.attributes.attributes]
        return name_values(names, self.attributes.draw(label, seed))

    def facts(self) -> dict[str, str]:
        """Return what a set's provenance says."""
        return {} if self.attributes is None else {"where": self.where, "where_from": self.attributes.source}


def plan_told(run: Run, where: str, source: WhereFrom, labels: Sequence[str], *, progress: bool = False) -> Told:
    """Return what edited scans of the classes `labels` are told: what `where` wants, nothing where it wants nothing.

    With `progress`, standard error says what a user should know of it. Raises `ConfigError` as `plan_attributes` does.
    """
    found = plan_attributes(run, where, source)
    if found is None or not where.strip():
        return Told()
    if progress and (notes := found.notes(labels)):
        print("\n".join(notes), file=sys.stderr, flush=True)
    return Told(attributes=found, where=where.strip())
