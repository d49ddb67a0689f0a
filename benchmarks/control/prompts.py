"""Are sentences read as they are meant? Prompts made from the attributes of real lung nodules, in wordings seen and not seen.

    python -m benchmarks.control.prompts --labels lung_nodules/labels.csv --result benchmarks/results/control_prompts.json

Each sentence is made from the values of one nodule, so what it should be read as is known. The wordings of the family `seen` were
used while the reader was written. Those of `held_out` were written down before it was run on any of them, in the style of
radiology reports, and neither the reader nor its words were changed afterwards. A sentence is read exactly, is read in part
(all that was read is right, and words were named as not read), is refused, or is read wrongly: then a set would not be what was
asked for.
With `--run` and `--out`, two sets are made as well, one by prompts and one by the equal `--where`, for
`python -m benchmarks.control.attributes`.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from medsynth.cohorts.attributes import Attribute
from medsynth.errors import ConfigError
from medsynth.files import write_json
from medsynth.generation.prompt import read_prompt
from medsynth.generation.prompt_words import Vocabulary, make_vocabulary
from medsynth.generation.where import Wanted
from medsynth.seeds import numpy_generator

RATED = ("texture", "spiculation", "lobulation", "margin", "sphericity")
CLASSES = ("ground_glass", "part_solid", "solid")
# What a wording must mean for each rating: `bounds` of the rating, as the file of words `lung_nodule` says them.
_TEXTURES = {"ground_glass": (1, 2), "part_solid": (3, 4), "solid": (5, 5)}
_SIGNS = {
    "spiculation": (("{spiculated}", 3, 5), ("{smooth}", 1, 2)),
    "lobulation": (("{lobulated}", 3, 5), ("", 1, 2)),
    "margin": (("{sharp}", 4, 5), ("{blurred}", 1, 2)),
    "sphericity": (("{round}", 4, 5), ("{oval}", 3, 3)),
}
_SEEN_WORDS = {
    "ground_glass": ("ground-glass", "ground glass", "non-solid", "hazy"),
    "part_solid": ("part-solid", "partly solid", "part solid", "semi-solid"),
    "solid": ("solid",),
    "spiculation": ("spiculated", "smooth"),
    "lobulation": ("lobulated", "non-lobulated"),
    "margin": ("well-defined", "ill-defined"),
    "sphericity": ("round", "oval"),
}
# {texture} and {sign} are adjectives, {size} and so on numbers; {low} to {high} holds the diameter, {floor} is below it.
SEEN = (
    "a {size} mm {texture} nodule",
    "an {size}-mm {texture} nodule",
    "{texture} nodule of {size} mm",
    "a {texture} nodule of about {size} mm",
    "{low} to {high} mm {texture} nodule",
    "{low}-{high}mm {texture} nodules",
    "a {texture} nodule between {low} and {high} millimetres",
    "{texture} nodule larger than {floor} mm",
    "{texture} nodules of at least {floor} mm",
    "a {texture} nodule up to {ceiling} mm",
    "{texture} nodule, {low} to {high} mm",
    "{sign} {texture} nodule",
    "a {sign} {texture} nodule of {low}-{high} mm",
    "a {texture} nodule with {sign} margins, {size} mm",
    "a {low_cm} to {high_cm} cm {texture} nodule",
    "a {texture} nodule over {floor} and under {ceiling} mm",
    "a {texture} nodule measuring {size} mm in diameter",
    "{texture} nodule {floor} mm or larger",
    "a {texture} nodule without spiculation",
    "a {sign} nodule smaller than {ceiling} mm",
)
# Written before the first run on them, and left as they are.
HELD_OUT = (
    "There is a {size} mm {texture} pulmonary nodule in the lingula.",
    "Solitary {texture} nodule, {size} mm in greatest axial dimension.",
    "{texture} nodule with a mean diameter of {size} mm.",
    "Incidental {texture} nodule, measuring approximately {size} mm.",
    "A {sign} nodule measuring {size} mm is seen within the apical segment.",
    "{texture} pulmonary nodule ({size} mm).",
    "Stable {size} mm {texture} nodule.",
    "Indeterminate {texture} nodule in the {low} to {high} mm size range.",
    "Nodule of {texture} attenuation, {low} mm to {high} mm.",
    "Nodule demonstrating {texture} density, greater than {floor} mm.",
    "{texture} lesion not exceeding {ceiling} mm in maximal diameter.",
    "{texture} lesion exceeding {floor} mm.",
    "Suspicious {sign} {texture} mass of {size_cm} cm.",
    "{texture} opacity with {sign} borders, diameter {size} mm.",
    "{sign} contour, {texture} consistency, {size} mm.",
    "Long-axis diameter {size} mm; {texture}.",
    "{texture} nodule. Size: {low}-{high} mm.",
    "Focal {texture} opacity of at most {ceiling} mm.",
    "Subpleural {texture} nodule less than {ceiling} mm in size.",
    "In the left lower lobe there is a {sign} {texture} nodule.",
    "CT chest: {texture} nodule, {sign} outline.",
    "Non-calcified {texture} nodule, minimum {floor} mm.",
    "{texture} nodule, no cavitation, {size} mm across.",
    "The nodule is {texture} and {sign}, with a diameter of {low} to {high} mm.",
    "Please make {texture} nodules sized {low} through {high} mm.",
    "Nodule diameter from {low} to {high} mm, {texture} type.",
    "{texture} nodule whose diameter lies between {low_cm} cm and {high_cm} cm.",
    "Persistent {texture} nodule of {size} millimeters, {sign}.",
    "{texture} nodule > {floor} mm.",
    "{texture} nodule of <= {ceiling} mm.",
    "A tiny {texture} focus of {size}mm.",
    "New {texture} nodule, {size} mm, adjacent to the major fissure.",
    "{texture} nodule of {size} mm, no spiculation.",
    "{texture} nodule without spiculated margins, between {low} and {high} mm.",
    "A {texture} nodule that is not spiculated, roughly {size} mm.",
    "Spiculation absent; {texture} nodule, {size} mm.",
    "{texture} nodule, {sign} morphology, {floor} mm and above.",
    "Lesion: {texture}, {sign}, ~{size} mm.",
    "Right upper lobe {texture} nodule measuring up to {ceiling} mm.",
    "{size} mm nodule, {texture}, with a pleural tag.",
    "{texture} nodule, previously 5 mm, now {size} mm.",
    "{texture} nodule of {size} mm at 4 mm from the pleura.",
    "{texture} nodule, {size} mm, with a 12 mm hilar lymph node.",
    "Predominantly {texture} nodule of {size} mm.",
    "{texture} nodule of {size} mm beside a calcified granuloma of 3 mm.",
    "{texture} nodule of {size} mm; slice thickness 1.25 mm.",
    "{texture} nodule, {size} mm, rather than a {other} one.",
    "Either {texture} or {other}, {size} mm.",
    "Not a {other} but a {texture} nodule of {size} mm.",
    "{texture} nodule of no less than {floor} mm and no more than {ceiling} mm.",
)
_HELD_OUT_WORDS = {
    "ground_glass": ("GGN", "pure ground-glass", "nonsolid", "ground glass"),
    "part_solid": ("partially solid", "semisolid", "mixed ground-glass", "part-solid"),
    "solid": ("solid", "entirely solid", "completely solid"),
    "spiculation": ("frankly spiculated", "smoothly marginated"),
    "lobulation": ("lobular", "non-lobulated"),
    "margin": ("sharply demarcated", "poorly marginated"),
    "sphericity": ("rounded", "ovoid"),
}
# What is predominantly solid may be part-solid: whatever is read of it is wrong, it may only be refused.
_OPEN = "Predominantly"


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence with what it means: classes, and bounds of attributes."""

    text: str
    template: str
    classes: tuple[str, ...]
    where: Mapping[str, tuple[float, float]]


