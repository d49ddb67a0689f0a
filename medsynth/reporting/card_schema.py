"""What people write about scans, checked: data cards, and the statements that a synthetic set's card takes over.

A card is valid if its front matter fits `card_schema.json`, its text has all sections, and every null is listed as a gap.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from medsynth.cohorts.manifest import reason_of
from medsynth.config import Shipped
from medsynth.errors import ConfigError, DataError
from medsynth.files import PathLike, parse_yaml, read_bytes

CARDS = Shipped(folder="data_cards", suffixes=(".md",))
SCHEMA = "medsynth-card/2"
SECTIONS = {
    "synthetic_set": (
        "Origin, consent and licence", "Intended and prohibited use", "Limits", "Privacy", "Congruence", "Coverage", "Constraint",
        "Completeness", "Compliance", "Comprehension", "Consistency", "Provenance", "Gaps",
    ),
    "source_cohort": (
        "Content", "Origin, consent and licence", "Intended and prohibited use", "Limits", "Subgroup coverage", "Gaps"
    ),
}  # fmt: skip
STATED = ("title", "modality", "licence", "citation", "contact", "version", "published")
SOURCE = ("name", "origin", "licence", "citation", "consent", "legal_basis")

# A promise that nobody can keep; other words can say what was done to the scans.
_PROMISE = re.compile(r"(?<![a-z])anonym\w*", re.IGNORECASE)
_MOST = 8  # problems that a message lists
_LONGEST = 160  # characters of one problem


@dataclass(frozen=True, kw_only=True)
class CheckedCard:
    """A valid card: its front matter and its text."""

    file: Path
    front: Mapping[str, Any]
    body: str

    def summary(self) -> str:
        """Return that the card is valid, and which gaps it has."""
        return f"{self.file}: this card is valid ({SCHEMA}); gaps: {', '.join(self.front['gaps']) or 'none'}"


def check_card(path: PathLike) -> CheckedCard:
    """Read a card and return it; `DataError` that lists the keys and sections at fault, if any is."""
    front, body = read_card(path)
    if problems := card_problems(front, body):
        more = f"; and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
        raise DataError(f"{path}: not a valid card ({SCHEMA}): {'; '.join(problems[:_MOST])}{more}")
    return CheckedCard(file=Path(path), front=front, body=body)


def read_card(path: PathLike) -> tuple[Any, str]:
    """Return the front matter and the text of a card, unchecked; `DataError` if there is no front matter in YAML."""
    try:
        text = read_bytes(path, limit=1 << 22).decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        got = reason_of(error) if isinstance(error, OSError) else getattr(error, "reason", error)
        raise DataError(f"{path}: need a data card in UTF-8, got {got}; try another path") from error
    parts = re.match(r"---\n(.*?)\n---\n(.*)", text, flags=re.DOTALL)
    if parts is None:
        raise DataError(f"{path}: need YAML between two lines of --- at the top; begin with data_cards/template.md")
    try:
        return _parse(parts[1]), parts[2]
    except ValueError as error:
        raise DataError(f"{path}: need readable YAML in the front matter, got {error}; try quotes") from error


def card_problems(front: Any, body: str) -> list[str]:
    """Return what is wrong with a card, each as `key: problem`; nothing for a valid one."""
    if problems := _schema_problems(front):
        return problems
    scans, classes = front["data"]["scans"], front["data"]["classes"]
    if scans is not None and classes is not None:
        total = sum(sum(value.values()) if isinstance(value, Mapping) else value for value in classes.values())
        problems += [] if total == scans else [f"data.scans: {scans} is not the sum of data.classes, {total}"]
    null, listed = [".".join(path) for path in find_gaps(front)], front["gaps"]
    problems += [f"{key}: is null; fill it in, or list it under gaps" for key in null if key not in listed]
    problems += [f"gaps: {key!r} is not null; take it off the list" for key in listed if key not in null]
    headings = set(re.findall(r"^## +(.+?) *$", body, flags=re.MULTILINE))
    problems += [f"text: the section {name!r} is missing" for name in SECTIONS[front["kind"]] if name not in headings]
    # The title of somebody else's work is quoted, not ours to word.
    for citation in (front["citation"], front["source"]["citation"]):
        for quoted in (escape_markdown(citation), citation) if citation else ():
            body = body.replace(quoted, "")
    return problems + _promises({**front, "text": body})


def find_gaps(front: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the keys, each as a path from the top, of what is null in a front matter, in its order."""
    if not isinstance(front, Mapping):
        return [path] if front is None else []
    below = [find_gaps(value, (*path, key)) for key, value in front.items() if (*path, key) != ("gaps",)]
    return [gap for gaps in below for gap in gaps]


