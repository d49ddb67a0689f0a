"""What option dataclasses declare, for everything that reads options: the command line, YAML files and the Python API."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from operator import attrgetter
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from medsynth.config.bounds import Bounds, Code, Written, fault_of
from medsynth.errors import ConfigError

_LISTS = (tuple, list, Sequence)
_DEFAULT = re.compile(r"\s*\[default: ([^\]]+)\]")


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: its dotted name, type, default, help, whether it must be given, and the rules of its declaration."""

    name: str
    kind: Any
    default: Any
    help: str
    required: bool
    rules: tuple[Any, ...] = ()

    @property
    def bounds(self) -> str:
        """The range of its numbers in words; empty without one."""
        return next((str(rule) for rule in self.rules if isinstance(rule, Bounds)), "")

    @property
    def is_written(self) -> bool:
        """Whether it is a path to which the verb writes."""
        return any(isinstance(rule, Written) for rule in self.rules)

    def names_code(self, value: Any) -> bool:
        """Return whether a value names code, which would be imported."""
        known = next((rule.known for rule in self.rules if isinstance(rule, Code)), None)
        return known is not None and value not in (None, "", *known)

    def check(self, value: Any) -> None:
        """Raise `ConfigError` for a value that does not keep the rules."""
        if fault := fault_of(value, self.rules, leaves(self.kind)):
            need, got = fault
            hint = "" if self.default in (None, "", ()) or self.required else f"; try {typed(self.default)}"
            raise ConfigError(f"{self.name}: need {need}, got {got}{hint}")

    @property
    def group(self) -> str:
        """The name of its group; empty for an option of the verb itself."""
        return self.name.rpartition(".")[0]

    @property
    def is_list(self) -> bool:
        """Whether it takes a list, or also a list."""
        return any(get_origin(part) in _LISTS for part in (self.kind, *get_args(self.kind)))


@cache
def options_of(cls: type) -> dict[str, Option]:
    """Return all options of a dataclass by dotted name: its own fields, then inherited ones, then groups."""
    kinds, helps = get_type_hints(cls, include_extras=True), _helps_of(cls)
    own: list[Option] = []
    inherited: list[Option] = []
    grouped: list[Option] = []
    for field in fields(cls):
        group = group_of(kinds[field.name])
        if group is None:
            required = field.default is MISSING
            kind, rules = _unwrapped(kinds[field.name])
            option = Option(
                name=field.name,
                kind=kind,
                default=None if required else field.default,
                help=helps[field.name],
                required=required,
                rules=rules,
            )
            (own if field.name in cls.__annotations__ else inherited).append(option)
            continue
        for name, option in options_of(group).items():
            absent = field.default is None
            grouped.append(
                Option(
                    name=f"{field.name}.{name}",
                    kind=option.kind | None if absent else option.kind,
                    default=None if absent else getattr(field.default, name),
                    help=option.help,
                    required=False,
                    rules=option.rules,
                )
            )
    return {option.name: option for option in (*own, *inherited, *grouped)}


def group_of(kind: Any) -> type | None:
    """Return the dataclass behind the type of a field that is a group of options; None for other fields."""
    return next((part for part in (kind, *get_args(kind)) if isinstance(part, type) and is_dataclass(part)), None)


def build_options(cls: type, values: Mapping[str, Any]) -> Any:
    """Return an instance of `cls` from values nested like its groups; what is absent has its default.

    A group that is absent by default stays so unless one of its options has a value. Raises `ConfigError` for a value that does
    not keep the rules of its declaration.
    """
    arguments = dict(values)
    kinds = get_type_hints(cls)
    for field in fields(cls):
        group, given = group_of(kinds[field.name]), arguments.get(field.name)
        if group is None or not isinstance(given, Mapping):
            continue
        if field.default is None:
            known = {name: value for name, value in given.items() if value is not None}
            arguments[field.name] = group(**known) if known else None
        else:
            defaults = {each.name: getattr(field.default, each.name) for each in fields(group)}
            arguments[field.name] = group(**defaults | dict(given))
    built = cls(**arguments)
    for name, option in options_of(cls).items():
        if option.group == "" or getattr(built, option.group) is not None:
            option.check(attrgetter(name)(built))
    return built


def manual_of(cls: type) -> tuple[str, list[str]]:
    """Return the first line of a docstring, which says what it is, and the paragraphs after it."""
    first, *others = inspect.cleandoc(cls.__doc__ or "").partition("\n\nArgs:")[0].split("\n\n")
    return " ".join(first.split()), [" ".join(part.split()) for part in others]


def split_default(text: str) -> tuple[str, str]:
    """Return a help text without its `[default: ...]`, and what that says; empty where it says nothing."""
    found = _DEFAULT.search(text)
    return (text, "") if found is None else (_DEFAULT.sub("", text), found[1])


def describe_kind(kind: Any, bounds: str = "") -> str:
    """Return in words what an option of this type takes, its numbers within `bounds`."""
    parts = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, parts))}" if len(parts) > 1 else str(parts[0])
    if get_origin(kind) in _LISTS:
        inner = [part for part in parts if part is not Ellipsis]
        plural = {int: "whole numbers", float: "numbers"}.get(inner[0], "")
        if len(inner) > 1:
            return f"{len(inner)} numbers {bounds}".rstrip()
        return f"a list of {f'{plural} {bounds}'.rstrip() if plural else describe_kind(inner[0])}, comma-separated"
    if get_origin(kind) is dict:
        return "a mapping"
    if parts:
        return " or ".join(dict.fromkeys(describe_kind(part, bounds) for part in parts))
    if kind in (int, float):
        return f"a {'whole ' if kind is int else ''}number {bounds}".rstrip()
    return {bool: "true or false", str: "text"}.get(kind, "a path")


def typed(value: Any) -> str:
    """Return a value as one types it on the command line; empty for what stands for nothing."""
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(typed, value)) if isinstance(value, tuple) else f"{value}"


def choices_of(kind: Any) -> list[str]:
    """Return the values that an option may take where these are listed, also within a list."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [choice for part in get_args(kind) for choice in choices_of(part)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the nearest known name; empty where none is near."""
    found = difflib.get_close_matches(name, [str(each) for each in known], n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _unwrapped(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type without the rules in it, and these."""
    if get_origin(kind) is Annotated:
        inner, *rules = get_args(kind)
        return inner, tuple(rules)
    return kind, ()


def leaves(kind: Any) -> set[Any]:
    """Return the types that a type is made of: `int` and `str` of `tuple[int | str, ...]`."""
    return {leaf for part in get_args(kind) for leaf in leaves(part)} if get_args(kind) else {kind}


def _helps_of(cls: type) -> dict[str, str]:
    """Return the help of every field, from the `Args` of the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        described = inspect.cleandoc(each.__doc__ or "").partition("Args:\n")[2]
        parts = re.split(r"^    (\w+): ", described, flags=re.MULTILINE)[1:]
        found |= {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}
    return found
