"""What every check returns, and how words of others are made fit for a report."""

from __future__ import annotations

import getpass
import platform
import re
from dataclasses import dataclass

# A path in quotes may hold blanks, one without cannot be told from the words around it.
_PATHS = re.compile(r"""(['"])[^'"]*[/\\][^'"]*\1|[^\s'":;,]*(?:[A-Za-z]:)?[/\\][^\s'":;,]*""")
_LIBRARY = re.compile(r"[\w.+-]+\.(?:so[\d.]*|dll|dylib|pyd?)")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """One part of a diagnosis: `facts` as pairs of name and text, `problems` that stop medsynth, `notes` worth knowing."""

    title: str
    facts: tuple[tuple[str, str], ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def without_names(text: object) -> str:
    """Return a foreign message on one line of at most 200 characters without paths, user name and host name.

    Of paths only the names of libraries and Python files stay.
    """
    line = _PATHS.sub(lambda found: _name_of(found[0]), " ".join(str(text).split()))
    for name, stand_in in ((_user(), "USER"), (platform.node(), "HOST")):
        if len(name) > 2:
            line = re.sub(rf"\b{re.escape(name)}\b", stand_in, line)
    return line[:200]


def _name_of(path: str) -> str:
    last = re.split(r"[/\\]", path.strip("'\""))[-1]
    return last if _LIBRARY.fullmatch(last) else "PATH"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without an entry
        return ""
