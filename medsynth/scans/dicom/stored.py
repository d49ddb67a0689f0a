"""Voxels as the 8 or 16 bits that DICOM stores, and the line that leads back from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom.valuerep import format_number_as_ds

from medsynth.errors import ConfigError

_LEVELS = 65535  # steps between the ends of 16 bits


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """Values as a file holds them: physical ones are `array * slope + intercept`, both of them None where nothing is rescaled.

    `slope` and `intercept` are decimals of at most 16 characters, as they are written.
    """

    array: np.ndarray
    slope: str | None = None
    intercept: str | None = None


def to_stored(array: np.ndarray, modality: str, name: str) -> Stored:
    """Return finite values of any type as DICOM stores them.

    Whole numbers stay what they are where they fit: CT in int16, MR in uint16 or int16, pictures in uint8 (if that is their
    type), uint16 or int16. Other whole numbers within 65535 of each other are shifted, and all else is rounded to 1/65535 of
    its range. Raises `ConfigError` for a range that cannot be computed with.
    """
    if array.dtype.kind == "b" or (array.dtype == np.uint8 and modality not in ("CT", "MR")):
        array = array.astype(np.uint8)
        if modality not in ("CT", "MR"):
            return Stored(array=array)
    signed = modality == "CT"
    whole = array.dtype.kind in "ui" or bool((array == np.rint(array)).all())
    low, high = array.min(), array.max()
    if whole:
        low, high = int(low), int(high)
        for dtype in (np.int16,) if signed else (np.uint16, np.int16):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return Stored(array=array.astype(dtype))
    return _rescaled(array, low, high, name, signed=signed, whole=whole)


def _rescaled(array: np.ndarray, low: float, high: float, name: str, *, signed: bool, whole: bool) -> Stored:
    first = np.iinfo(np.int16).min if signed else 0
    with np.errstate(over="ignore"):
        spread = float(high) - float(low)
    if not np.isfinite(spread):
        raise ConfigError(f"{name}: need values whose range is a number, got {low:g} to {high:g}; try scaling them")
    step = 1.0 if (whole and spread <= _LEVELS) or spread == 0 else spread / _LEVELS
    slope = format_number_as_ds(step)
    if not float(slope):
        raise ConfigError(f"{name}: need values that differ by more than {spread:g} for DICOM; try scaling them")
    intercept = format_number_as_ds(float(low) - first * float(slope))
    levels = np.rint((array.astype(np.float64) - float(intercept)) / float(slope))
    dtype = np.int16 if signed else np.uint16
    limits = np.iinfo(dtype)
    return Stored(array=levels.clip(limits.min, limits.max).astype(dtype), slope=slope, intercept=intercept)
