"""What an option's declaration says of its value beside the type: `steps: Annotated[int, Bounds(1, 1000)] = 20`.

`declared.py` checks it once, when options are built, for the command line, files and the Python API alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

from medsynth.files import PathLike

_MOST_TEXT, _MOST_PATH, _MOST_ITEMS = 100_000, 4096, 10_000  # characters, and items of a list
# Path("https://host") is "https:/host", and a scheme of one letter is a Windows drive.
_URL = re.compile(r"[a-z][a-z0-9+.\-]+:/", re.IGNORECASE)


@dataclass(frozen=True)
class Bounds:
    """The least and the largest value of a number, or of each number in a list of at most `items`."""

    low: float
    high: float
    items: int = 16

    def __str__(self) -> str:
        return f"from {_number(self.low)} to {_number(self.high)}"


@dataclass(frozen=True)
class Words:
    """The most characters of a text."""

    most: int


@dataclass(frozen=True)
class Code:
    """A text that may be `module:function`, which is imported: no file may choose it. `known` are the other values."""

    known: tuple[str, ...] = ()


class Written:
    """A path to which the verb writes."""


Count = Annotated[int, Bounds(1, 100_000_000)]
CountOrNone = Annotated[int, Bounds(0, 100_000_000)]
Share = Annotated[float, Bounds(0, 1)]
Seed = Annotated[int, Bounds(0, 10**18)]
Output = Annotated[PathLike, Written()]
Processes = Annotated[int, Bounds(1, 4096)]


def fault_of(value: Any, rules: tuple[Any, ...], kinds: set[Any]) -> tuple[str, str] | None:
    """Return what an option of these types needs and what it got instead, or None for a value that keeps its rules."""
    bounds = next((rule for rule in rules if isinstance(rule, Bounds)), None)
    path, text = Path in kinds, bool(kinds & {str, Path})
    words = next((rule.most for rule in rules if isinstance(rule, Words)), _MOST_PATH if path else _MOST_TEXT)
    many = isinstance(value, list | tuple | Mapping)
    parts = list(value.values() if isinstance(value, Mapping) else value) if many else [value]
    if len(parts) > (most := _MOST_ITEMS if bounds is None or isinstance(value, Mapping) else bounds.items):
        return f"at most {most} values", f"{len(parts)}"
    noun = ("whole " if float not in kinds else "") + "number"
    need = f"{noun}s {bounds}" if many else f"a {noun} {bounds}"
    for part in parts:
        number = isinstance(part, Real) and not isinstance(part, bool)
        if bounds is not None and part is not None and number and not bounds.low <= part <= bounds.high:
            return need, _shown(part)
        if bounds is not None and part is not None and not (number or text):
            return need, f"{str(part)[:100]!r}"
        if part is None or isinstance(part, Real):
            continue
        word = str(part)
        if "\0" in word or len(word) > words:
            got = "one with NUL" if "\0" in word else f"{len(word)} characters"
            return f"{'a path' if path else 'a text'} of at most {words} characters without NUL", got
        if path and _URL.match(word):
            return "a path on this machine", f"a URL, {word[:100]!r}"
    return None


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and value < 10**10 else f"{value:.4g}"


def _shown(value: Any) -> str:
    """Return a number as text; Python refuses to print whole numbers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 100:
        return f"a number of about {math.ceil(value.bit_length() * math.log10(2))} digits"
    return f"{value}"
