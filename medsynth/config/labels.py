"""Options that pair classes: `viral_pneumonia=bacterial_pneumonia`, several separated by commas."""

from __future__ import annotations

from collections.abc import Sequence

from medsynth.errors import ConfigError


def parse_pairs(text: str, classes: Sequence[str], *, option: str) -> dict[int, int]:
    """Return the indices of the classes that `text` pairs; empty for an empty text.

    Raises `ConfigError` that names the option and the part: an unknown class, a class with itself, or one twice on the left.
    """
    pairs: dict[int, int] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        # Labels may hold "=": where one does, the split that names two classes counts.
        splits = [(part[:place].strip(), part[place + 1 :].strip()) for place in range(len(part)) if part[place] == "="]
        known = [pair for pair in splits if pair[0] in classes and pair[1] in classes]
        if not known:
            raise ConfigError(
                f"{option}: need class=class with classes of {', '.join(classes)}; got {part!r}; "
                f"try {classes[-1]}={classes[0]}"
            )
        first, second = (classes.index(name) for name in known[0])
        if first == second or first in pairs:
            raise ConfigError(f"{option}: need each class once and with another one, got {part!r}")
        pairs[first] = second
    return pairs
