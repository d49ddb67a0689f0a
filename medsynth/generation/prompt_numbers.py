"""Numbers with units as a text states them, such as `6 to 10 mm` or `at least 1.2 cm`, and what they mean for an attribute."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from medsynth.cohorts.attributes import Attribute
from medsynth.errors import ConfigError
from medsynth.generation.where import Wanted

_ABOUT = 0.1  # what `about` allows, as a share of the number
_EXACT = 0.05  # what a plain number allows at most; less where its last digit says so
_WORDS = tuple(
    each
    for line in (
        "one two three four five six seven eight nine ten",
        "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty",
    )
    for each in line.split()
)
# Of each unit what it measures, how much of the first unit of its kind it is, and how it is written.
_UNITS = {
    "mm": ("length", 1.0, r"mms?|millimet(?:er|re)s?"),
    "cm": ("length", 10.0, r"cms?|centimet(?:er|re)s?"),
    "m": ("length", 1000.0, r"met(?:er|re)s?"),
    "mm3": ("volume", 0.001, r"mm3|mm³|cubic\s+millimet(?:er|re)s?"),
    "ml": ("volume", 1.0, r"mls?|millilit(?:er|re)s?|cc|cm3|cm³|cubic\s+centimet(?:er|re)s?"),
    "l": ("volume", 1000.0, r"lit(?:er|re)s?"),
    "hu": ("density", 1.0, r"hu|hounsfield\s+units?"),
    "years": ("time", 1.0, r"(?:years?|yrs?)(?:[\s-]+old)?"),
    "months": ("time", 1 / 12, r"months?(?:[\s-]+old)?"),
    "weeks": ("time", 7 / 365.25, r"weeks?(?:[\s-]+old)?"),
    "days": ("time", 1 / 365.25, r"days?(?:[\s-]+old)?"),
    "kg": ("weight", 1.0, r"kgs?|kilograms?|kilos?"),
    "g": ("weight", 0.001, r"g|grams?"),
    "percent": ("share", 1.0, r"%|percent|per\s+cent"),
}
_SUFFIXES = {unit: unit for unit in _UNITS} | {
    "cc": "ml",
    "cm3": "ml",
    "year": "years",
    "yr": "years",
    "pct": "percent",
}
_MORE = r"(?:larger|greater|bigger|more|longer|older|heavier|denser|higher|wider)"
_LESS = r"(?:smaller|less|fewer|shorter|younger|lighter|lower|narrower)"
# Of each way to bound a number the side, and whether the number itself is left out.
_BOUNDS = {
    "at least": (rf"at\s+least|a?\s*minimum\s+of|>\s*=|≥|{_MORE}\s+than\s+or\s+equal\s+to", "low", False),
    "at most": (rf"at\s+most|up\s+to|a?\s*maximum\s+of|<\s*=|≤|{_LESS}\s+than\s+or\s+equal\s+to", "high", False),
    "more": (rf"{_MORE}\s+than|over|above|exceeding|>", "low", True),
    "less": (rf"{_LESS}\s+than|under|below|<", "high", True),
    "about": (r"about|around|approximately|approx\.?|roughly|circa|ca\.?|nearly|almost|~|≈", "about", False),
}
_NUMBER = rf"(?:(?<!\w)-)?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|\b(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})\b"
_UNIT = "|".join(f"(?:{spelled})" for _, _, spelled in sorted(_UNITS.values(), key=lambda unit: -len(unit[2])))
_BEFORE = "|".join(f"(?:{spelled})" for spelled, _, _ in _BOUNDS.values())
MEASURE = rf"""
    (?:(?P<denied>\b(?:no|not)\s+)?(?P<before>(?<![\w.])(?:{_BEFORE})(?![^\W\d]))\s*)?
    (?:\b(?:(?P<between>between)|(?P<lead>(?:ranging\s+)?from))\s+)?
    (?P<first>{_NUMBER})(?:[\s-]*(?P<first_unit>{_UNIT})(?!\w))?
    (?:(?:[\s-]*?(?P<join>-|\bto\b|\bthrough\b|\bor\b|(?(between)\band\b|(?!)))[\s-]*?)(?P<second>{_NUMBER})(?:[\s-]*(?P<second_unit>{_UNIT})(?!\w))?)?
    (?P<after>\s+(?:or\s+(?:{_MORE}|{_LESS}|above|over|below|under)|and\s+(?:above|over|below|under|up|{_MORE}|{_LESS}))
        (?=\s*(?:$|[,.;)]|(?:in|with|and|but|that|across|nodules?|lesions?|mass(?:es)?)\b)))?