def read_nodules(path: Path) -> list[dict[str, str]]:
    """Return the rows of the labels."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def describe_attributes(rows: Sequence[Mapping[str, str]]) -> tuple[Attribute, ...]:
    """Return the attributes of the nodules as a run would know them."""
    found = []
    for name in ("diameter_mm", *RATED):
        values = [float(row[name]) for row in rows]
        found.append(Attribute(name=name, low=min(values), high=max(values), whole=name in RATED))
    categories = tuple(sorted({row["calcification"] for row in rows}))
    return (*found, Attribute(name="calcification", categories=categories))


def make_sentence(
    template: str, words: Mapping[str, Sequence[str]], row: Mapping[str, str], random: np.random.Generator
) -> Sentence:
    """Return a sentence about a nodule; what it means follows from its parts, not from how it is read."""
    label = row["label"]
    size = max(round(float(row["diameter_mm"])), 3)
    low, high = size - int(random.integers(1, 3)), size + int(random.integers(1, 4))
    numbers: dict[str, Any] = {"size": size, "low": low, "high": high, "floor": low - 1, "ceiling": high + 1}
    for name in ("size", "low", "high"):
        numbers[f"{name}_cm"] = f"{numbers[name] / 10:g}"
    other = CLASSES[(CLASSES.index(label) + 1) % len(CLASSES)]
    pick = {name: choices[int(random.integers(len(choices)))] for name, choices in words.items()}
    where: dict[str, tuple[float, float]] = {}
    classes: tuple[str, ...] = ()
    if "{texture}" in template:
        where["texture"], classes = _TEXTURES[label], (label,)
    sign = ""
    if "{sign}" in template:
        # Signs of which there is a word for this nodule; a nodule has some.
        told = [
            (name, place, bounds[1:])
            for name, sides in _SIGNS.items()
            for place, bounds in enumerate(sides)
            if bounds[1] <= int(row[name]) <= bounds[2]
        ]
        name, place, bounds = told[int(random.integers(len(told)))]
        sign, where[name] = words[name][place], bounds
    if "spiculat" in template.lower():
        where["spiculation"] = (1, 2)
    if "Non-calcified" in template:
        where["calcification"] = (0, 0)
    if "Either" in template:
        classes, where = tuple(each for each in CLASSES if each in (label, other)), {}
        where["texture"] = (min(_TEXTURES[each][0] for each in classes), max(_TEXTURES[each][1] for each in classes))
    where |= _size(template, numbers)
    text = template.format(**numbers, texture=pick[label], sign=sign, other=other.replace("_", "-"))
    return Sentence(text=text, template=template, classes=classes, where=where)


def _size(template: str, numbers: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return what a template says of the diameter in millimetres."""
    size, floor, ceiling = (float(numbers[name]) for name in ("size", "floor", "ceiling"))
    infinite = float("inf")
    if "{low" in template:
        return {"diameter_mm": (float(numbers["low"]), float(numbers["high"]))}
    if "{size" in template:
        about = any(word in template for word in ("about", "approximately", "roughly", "~"))
        # Half of the last digit, at most a twentieth; 2 cm has a coarser one than 20 mm.
        half = 5.0 if "{size_cm}" in template and size % 10 == 0 else 0.5
        room = 0.1 * size if about else min(half, 0.05 * size)
        return {"diameter_mm": (size - room, size + room)}
    bounds = (floor if "{floor}" in template else -infinite, ceiling if "{ceiling}" in template else infinite)
    return {} if bounds == (-infinite, infinite) else {"diameter_mm": bounds}


