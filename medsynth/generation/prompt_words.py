"""What words of a prompt mean: names of attributes, their categories, classes, and phrases from a file of words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medsynth.cohorts.attributes import Attribute
from medsynth.cohorts.manifest import reason_of
from medsynth.config import Shipped
from medsynth.errors import ConfigError
from medsynth.generation.prompt_numbers import attribute_words
from medsynth.generation.where import Wanted, parse_where


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WORDS = Shipped(folder="configs/words")
CLASS = "class"  # the key of a file of words under which phrases name classes
_MOST_CHARACTERS = 200_000

NEGATIONS = _words(
    "no not without never nor neither none cannot lacking lacks lack absence absent free except excluding excludes exclude "
    "excluded negative instead"
)
# These deny what comes after them, never what came before.
FORWARD = _words("no without lacks lack absence nor neither excluding except")
STOPS = _words("but with which whereas while that")
SKIPPED = _words(
    "a an the this these those is are was were be been being of in on at and as its it has have having there here shows show "
    "showing shown seen see noted found identified demonstrated demonstrates depicts depicting located lies lying situated "
    "present evident visible appears appearing measuring measures measured measure sized size diameter dimension dimensions "
    "greatest largest maximal maximum mean average axis across long now currently sided type score grade rating value level "
    "very clearly clear definite definitely pure purely entirely completely frankly one single solitary lung pulmonary scan "
    "ct image new margin border contour outline surface attenuation density appearance morphology shape please "
    "generate synthesise synthesize make i we want need evidence any aged"
)
# Beside a negation these are no longer nothing: what is not clearly so may be so.
EMPHATIC = _words("very clearly clear definite definitely pure purely entirely completely frankly")
# What a measurement may be of.
THINGS = _words("nodule lesion mass tumour tumor opacity finding focus abnormality patient man woman person child")
# What changes the meaning of the word after it, so that this may not be read alone.
TURNING = _words(
    "part partly partially partial sub semi non quasi mixed predominantly mainly mostly largely barely hardly minimally "
    "minimal slightly slight mildly mild moderately moderate somewhat possibly possible probably probable suspected questionable "
    "may might could should would if whether unless than previous previously former formerly prior earlier initially another "
    "other second additional adjacent near beside between from by to within versus vs unlike rather increasingly less more "
    "most least too increased decreased"
)
# What makes a word a part of a thing, so that it says something else of the whole.
PARTS = _words("component part portion core rim halo centre center element area edge section")
# Where a thing is: `right upper lobe` says of the thing what `right pleural effusion` does not.
PLACES = _words(
    "lobe lung segment apex base zone field hemithorax thorax lingula region side aspect periphery hemisphere breast kidney limb "
    "quadrant"
)
ARTICLES = _words("a an the its this that these those")
# A measurement in a clause with one of these is of something else.
OTHERS = _words(
    "thickness thick thin deep depth radius width height slice section collimation interval increment spacing distance apart "
    "away growth grown grew increase increased decrease decreased previously previous formerly former prior initially earlier "
    "wall node vessel margin border contour outline surface short per every within beneath below above from component "
    "doubling each by"
)
NUMERALS = _words(
    "zero thirty forty fifty sixty seventy eighty ninety hundred thousand half quarter dozen twice double"
)
_NONE = ("no", "none", "absent", "false", "negative")
# Said of too many things to mean a category without the name of its attribute.
_COMMON = SKIPPED | NEGATIONS | TURNING | STOPS | {"yes", "true", "present", "positive", "other", "unknown", "or"}


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a phrase says: one of some classes (empty for any), and values of attributes.

    `unclear` names the attributes of which it may be a category; then it says nothing yet.
    """

    classes: tuple[str, ...] = ()
    where: Mapping[str, Wanted] = field(default_factory=dict)
    unclear: tuple[str, ...] = ()

    @property
    def keys(self) -> frozenset[str]:
        """What it speaks of: names of attributes, and `class`."""
        return frozenset(self.where) | ({CLASS} if self.classes else frozenset())


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What words mean for a run; phrases and names are tuples of words as `split_words` returns them.

    `foreign` holds phrases of a file of words that speak of attributes or classes which the run does not know.
    """

    attributes: Mapping[str, Attribute]
    classes: tuple[str, ...]
    phrases: Mapping[tuple[str, ...], Meaning]
    names: Mapping[tuple[str, ...], str]
    foreign: Mapping[tuple[str, ...], str]


def split_words(text: str) -> tuple[str, ...]:
    """Return the words of a phrase: lower case, singular, whatever stood between them."""
    return tuple(singular(word) for word in re.findall(r"\w+", text.lower().replace("_", " ")))


def singular(word: str) -> str:
    """Return a word without the s of a plural."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def make_vocabulary(attributes: Sequence[Attribute], classes: Sequence[str], words: str = "") -> Vocabulary:
    """Return what words mean for a run; `words` is the name or path of a file of words, empty for none.

    Raises `ConfigError` for a file that is not there or cannot be read, and for values that the run cannot have.
    """
    known = {attribute.name: attribute for attribute in attributes}
    names = {split_words(attribute_words(attribute)): attribute.name for attribute in attributes}
    phrases: dict[tuple[str, ...], Meaning] = {}
    for attribute in attributes:
        _add_categories(phrases, attribute)
    phrases |= {split_words(label): Meaning(classes=(label,)) for label in classes}
    stated, foreign = _read_words(words, known, classes) if words else ({}, {})
    for phrase, meaning in stated.items():
        own = phrases.get(phrase, Meaning()).classes
        phrases[phrase] = Meaning(classes=meaning.classes or own, where=meaning.where)
    return Vocabulary(attributes=known, classes=tuple(classes), phrases=phrases, names=names, foreign=foreign)


