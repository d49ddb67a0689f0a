"""The difference between two sets of options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def changed_options(previous: Mapping[str, Any], current: Mapping[str, Any], *, free: Sequence[str] = ()) -> list[str]:
    """Return `name old -> new` for every option of `current` that differs, nested ones with dots.

    `free` options, or groups of them, may differ.
    """
    old, new = _flat(previous), _flat(current)
    return [
        f"{key} {old.get(key)!r} -> {value!r}"
        for key, value in sorted(new.items())
        if old.get(key) != value and not {key, key.split(".")[0]} & {*free}
    ]


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
