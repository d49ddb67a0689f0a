"""What differs between two sets of options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def changed_options(
    previous: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    free: Sequence[str] = (),
    added: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return `name old -> new` for every option of `current` that differs, nested ones with dots; `free` top keys may.

    An option that `previous` lacks has the value in `added`, what earlier versions did, which did not have that option yet: so a
    later one goes on with what they began.
    """
    old, new = _flat(added or {}) | _flat(previous), _flat(current)
    return [
        f"{key} {old.get(key)!r} -> {value!r}"
        for key, value in sorted(new.items())
        if old.get(key) != value and key.split(".")[0] not in free
    ]


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
