"""Checks of plain values: a run folder may come from anywhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

MOST = 1 << 14  # of anything that a network has several of


def is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_whole(value: Any, low: int = 0, high: int | None = None) -> bool:
    return type(value) is int and low <= value and (high is None or value <= high)


def is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def as_tuples(value: Any) -> Any:
    return tuple(as_tuples(item) for item in value) if isinstance(value, list | np.ndarray) else value
