"""Values of DICOM elements as plain text and numbers, without the warnings that pydicom has for each oddity."""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

_turn = threading.RLock()
_logger = logging.getLogger("pydicom")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom silent; what matters of what it would say is refused by our checks.

    One thread at a time: filters of warnings belong to the whole process.
    """
    with _turn, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = _logger.level
        _logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            _logger.setLevel(level)


def words(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return all values of an element as text, `()` where it is missing or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return ()
    return tuple(str(one).strip() for one in (value if isinstance(value, MultiValue | list | tuple) else (value,)))


def text(dataset: Dataset, keyword: str) -> str:
    """Return an element as text, empty where it is missing."""
    return "\\".join(words(dataset, keyword))


def number(dataset: Dataset, keyword: str, default: float) -> float:
    """Return the one number of an element, `default` where it is missing; `ValueError` if it is not finite."""
    found = vector(dataset, keyword, 1)
    return float(default) if found is None else found[0]


def integer(dataset: Dataset, keyword: str, default: int) -> int:
    """Return the one whole number of an element, `default` where it is missing; `ValueError` for another number."""
    value = number(dataset, keyword, default)
    if not value.is_integer():
        raise ValueError(f"{keyword} is {value:g}, no whole number")
    return int(value)


def vector(dataset: Dataset, keyword: str, length: int) -> tuple[float, ...] | None:
    """Return the numbers of an element, None where it is missing; `ValueError` unless they are `length` and finite."""
    found = tuple(float(one) for one in words(dataset, keyword))
    if not found:
        return None
    if len(found) != length or not all(map(math.isfinite, found)):
        raise ValueError(f"{keyword} has not {length} finite value{'s' if length > 1 else ''}")
    return found
