"""The manual page of a verb: what its signature and docstring say, as `medsynth VERB --help` shows it."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter

_WIDEST = 110


class ManualFormatter(DefaultHelpFormatter):
    """Shows paragraphs as paragraphs, the options that must be given in the usage line, and defaults as they are typed."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **settings)
        self._width = min(self._width, _WIDEST)
        self._max_help_position = 30

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(_filled(part, width) for part in text.split("\n\n"))

    def _format_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None) -> str:
        needed = [f"{action.option_strings[0]} {action.metavar}" for action in actions if action.required]
        lead = f"{prefix or 'usage: '}{self._prog} "
        lines = textwrap.wrap(
            " ".join([*needed, "[options]"]),
            self._width - len(lead),
            break_on_hyphens=False,
        )
        return lead + f"\n{' ' * len(lead)}".join(lines) + "\n\n"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if not name.endswith("+")]
        return ", ".join(names) if action.nargs == 0 else f"{', '.join(names)} {action.metavar or ''}".rstrip()

    def _expand_help(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required:
            return f"{text} (required)"
        default = None if action.default == argparse.SUPPRESS else _typed(action.default)
        return f"{text} (default: {default})" if default else text


def arrange_manual(
    parser: ArgumentParser, verb: Callable[..., Any], *, example: str, configurations: Sequence[str]
) -> None:
    """Turn the help of a verb's parser into a manual page: what it does, its own options first, an example at the end.

    `configurations` are the names that `--config` knows.
    """
    doc = inspect.getdoc(verb) or ""
    parser.description = doc.split("\n\nArgs:")[0]
    parser.epilog = f"example: {example}"
    general = {
        "help": "Show this page and exit.",
        "config": "A YAML file with options of this verb, such as `--print_config` writes"
        + (f", or one that ships with medsynth: {', '.join(configurations)}" if configurations else "")
        + ". Options given on the command line win.",
        "print_config": "Print all options with their values as YAML and exit.",
    }
    for action in parser._actions:
        if action.dest in general:
            action.help, action.metavar = general[action.dest], "FILE" if action.dest == "config" else None
        elif action.dest.endswith(".help") or not hasattr(action, "_typehint"):
            action.help = argparse.SUPPRESS  # a whole group from a file: `--config` does that
        elif hasattr(action, "_typehint"):
            action.metavar = _metavar(action._typehint, action.dest)
    _arrange_groups(parser, doc)


def _arrange_groups(parser: ArgumentParser, doc: str) -> None:
    """Put the verb's own options first and what all verbs have last."""
    summary = " ".join(doc.split("\n\n")[0].split()).rstrip(".")
    own = [group for group in parser._action_groups if group.title == summary]
    common = [group for group in parser._action_groups if group.title == "options"]
    others = [group for group in parser._action_groups if group not in own and group not in common]
    for group in own:
        group.title = "options"
    for group in common:
        group.title = "general options"
    for group in others:
        group.title = (group.title or "").removeprefix("Options of ")
        group.title = group.title[:1].upper() + group.title[1:]
    parser._action_groups = [*own, *others, *common]


def _metavar(kind: Any, name: str) -> str:
    """Return what stands for a value in help: `N`, `NUMBER`, `PATH`, `a|b`, or the option's own name."""
    parts = [part for part in get_args(kind) if part is not type(None)] if get_origin(kind) not in _LISTS else []
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) in _LISTS:
        inner = [part for part in get_args(kind) if part is not Ellipsis]
        one = _metavar(inner[0], name) if inner else "VALUE"
        return ",".join([one] * len(inner)) if len(inner) > 1 else f"{one},..."
    if kind is bool:
        return "true|false"
    if any(is_dataclass(part) for part in parts):
        return "{NAME: VALUE}"
    names = {getattr(part, "__name__", "") for part in (parts or [kind])}
    if "Path" in names:
        return "PATH"
    if names == {"int"}:
        return "N"
    if names <= {"int", "float"}:
        return "NUMBER"
    return name.rsplit(".", 1)[-1].upper()


_LISTS = (tuple, list, Sequence)


def _typed(value: Any) -> str:
    """Return a default as one types it on the command line; empty for what stands for nothing."""
    if value is None or (isinstance(value, str | tuple | list | Mapping) and not value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(_typed, value))
    return str(value)


def _filled(paragraph: str, width: int) -> str:
    """Return a paragraph filled to `width`; a command keeps its options whole and goes on behind a backslash."""
    if not paragraph.startswith("example: "):
        return textwrap.fill(" ".join(paragraph.split()), width)
    words = re.split(r" (?=--)", " ".join(paragraph.split()))
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 <= width:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"{' ' * len('example: ')}  {word}")
    return "\n".join(lines)
