"""Write `docs/api.md`, the Python API, from signatures and docstrings: `python docs/make_api.py`."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstring_parser
import numpy as np

import medsynth
from medsynth import config
from medsynth.api import VERBS

PAGE = Path(__file__).with_name("api.md")
# Where the classes live that verbs and functions return.
_HOMES = ("cohorts", "runs", "generation", "evaluation", "reporting", "networks", "scans", "training", "installation")
_INTRODUCTION = """\
# The Python API

Made from signatures and docstrings by `python docs/make_api.py`; a test compares. Everything here is an attribute of
`medsynth`, unless its name says otherwise, and loads when it is first used. The verbs are those of the command line:
`--solver.steps 20` there is `solver=SolverOptions(steps=20)` here, with the options from `medsynth.config`. Errors that a
user can cause are `medsynth.errors.MedsynthError`, with one line that says what to try.
"""


def render_api() -> str:
    """Return the page as Markdown."""
    others = [name for name in medsynth.__all__ if name not in VERBS]
    functions = [name for name in others if inspect.isfunction(getattr(medsynth, name))]
    classes = [name for name in others if inspect.isclass(getattr(medsynth, name))]
    parts = [_INTRODUCTION, _contents(functions, classes)]
    parts.append("## Verbs\n")
    parts += [_function(verb, function) for verb, function in VERBS.items() if verb in medsynth.__all__]
    parts.append("## Functions\n")
    parts += [_function(name, getattr(medsynth, name)) for name in functions]
    parts.append("## Classes\n")
    parts += [_class(getattr(medsynth, name)) for name in classes]
    parts.append("## What comes back\n")
    parts += [_class(each) for each in _returned({*classes})]
    parts.append("## Options\n\nFrozen dataclasses of `medsynth.config`, by keyword only.\n")
    parts += [_options(each) for each in _option_classes()]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _contents(functions: list[str], classes: list[str]) -> str:
    lines = [
        ("Verbs", [verb for verb in VERBS if verb in medsynth.__all__]),
        ("Functions", functions),
        ("Classes", classes),
        ("What comes back", [each.__name__ for each in _returned({*classes})]),
        ("Options", [each.__name__ for each in _option_classes()]),
    ]
    return "\n".join(
        f"- **{title}**: " + ", ".join(f"[{name}](#{name.lower()})" for name in names) for title, names in lines
    )


def _function(name: str, function: Any) -> str:
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    lines = [f"### {name}\n", f"```python\n{_signature(f'medsynth.{name}', function)}\n```\n", _prose(doc)]
    lines += [_fields(doc)] if doc.params else []
    return "\n".join(line for line in lines if line)


def _class(kind: type) -> str:
    doc = docstring_parser.parse(inspect.getdoc(kind) or "")
    public = f"medsynth.{kind.__name__}" if kind.__name__ in medsynth.__all__ else f"{_home(kind)}.{kind.__name__}"
    lines = [f"### {kind.__name__}\n"]
    if dataclasses.is_dataclass(kind):
        fields = [f"    {field.name}: {_tidy(str(field.type))}{_default(field)}" for field in dataclasses.fields(kind)]
        lines.append("```python\n" + "\n".join([f"class {public}:", *fields]) + "\n```\n")
    else:
        lines.append(f"```python\n{_signature(public, kind)}\n```\n")
    lines.append(_prose(doc))
    lines += [_fields(doc)] if doc.params else []
    members = [_member(name, value) for name, value in _own_members(kind)]
    lines += ["\n".join(members) + "\n"] if members else []
    return "\n".join(line for line in lines if line)


def _own_members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties with a docstring, as written in the class."""
    for name, value in vars(kind).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function) and inspect.getdoc(function):
            yield name, value


def _member(name: str, value: Any) -> str:
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    summary = " ".join((inspect.getdoc(function) or "").split())
    if isinstance(value, property):
        return f"- `{name}`: {summary}"
    shown: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        shown.append(_star(parameter) + parameter.name)
    return f"- `{name}({', '.join(shown)})`: {summary}"