def judge(sentence: Sentence, vocabulary: Vocabulary) -> tuple[str, str]:
    """Return `exact`, `part`, `refused` or `wrong` for a sentence, and how it was read."""
    try:
        reading = read_prompt(sentence.text, vocabulary)
    except ConfigError as error:
        return "refused", str(error)
    said = reading.describe()
    stated: dict[str, Any] = {name: _bounds(name, wanted) for name, wanted in reading.where.items()}
    meant: dict[str, Any] = {**sentence.where}
    for found, classes in ((stated, reading.classes), (meant, sentence.classes)):
        if classes:
            found["class"] = frozenset(classes)
    right = all(name in meant and _agree(meant[name], stated[name]) for name in stated)
    if not right or _OPEN in sentence.template:
        return "wrong", said
    if set(stated) == set(meant):
        return "exact", said
    return ("part" if reading.unread else "wrong"), said


def _bounds(name: str, wanted: Wanted) -> tuple[float, float]:
    """Return the bounds that were read; the ends of a scale of ratings are those of the scale."""
    if wanted.categories:  # of which only that of no calcification is asked for here
        return 0.0, float(wanted.categories != ("absent",))
    return (max(wanted.low, 1.0), min(wanted.high, 5.0)) if name in RATED else (wanted.low, wanted.high)


def _agree(meant: Any, stated: Any) -> bool:
    return meant == stated if isinstance(meant, frozenset) else bool(np.allclose(meant, stated))


