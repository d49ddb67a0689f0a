"""Attributes of scans as a model takes them: which columns, how they become numbers, and which values occur together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medsynth.cohorts.manifest import Cohort, Row
from medsynth.config import ConditionOptions, ReadingOptions
from medsynth.errors import ConfigError, DataError
from medsynth.scans import read_header

_CATEGORY = ":category"
_MOST_CATEGORIES = 64
# What the header of a scan says, for cohorts that have no such column.
_FROM_HEADERS = ("spacing_mm", "modality")
_RESERVED = ("synthetic", "seed", "run", "method", "donor", "given_from", "contains_real_pixels")


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One attribute of a scan, continuous or, where it has `categories`, one of them.

    `mean` and `std` are those of the training scans, `low` and `high` their range, `whole` says that they are whole numbers; all
    of a continuous one alone.
    """

    name: str
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    def encode(self, text: str) -> float:
        """Return what the network is told: the standardised value or the number of the category, NaN for an empty text.

        Raises `ValueError` for anything else that no training scan could have had.
        """
        if not text:
            return math.nan
        if self.categories:
            return float(self.categories.index(text))
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return (value - self.mean) / self.std

    def describe(self) -> str:
        """Return the values that occur in training."""
        return ", ".join(self.categories) if self.categories else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True, kw_only=True)
class AttributeTable:
    """The attributes of scans: `labels` `(rows,)` and `values` `(rows, attributes)` as text, empty where one is not known."""

    attributes: tuple[Attribute, ...]
    labels: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    def encode(self) -> np.ndarray:
        """Return `(rows, attributes)` float32, what the network is told of each scan."""
        return np.array([encode_values(self.attributes, row) for row in self.values], dtype=np.float32)

    def select(self, rows: Sequence[int] | np.ndarray) -> AttributeTable:
        """Return some of the rows, sorted by their content, so that their order says nothing of the scans."""
        chosen = sorted((self.labels[row], self.values[row]) for row in rows)
        return AttributeTable(
            attributes=self.attributes,
            labels=tuple(label for label, _ in chosen),
            values=tuple(values for _, values in chosen),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the attributes' own description."""
        rows = [[label, *values] for label, values in zip(self.labels, self.values, strict=True)]
        return {"columns": ["label", *(attribute.name for attribute in self.attributes)], "rows": rows}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], attributes: Sequence[Attribute]) -> AttributeTable:
        """Return the table that `as_dict` described; `ValueError` for one of other attributes or with impossible values."""
        if content["columns"] != ["label", *(attribute.name for attribute in attributes)]:
            raise ValueError("columns")
        rows = [tuple(map(str, row)) for row in content["rows"]]
        table = cls(
            attributes=tuple(attributes),
            labels=tuple(row[0] for row in rows),
            values=tuple(row[1:] for row in rows),
        )
        if any(len(row) != len(table.attributes) for row in table.values):
            raise ValueError("rows")
        table.encode()
        return table


def encode_values(attributes: Sequence[Attribute], values: Sequence[str]) -> list[float]:
    """Return what the network is told of one scan; `ValueError` as `Attribute.encode`."""
    return [attribute.encode(value) for attribute, value in zip(attributes, values, strict=True)]


def read_attributes(
    cohort: Cohort, options: ConditionOptions, *, reading: ReadingOptions = ReadingOptions()
) -> AttributeTable | None:
    """Return the attributes that `options` name of every scan of the cohort, in order; None if they name none.

    Kinds, means and ranges come from the training split alone; a category that occurs elsewhere only counts as not known.
    Raises `ConfigError` for a column that is not there or cannot be learnt, `DataError` for a number that is none.
    """
    names = parse_names(options.attributes)
    if not names:
        return None
    columns = {name: _column(cohort, name, reading) for name in names}
    train = [number for number, row in enumerate(cohort.rows) if row.split == "train"]
    attributes = tuple(
        _describe(name, [columns[name][row] for row in train], categorical=forced) for name, forced in names.items()
    )
    values = []
    for number, row in enumerate(cohort.rows):
        texts = [columns[name][number] for name in names]
        values.append(tuple(_known(attribute, text, row) for attribute, text in zip(attributes, texts, strict=True)))
    return AttributeTable(attributes=attributes, labels=tuple(row.label for row in cohort.rows), values=tuple(values))