"""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number or a range in a unit, None for none; `step` is that of the last digit, `side` what of it is a bound.

    `side` is `point`, `about`, `range`, `low`, `high` or `or` (of two numbers); `strict` says that a bound is left out.
    """

    text: str
    low: float
    high: float
    unit: str | None
    step: float
    side: str
    strict: bool = False

    @property
    def kind(self) -> str:
        """What its unit measures, empty without one."""
        return _UNITS[self.unit][0] if self.unit else ""

    def wanted(self, attribute: Attribute) -> Wanted:
        """Return the values of an attribute in its own unit; `ConfigError` for what it cannot be."""
        unit = attribute_unit(attribute)
        factor = _UNITS[self.unit][1] / _UNITS[unit][1] if self.unit and unit else 1.0
        low, high, step = self.low * factor, self.high * factor, float(attribute.whole)
        if low > high or (self.kind not in ("", "density") and low < 0):
            raise ConfigError(f"prompt: need a range from low to high, got {self.text!r}; try 6 to 10 mm")
        if self.side == "or" and not (attribute.whole and high - low == 1):
            raise ConfigError(f"prompt: need one range of {attribute.name}, got {self.text!r}; try 6 to 10 mm")
        if self.side == "low":
            return Wanted(low=_tidy(low + step if self.strict else low))
        if self.side == "high":
            return Wanted(high=_tidy(high - step if self.strict else high))
        if self.side == "about":
            return Wanted(low=_tidy(low - _ABOUT * abs(low)), high=_tidy(high + _ABOUT * abs(high)))
        if self.side == "point" and not attribute.whole:
            room = min(self.step * factor / 2, _EXACT * abs(low))
            return Wanted(low=_tidy(low - room), high=_tidy(high + room))
        return Wanted(low=_tidy(low), high=_tidy(high))


def read_measure(match: re.Match[str]) -> Measure | None:
    """Return what `MEASURE` found; None where it says no more than a distance from something, such as `from 6 mm`.

    Raises `ConfigError` for bounds of which it is not clear what they mean.
    """
    text = " ".join(match[0].split())
    first, second = match["first"], match["second"]
    unit, joined = _unit(match["second_unit"] or match["first_unit"]), match["join"]
    if (match["lead"] or match["between"]) and not second:
        return None
    bound = next((found for found in _BOUNDS.values() if _is(found[0], match["before"])), None)
    side, strict = (bound[1], bound[2]) if bound else ("point", False)
    if match["denied"]:
        side, strict = {"low": "high", "high": "low"}.get(side, "") if strict else "", False
    if match["after"]:
        side = {"point": "low" if re.search(rf"{_MORE}|above|over|up$", match["after"]) else "high"}.get(side, "")
    if second:
        side = {"point": "or" if joined == "or" else "range", "about": "range"}.get(side, "")
    if not side:
        raise ConfigError(f"prompt: need one number or one range, got {text!r}; try 6 to 10 mm, or at least 6 mm")
    low = _value(first)
    first_unit = _unit(match["first_unit"]) or unit
    if second and first_unit and unit and first_unit != unit:
        if _UNITS[first_unit][0] != _UNITS[unit][0]:
            raise ConfigError(f"prompt: need a range in one unit, got {text!r}; try 6 to 10 mm")
        low *= _UNITS[first_unit][1] / _UNITS[unit][1]
    return Measure(
        text=text,
        low=low,
        high=_value(second) if second else low,
        unit=unit,
        step=10.0 ** -len(first.partition(".")[2]),
        side=side,
        strict=strict,
    )


def attribute_unit(attribute: Attribute) -> str | None:
    """Return the unit that the name of an attribute ends with; ages are in years; None for no unit."""
    last = attribute.name.lower().split("_")[-1]
    return None if attribute.categories else _SUFFIXES.get(last, "years" if last == "age" else None)


def attribute_words(attribute: Attribute) -> str:
    """Return the name of an attribute without its unit."""
    parts = attribute.name.replace("-", "_").split("_")
    return " ".join(parts[:-1] if len(parts) > 1 and parts[-1].lower() in _SUFFIXES else parts)


def same_kind(measure: Measure, attributes: Sequence[Attribute]) -> list[Attribute]:
    """Return the attributes that are measured in units of the same kind."""
    units = {attribute.name: attribute_unit(attribute) for attribute in attributes}
    return [each for each in attributes if (unit := units[each.name]) and _UNITS[unit][0] == measure.kind]


def _unit(text: str | None) -> str | None:
    return next((unit for unit, (_, _, spelled) in _UNITS.items() if _is(spelled, text)), None)


def _is(pattern: str, text: str | None) -> bool:
    return text is not None and re.fullmatch(pattern, text.strip()) is not None


def _value(text: str) -> float:
    return float(_WORDS.index(text) + 1) if text in _WORDS else float(text)


def _tidy(value: float) -> float:
    """Return the value without what binary fractions add: 7.6, not 7.6000000000000005."""
    return float(f"{value:.10g}") if math.isfinite(value) else value
