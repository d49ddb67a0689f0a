"""The conversion between physical intensities and the model's range [-1, 1], and how its ends are measured."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medsynth.config import IntensityOptions
from medsynth.errors import ConfigError, DataError

_BLOCK = 1 << 20  # voxels worked on at a time, so that float64 in between costs little memory
_BINS = 1 << 17


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Physical values `low` and `high` that become -1 and 1, one value for all channels or one for each."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        low, high = tuple(float(value) for value in self.low), tuple(float(value) for value in self.high)
        if len(low) != len(high) or not low:
            raise ConfigError(f"intensity: need one low and one high per channel, got {len(low)} and {len(high)}")
        for lower, upper in zip(low, high, strict=True):
            if not (math.isfinite(lower) and math.isfinite(upper) and math.isfinite(upper - lower) and lower <= upper):
                raise ConfigError(f"intensity: need finite values with low <= high, got {lower:g} and {upper:g}")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def to_model(self, array: np.ndarray) -> np.ndarray:
        """Return physical values `(C, *spatial)` as float32 in [-1, 1]; values outside `low` and `high` are clipped.

        If `low == high`, everything becomes -1, with a warning. NaN stays NaN.
        Raises `DataError` for another number of channels.
        """
        constant = [low for low, high in zip(self.low, self.high, strict=True) if low == high]
        if constant:
            warnings.warn(
                f"intensity: low and high are both {constant[0]:g}, so every voxel becomes -1; the scans are constant, "
                "or the range does not fit them",
                stacklevel=2,
            )
        model = np.empty(np.shape(array), dtype=np.float32)
        for values, target, low, high in self._blocks(array, model):
            target[:] = np.clip((values - low) / (high - low), 0, 1) * 2 - 1 if low < high else -1
        return model

    def to_physical(self, array: np.ndarray) -> np.ndarray:
        """Return model values `(C, *spatial)` in physical units: the inverse of `to_model`, which does not clip.

        float64 stays float64, everything else becomes float32; then values between `low` and `high` come back within
        2e-7 of the largest of |low|, |high| and high - low.
        Raises `DataError` for another number of channels.
        """
        physical = np.empty(np.shape(array), dtype=np.float64 if array.dtype == np.float64 else np.float32)
        for values, target, low, high in self._blocks(array, physical):
            target[:] = low + (values + 1) / 2 * (high - low)
        return physical

    def as_dict(self) -> dict[str, list[float]]:
        """Return the ends as a dictionary that JSON can hold."""
        return {"low": list(self.low), "high": list(self.high)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Intensity:
        """Return the conversion that `as_dict` described; `DataError` for anything else."""
        try:
            low, high = values["low"], values["high"]
            return cls(low=tuple(float(value) for value in low), high=tuple(float(value) for value in high))
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise DataError(f"intensity: need lists `low` and `high` of numbers, got {values!r:.100}") from error

    def _blocks(self, array: np.ndarray, target: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, float, float]]:
        """Yield blocks of `array` as float64, their place in `target`, and low and high of their channel."""
        channels = target.shape[0] if target.ndim else 0
        if target.ndim < 2 or len(self.low) not in (1, channels):
            raise DataError(f"intensity: need scans of {len(self.low)} channels, got an array of shape {target.shape}")
        for channel in range(channels):
            source, whole = array[channel].reshape(-1), target[channel].reshape(-1)
            for start in range(0, source.size, _BLOCK):
                values = source[start : start + _BLOCK].astype(np.float64)
                which = channel if len(self.low) > 1 else 0
                yield values, whole[start : start + _BLOCK], self.low[which], self.high[which]


def measure_intensity(options: IntensityOptions, arrays: Iterable[np.ndarray]) -> Intensity:
    """Return the conversion that `options` describe, measured over `arrays` `(C, *spatial)` if the method needs it.

    `range` and `window` do not touch `arrays`. `minmax` is exact. `percentiles` are those of `numpy.percentile` over all
    voxels (linear between neighbours): exact for integers less than 131072 apart, else to 1/65536 of the range of
    all values. Memory does not grow with the number of arrays; the same arrays in the same order give the same result.
    Measured ends are per channel. Raises `ConfigError` for impossible options and `DataError` for arrays that differ in
    channels, hold NaN or infinite values, or if there are none.
    """
    low, high = float(options.low), float(options.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"intensity: need finite low and high, got {low:g} and {high:g}")
    if options.method == "range":
        if low >= high:
            raise ConfigError(f"intensity: need low < high for a range, got {low:g} and {high:g}; try swapping them")
        return Intensity(low=(low,), high=(high,))
    if options.method == "window":
        if high <= 0:
            raise ConfigError(f"intensity: need a window width above 0 as high, got {high:g}; low is the centre")
        return Intensity(low=(low - high / 2,), high=(low + high / 2,))
    if options.method not in ("percentiles", "minmax"):
        raise ConfigError(f"intensity.method: need range, window, percentiles or minmax, got {options.method!r}")
    if options.method == "minmax":
        ends = [(each.low, each.high) for each in _measure(arrays)]
    elif 0 <= low < high <= 100:
        ends = [(each.percentile(low), each.percentile(high)) for each in _measure(arrays)]
    else:
        raise ConfigError(f"intensity: need percentiles 0 <= low < high <= 100, got {low:g} and {high:g}")
    return Intensity(low=tuple(low for low, _ in ends), high=tuple(high for _, high in ends))


class _Histogram:
    """Counts of values in bins `[index, index + 1) * 2**exponent`, which are merged in pairs when the range outgrows them."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.whole = True
        self.exponent: int | None = None
        self.start = 0
        self.counts = np.zeros(0, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count the finite `values` (flat, not empty)."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.whole = self.whole and values.dtype.kind != "f"
        self._make_room()
        assert self.exponent is not None
        for start in range(0, values.size, _BLOCK):
            part = values[start : start + _BLOCK].astype(np.float64)
            bins = np.floor(np.ldexp(part, -self.exponent)).astype(np.int64) - self.start
            self.counts += np.bincount(bins, minlength=self.counts.size)

    def percentile(self, percentage: float) -> float:
        """Return the value below which `percentage` of the counted values lie, linear between neighbours."""
        ranks = np.cumsum(self.counts)
        position = percentage / 100 * (int(ranks[-1]) - 1)
        below, above = math.floor(position), math.ceil(position)
        first, second = (self._value(int(np.searchsorted(ranks, rank, side="right"))) for rank in (below, above))
        return first + (second - first) * (position - below)

    def _value(self, position: int) -> float:
        assert self.exponent is not None
        middle = 0.0 if self.whole and self.exponent <= 0 else 0.5
        return min(max(math.ldexp(self.start + position + middle, self.exponent), self.low), self.high)

    def _make_room(self) -> None:
        """Widen the bins until `low` to `high` fit, and move the counts there."""
        magnitude = max(abs(self.low), abs(self.high))
        exponent = math.frexp(magnitude)[1] - 53 if magnitude else -1000  # as fine as float64 tells values apart
        if self.exponent is not None:
            exponent = max(exponent, self.exponent)
        elif self.high > self.low:
            spread = math.frexp(self.high - self.low)[1] - 16  # half the bins cover the range, so it may grow
            exponent = max(exponent, min(spread, 0) if self.whole else spread)
        while _bin(self.high, exponent) - _bin(self.low, exponent) >= _BINS:
            exponent += 1
        start, size = _bin(self.low, exponent), _bin(self.high, exponent) - _bin(self.low, exponent) + 1
        counts = np.zeros(size, dtype=np.int64)
        if self.exponent is not None:
            filled = np.flatnonzero(self.counts)
            moved = ((filled + self.start) >> (exponent - self.exponent)) - start
            np.add.at(counts, moved, self.counts[filled])
        self.exponent, self.start, self.counts = exponent, start, counts


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _measure(arrays: Iterable[np.ndarray]) -> Sequence[_Histogram]:
    histograms: list[_Histogram] = []
    for array in arrays:
        array = np.asarray(array)
        if array.ndim < 2 or array.size == 0 or array.dtype.kind not in "buif":
            raise DataError(f"intensity: need scans (channel, *spatial) of numbers, got {array.shape} {array.dtype}")
        histograms = histograms or [_Histogram() for _ in range(array.shape[0])]
        if len(histograms) != array.shape[0]:
            raise DataError(f"intensity: need {len(histograms)} channels in every scan, got {array.shape[0]}")
        for channel, histogram in enumerate(histograms):
            if not np.isfinite(array[channel]).all():
                raise DataError("intensity: need finite voxels, got NaN or infinite ones; try --nan zero")
            histogram.add(array[channel].reshape(-1))
    if not histograms:
        raise DataError("intensity: need at least one scan to measure, got none; try the split that holds scans")
    return histograms
