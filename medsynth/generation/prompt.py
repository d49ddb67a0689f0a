"""Which scans are wanted, in words: `--prompt "a 6 to 10 mm ground-glass nodule"` is read into what `--where` and `--count` say.

Nothing is guessed. Each word is one of the vocabulary, of numbers with units, or of those that say nothing; any other is named
as not read. What may turn the meaning round (a number that is of nothing known, a negation of an unclear reach, `or` between
different things) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medsynth.errors import ConfigError
from medsynth.generation import prompt_words as lexicon
from medsynth.generation.prompt_pieces import (
    Piece,
    beside,
    check_surroundings,
    find_denied,
    said,
    split_pieces,
    unclear,
)
from medsynth.generation.prompt_sizes import contradiction, read_sizes, want
from medsynth.generation.prompt_words import CLASS, Meaning, Vocabulary, make_vocabulary
from medsynth.generation.where import Wanted, parse_where
from medsynth.runs import Run

_MOST_CHARACTERS = 1000


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A prompt as it was read: one of `classes` (empty for any), values of attributes by name, and the words not read."""

    text: str
    classes: tuple[str, ...]
    where: Mapping[str, Wanted]
    unread: tuple[str, ...]

    @property
    def where_text(self) -> str:
        """What `--where` would say."""
        return ",".join(f"{name}={lexicon.describe_wanted(wanted)}" for name, wanted in self.where.items())

    def describe(self) -> str:
        """Return what was understood and, in a second line, what was not."""
        parts = [f"{name}={lexicon.describe_wanted(wanted)}" for name, wanted in self.where.items()]
        parts += [f"class {' or '.join(self.classes)}"] if self.classes else []
        lines = [f"understood: {', '.join(parts)}"]
        return "\n".join(lines + ([f"not read: {', '.join(self.unread)}"] if self.unread else []))

    def facts(self) -> dict[str, Any]:
        """Return what provenance says beside `where`, `counts` and so on."""
        return {"prompt": self.text, "prompt_read": self.describe().split("\n")}


def plan_prompt(run: Run, prompt: str, words: str, where: str) -> tuple[str, Reading | None]:
    """Return what is wanted of attributes as `--where` says it, and the reading of the prompt, None without one.

    `words` is the name or path of a file of words. Raises `ConfigError` as `read_prompt` and `make_vocabulary` do, and for a
    prompt and a `where` that name the same attribute.
    """
    if not prompt.strip():
        if words:
            raise ConfigError(f"prompt_words: need a prompt to read with {words}, got none; try --prompt, or without")
        return where, None
    attributes = run.spec.attributes
    reading = read_prompt(prompt, make_vocabulary(attributes, run.spec.classes, words))
    stated = parse_where(where, attributes) if attributes else {}
    if twice := [name for name in reading.where if name in stated]:
        raise ConfigError(
            f"where: need attributes that the prompt does not name, got {twice[0]}; try it in one of them"
        )
    return ",".join(filter(None, (where.strip(), reading.where_text))), reading


def read_prompt(text: str, vocabulary: Vocabulary) -> Reading:
    """Return how a sentence is read; `ConfigError` that names what may not be read alone, or says that nothing was read."""
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"prompt: need at most {_MOST_CHARACTERS} characters, got {len(text)}; try one sentence")
    pieces = split_pieces(text, vocabulary)
    denied = find_denied(pieces)
    check_surroundings(pieces)
    classes: tuple[str, ...] = ()
    where: dict[str, Wanted] = {}
    for meaning, words in _values(pieces, denied, vocabulary):
        if meaning.classes:
            classes = tuple(name for name in meaning.classes if not classes or name in classes)
            if not classes:
                raise contradiction(CLASS, words)
        for name, wanted in meaning.where.items():
            want(where, name, wanted, words)
    spoken = read_sizes(pieces, vocabulary, where)
    if not classes and not where:
        known = ", ".join([*vocabulary.attributes, *vocabulary.classes])
        raise ConfigError(f"prompt: need words of {known}, got {text.strip()!r}; try a class, or values of these")
    spoken = spoken.union(*(piece.meaning.keys for piece in pieces if piece.kind == "value"))
    used = {*denied.values()}
    unread = [
        piece.text
        for number, piece in enumerate(pieces)
        if piece.kind in ("word", "turn")
        or (piece.kind == "name" and piece.name not in spoken)
        or (piece.kind == "not" and number not in used)
    ]
    return Reading(
        text=" ".join(text.split()),
        classes=classes,
        where={name: where[name] for name in vocabulary.attributes if name in where},
        unread=tuple(dict.fromkeys(unread)),
    )