def complement(attribute: Attribute, wanted: Wanted, said: str) -> Wanted:
    """Return the values that an attribute has otherwise; `ConfigError` where these are none, or no range."""
    if wanted.categories:
        if others := tuple(each for each in attribute.categories if each not in wanted.categories):
            return Wanted(categories=others)
    else:
        below, above = wanted.low > attribute.low, wanted.high < attribute.high
        step = float(attribute.whole)
        if below != above:
            return Wanted(high=wanted.low - step) if below else Wanted(low=wanted.high + step)
    raise ConfigError(
        f"prompt: need values of {attribute.name} ({attribute.describe()}) that are left, got {said!r}; "
        "try to say what is wanted"
    )


def intersect(first: Wanted, second: Wanted) -> Wanted | None:
    """Return what both want of an attribute, None for nothing."""
    if first.categories:
        both = tuple(each for each in first.categories if each in second.categories)
        return Wanted(categories=both) if both else None
    low, high = max(first.low, second.low), min(first.high, second.high)
    return Wanted(low=low, high=high) if low <= high else None


def unite(attribute: Attribute, parts: Sequence[Wanted], said: str) -> Wanted:
    """Return what any of several want of an attribute; `ConfigError` where that is no range."""
    if attribute.categories:
        return Wanted(
            categories=tuple(each for each in attribute.categories if any(each in one.categories for one in parts))
        )
    ranges = sorted((one.low, one.high) for one in parts)
    low, high = ranges[0]
    for start, end in ranges[1:]:
        if start > high + attribute.whole:
            raise ConfigError(f"prompt: need one range of {attribute.name}, got {said!r}; try two sets")
        high = max(high, end)
    return Wanted(low=low, high=high)


def describe_wanted(wanted: Wanted) -> str:
    """Return the values as `--where` takes them."""
    if wanted.categories:
        return "|".join(wanted.categories)
    low, high = ("" if math.isinf(each) else f"{each:.10g}" for each in (wanted.low, wanted.high))
    return low if low == high else f"{low}..{high}"


def _add_categories(phrases: dict[tuple[str, ...], Meaning], attribute: Attribute) -> None:
    name = split_words(attribute_words(attribute))
    for category in attribute.categories:
        words, meaning = split_words(category), Meaning(where={attribute.name: Wanted(categories=(category,))})
        if not words:
            continue
        if len(words) > 1 or not (len(words[0]) < 3 or words[0].isdecimal() or words[0] in _COMMON):
            taken = phrases.get(words)
            unclear = (*(taken.unclear or taken.where), attribute.name) if taken else ()
            phrases[words] = Meaning(unclear=unclear) if unclear else meaning
        for together in ((*name, *words), (*words, *name), (*name, "is", *words)):
            phrases[together] = meaning
    none = [category for category in attribute.categories if category.lower() in _NONE]
    if len(none) == 1 and len(attribute.categories) > 1:
        others = tuple(category for category in attribute.categories if category not in none)
        phrases[name] = Meaning(where={attribute.name: Wanted(categories=others)})


def _read_words(
    words: str, known: Mapping[str, Attribute], classes: Sequence[str]
) -> tuple[dict[tuple[str, ...], Meaning], dict[tuple[str, ...], str]]:
    """Return the phrases of a file of words, and those of attributes or classes that the run does not know."""
    path = WORDS.find(words)
    stated: dict[tuple[str, ...], Meaning] = {}
    foreign: dict[tuple[str, ...], str] = {}
    for key, phrases in _mapping(_load(path), str(path)).items():
        for text, value in _mapping(phrases, f"{path}: {key}").items():
            phrase, said = split_words(str(text)), str(value).strip()
            if not phrase or isinstance(value, list | dict | bool):
                raise ConfigError(f"{path}: {key}: need a phrase with a value, got {text!r}: {value!r}; try hazy: 1..2")
            chosen = tuple(part.strip() for part in said.split("|"))
            if key not in known and (key != CLASS or not {*chosen} <= {*classes}):
                foreign[phrase] = str(key)
                continue
            before = stated.get(phrase, Meaning())
            if key == CLASS:
                stated[phrase] = Meaning(classes=chosen, where=before.where)
            else:
                wanted = _read_value(path, known[str(key)], str(text), said)
                stated[phrase] = Meaning(classes=before.classes, where={**before.where, str(key): wanted})
    return stated, {phrase: key for phrase, key in foreign.items() if phrase not in stated}


def _read_value(path: Path, attribute: Attribute, phrase: str, said: str) -> Wanted:
    value = said.removeprefix("not ")
    if "," in value:
        raise ConfigError(f"{path}: {phrase}: need one range or categories, got {said!r}; try 1..2 or left|right")
    try:
        wanted = parse_where(f"{attribute.name}={value}", [attribute])[attribute.name]
    except ConfigError as error:
        raise ConfigError(f"{path}: {phrase}: {str(error).removeprefix('where: ')}") from error
    return wanted if value == said else complement(attribute, wanted, said)


def _load(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > _MOST_CHARACTERS:
            raise ConfigError(f"{path}: need at most {_MOST_CHARACTERS} characters, got {len(text)}; try fewer words")
        return yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: need a YAML file, got {reason_of(error)}; try another path") from error
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: need readable YAML, got {' '.join(str(error).split())}; try quotes") from error


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where}: need attribute: phrase: value, got {str(value)[:100]!r}; try texture: {{hazy: 1..2}}"
        )
    return value
