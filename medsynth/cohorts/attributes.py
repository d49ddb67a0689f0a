"""Attributes of scans for a model: which columns, how they become numbers, and which values occur together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medsynth.cohorts.manifest import Cohort, Row
from medsynth.config import ConditionOptions, Loading
from medsynth.errors import ConfigError, DataError
from medsynth.scans import read_header

_CATEGORY = ":category"
_MOST_CATEGORIES = 64
_FROM_HEADERS = ("spacing_mm", "modality")  # read from the files of cohorts that have no such column
_RESERVED = (
    "synthetic",
    "seed",
    "run",
    "method",
    "donor",
    "observed_from",
    "region_from",
    "contains_real_pixels",
    "text",
)


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One attribute of a scan: continuous, or one of `categories`.

    For a continuous one, `mean` and `std` are those of the training scans, `low` and `high` their range, and `whole`
    says that they are whole numbers.
    """

    name: str
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    def encode(self, text: str) -> float:
        """Return what the network receives: the standardised value or the number of the category, NaN for an empty text.

        Raises `ValueError` for anything else that is not a finite number, or not among the categories.
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
    """The attributes of scans: `labels` `(rows,)` and `values` `(rows, attributes)` as text, empty if unknown."""

    attributes: tuple[Attribute, ...]
    labels: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    def encode(self) -> np.ndarray:
        """Return `(rows, attributes)` float32, what the network receives for each scan."""
        return np.array([encode_values(self.attributes, row) for row in self.values], dtype=np.float32)

    def select(self, rows: Sequence[int] | np.ndarray) -> AttributeTable:
        """Return some of the rows, sorted by their content, so that their order reveals nothing about the scans."""
        chosen = sorted((self.labels[row], self.values[row]) for row in rows)
        labels, values = tuple(label for label, _ in chosen), tuple(values for _, values in chosen)
        return AttributeTable(attributes=self.attributes, labels=labels, values=values)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the description of the attributes."""
        rows = [[label, *values] for label, values in zip(self.labels, self.values, strict=True)]
        return {"columns": ["label", *(attribute.name for attribute in self.attributes)], "rows": rows}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], attributes: Sequence[Attribute]) -> AttributeTable:
        """Return the table that `as_dict` described; `ValueError` for other attributes or impossible values."""
        if content["columns"] != ["label", *(attribute.name for attribute in attributes)]:
            raise ValueError("columns")
        rows = [tuple(map(str, row)) for row in content["rows"]]
        if any(len(row) != len(attributes) + 1 for row in rows):
            raise ValueError("rows")
        labels, values = tuple(row[0] for row in rows), tuple(row[1:] for row in rows)
        table = cls(attributes=tuple(attributes), labels=labels, values=values)
        table.encode()
        return table


def encode_values(attributes: Sequence[Attribute], values: Sequence[str]) -> list[float]:
    """Return what the network receives for one scan; `ValueError` as `Attribute.encode`."""
    return [attribute.encode(value) for attribute, value in zip(attributes, values, strict=True)]


def read_attributes(
    cohort: Cohort, condition: ConditionOptions, *, loading: Loading = Loading()
) -> AttributeTable | None:
    """Return the attributes that `condition` names, of every scan of the cohort in order; None if it names none.

    Kinds, means and ranges come from the training split only; a category that occurs only elsewhere counts as unknown.
    Raises `ConfigError` for a column that is missing or cannot be learnt, `DataError` for a cell that should be a
    number.
    """
    names = parse_names(condition.attributes)
    if not names:
        return None
    columns, attributes = [], []
    for name, forced in names.items():
        column = _column(cohort, name, loading)
        if column is None:
            known = sorted({name for row in cohort.rows for name in row.attributes} | set(_FROM_HEADERS))
            raise ConfigError(f"condition.attributes: need columns of the cohort ({', '.join(known)}), got {name!r}")
        columns.append(column)
        train = [text for text, row in zip(column, cohort.rows, strict=True) if row.split == "train"]
        attributes.append(_describe(name, train, categorical=forced))
    values = _known_values(cohort, attributes, columns)
    return AttributeTable(attributes=tuple(attributes), labels=tuple(row.label for row in cohort.rows), values=values)


def known_values(
    cohort: Cohort, attributes: Sequence[Attribute], *, loading: Loading = Loading()
) -> tuple[tuple[str, ...], ...]:
    """Return the value of each attribute of every scan as text, empty if the cohort does not have it.

    Other categories than the attribute's count as unknown. Raises `DataError` for a cell that should be a number.
    """
    return _known_values(cohort, attributes, [_column(cohort, each.name, loading) for each in attributes])


def _known_values(
    cohort: Cohort, attributes: Sequence[Attribute], columns: Sequence[list[str] | None]
) -> tuple[tuple[str, ...], ...]:
    known = [
        [_known(each, text, row) for text, row in zip(column or [""] * len(cohort.rows), cohort.rows, strict=True)]
        for each, column in zip(attributes, columns, strict=True)
    ]
    return tuple(zip(*known, strict=True)) if known else ((),) * len(cohort.rows)


def parse_names(text: str) -> dict[str, bool]:
    """Return the columns that `condition.attributes` names, and whether each is declared a category."""
    names: dict[str, bool] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name = part.removesuffix(_CATEGORY)
        if name in names or name in _RESERVED or not name:
            raise ConfigError(f"condition.attributes: need each column once, and none of medsynth's own, got {part!r}")
        names[name] = part.endswith(_CATEGORY)
    return names


def _column(cohort: Cohort, name: str, loading: Loading) -> list[str] | None:
    """Return a column of the cohort, or what the headers of its scans say; None if there is neither."""
    if any(name in row.attributes for row in cohort.rows):
        return [row.attributes.get(name, "").strip() for row in cohort.rows]
    if name not in _FROM_HEADERS:
        return None
    headers = (read_header(cohort.file_of(row), loading=loading) for row in cohort.rows)
    return [f"{max(header.spacing):.6g}" if name == "spacing_mm" else header.modality or "" for header in headers]


def _describe(name: str, texts: Sequence[str], *, categorical: bool) -> Attribute:
    """Return the attribute that these values of the training scans make."""
    known = [text for text in texts if text]
    numbers = [value for value in map(_number, known) if value is not None]
    need = "condition.attributes: need an attribute that differs between training scans"
    if not categorical and known and len(numbers) == len(known):
        low, high = min(numbers), max(numbers)
        if low == high:
            raise ConfigError(f"{need}, got {name} = {low:g} everywhere; try without it")
        whole = all(value == round(value) for value in numbers)
        mean, std = float(np.mean(numbers)), float(np.std(numbers))
        return Attribute(name=name, mean=mean, std=std, low=low, high=high, whole=whole)
    categories = tuple(sorted(set(known)))
    if len(categories) < 2:
        raise ConfigError(f"{need}, got {len(categories)} value of {name}; try without it")
    if len(categories) > _MOST_CATEGORIES:
        raise ConfigError(
            f"condition.attributes: need at most {_MOST_CATEGORIES} categories, got {len(categories)} of {name}, which may "
            "name patients; try a column of numbers or of few values"
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
