"""A figure of candidates beside the same figure of real scans, and what the two say in a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Reading = Literal["as close", "further", "closer", "as varied", "less varied", "more varied", "cannot tell"]

_TAILS = (0.025, 0.975)


class Words(NamedTuple):
    """What a figure says that lies below, within or above the interval of real against real."""

    below: Reading
    within: Reading
    above: Reading


DISTANCE = Words(below="closer", within="as close", above="further")
FAITHFULNESS = Words(below="further", within="as close", above="closer")
VARIETY = Words(below="less varied", within="as varied", above="more varied")
LIKENESS = Words(below="more varied", within="as varied", above="less varied")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A figure with its 95 % interval, beside the same figure of real scans against real scans (`real_*`)."""

    value: float
    low: float
    high: float
    real_median: float
    real_low: float
    real_high: float
    reading: Reading

    @classmethod
    def beside(cls, value: tuple[float, float, float], real: tuple[float, float, float], words: Words) -> Measured:
        """Return a figure and its reading, from (middle, low, high) of the candidates and of real against real."""
        middle, low, high = value
        real_median, real_low, real_high = real
        reading = words.within
        if np.isnan([middle, real_low, real_high]).any() or not np.isfinite(real_high):
            reading = "cannot tell"
        elif middle > real_high:
            reading = words.above
        elif middle < real_low:
            reading = words.below
        return cls(
            value=middle,
            low=low,
            high=high,
            real_median=real_median,
            real_low=real_low,
            real_high=real_high,
            reading=reading,
        )

    @classmethod
    def of_draws(cls, across: np.ndarray, inside: np.ndarray, words: Words) -> Measured:
        """Return a figure from its values in the draws `(R,)` of candidates, and in those of real against real."""
        value, real = ((float(np.median(draws)), *interval(draws)) for draws in (across, inside))
        return cls.beside(value, real, words)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the central 95 % of draws `(R,)` that are known; NaN where none is."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return float("nan"), float("nan")
    # Between an infinite draw and a finite one nothing can be interpolated.
    low, high = np.quantile(known, _TAILS, method="linear" if np.isfinite(known).all() else "nearest")
    return float(low), float(high)
