"""Which attributes new scans have: `--where diameter_mm=6..10,texture=1`, from those that occur together in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from medsynth.cohorts.attributes import Attribute, AttributeTable, encode_values
from medsynth.errors import ConfigError
from medsynth.runs import Run
from medsynth.seeds import numpy_generator

WhereFrom = Literal["scans", "ranges"]
_UNKNOWN = 1e6  # squared distance of a scan whose value is not known: taken where there is no other
_BANDWIDTH = 0.1  # standard deviations by which continuous attributes are moved


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Values that an attribute may take: from `low` to `high`, or one of `categories`."""

    low: float = -math.inf
    high: float = math.inf
    categories: tuple[str, ...] = ()

    def holds(self, text: str) -> bool:
        """Return whether a training scan's value is one of these; one that is not known is none."""
        if not text:
            return False
        return text in self.categories if self.categories else self.low <= float(text) <= self.high


@dataclass(frozen=True, kw_only=True)
class AttributeDraw:
    """Draws the attributes of new scans; `where` says what is wanted of some, by name.

    `scans` takes those of a training scan of the class that has what is wanted: what occurs together stays together. `ranges`
    draws what is wanted evenly from its range and takes the rest from the nearest such scan. What is taken of a continuous
    attribute is moved by a tenth of its standard deviation or so, unless its values are whole numbers: a new scan should not
    carry the exact values of a patient, which can identify one.
    """

    table: AttributeTable
    where: Mapping[str, Wanted] = field(default_factory=dict)
    source: WhereFrom = "scans"

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """The attributes of the run."""
        return self.table.attributes

    def draw(self, label: str, seed: int) -> tuple[str, ...]:
        """Return the value of each attribute as text, empty where it stays unknown; a function of the class and the seed."""
        random = numpy_generator(seed, "attributes")
        rows = self.rows_of(label)
        if self.source == "scans" or not self.where:
            return self.move(self.table.values[rows[int(random.integers(len(rows)))]], random)
        values = {
            attribute.name: _draw_value(attribute, self.where[attribute.name], random)
            for attribute in self.attributes
            if attribute.name in self.where
        }
        nearest = min(rows, key=lambda row: (self._distance(row, values), random.random()))
        return tuple(
            values.get(attribute.name) or self._moved(attribute, value, random)
            for attribute, value in zip(self.attributes, self.table.values[nearest], strict=True)
        )

    def move(self, taken: Sequence[str], random: np.random.Generator) -> tuple[str, ...]:
        """Return values that were taken from a scan, moved a little as this class says."""
        return tuple(
            self._moved(attribute, value, random) for attribute, value in zip(self.attributes, taken, strict=True)
        )

    def encode(self, values: Sequence[str]) -> list[float]:
        """Return what the network is told."""
        return encode_values(self.attributes, values)

    def rows_of(self, label: str) -> list[int]:
        """Return the training scans of a class to draw from, those that have what is wanted if it is drawn from scans.

        Raises `ConfigError` where there are none.
        """
        rows = [row for row, name in enumerate(self.table.labels) if name == label]
        if self.source == "ranges":
            return rows
        names = [attribute.name for attribute in self.attributes]
        matching = [
            row
            for row in rows
            if all(wanted.holds(self.table.values[row][names.index(name)]) for name, wanted in self.where.items())
        ]
        if not matching:
            raise ConfigError(
                f"where: need a training scan of {label} that has all of it, got none of {len(rows)}; "
                "try wider ranges, or where_from ranges"
            )
        return matching

    def notes(self, labels: Sequence[str]) -> list[str]:
        """Return what a user should know: what was asked for that no training scan has, and from how few scans is drawn."""
        notes = []
        for attribute in self.attributes:
            wanted = self.where.get(attribute.name)
            if wanted is None or wanted.categories:
                continue
            if -math.inf < wanted.low < attribute.low or attribute.high < wanted.high < math.inf:
                asked = f"{wanted.low:g}..{wanted.high:g}".replace("-inf", "").replace("inf", "")
                known = f"{attribute.describe()} in training scans"
                notes.append(f"{attribute.name}: {asked} goes beyond {known}; what is made there is extrapolated")
        for label in labels:
            count = len(self.rows_of(label))
            if self.where and self.source == "scans" and count < 10:
                notes.append(
                    f"{label}: {count} training scans have what is wanted; theirs are the attributes that are drawn"
                )
        return notes

    def _moved(self, attribute: Attribute, text: str, random: np.random.Generator) -> str:
        """Return a value near that of a training scan, within what is wanted and what training scans have."""
        noise = random.normal(scale=_BANDWIDTH * attribute.std)
        if not text or attribute.categories or attribute.whole:
            return text
        wanted = self.where.get(attribute.name, Wanted())
        low, high = max(attribute.low, wanted.low), min(attribute.high, wanted.high)
        return f"{min(max(float(text) + noise, low), high):.4g}"

    def _distance(self, row: int, values: Mapping[str, str]) -> float:
        total = 0.0
        for attribute, text in zip(self.attributes, self.table.values[row], strict=True):
            if attribute.name in values:
                there, wanted = attribute.encode(text), attribute.encode(values[attribute.name])
                apart = float(there != wanted) if attribute.categories else (there - wanted) ** 2
                total += _UNKNOWN if math.isnan(there) else apart
        return total


