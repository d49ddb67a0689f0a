"""The names of a scan's files and channels: `path`, the sequences in columns `path_<name>` beside it, and the mask."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from medsynth.errors import ConfigError

PATH, MASK = "path", "mask"
_COLUMN = "path_"
# A name becomes part of file names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def is_sequence_name(name: object) -> bool:
    """Return whether a further file of a scan can be called so."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and name not in (PATH, MASK)


def sequence_column(name: str) -> str:
    """Return the column of a cohort with the files of a sequence."""
    return _COLUMN + name


def sequences_in(columns: Iterable[str]) -> dict[str, str]:
    """Return the columns that hold sequences, by the name of the sequence, in their order."""
    found = {column.removeprefix(_COLUMN): column for column in columns if column.startswith(_COLUMN)}
    return {name: column for name, column in found.items() if is_sequence_name(name)}


def sequences_of(rows: Iterable[Mapping[str, str]]) -> tuple[str, ...]:
    """Return the names of all sequences that some row has, sorted: the order of columns in a file decides nothing."""
    return tuple(sorted({name for row in rows for name in row}))


def are_channels(names: Sequence[object]) -> bool:
    """Return whether these can be the channels of a scan: files one after the other, each with all of its channels, mask last."""
    files = [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name]
    images = files[:-1] if files[-1:] == [MASK] else files
    return (
        images[:1] == [PATH]
        and all(map(is_sequence_name, images[1:]))
        and len(set(images)) == len(images)
        and names.count(MASK) == len(files) - len(images)
    )


def parse_channels(text: str, channels: Sequence[str], *, option: str) -> tuple[str, ...]:
    """Return the channels that a text such as `t1,mask` names, in the order of `channels`.

    Raises `ConfigError` that names the option where there are none, one is not among `channels`, or all of them are named.
    """
    known = list(dict.fromkeys(channels))
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    unknown = sorted(set(wanted) - set(known))
    if unknown or not wanted or set(wanted) == set(known):
        got = repr(unknown[0]) if unknown else "all of them" if wanted else "none"
        raise ConfigError(f"{option}: need some of the run's channels {', '.join(known)}, but not all, got {got}")
    return tuple(name for name in known if name in wanted)
