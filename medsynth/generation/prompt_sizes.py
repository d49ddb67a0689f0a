"""Which attribute a number in a sentence is of, and whether it is of what the scan shows at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medsynth.errors import ConfigError
from medsynth.generation import prompt_words as lexicon
from medsynth.generation.prompt_numbers import Measure, attribute_unit, attribute_words, same_kind
from medsynth.generation.prompt_pieces import Piece, beside, clause_end, clause_start, unclear, unread_number
from medsynth.generation.prompt_words import Vocabulary
from medsynth.generation.where import Wanted

# An attribute with one of these in its name is what `an 8 mm nodule` speaks of, where several are in millimetres.
_SIZE = frozenset({"diameter", "size", "extent", "length", "volume"})


def read_sizes(pieces: Sequence[Piece], vocabulary: Vocabulary, where: dict[str, Wanted]) -> set[str]:
    """Add to `where` what numbers say, and return the attributes that they are of."""
    found: dict[str, Measure] = {}
    for number, piece in enumerate(pieces):
        if piece.measure is None:
            continue
        measure = _with_unit(pieces, number, piece.measure)
        attributes = vocabulary.attributes
        name = (
            _named(pieces, number, vocabulary) if measure.unit is None else _meant(pieces, number, measure, vocabulary)
        )
        if name in found and {measure.side, found[name].side} != {"low", "high"}:
            raise contradiction(name, piece.text)
        found[name] = measure
        want(where, name, measure.wanted(attributes[name]), piece.text)
    return {*found}


def want(where: dict[str, Wanted], name: str, wanted: Wanted, words: str) -> None:
    """Add what is wanted of an attribute; `ConfigError` where that cannot hold together with what is wanted already."""
    both = lexicon.intersect(where[name], wanted) if name in where else wanted
    if both is None:
        raise contradiction(name, words)
    where[name] = both


def contradiction(name: str, words: str) -> ConfigError:
    """Return the error of statements that cannot hold together."""
    return ConfigError(
        f"prompt: need one statement of {name}, or several that can hold together, got {words!r} and another; "
        "try or between them, or two sets"
    )


def _with_unit(pieces: Sequence[Piece], number: int, measure: Measure) -> Measure:
    """Return the measure with the unit that follows later, as in `over 6 and under 10 mm`."""
    after = beside(pieces, number, 1, ("and", "comma", "stop"))
    later = pieces[after].measure if after < len(pieces) else None
    if measure.unit is None and later and {measure.side, later.side} == {"low", "high"}:
        return replace(measure, unit=later.unit)
    return measure


def _named(pieces: Sequence[Piece], number: int, vocabulary: Vocabulary) -> str:
    """Return the attribute without a unit whose name stands before a number."""
    before = number - 1
    while before >= 0 and pieces[before].kind == "skip":
        before -= 1
    name = pieces[before].name if before >= 0 else ""
    attribute = vocabulary.attributes.get(name)
    if attribute is None or attribute.categories or (attribute_unit(attribute) and "_" in name):
        raise unread_number(pieces[number].text, "a number with its unit")
    return name


def _meant(pieces: Sequence[Piece], number: int, measure: Measure, vocabulary: Vocabulary) -> str:
    """Return the attribute that a number with a unit is of: the only one in such units, or the one named nearest to it."""
    candidates = same_kind(measure, list(vocabulary.attributes.values()))
    if not candidates:
        known = ", ".join(vocabulary.attributes) or "none"
        raise unread_number(measure.text, f"a number of an attribute of the run ({known})")
    _check_thing(pieces, number)
    clause = range(clause_start(pieces, number), clause_end(pieces, number))
    names = {each.name for each in candidates}
    named = sorted((abs(each - number), pieces[each].name) for each in clause if pieces[each].name in names)
    if named and not (len(named) > 1 and named[0][0] == named[1][0]):
        return named[0][1]
    if len(candidates) > 1 and not named:
        candidates = [each for each in candidates if _SIZE & {*lexicon.split_words(attribute_words(each))}]
    if len(candidates) != 1:
        raise unread_number(measure.text, f"one of {', '.join(sorted(names))} named beside a number")
    return candidates[0].name


def _check_thing(pieces: Sequence[Piece], number: int) -> None:
    """Refuse a number that may be of something else than what the scan shows: of a vessel, a slice, a year ago."""
    known = ("value", "name", "thing")
    right = number + 1
    while right < len(pieces) and pieces[right].kind == "word":
        right += 1
    heads = right < len(pieces) and pieces[right].kind in known
    first, last = clause_start(pieces, number), clause_end(pieces, number)
    while first > 1 and pieces[first - 1].text in ("with", "which", "that"):
        first = clause_start(pieces, first - 1)
    strange = any(
        {*lexicon.split_words(piece.text)} & lexicon.OTHERS
        for piece in pieces[first:last]
        if piece.kind in ("word", "turn")
    )
    if strange or (right > number + 1 and not heads) or (right < len(pieces) and pieces[right].text == "of"):
        raise unclear(pieces, first, max(last - 1, number))
    if heads:
        return
    left = number - 1
    while left >= 0 and (pieces[left].kind == "skip" or pieces[left].text in ("with", "which", "that")):
        left -= 1
    if left >= 0 and pieces[left].kind == "comma":
        before = pieces[clause_start(pieces, left) : left]
        fits = not before or any(piece.kind in (*known, "measure") for piece in before)
    else:
        # What stands after in or at is a place, known or not.
        place = next((each for each in range(left, first - 1, -1) if pieces[each].text in ("in", "at")), None)
        left = left if place is None or pieces[left].kind not in ("word", "turn") else place - 1
        fits = left < first or pieces[left].kind in (*known, "measure", "stop", "and")
    if not fits:
        raise unclear(pieces, max(left, 0), number)
