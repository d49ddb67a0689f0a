"""`medsynth card`: the data card of a synthetic set, and `croissant.json`.

`describe_*` in `card_facts` collect what files say, this module puts it into words: gaps, limits, prohibited uses, warnings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from medsynth.cohorts import Cohort
from medsynth.cohorts.manifest import REQUIRED, read_columns
from medsynth.config import CardOptions
from medsynth.errors import DataError
from medsynth.evaluation.reports import check_report, check_sets, read_report
from medsynth.evaluation.verdict import edits_sentence
from medsynth.files import write_json, write_text
from medsynth.reporting.card_facts import (
    class_shares,
    cover_attributes,
    cover_classes,
    describe_data,
    describe_evaluation,
    describe_generator,
    trained_classes,
)
from medsynth.reporting.card_schema import SCHEMA, STATED, card_problems, escape_markdown, find_gaps, read_statements
from medsynth.reporting.croissant import describe_croissant
from medsynth.reporting.templates import open_templates
from medsynth.sets import find_cohort_file, holds_real_pixels, open_real, open_synthetic, read_provenance
from medsynth.versions import installed_versions

CARD_FILE, CROISSANT_FILE = "data_card.md", "croissant.json"
PROHIBITED = (
    "Diagnosis, or any other decision about a patient.",
    "Re-identification: any attempt to find or recognise the people whose scans the generator was trained on.",
    "Presenting the scans as scans of patients, or removing the marks that say synthetic.",
    "Proving how well a medical product works: its performance on synthetic scans is not its performance on patients.",
)
_FEW_PATIENTS = 50
_PARTS = {"privacy": "Privacy", "fidelity": "Likeness to real scans", "downstream": "Gain of a classifier"}


@dataclass(frozen=True, kw_only=True)
class CardFiles:
    """Where the card was written, and its front matter."""

    card: Path
    croissant: Path
    front: Mapping[str, Any]

    def summary(self) -> str:
        """Return where the card is, its most serious warning, its number of gaps, and the next command."""
        gaps = self.front["gaps"]
        warnings = [f"note: {_plain(text)}" for text in warnings_of(self.front)[:1]]
        following = f"medsynth card --check {self.card}"
        if stated := [gap for gap in gaps if not gap.startswith(("evaluation", "coverage", "data", "generator"))]:
            following = f"fill in {', '.join(stated)} in a YAML file, then medsynth card ... --source our_scans.yaml"
        card = f"card: {self.card} ({_counted(len(gaps), 'gap')}), and {self.croissant.name}"
        return "\n".join([card, *warnings, f"next: {following}"])


def write_card(options: CardOptions) -> CardFiles:
    """Write the data card of a synthetic set and its `croissant.json` into the folder `options.out`, by default that of the set.

    What neither the set, its provenance, the report of its evaluation nor the statements of its source say is null in the front
    matter, listed there as a gap, and marked as a gap in the text. Of the real cohort only counts are written. Raises
    `DataError` for a set or report that cannot be read, a report about other scans, and a set with real scans; `GateError` for a
    report that was changed; `ConfigError` as `read_statements` does.
    """
    assert options.synthetic is not None  # the verb checks this
    stated = read_statements(options.source)
    real = open_real(options.real, loading=options) if options.real is not None else None
    made = open_synthetic(options.synthetic, real, loading=options)
    manifest = find_cohort_file(options.synthetic)
    if manifest is None:
        raise DataError(f"{options.synthetic}: need a CSV with the columns path and label, got class folders")
    if any(row.attributes.get("synthetic") == "0" for row in made.rows):
        raise DataError(f"{manifest}: need a synthetic set, got rows with synthetic=0; try another --synthetic")
    evaluation, notes = None, []
    if options.report is not None:
        file = Path(options.report)
        report = read_report(file)
        check_report(report, file)
        check_sets(report, file, {"synthetic": made} | ({} if real is None else {"real": real}), loading=options)
        evaluation, notes = describe_evaluation(report, file), [str(note) for note in report.get("notes") or ()]
    front = _front_matter(made, describe_data(made, manifest, loading=options), real, stated, evaluation, notes)
    columns = read_columns(manifest)
    body = render_card(front, columns=[name for name in columns if name not in REQUIRED])
    # Labels and notes come from others: they may make a card invalid.
    if problems := card_problems(front, body):
        raise DataError(f"{manifest}: a card cannot describe this set: {problems[0]}; try renaming labels")
    out = made.folder if options.out is None else Path(options.out)
    written = CardFiles(card=out / CARD_FILE, croissant=out / CROISSANT_FILE, front=front)
    warnings = [_plain(text) for text in warnings_of(front)]
    write_json(written.croissant, describe_croissant(front, made, columns, warnings=warnings))
    # As JSON would hold it: YAML would mark what two keys share.
    top = yaml.safe_dump(json.loads(json.dumps(front)), sort_keys=False, allow_unicode=True, width=120)
    write_text(written.card, f"---\n{top}---\n\n{body}")
    return written


def render_card(front: Mapping[str, Any], *, columns: Sequence[str]) -> str:
    """Return the text of a card for a valid front matter; `columns` are those of the manifest beyond those of every cohort."""

    def stated(*path: str) -> str:
        value: Any = front
        for key in path:
            value = value[key]
        return gap(*path) if value is None else escape_markdown(value)

    def gap(*path: str) -> str:
        return f"*{gap_sentence(path)}*"

    fidelity = None if front["evaluation"] is None else front["evaluation"]["fidelity"]
    likeness = {} if fidelity is None else fidelity["classes"] | {"all classes together": fidelity["all"]}
    template = open_templates(html=False, text=escape_markdown).get_template("card.md.j2")
    return template.render(
        card=front,
        stated=stated,
        gap=gap,
        gaps=[(".".join(path), gap_sentence(path)) for path in find_gaps(front)],
        warnings=warnings_of(front),
        likeness=[(label, row) for label, row in likeness.items() if row is not None],
        classes=class_shares(front["data"]["classes"], front["coverage"]["real_classes"]),
        columns=columns,
    )


def _front_matter(
    made: Cohort, data: Any, real: Cohort | None, stated: Mapping[str, Any], evaluation: Any, notes: Sequence[str]
) -> dict[str, Any]:
    provenance = read_provenance(made)
    classes = trained_classes(provenance)
    if classes is None and real is not None:
        classes = cover_classes(real)
    stated = {**stated, "title": stated["title"] or f"{data['scans']} synthetic scans of {', '.join(data['classes'])}"}
    identical = evaluation is not None and bool(evaluation["identical"])
    front: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "synthetic_set",
        **{key: stated[key] for key in STATED if stated[key] is not None or key not in ("version", "published")},
        "synthetic": True,
        # A scan that is identical to a real one counts, wherever it came from.
        "contains_real_pixels": True if identical else holds_real_pixels(made),
        "source": dict(stated["source"]),
        "use": {"intended": stated["use"]["intended"] or None},
        "limits": {"stated": stated["limits"] or None},
        "data": data,
        "coverage": {"real_classes": classes, "attributes": cover_attributes(made, real)},
        "generator": describe_generator(provenance),
        "evaluation": evaluation,
        "created_by": {"medsynth-diffusion": installed_versions()["medsynth-diffusion"]},
    }
    if (counts := provenance.get("counts")) and counts != data["classes"]:
        notes = [*notes, "The manifest lists other scans than were made: rows were removed, added or relabelled since."]
    front["use"]["prohibited"] = _prohibited_uses(front, stated["use"]["prohibited"])
    front["limits"]["found"] = _found_limits(front, notes)
    return front | {"gaps": [".".join(path) for path in find_gaps(front)]}


def gap_sentence(path: Sequence[str]) -> str:
    """Return a gap in words, by the parts of its key."""
    return next(sentence for pattern, sentence in _gaps().items() if fnmatchcase(".".join(path), pattern))


@cache
def _gaps() -> dict[str, str]:
    content: dict[str, str] = yaml.safe_load(files("medsynth.reporting").joinpath("card_gaps.yaml").read_text("utf-8"))
    return content


def _prohibited_uses(front: Mapping[str, Any], stated: Sequence[str]) -> list[str]:
    """Return what a synthetic set must not be used for: always, because of what was found, and as people state."""
    verdict, uses = _verdict(front, "privacy"), list(PROHIBITED)
    sharing = "Sharing it with anyone who may not see the source's scans"
    if front["contains_real_pixels"]:
        uses.append(f"{sharing}: it contains pixels of real ones.")
    elif verdict == "fail":
        uses.append(f"{sharing}: the privacy gate failed.")
    elif verdict != "pass":
        uses.append(f"{sharing}, unless the privacy gate has passed.")
    return [*uses, *(use for use in stated if use not in uses)]


def _found_limits(front: Mapping[str, Any], notes: Sequence[str]) -> list[str]:
    """Return the limits of a synthetic set that its files show; `notes` are further ones, such as those of the report."""
    limits = []
    trained, evaluation = front["coverage"]["real_classes"], front["evaluation"]
    for label in front["data"]["classes"] if trained is not None else ():
        scans, patients = (trained.get(label, {"scans": 0, "patients": 0})[key] for key in ("scans", "patients"))
        if scans == 0:
            limits.append(f"{label}: the generator's training scans contain none of this class.")
        elif patients < _FEW_PATIENTS:
            few = f"{_counted(scans, 'scan')} of {_counted(patients, 'patient')}"
            limits.append(f"{label}: the generator was trained on {few}, too few to show how much patients vary.")
    if front["generator"] is not None and front["generator"]["method"] == "edit":
        limits.append("Each scan resembles the real scan it was made from, its donor, and may show the same details.")
    if evaluation is None:
        limits.append("The set was not evaluated: its likeness, privacy and usefulness are unknown.")
    else:
        limits += [f"{title}: not evaluated." for part, title in _PARTS.items() if evaluation[part] is None]
        privacy, downstream = evaluation["privacy"], evaluation["downstream"]
        for part, name, good in (("privacy", "privacy", "pass"), ("fidelity", "likeness", "as close")):
            rows = (evaluation[part] or {"classes": {}})["classes"].items()
            limits += [f"{label}, {name}: {row['sentence']}" for label, row in rows if row["verdict"] != good]
        if privacy is not None and (repeated := privacy["repeated"]):
            limits.append(f"Identical to another scan of the set: {_counted(repeated, 'scan')}.")
        if downstream is not None and downstream["verdict"] != "gain":
            limits.append(f"Gain of a classifier: {downstream['sentence']}")
    return [
        *limits,
        *notes,
        "One generator and one draw: the variation between trainings or draws was not measured.",
        "What the source's scans do not show (other hospitals, scanners, populations, findings), the set cannot show either.",
    ]


def warnings_of(front: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before anything else, as Markdown, the most serious first."""
    privacy = None if front["evaluation"] is None else front["evaluation"]["privacy"]
    careful = "Treat the set as if it contained scans of patients."
    bad = {"fail": "failed", "cannot tell": "cannot tell, which is not a pass"}
    warnings = []
    if privacy is None:
        warnings.append(f"**Privacy was not evaluated.** {careful}")
    elif privacy["verdict"] in bad:
        warnings.append(
            f"**The privacy gate {bad[privacy['verdict']]}.** {escape_markdown(privacy['sentence'])} {careful}"
        )
    if privacy is not None and (dropped := privacy["set_aside"]):
        warnings.append(
            f"**{dropped} scans of the set were flagged as copies of real ones and set aside** before the rest was evaluated. "
            "Their files are still there: hand over what `medsynth augment` writes, never this folder."
        )
    rows = [] if privacy is None else list(privacy["classes"].values())
    if flagged := sum(row["flagged"] for row in rows):
        of = sum(row["judged"] for row in rows)
        warnings.append(f"**Possible copies of real scans: {flagged} of {of} scans are flagged** and still in the set.")
    if front["contains_real_pixels"]:
        warnings.append("**The set contains pixels of real scans** and must stay within your institution.")
    if front["generator"] is not None and front["generator"]["method"] == "edit":
        near = (
            ""
            if privacy is None or "edits" not in privacy
            else f" Of those judged, {edits_sentence(privacy['edits'])}."
        )
        warnings.append(
            f"**Every scan was made from a real one, its donor, and resembles it.**{near} Each row of the manifest has the row "
            "number of its donor, so anyone with the real cohort can find the donor."
        )
    if _verdict(front, "downstream") == "harm":
        warnings.append(
            f"**Training with the set did harm.** {escape_markdown(front['evaluation']['downstream']['sentence'])}"
        )
    return warnings


def _verdict(front: Mapping[str, Any], part: str) -> str | None:
    found = None if front["evaluation"] is None else front["evaluation"][part]
    return None if found is None else found["verdict"]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _plain(text: str) -> str:
    return text.replace("*", "").replace("`", "")