def _options(kind: type) -> str:
    doc = docstring_parser.parse(inspect.getdoc(kind) or "")
    described = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in doc.params}
    lines = [f"### {kind.__name__}\n", _prose(doc), "| field | type | default | meaning |\n|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        cells = (
            f"`{field.name}`",
            f"`{_tidy(str(field.type))}`",
            f"`{_shown(field)}`",
            described.get(field.name, ""),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _prose(doc: docstring_parser.Docstring) -> str:
    paragraphs = [doc.short_description or "", *(doc.long_description or "").split("\n\n")]
    kept = [part if part.startswith("-") or "`medsynth." in part else " ".join(part.split()) for part in paragraphs]
    return "\n\n".join(part for part in kept if part) + "\n"


def _fields(doc: docstring_parser.Docstring) -> str:
    return "".join(
        f"- `{parameter.arg_name}`: {' '.join((parameter.description or '').split())}\n" for parameter in doc.params
    )


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    parts: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        annotation = "" if parameter.annotation is parameter.empty else f": {_annotation(parameter.annotation)}"
        default = "" if parameter.default is parameter.empty else f" = {_literal(parameter.default)}"
        parts.append(f"{_star(parameter)}{parameter.name}{annotation}{default}")
    result = "" if signature.return_annotation in (signature.empty, None, "None") else signature.return_annotation
    arrow = f" -> {_annotation(result)}" if result else ""
    short = f"{name}({', '.join(parts)}){arrow}"
    return short if len(short) <= 110 else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){arrow}"


def _star(parameter: inspect.Parameter) -> str:
    return {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")


def _annotation(annotation: Any) -> str:
    """Return an annotation as one writes it."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return _tidy(text)


def _tidy(text: str) -> str:
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)  # modules away
    return text.replace("str | Path", "PathLike").replace("'", "" if text.count("'") == 2 and "[" not in text else "'")


def _literal(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "array(...)"
    return f"{type(value).__name__}()" if dataclasses.is_dataclass(value) else repr(value)


def _default(field: dataclasses.Field[Any]) -> str:
    shown = _shown(field)
    return f" = {shown}" if shown else ""


def _shown(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return _literal(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return _literal(field.default_factory())
    return ""


def _option_classes() -> list[type]:
    """The option classes of all verbs, groups before their subgroups, in the order in which the verbs have them."""
    found: dict[type, None] = {}

    def add(kind: Any) -> None:
        for part in (kind, *typing.get_args(kind)):
            if inspect.isclass(part) and dataclasses.is_dataclass(part) and part.__module__.startswith(config.__name__):
                found.setdefault(part)
                for hint in typing.get_type_hints(part).values():
                    add(hint)

    for verb in VERBS.values():
        for parameter in inspect.signature(verb).parameters.values():
            add(parameter.annotation)
    return list(found)


def _returned(known: set[str]) -> list[type]:
    """The classes of medsynth that public functions return, without those that are public themselves."""
    found: dict[str, type] = {}
    for name in (*VERBS, *medsynth.__all__):
        function = VERBS.get(name) or getattr(medsynth, name)
        if not inspect.isfunction(function):
            continue
        for word in re.findall(r"\w+", str(inspect.signature(function).return_annotation)):
            home = next((each for each in _HOMES if word in vars(importlib.import_module(f"medsynth.{each}"))), None)
            kind = getattr(importlib.import_module(f"medsynth.{home}"), word) if home else None
            if inspect.isclass(kind) and word not in known and kind.__module__.startswith("medsynth."):
                found.setdefault(word, kind)
    return list(found.values())


def _home(kind: type) -> str:
    return ".".join(kind.__module__.split(".")[:2])


if __name__ == "__main__":
    PAGE.write_text(render_api(), encoding="utf-8")
    print(f"{PAGE}: {len(PAGE.read_text(encoding='utf-8').splitlines())} lines")
