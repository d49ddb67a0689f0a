"""Figures with their intervals as cells of Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def shown(found: Mapping[str, Any], *, sign: bool = False) -> str:
    """Return `value (low to high)`, a dash for what is not known; with `sign`, positive numbers have a plus."""
    form = "{:+.3f}" if sign else "{:.3f}"
    value, low, high = ("–" if found[name] is None else form.format(found[name]) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def row_of(cells: Sequence[str]) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cells) + " |"


def head_of(titles: Sequence[str]) -> str:
    """Return the first two rows of a table."""
    return f"{row_of(titles)}\n|{'---|' * len(titles)}"
