"""The parts of a sentence: phrases of a vocabulary, numbers, and the small words between them that matter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from medsynth.errors import ConfigError
from medsynth.generation import prompt_words as lexicon
from medsynth.generation.prompt_numbers import MEASURE, Measure, read_measure
from medsynth.generation.prompt_words import Meaning, Vocabulary

_TOKENS = re.compile(rf"(?P<measure>{MEASURE})|(?P<word>[^\W\d]\w*(?:'\w+)?)|(?P<mark>[^\s\w:=\"'-])", re.VERBOSE)
_END = ("comma", "stop")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a sentence.

    `kind` is `value` (with its meaning), `name` (of an attribute), `measure`, `not`, `or`, `and`, `stop`, `comma`, `skip` (says
    nothing), `thing` (what measures are of), `turn` (changes what comes next) or `word` (not known).
    """

    kind: str
    text: str
    meaning: Meaning = field(default_factory=Meaning)
    name: str = ""
    measure: Measure | None = None


@dataclass(frozen=True, kw_only=True)
class _Token:
    """A word, a measure or a mark; `linked` says that a hyphen joins it to what comes before it."""

    kind: str
    text: str
    linked: bool
    measure: Measure | None = None


def split_pieces(text: str, vocabulary: Vocabulary) -> list[Piece]:
    """Return the parts of a sentence, the longest phrases first; `ConfigError` for a number or a sign that cannot be read."""
    tokens = _tokens(text)
    pieces: list[Piece] = []
    words = [lexicon.singular(token.text) if token.kind == "word" else "" for token in tokens]
    longest = max((len(each) for each in (*vocabulary.phrases, *vocabulary.names, *vocabulary.foreign)), default=0)
    here = 0
    while here < len(tokens):
        token, piece = tokens[here], None
        if token.kind != "word":
            pieces.append(Piece(kind=token.kind, text=token.text, measure=token.measure))
            here += 1
            continue
        for stop in range(min(here + longest, len(tokens)), here, -1):
            if "" not in words[here:stop] and _whole(tokens, words, stop):
                piece = _phrase(tokens, words, here, stop, vocabulary)
            if piece:
                break
        else:
            stop = here + 1
            while stop < len(tokens) and tokens[stop].linked and words[stop]:
                stop += 1
            piece = _unknown(tokens[here:stop], words[here:stop], vocabulary)
        pieces.append(piece)
        here = stop
    return pieces


def find_denied(pieces: Sequence[Piece]) -> dict[int, int]:
    """Return the values that are denied, each with what denies it; `ConfigError` where the reach of a negation is not clear."""
    denied: dict[int, int] = {}
    for start, piece in enumerate(pieces):
        if piece.kind != "not":
            continue
        reach = _reach(pieces, start)
        denied |= dict.fromkeys(reach, start)
        first = clause_start(pieces, start)
        if start > first and pieces[start - 1].kind == "or":
            raise unclear(pieces, first, start)
        # What stands at the end denies what comes before it: "spiculation is absent".
        before = any(each.kind in ("value", "measure", "name") for each in pieces[first:start])
        if before and not reach and lexicon.singular(piece.text) not in lexicon.FORWARD:
            raise unclear(pieces, first, start)
    return denied


def check_surroundings(pieces: Sequence[Piece]) -> None:
    """Refuse values that have several meanings, or whose meaning the words beside them change."""
    for number, piece in enumerate(pieces):
        if piece.kind not in ("value", "measure"):
            continue
        if piece.meaning.unclear:
            names = " or ".join(piece.meaning.unclear)
            raise ConfigError(
                f"prompt: need {names} said of {piece.text!r}; try {piece.meaning.unclear[0]} {piece.text}"
            )
        before = number - 1
        while before >= 0 and pieces[before].kind == "skip" and pieces[before].text not in ("in", "at"):
            before -= 1
        if before >= 0 and pieces[before].kind == "turn":
            raise unclear(pieces, before, number)
        if number + 1 < len(pieces) and lexicon.singular(pieces[number + 1].text) in lexicon.PARTS:
            raise unclear(pieces, number, number + 1)
        if piece.kind == "value":
            _check_owner(pieces, number)


def _check_owner(pieces: Sequence[Piece], number: int) -> None:
    """Refuse a value that seems to be of something else: `, right pleural effusion`, or `abutting the left ventricle`."""
    first = last = number
    while last + 1 < len(pieces) and pieces[last + 1].kind in ("word", "value", "thing", "name"):
        last += 1
    while first > 0 and pieces[first - 1].kind in ("word", "value", "thing", "name", "measure"):
        first -= 1
    articles = first
    while articles > 0 and pieces[articles - 1].text in lexicon.ARTICLES:
        articles -= 1
    other = pieces[last].kind == "word" and lexicon.singular(pieces[last].text) not in lexicon.PLACES
    before = pieces[articles - 1].kind if articles else ""
    if (other and before in ("comma", "stop", "and")) or (articles < first and before == "word"):
        raise unclear(pieces, articles - 1, last)


def clause_start(pieces: Sequence[Piece], number: int) -> int:
    """Return where the clause begins that a piece belongs to."""
    return next((each + 1 for each in range(number - 1, -1, -1) if pieces[each].kind in _END), 0)


def clause_end(pieces: Sequence[Piece], number: int) -> int:
    """Return where the clause ends that a piece belongs to."""
    return next((each for each in range(number + 1, len(pieces)) if pieces[each].kind in _END), len(pieces))


