"""What a data card must hold: the schema of its front matter, the sections of its text, and gaps that are marked as gaps."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError

from medsynth.cohorts.manifest import reason_of
from medsynth.errors import DataError

SCHEMA = "medsynth-card/1"
SECTIONS = {
    "synthetic_set": (
        "Origin, consent and licence",
        "Intended and prohibited use",
        "Limits",
        "Privacy",
        "Congruence",
        "Coverage",
        "Constraint",
        "Completeness",
        "Compliance",
        "Comprehension",
        "Consistency",
        "Provenance",
        "Gaps",
    ),
    "source_cohort": (
        "Content",
        "Origin, consent and licence",
        "Intended and prohibited use",
        "Limits",
        "Subgroup coverage",
        "Gaps",
    ),
}

_SCHEMA_FILE = "card_schema.json"
# A promise that nobody can keep; what was done to the scans can be said in other words.
_PROMISE = re.compile(r"(?<![a-z])anonym\w*", re.IGNORECASE)
_MOST = 8  # problems that a message lists
_TYPES = {"object": "keys with values", "array": "a list", "string": "a text", "number": "a number"}
_TYPES |= {"integer": "a whole number", "boolean": "true or false", "null": "null"}


@dataclass(frozen=True, kw_only=True)
class CheckedCard:
    """A card that was found valid: its front matter and its text."""

    file: Path
    front: Mapping[str, Any]
    body: str

    def summary(self) -> str:
        """Return that the card is valid, and what it leaves open."""
        gaps = self.front["gaps"]
        stated = f"{len(gaps)} {'gap' if len(gaps) == 1 else 'gaps'}: {', '.join(gaps)}" if gaps else "no gaps"
        return f"{self.file}: a valid card of schema {SCHEMA}; {stated}"


def check_card(path: Path) -> CheckedCard:
    """Read a card and return it; `DataError` that names every key and section at fault, if any is."""
    front, body = read_card(path)
    if problems := card_problems(front, body):
        more = f"; and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
        number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError(
            f"{path}: need a card of schema {SCHEMA}, got {number}: {'; '.join(problems[:_MOST])}{more}; "
            "try correcting them in the file"
        )
    return CheckedCard(file=path, front=front, body=body)


def read_card(path: Path) -> tuple[Any, str]:
    """Return the front matter and the text of a card, unchecked; `DataError` if there is no front matter in YAML."""
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise DataError(f"{path}: need a data card, got {reason_of(error)}; try another path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: need a card in UTF-8, got {error.reason}; try saving it as UTF-8") from error
    parts = re.match(r"---\n(.*?)\n---\n(.*)", text, flags=re.DOTALL)
    if parts is None:
        raise DataError(
            f"{path}: need YAML between two lines of --- at the top, got none; try the template in data_cards"
        )
    try:
        return _plain(yaml.safe_load(parts[1])), parts[2]
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(
            f"{path}: need readable YAML in the front matter, got {' '.join(str(error).split())}; "
            "try quotes around texts with colons"
        ) from error


def card_problems(front: Any, body: str) -> list[str]:
    """Return what is wrong with a card, each as `key: need X, got Y`; nothing for a valid one."""
    if odd := [".".join(path) for path in _odd_keys(front)]:
        return [f"{key}: need a text as key, got another value; try quotes" for key in odd]
    schema = json.loads(files("medsynth.reporting").joinpath(_SCHEMA_FILE).read_text(encoding="utf-8"))
    errors = sorted(Draft202012Validator(schema).iter_errors(front), key=lambda error: [str(key) for key in error.path])
    if errors:
        return list(dict.fromkeys(_explained(error) for error in errors))
    return [*_total_problems(front["data"]), *_gap_problems(front), *_text_problems(front, body)]


def find_gaps(front: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the keys, each as a path from the top, of what is null in a front matter, in its order."""
    if front is None:
        return [path]
    found = []
    if isinstance(front, Mapping):
        for key, value in front.items():
            if (*path, key) != ("gaps",):
                found += find_gaps(value, (*path, key))
    return found


