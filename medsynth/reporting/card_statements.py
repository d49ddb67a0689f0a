"""What only people know about a synthetic set: where its source comes from, what it may be used for, who answers for it."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medsynth.cohorts.manifest import reason_of
from medsynth.config import Shipped
from medsynth.errors import ConfigError
from medsynth.reporting.card_schema import check_card, promises

CARDS = Shipped(folder="data_cards", suffixes=(".md",))
_TEXTS = ("title", "modality", "licence", "citation", "contact", "version", "published")
_SOURCE = ("name", "origin", "licence", "citation", "consent", "legal_basis")
_USE = ("intended", "prohibited")
_KEYS = (*_TEXTS, "source", "use", "limits")


def read_statements(source: str | Path | None) -> dict[str, Any]:
    """Return what people state, with the keys of a card's front matter; what they do not state is None, or an empty list.

    `source` is a YAML file, or the card of the source cohort: its path, or the name of one that ships with medsynth. In a
    YAML file, too, `source` may name such a card. Raises `ConfigError` for an unknown key or name and for a text that promises
    too much, `DataError` for a card that is not valid.
    """
    content: Mapping[str, Any] = {}
    if source is not None:
        given = Path(source)
        content = _read_yaml(given) if given.suffix in (".yaml", ".yml") else {"source": str(source)}
    where = str(source)
    _refuse_unknown(content, _KEYS, where)
    stated: dict[str, Any] = {key: _text(content.get(key), f"{where}: {key}") for key in _TEXTS}
    if stated["published"] and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", stated["published"]):
        raise ConfigError(f"{where}: published: need a date, got {stated['published']!r}; try 2026-01-31")
    origin = content.get("source")
    if isinstance(origin, str):
        card = _cohort_card(origin)
        stated["modality"] = stated["modality"] or card["modality"]
        stated["source"] = {
            "name": card["title"],
            "origin": card["source"]["origin"],
            "licence": card["licence"],
            "citation": card["citation"],
            "consent": card["source"]["consent"],
            "legal_basis": card["source"]["legal_basis"],
        }
    else:
        parts = _mapping(origin, f"{where}: source", _SOURCE)
        stated["source"] = {key: _text(parts.get(key), f"{where}: source.{key}") for key in _SOURCE}
    use = _mapping(content.get("use"), f"{where}: use", _USE)
    stated["use"] = {key: _texts(use.get(key), f"{where}: use.{key}") for key in _USE}
    stated["limits"] = _texts(content.get("limits"), f"{where}: limits")
    return stated


def _cohort_card(name: str) -> Mapping[str, Any]:
    card = check_card(CARDS.find(name))
    if card.front["kind"] != "source_cohort":
        raise ConfigError(
            f"{name}: need the card of a source cohort, got that of a synthetic set; try one of {', '.join(CARDS.names())}"
        )
    return card.front


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: need a YAML file, got {reason_of(error)}; try another path") from error
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: need readable YAML, got {' '.join(str(error).split())}; try quotes") from error
    return _mapping(content, str(path), _KEYS)


def _mapping(value: Any, where: str, known: Sequence[str]) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: need the keys {', '.join(known)}, got {value!r}; try {known[0]}: ...")
    _refuse_unknown(value, known, where)
    return value


def _refuse_unknown(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    if unknown := [key for key in content if key not in known]:
        raise ConfigError(f"{where}: need the keys {', '.join(known)}, got {unknown[0]!r}; try one of these")


def _text(value: Any, where: str) -> str | None:
    if isinstance(value, datetime.date):
        return value.isoformat()
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ConfigError(f"{where}: need a text, got {value!r}; try quotes")
    text = " ".join(str(value).split())
    if not where.endswith("citation") and (found := promises(text)):
        raise ConfigError(
            f"{where}: need other words than {found[0]!r}, which promises what nobody can, got them; try 'de-identified'"
        )
    return text


def _texts(value: Any, where: str) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [text for item in items if (text := _text(item, where)) is not None]