def beside(pieces: Sequence[Piece], number: int, step: int, passed: Sequence[str]) -> int:
    """Return the next piece on one side that is none of some kinds, or the last one there."""
    number += step
    while 0 < number < len(pieces) - 1 and pieces[number].kind in passed:
        number += step
    return number


def said(pieces: Iterable[Piece]) -> str:
    """Return pieces as text."""
    return " ".join(piece.text for piece in pieces)


def unclear(pieces: Sequence[Piece], first: int, last: int) -> ConfigError:
    """Return the error of words whose meaning is not clear together."""
    text = said(pieces[max(first, 0) : last + 1])
    return ConfigError(
        f"prompt: need a wording whose meaning is clear, got {text!r}; try it in plainer words, or --where"
    )


def unread_number(text: str, wanted: str) -> ConfigError:
    """Return the error of a number that says nothing known."""
    return ConfigError(f"prompt: need {wanted}, got {text!r}; try it in other words, or --where")


def _reach(pieces: Sequence[Piece], start: int) -> list[int]:
    """Return the values that a negation denies: those after it that `or` joins, with nothing unknown before them."""
    reach: list[int] = []
    joined, strange = True, False
    for number in range(start + 1, clause_end(pieces, start)):
        kind = pieces[number].kind
        if kind == "not":
            break
        if kind == "measure" or (kind == "value" and (strange or not joined)):
            raise unclear(pieces, start, number)
        if kind == "value":
            reach.append(number)
            joined = False
        elif kind == "or":
            joined = True
        elif kind not in ("skip", "thing") or pieces[number].text in lexicon.EMPHATIC:
            strange = True
    return reach


def _tokens(text: str) -> list[_Token]:
    plain = re.sub("[‐‑‒–—−]", "-", text.lower().replace("’", "'").replace("_", " "))
    if found := re.search(r"[0-9],[0-9]|[0-9]\.[0-9]+\.[0-9]", plain):
        raise unread_number(found[0], "a decimal point in numbers")
    tokens: list[_Token] = []
    end = 0
    for match in _TOKENS.finditer(plain):
        linked = bool(tokens) and plain[end : match.start()] == "-"
        end, found_text = match.end(), " ".join(match[0].split())
        if any(letter.isnumeric() for letter in found_text if not letter.isascii() and letter != "³"):
            raise unread_number(found_text, "plain digits")
        measure = read_measure(match) if match["measure"] else None
        if match["mark"] and found_text not in ",.;()!?&":
            raise ConfigError(f"prompt: need words, got {found_text!r}; try to, or, and")
        if match["measure"] and (measure is None or re.match(r"\w|\.[0-9]", plain[end:])):
            rest = re.match(r"\w*", plain[end:])
            raise unread_number(found_text + (rest[0] if rest else ""), "a number with its unit")
        if match["word"] or found_text == "one":
            kind = "word"
        elif match["measure"]:
            kind = "measure"
        else:
            kind = "comma" if found_text in ",()" else "and" if found_text == "&" else "stop"
        tokens.append(_Token(kind=kind, text=found_text, linked=linked, measure=measure if kind == "measure" else None))
    return tokens


def _whole(tokens: Sequence[_Token], words: Sequence[str], stop: int) -> bool:
    """Return whether a phrase may end here: no hyphen joins it to a word that says more, as in `solid-appearing`."""
    return stop == len(tokens) or not tokens[stop].linked or words[stop] in lexicon.SKIPPED | lexicon.THINGS | {""}


def _phrase(
    tokens: Sequence[_Token], words: Sequence[str], here: int, stop: int, vocabulary: Vocabulary
) -> Piece | None:
    """Return what a phrase of the vocabulary says; the name of an attribute before a number is no value."""
    phrase = tuple(words[here:stop])
    text = " ".join(token.text for token in tokens[here:stop])
    name = vocabulary.names.get(phrase)
    after = stop
    while after < len(tokens) and words[after] in lexicon.SKIPPED:
        after += 1
    number = tokens[after].measure if after < len(tokens) else None
    if phrase in vocabulary.phrases and not (name and number and number.unit is None):
        return Piece(kind="value", text=text, meaning=vocabulary.phrases[phrase])
    if name:
        return Piece(kind="name", text=text, name=name)
    if phrase in vocabulary.foreign:
        return Piece(kind="word", text=f"{text} (of {vocabulary.foreign[phrase]}, which the run was not told)")
    return None


def _unknown(tokens: Sequence[_Token], words: Sequence[str], vocabulary: Vocabulary) -> Piece:
    """Return the piece of a word, or of several that hyphens join, which is no phrase of the vocabulary."""
    text = "-".join(token.text for token in tokens)
    if len(words) > 1:
        if words[0] == "non" and tuple(words[1:]) in vocabulary.phrases:
            raise ConfigError(
                f"prompt: need a wording that is clear, got {text!r}; try not {text.removeprefix('non-')}"
            )
        return Piece(kind="word", text=text)
    word = words[0]
    if word in lexicon.NUMERALS:
        raise unread_number(word, "digits")
    if word in lexicon.NEGATIONS or word.endswith("n't"):
        return Piece(kind="not", text=text)
    if word in ("or", "and"):
        return Piece(kind=word, text=text)
    kinds = {"stop": lexicon.STOPS, "turn": lexicon.TURNING, "skip": lexicon.SKIPPED, "thing": lexicon.THINGS}
    return Piece(kind=next((kind for kind, members in kinds.items() if word in members), "word"), text=text)