def wilson(count: int, total: int) -> dict[str, float]:
    """Return a share with its 95 % interval (Wilson 1927)."""
    z = 1.959964
    share = count / total
    centre, room = share + z * z / (2 * total), z * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return {
        "count": count,
        "share": share,
        "low": max(0.0, float((centre - room) / scale)),
        "high": min(1.0, float((centre + room) / scale)),
    }


def measure(
    templates: Sequence[str],
    words: Mapping[str, Sequence[str]],
    rows: Sequence[Mapping[str, str]],
    vocabulary: Vocabulary,
    *,
    each: int,
) -> dict[str, Any]:
    """Return how the sentences of a family are read, `each` of every wording, and what went wrong."""
    outcomes: Counter[str] = Counter()
    by_wording: dict[str, Counter[str]] = {}
    examples: dict[str, str] = {}
    for template in templates:
        tally = by_wording[template] = Counter()
        for number in range(each):
            random = numpy_generator(0, "prompts", template, number)
            row = rows[int(random.integers(len(rows)))]
            sentence = make_sentence(template, words, row, random)
            outcome, said = judge(sentence, vocabulary)
            outcomes[outcome] += 1
            tally[outcome] += 1
            if outcome == "wrong":
                examples.setdefault(template, f"{sentence.text} -> {said}")
    total = sum(outcomes.values())
    kinds = ("exact", "part", "refused", "wrong")
    # Sentences of one wording are alike: what tells of wordings not seen is the share of wordings, of which each is one.
    always = Counter(next(iter(tally)) if len(tally) == 1 else "mixed" for tally in by_wording.values())
    ever_wrong = sum(tally["wrong"] > 0 for tally in by_wording.values())
    return {
        "wordings": len(templates),
        "sentences": total,
        "of_sentences": {kind: wilson(outcomes[kind], total) for kind in kinds},
        "of_wordings_always": {kind: wilson(always[kind], len(templates)) for kind in (*kinds, "mixed")},
        "wordings_ever_wrong": wilson(ever_wrong, len(templates)),
        "wrong": examples,
        "by_wording": {template: dict(tally) for template, tally in by_wording.items()},
    }


def make_sets(run: str, out: Path, *, count: int) -> None:
    """Make scans of each class by prompts, and the same by the equal `where`."""
    import medsynth

    loaded = medsynth.load_run(run)
    for label in loaded.spec.classes:
        prompt = f"a {label.replace('_', '-')} nodule of 6 to 15 mm"
        vocabulary = make_vocabulary(loaded.spec.attributes, loaded.spec.classes)
        where = read_prompt(prompt, vocabulary).where_text
        medsynth.sample(run=run, count=count, prompt=prompt, where_from="ranges", out=out / f"prompt_{label}")
        medsynth.sample(run=run, count={label: count}, where=where, where_from="ranges", out=out / f"where_{label}")


def main() -> None:
    """Read all sentences, print the shares and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, required=True, help="labels.csv of the lung nodules")
    parser.add_argument("--each", type=int, default=40, help="sentences of every wording")
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--run", default="", help="a run told diameter_mm, to make sets by prompts and by where")
    parser.add_argument("--out", type=Path, default=Path("prompted"), help="folder of these sets")
    parser.add_argument("--count", type=int, default=100, help="scans of each of these sets")
    parser.add_argument(
        "--family", choices=("both", "seen"), default="both", help="seen leaves the held-out wordings alone"
    )
    arguments = parser.parse_args()
    rows = read_nodules(arguments.labels)
    vocabulary = make_vocabulary(describe_attributes(rows), CLASSES, "lung_nodule")
    families = {"seen": (SEEN, _SEEN_WORDS), "held_out": (HELD_OUT, _HELD_OUT_WORDS)}
    result: dict[str, Any] = {"machine": describe_machine(), "nodules": len(rows)}
    for name, (templates, words) in families.items():
        if arguments.family in ("both", name):
            result[name] = measure(templates, words, rows, vocabulary, each=arguments.each)
    write_json(arguments.result, result)
    for name in families:
        if name in result:
            shares = ", ".join(
                f"{kind} {one['share']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
                for kind, one in result[name]["of_sentences"].items()
            )
            print(f"{name}: {result[name]['sentences']} sentences in {result[name]['wordings']} wordings: {shares}")
            print("\n".join(f"  wrong: {text}" for text in result[name]["wrong"].values()))
    if arguments.run:
        make_sets(arguments.run, arguments.out, count=arguments.count)


if __name__ == "__main__":
    main()