def promises(text: str) -> list[str]:
    """Return the words in a text that promise what a synthetic set cannot keep."""
    return _PROMISE.findall(text)


def escape_markdown(text: str) -> str:
    """Return a text on one line in which nothing is markup, as Markdown."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"^(#|>|[+-](?= ))", r"\\\1", re.sub(r"([\\`*\[\]|])", r"\\\1", line))


def _plain(value: Any) -> Any:
    """Return YAML's values as JSON's: dates as text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime.date) else value


def _odd_keys(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield (*path, str(key))
            yield from _odd_keys(item, (*path, str(key)))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _odd_keys(item, (*path, str(number)))


def _explained(error: ValidationError) -> str:
    """Return what the schema wants in the words of our errors."""
    key = ".".join(str(part) for part in error.absolute_path)
    where = f"{key}: " if key else "front matter: "
    below = f"{key}." if key else ""
    wanted, got = error.validator_value, error.instance
    match error.validator:
        case "required":
            missing = next(name for name in wanted if error.message.startswith(f"'{name}' "))
            return f"{below}{missing}: need this key, got none"
        case "additionalProperties":
            known = error.schema.get("properties", {})
            unknown = next(name for name in got if name not in known)
            return f"{below}{unknown}: need one of the keys {', '.join(known)}, got an unknown one"
        case "type":
            kinds = [wanted] if isinstance(wanted, str) else wanted
            return f"{where}need {' or '.join(_TYPES[kind] for kind in kinds)}, got {_shown(got)}"
        case "enum" | "const":
            options = wanted if error.validator == "enum" else [wanted]
            return f"{where}need {' or '.join(_shown(option) for option in options)}, got {_shown(got)}"
        case "contains":
            return f"{where}need {error.schema['title']}, got none"
        case "pattern" | "minLength":
            what = "a text that is not blank" if wanted in (r"\S", 1) else f"a text like {wanted}"
            return f"{where}need {what}, got {_shown(got)}"
        case "minimum" | "maximum":
            limit = "at least" if error.validator == "minimum" else "at most"
            return f"{where}need {limit} {wanted}, got {_shown(got)}"
        case "minItems" | "minProperties":
            return f"{where}need at least one entry, got none; null says that it is not known"
    return f"{where}need what the schema says of {error.validator}, got {_shown(got)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _total_problems(data: Mapping[str, Any]) -> list[str]:
    scans, classes = data["scans"], data["classes"]
    if scans is None or classes is None:
        return []
    total = sum(sum(value.values()) if isinstance(value, Mapping) else value for value in classes.values())
    return [] if total == scans else [f"data.scans: need the sum of data.classes, {total}, got {scans}"]


def _gap_problems(front: Mapping[str, Any]) -> list[str]:
    """A gap is a key that is null: none may go unlisted, and what is stated is none."""
    null, listed = [".".join(path) for path in find_gaps(front)], front["gaps"]
    return [
        *(f"{key}: need a value, or its name in gaps, got null" for key in null if key not in listed),
        *(f"gaps: need only keys that are null, got {_shown(key)}" for key in listed if key not in null),
    ]


def _text_problems(front: Mapping[str, Any], body: str) -> list[str]:
    headings = set(re.findall(r"^## +(.+?) *$", body, flags=re.MULTILINE))
    problems = [
        f"section {name!r}: need it in the text, got none" for name in SECTIONS[front["kind"]] if name not in headings
    ]
    # A title of another's work is not ours to word.
    for citation in (front["citation"], front["source"]["citation"]):
        body = body.replace(escape_markdown(citation or "\0"), "").replace(citation or "\0", "")
    for where, text in (*_texts(front), ("text", body)):
        if found := promises(text):
            problems.append(
                f"{where}: need other words than {found[0]!r}, which promises what nobody can, got them; try 'de-identified'"
            )
    return problems


def _texts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and path[-1] != "citation":
        yield ".".join(path), value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, (*path, str(number)))
