"""What new scans are conditioned on besides their class: `--where diameter_mm=6..10,texture=1`, and `--text`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medsynth.cohorts.attributes import Attribute, AttributeTable, encode_values
from medsynth.errors import ConfigError
from medsynth.runs import Run
from medsynth.seeds import numpy_generator

WhereFrom = Literal["scans", "ranges"]
_UNKNOWN = 1e6  # squared distance of a scan whose value is unknown: taken only if there is no other
_BANDWIDTH = 0.1  # standard deviations by which continuous attributes are moved
_FEW = 10  # training scans below which it is worth saying from how few attributes are drawn


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Values that an attribute may take: from `low` to `high`, or one of `categories`."""

    low: float = -math.inf
    high: float = math.inf
    categories: tuple[str, ...] = ()

    def holds(self, text: str) -> bool:
        """Return whether a training scan has one of these values; False if its value is unknown."""
        if not text:
            return False
        return text in self.categories if self.categories else self.low <= float(text) <= self.high


@dataclass(frozen=True, kw_only=True)
class AttributeDraw:
    """Draws the attributes of new scans, none at all without a `table`.

    `where` is the text of the option, `wanted` what it says, by attribute.
    `scans` takes the attributes of a training scan of the class that fits, so that combinations stay realistic. `ranges` draws
    the wanted ones evenly from their ranges and takes the others from the nearest training scan. A continuous attribute that is
    taken from a scan is moved by about a tenth of its standard deviation, unless its values are whole numbers: the exact values
    of a patient could identify one.
    """

    table: AttributeTable | None = None
    where: str = ""
    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    source: WhereFrom = "scans"

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """The attributes that are drawn."""
        return () if self.table is None else self.table.attributes

    def draw(self, label: str, seed: int) -> tuple[str, ...]:
        """Return the value of each attribute as text, empty if unknown; a function of the class and the seed."""
        if self.table is None:
            return ()
        random = numpy_generator(seed, "attributes")
        rows = self.rows_of(label)
        if self.source == "scans" or not self.wanted:
            return self.move(self.table.values[rows[int(random.integers(len(rows)))]], random)
        asked = [attribute for attribute in self.attributes if attribute.name in self.wanted]
        values = {each.name: _draw_value(each, self.wanted[each.name], random) for each in asked}
        others = self.table.values
        nearest = min(rows, key=lambda row: (self._distance(others[row], values), random.random()))
        taken = zip(self.attributes, others[nearest], strict=True)
        return tuple(values.get(each.name) or self._moved(each, text, random) for each, text in taken)

    def move(self, taken: Sequence[str], random: np.random.Generator) -> tuple[str, ...]:
        """Return the values of a real scan, the continuous ones moved a little."""
        return tuple(self._moved(each, text, random) for each, text in zip(self.attributes, taken, strict=True))

    def encode(self, drawn: Sequence[Sequence[str]]) -> Tensor | None:
        """Return the condition `(N, attributes)` of drawn values."""
        return torch.tensor([encode_values(self.attributes, each) for each in drawn]) if self.attributes else None

    def columns(self, values: Sequence[str]) -> dict[str, str]:
        """Return the known values by the name of their attribute."""
        return {each.name: value for each, value in zip(self.attributes, values, strict=True) if value}

    def facts(self) -> dict[str, str]:
        """Return what a set's provenance says."""
        return {} if self.table is None else {"where": self.where, "where_from": self.source}

    def rows_of(self, label: str) -> list[int]:
        """Return the training scans of a class to draw from: with `scans`, those that fit; `ConfigError` if there are none."""
        assert self.table is not None
        rows = [row for row, name in enumerate(self.table.labels) if name == label]
        if self.source == "ranges":
            return rows
        matching = rows
        for place, attribute in enumerate(self.attributes):
            if wanted := self.wanted.get(attribute.name):
                matching = [row for row in matching if wanted.holds(self.table.values[row][place])]
        if not matching:
            raise ConfigError(
                f"where: need a training scan of {label} that fits, got none of {len(rows)}; "
                "try wider ranges, or where_from ranges"
            )
        return matching

    def notes(self, labels: Sequence[str]) -> list[str]:
        """Return what a user should know: wanted values beyond the training scans, and classes with few scans that fit."""
        notes = []
        for attribute in self.attributes:
            wanted = self.wanted.get(attribute.name)
            if wanted is None or wanted.categories:
                continue
            if -math.inf < wanted.low < attribute.low or attribute.high < wanted.high < math.inf:
                asked = f"{wanted.low:g}..{wanted.high:g}".replace("-inf", "").replace("inf", "")
                known = f"{attribute.describe()} in training scans"
                notes.append(f"{attribute.name}: {asked} goes beyond {known}; such scans are extrapolated")
        if self.wanted and self.source == "scans":
            for label in labels:
                if (count := len(self.rows_of(label))) < _FEW:
                    notes.append(f"{label}: only {count} training scans fit; new scans take their attributes")
        return notes

    def _moved(self, attribute: Attribute, text: str, random: np.random.Generator) -> str:
        """Return a value near that of a training scan, within the wanted range and that of the training scans."""
        noise = random.normal(scale=_BANDWIDTH * attribute.std)
        if not text or attribute.categories or attribute.whole:
            return text
        wanted = self.wanted.get(attribute.name, Wanted())
        low, high = max(attribute.low, wanted.low), min(attribute.high, wanted.high)
        return f"{min(max(float(text) + noise, low), high):.4g}"

    def _distance(self, texts: Sequence[str], values: Mapping[str, str]) -> float:
        total = 0.0
        for attribute, text in zip(self.attributes, texts, strict=True):
            if attribute.name in values:
                there, wanted = attribute.encode(text), attribute.encode(values[attribute.name])
                apart = float(there != wanted) if attribute.categories else (there - wanted) ** 2
                total += _UNKNOWN if math.isnan(there) else apart
        return total