def plan_attributes(run: Run, where: str, source: WhereFrom) -> AttributeDraw | None:
    """Return how attributes are drawn for a run's scans, None for a run without.

    Raises `ConfigError` that names the part of `where` which cannot be meant.
    """
    if not run.spec.attributes:
        if where.strip():
            raise ConfigError("where: need a run trained with condition.attributes, got one without; try without where")
        return None
    return AttributeDraw(table=run.attribute_table(), where=parse_where(where, run.spec.attributes), source=source)


def parse_where(text: str, attributes: Sequence[Attribute]) -> dict[str, Wanted]:
    """Return what `where` wants of each attribute that it names.

    A continuous attribute takes `6..10`, an open range such as `6..`, or one number; a categorical one takes `left`, or several
    as `left|right`. Raises `ConfigError` that names the part it cannot read.
    """
    known = {attribute.name: attribute for attribute in attributes}
    wanted: dict[str, Wanted] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or name not in known or name in wanted:
            raise ConfigError(
                f"where: need attribute=values once for each of {', '.join(known)}, got {part!r}; "
                f"try {_example(next(iter(known.values())))}"
            )
        wanted[name] = _parse_values(known[name], value, part)
    return wanted


def _parse_values(attribute: Attribute, value: str, part: str) -> Wanted:
    if attribute.categories:
        chosen = tuple(piece.strip() for piece in value.split("|"))
        if unknown := [piece for piece in chosen if piece not in attribute.categories]:
            raise ConfigError(
                f"where: need values of {attribute.name} ({attribute.describe()}), got {unknown[0]!r}; "
                f"try {_example(attribute)}"
            )
        return Wanted(categories=chosen)
    first, separator, last = value.partition("..")
    try:
        low = float(first) if first.strip() or not separator else -math.inf
        high = low if not separator else float(last) if last.strip() else math.inf
    except ValueError as error:
        raise ConfigError(f"where: need a number or a range, got {part!r}; try {_example(attribute)}") from error
    if math.isnan(low) or math.isnan(high) or low > high or (math.isinf(low) and math.isinf(high)):
        raise ConfigError(f"where: need a range with low <= high, got {part!r}; try {_example(attribute)}")
    return Wanted(low=low, high=high)


def _example(attribute: Attribute) -> str:
    values = attribute.categories[0] if attribute.categories else f"{attribute.low:g}..{attribute.high:g}"
    return f"{attribute.name}={values}"


def _draw_value(attribute: Attribute, wanted: Wanted, random: np.random.Generator) -> str:
    if wanted.categories:
        return wanted.categories[int(random.integers(len(wanted.categories)))]
    low = attribute.low if math.isinf(wanted.low) else wanted.low
    high = attribute.high if math.isinf(wanted.high) else wanted.high
    return f"{random.uniform(min(low, high), max(low, high)):.6g}"