def _values(pieces: Sequence[Piece], denied: Mapping[int, int], vocabulary: Vocabulary) -> list[tuple[Meaning, str]]:
    """Return what the values of a sentence say with their words: those that `or` joins together, what is denied its opposite."""
    chosen = [number for number, piece in enumerate(pieces) if piece.kind == "value" and number not in denied]
    _check_choices(pieces, chosen, denied)
    groups: list[list[int]] = []
    open_list = False
    for number in chosen:
        last = groups[-1][-1] if groups else number
        between = {piece.kind for piece in pieces[last + 1 : number]}
        first, second = pieces[last].meaning, pieces[number].meaning
        listed = between <= {"comma", "skip"} and "comma" in between and first.keys == second.keys and first != second
        if "or" in between or listed:
            groups[-1].append(number)
            open_list = "or" not in between
            continue
        if open_list:
            break
        groups.append([number])
    if open_list:
        raise contradiction(
            " and ".join(sorted(pieces[groups[-1][0]].meaning.keys)), said(map(pieces.__getitem__, groups[-1]))
        )
    found = []
    for group in groups:
        words = " or ".join(pieces[number].text for number in group)
        found.append((_any_of([pieces[number].meaning for number in group], vocabulary, words), words))
    return found + [
        (_opposite(pieces[number].meaning, vocabulary, pieces[number].text), f"not {pieces[number].text}")
        for number in denied
    ]


def _check_choices(pieces: Sequence[Piece], chosen: Sequence[int], denied: Mapping[int, int]) -> None:
    """Refuse `or` between a value and anything but another value."""
    for number, piece in enumerate(pieces):
        if piece.kind != "or" or not 0 < number < len(pieces) - 1:
            continue
        left, right = beside(pieces, number, -1, ("skip",)), beside(pieces, number, 1, ("skip",))
        if pieces[left].kind == pieces[right].kind == "thing":
            continue
        left, right = (beside(pieces, number, step, ("skip", "thing", "comma")) for step in (-1, 1))
        speaks = [side in chosen or pieces[side].measure is not None for side in (left, right)]
        if left not in denied and any(speaks) and not {left, right} <= {*chosen}:
            raise unclear(pieces, left, right)


def _any_of(meanings: Sequence[Meaning], vocabulary: Vocabulary, words: str) -> Meaning:
    """Return what holds for each of several meanings of which one is wanted."""
    shared = frozenset.intersection(*(meaning.keys for meaning in meanings))
    if not shared:
        raise ConfigError(f"prompt: need one attribute on both sides of or, got {words!r}; try two sets")
    classes = tuple(name for name in vocabulary.classes if any(name in meaning.classes for meaning in meanings))
    where = {
        name: lexicon.unite(vocabulary.attributes[name], [meaning.where[name] for meaning in meanings], words)
        for name in sorted(shared - {CLASS})
    }
    return Meaning(classes=classes if CLASS in shared else (), where=where)


def _opposite(meaning: Meaning, vocabulary: Vocabulary, words: str) -> Meaning:
    others = tuple(name for name in vocabulary.classes if meaning.classes and name not in meaning.classes)
    if meaning.classes and not others:
        raise contradiction(CLASS, f"not {words}")
    where = {
        name: lexicon.complement(vocabulary.attributes[name], wanted, f"not {words}")
        for name, wanted in meaning.where.items()
    }
    return Meaning(classes=others, where=where)