def known_values(
    cohort: Cohort, attributes: Sequence[Attribute], *, reading: ReadingOptions = ReadingOptions()
) -> tuple[tuple[str, ...], ...]:
    """Return the value of each attribute of every scan as text, empty where the cohort does not know it.

    Categories that are none of the attribute's are not known. Raises `DataError` for a number that is none.
    """
    there = {name for row in cohort.rows for name in row.attributes} | set(_FROM_HEADERS)
    columns = [
        _column(cohort, each.name, reading) if each.name in there else [""] * len(cohort.rows) for each in attributes
    ]
    return tuple(
        tuple(_known(each, column[number], row) for each, column in zip(attributes, columns, strict=True))
        for number, row in enumerate(cohort.rows)
    )


def parse_names(text: str) -> dict[str, bool]:
    """Return the columns that `condition.attributes` names, and whether each is said to be a category."""
    names: dict[str, bool] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name = part.removesuffix(_CATEGORY)
        if name in names or name in _RESERVED or not name:
            raise ConfigError(f"condition.attributes: need each column once, and none of medsynth's own, got {part!r}")
        names[name] = part.endswith(_CATEGORY)
    return names


def _column(cohort: Cohort, name: str, reading: ReadingOptions) -> list[str]:
    """Return a column of the cohort, or what the headers of its scans say."""
    if any(name in row.attributes for row in cohort.rows):
        return [row.attributes.get(name, "").strip() for row in cohort.rows]
    if name in _FROM_HEADERS:
        headers = (read_header(cohort.file_of(row), reading=reading) for row in cohort.rows)
        return [f"{max(header.spacing):.6g}" if name == "spacing_mm" else header.modality or "" for header in headers]
    known = sorted({column for row in cohort.rows for column in row.attributes} | set(_FROM_HEADERS))
    raise ConfigError(f"condition.attributes: need columns of the cohort ({', '.join(known)}), got {name!r}")


def _describe(name: str, texts: Sequence[str], *, categorical: bool) -> Attribute:
    """Return the attribute that the training scans' values make."""
    known = [text for text in texts if text]
    numbers = [value for value in map(_number, known) if value is not None]
    if not categorical and known and len(numbers) == len(known):
        low, high = min(numbers), max(numbers)
        if low == high:
            raise ConfigError(
                f"condition.attributes: need an attribute that differs between training scans, got {name} = {low:g} "
                "everywhere; try without it"
            )
        return Attribute(
            name=name,
            mean=float(np.mean(numbers)),
            std=float(np.std(numbers)),
            low=float(low),
            high=float(high),
            whole=all(value == round(value) for value in numbers),
        )
    categories = tuple(sorted(set(known)))
    if len(categories) < 2:
        raise ConfigError(
            f"condition.attributes: need an attribute that differs between training scans, got {len(categories)} value of "
            f"{name}; try without it"
        )
    if len(categories) > _MOST_CATEGORIES:
        raise ConfigError(
            f"condition.attributes: need at most {_MOST_CATEGORIES} categories, got {len(categories)} of {name}, which may name "
            "patients; try a column of numbers or of few values"
        )
    return Attribute(name=name, categories=categories)


def _known(attribute: Attribute, text: str, row: Row) -> str:
    if attribute.categories:
        return text if text in attribute.categories else ""
    if text and _number(text) is None:
        raise DataError(f"{row.path}: need a number for {attribute.name}, got {text!r}; try an empty cell")
    return text


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