def escape_markdown(text: object) -> str:
    """Return a text on one line as Markdown in which nothing is markup."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"^(#|>|[+-](?= ))", r"\\\1", re.sub(r"([\\`*\[\]|])", r"\\\1", line))


def read_statements(source: PathLike | None) -> dict[str, Any]:
    """Return what people state about a set, with the keys of a card's front matter; the rest is None, or an empty list.

    `source` is a YAML file with such statements, or the card of the source cohort: its path (as `.yaml`, the front matter alone),
    or the name of one that ships with medsynth. The key `source` of a YAML file may name such a card, too. Raises `ConfigError`
    for unknown keys or names and for a text that promises too much, `DataError` for a card that is not valid.
    """
    content: Any = {}
    front: Any = None
    if source is not None and Path(source).suffix in (".yaml", ".yml"):
        try:
            text = read_bytes(source, limit=1 << 18).decode("utf-8-sig")
            card = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", text, flags=re.DOTALL)  # a card, saved as YAML
            content = _parse(card[1] if card else text)
        except OSError as error:
            raise ConfigError(f"{source}: need a YAML file, got {reason_of(error)}; try another path") from error
        except ValueError as error:
            raise ConfigError(
                f"{source}: need readable YAML, got {error}; try quotes around texts with colons"
            ) from error
        content = {} if content is None else content
        whole = isinstance(content, dict) and "kind" in content
        if problems := _schema_problems(content, "card" if whole else "statements") or _promises(content):
            raise ConfigError(f"{source}: {'; '.join(problems[:_MOST])}")
        if whole:
            content, front = {}, content
    elif source is not None:
        content = {"source": str(source)}
    stated: dict[str, Any] = {key: _clean(content.get(key)) for key in STATED}
    origin, use = content.get("source") or {}, content.get("use") or {}
    if isinstance(origin, str):
        front = check_card(CARDS.find(origin)).front
    if front is not None:
        if front["kind"] != "source_cohort":
            raise ConfigError(f"{source}: this is the card of a synthetic set; try that of the source cohort")
        origin = front["source"] | {"name": front["title"], "licence": front["licence"], "citation": front["citation"]}
        stated["modality"] = stated["modality"] or front["modality"]
    stated["source"] = {key: _clean(origin.get(key)) for key in SOURCE}
    stated["use"] = {key: _list(use.get(key)) for key in ("intended", "prohibited")}
    stated["limits"] = _list(content.get("limits"))
    return stated


def _clean(value: Any) -> str | None:
    return " ".join(str("" if value is None else value).split()) or None


def _list(value: Any) -> list[str]:
    return [text for item in (value if isinstance(value, list) else [value]) if (text := _clean(item)) is not None]


def _parse(text: str) -> Any:
    """Return YAML as JSON would hold it: dates and keys are texts. `ValueError` if it cannot be read."""
    try:
        return json.loads(json.dumps(parse_yaml(text), default=str))
    except TypeError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _schema_problems(content: Any, name: str = "card") -> list[str]:
    schema = json.loads(files("medsynth.reporting").joinpath("card_schema.json").read_text(encoding="utf-8"))
    validator = Draft202012Validator(schema | {"$ref": f"#/$defs/{name}"})
    errors = sorted(validator.iter_errors(content), key=lambda error: [str(key) for key in error.absolute_path])
    return list(dict.fromkeys(_explained(error) for error in errors))


def _explained(error: ValidationError) -> str:
    key = ".".join(str(part) for part in error.absolute_path) or "front matter"
    match error.validator:
        case "contains":
            said = f"has no {error.schema['title']}"
        case "pattern" | "minLength" if error.validator_value in (r"\S", 1):
            said = "is blank"
        case "minItems" | "minProperties":
            said = "is empty; null means that it is not known"
        case "additionalProperties":
            said = f"{error.message}; known are {', '.join(error.schema.get('properties', {}))}"
        case _:
            said = error.message
    return f"{key}: {said if len(said) <= _LONGEST else f'{said[:_LONGEST]}...'}"


def _promises(content: Any) -> list[str]:
    """Return the texts that promise what a synthetic set cannot keep."""
    return [
        f"{where}: {word!r} promises more than anyone can keep; say what was done instead, such as 'de-identified'"
        for where, text in _texts(content)
        for word in _PROMISE.findall(text)[:1]
    ]


def _texts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield every text below a value with its key, except citations."""
    if isinstance(value, str) and path[-1] != "citation":
        yield ".".join(path), value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, (*path, str(number)))