def plan_attributes(run: Run, where: str, source: WhereFrom) -> AttributeDraw:
    """Return how the attributes of a run's scans are drawn; none for a run without attributes.

    Raises `ConfigError` that names the part of `where` it cannot read.
    """
    if not run.spec.attributes:
        if where.strip():
            raise ConfigError("where: this run was trained without condition.attributes; leave out --where")
        return AttributeDraw()
    wanted = parse_where(where, run.spec.attributes)
    return AttributeDraw(table=run.attribute_table(), where=where.strip(), wanted=wanted, source=source)


def encode_text(run: Run, text: str) -> Tensor | None:
    """Return the condition `(1, D)` of a sentence, None for no sentence.

    Raises `ConfigError` for a run without text, and for a sentence of which the run knows no word.
    """
    if not text.strip():
        return None
    if not run.spec.text:
        raise ConfigError(
            "text: this run was trained without condition.text; leave out --text, or train with --condition.text COLUMN"
        )
    encoding = run.text_encoding()
    vector = encoding.encode([text])
    # Groups of characters of almost any sentence are known; only ASCII text surely separates its words.
    known = encoding.words.tolist()
    strange = known and text.isascii() and set(re.findall(r"\w\w+", text.lower())).isdisjoint(known)
    if strange or np.isnan(vector).any():
        raise ConfigError(
            f"text: this run knows no word of {text.strip()[:60]!r}; use words of its training sentences, such as "
            f"{', '.join(known[:: max(1, len(known) // 5)][:5])}"
        )
    return torch.from_numpy(vector)


def parse_where(text: str, attributes: Sequence[Attribute]) -> dict[str, Wanted]:
    """Return what `where` says of each attribute that it names.

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
        attribute, example = known[name], _example(known[name])
        if attribute.categories:
            chosen = tuple(piece.strip() for piece in value.split("|"))
            if unknown := [piece for piece in chosen if piece not in attribute.categories]:
                asked = f"{attribute.name} ({attribute.describe()})"
                raise ConfigError(f"where: need values of {asked}, got {unknown[0]!r}; try {example}")
            wanted[name] = Wanted(categories=chosen)
            continue
        first, separator, last = value.partition("..")
        try:
            low = float(first) if first.strip() or not separator else -math.inf
            high = low if not separator else float(last) if last.strip() else math.inf
        except ValueError as error:
            raise ConfigError(f"where: need a number or a range, got {part!r}; try {example}") from error
        if math.isnan(low) or math.isnan(high) or low > high or (math.isinf(low) and math.isinf(high)):
            raise ConfigError(f"where: need a range with low <= high, got {part!r}; try {example}")
        wanted[name] = Wanted(low=low, high=high)
    return wanted


def _example(attribute: Attribute) -> str:
    values = attribute.categories[0] if attribute.categories else f"{attribute.low:g}..{attribute.high:g}"
    return f"{attribute.name}={values}"


def _draw_value(attribute: Attribute, wanted: Wanted, random: np.random.Generator) -> str:
    if wanted.categories:
        return wanted.categories[int(random.integers(len(wanted.categories)))]
    low = attribute.low if math.isinf(wanted.low) else wanted.low
    high = attribute.high if math.isinf(wanted.high) else wanted.high
    return f"{random.uniform(min(low, high), max(low, high)):.6g}"
