"""`medsynth card`: the data card of a synthetic set, and `croissant.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medsynth.cohorts import Cohort
from medsynth.cohorts.manifest import REQUIRED, read_columns
from medsynth.errors import DataError
from medsynth.evaluation.inputs import open_real, open_synthetic, read_provenance
from medsynth.evaluation.reports import check_sets, read_report
from medsynth.evaluation.selection import selection_note
from medsynth.files import write_json, write_text
from medsynth.reporting import card_words
from medsynth.reporting.card_facts import (
    describe_data,
    describe_evaluation,
    describe_generator,
    holds_real_pixels,
    learnt_classes,
)
from medsynth.reporting.card_schema import SCHEMA, card_problems, escape_markdown, find_gaps
from medsynth.reporting.card_statements import read_statements
from medsynth.reporting.coverage import class_shares, cover_attributes, cover_classes
from medsynth.reporting.croissant import describe_croissant
from medsynth.reporting.templates import open_templates
from medsynth.versions import installed_versions

CARD_FILE, CROISSANT_FILE = "data_card.md", "croissant.json"
_TEMPLATE = "card.md.j2"


@dataclass(frozen=True, kw_only=True)
class CardFiles:
    """Where the card was written, and its front matter."""

    card: Path
    croissant: Path
    front: Mapping[str, Any]

    def summary(self) -> str:
        """Return what stands on top of the card, its gaps, and where the files are."""
        warnings = [f"note: {text.replace('*', '').replace('`', '')}" for text in card_words.banners(self.front)]
        gaps = self.front["gaps"]
        return "\n".join(
            [
                *warnings,
                f"gaps: {', '.join(gaps)}" if gaps else "no gaps",
                f"card: {self.card}",
                f"croissant: {self.croissant}",
            ]
        )


def write_card(
    synthetic: Path,
    *,
    report: Path | None = None,
    real: Path | None = None,
    source: str | Path | None = None,
    out: Path | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> CardFiles:
    """Write the data card of a synthetic set and its `croissant.json` into the folder `out`, by default that of the set.

    What neither the set, its provenance, the `report` of its evaluation nor the statements in `source` say is null in the front
    matter, listed there as a gap, and marked as a gap in the text. Of the `real` cohort only counts are written. Raises
    `DataError` for a set or report that cannot be read, a report about other scans, and a set with real scans; `ConfigError`
    as `read_statements` does.
    """
    stated = read_statements(source)
    learnt = open_real(real) if real is not None else None
    made = open_synthetic(synthetic, learnt)
    if any(row.attributes.get("synthetic") == "0" for row in made.rows):
        raise DataError(
            f"{synthetic}: need a synthetic set, got rows that say synthetic=0; try the folder of medsynth sample"
        )
    content = None
    if report is not None:
        content = read_report(report)
        cohorts = {"synthetic": made} | ({} if learnt is None else {"real": learnt})
        check_sets(content, report, cohorts, cache_dir=cache_dir, progress=progress)
    manifest = synthetic if synthetic.is_file() else synthetic / "cohort.csv"
    front = _front_matter(made, manifest, learnt, stated, content, report)
    columns = read_columns(manifest)
    body = render_card(front, columns=[name for name in columns if name not in REQUIRED])
    # Labels and notes come from others: what they say may be no valid card.
    if problems := card_problems(front, body):
        raise DataError(f"{synthetic}: need a set that a card can describe, got {problems[0]}; try renaming labels")
    files = CardFiles(
        card=(out or made.folder) / CARD_FILE, croissant=(out or made.folder) / CROISSANT_FILE, front=front
    )
    write_json(files.croissant, describe_croissant(front, made, columns))
    write_text(files.card, f"---\n{_as_yaml(front)}---\n\n{body}")
    return files


def render_card(front: Mapping[str, Any], *, columns: Sequence[str]) -> str:
    """Return the text of a card for a valid front matter; `columns` are those of the manifest beyond those of every cohort."""
    names = ("number", "signed", "interval", "real_range", "percent", "share")
    filters = {name: getattr(card_words, name) for name in names} | {"text": escape_markdown}

    def stated(*path: str) -> str:
        """What a key of the front matter says, or that it says nothing."""
        value: Any = front
        for key in path:
            value = value[key]
        return gap(*path) if value is None else escape_markdown(value)

    def gap(*path: str) -> str:
        return f"*{card_words.gap_sentence(path)}*"

    return (
        open_templates(html=False, **filters)
        .get_template(_TEMPLATE)
        .render(
            card=front,
            stated=stated,
            gap=gap,
            gaps=[(".".join(path), card_words.gap_sentence(path)) for path in find_gaps(front)],
            banners=card_words.banners(front),
            likeness=_likeness(front),
            classes=class_shares(front["data"]["classes"], front["coverage"]["real_classes"]),
            columns=columns,
        )
    )


def _likeness(front: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of the table on likeness, that on all classes last."""
    fidelity = None if front["evaluation"] is None else front["evaluation"]["fidelity"]
    if fidelity is None:
        return []
    rows = [*fidelity["classes"].items(), ("all classes together", fidelity["all"])]
    return [(label, row) for label, row in rows if row is not None]


def _front_matter(
    made: Cohort,
    manifest: Path,
    learnt: Cohort | None,
    stated: Mapping[str, Any],
    report: Mapping[str, Any] | None,
    report_file: Path | None,
) -> dict[str, Any]:
    provenance = read_provenance(made)
    data = describe_data(made, manifest)
    classes = learnt_classes(provenance)
    evaluation = None if report is None or report_file is None else describe_evaluation(report, report_file)
    front: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "synthetic_set",
        "title": stated["title"] or f"{data['scans']} synthetic scans of {card_words.listed(list(data['classes']))}",
        "synthetic": True,
        "contains_real_pixels": holds_real_pixels(made, provenance, evaluation),
        **{key: stated[key] for key in ("modality", "licence", "citation", "contact")},
        **{key: stated[key] for key in ("version", "published") if stated[key] is not None},
        "source": dict(stated["source"]),
        "use": {"intended": stated["use"]["intended"] or None},
        "limits": {"stated": stated["limits"] or None},
        "data": data,
        "coverage": {
            "real_classes": cover_classes(learnt) if classes is None and learnt is not None else classes,
            "attributes": cover_attributes(made, learnt),
        },
        "generator": describe_generator(provenance),
        "evaluation": evaluation,
        "created_by": {"medsynth-diffusion": installed_versions()["medsynth-diffusion"]},
    }
    notes = [] if report is None else [str(note) for note in report.get("notes") or ()]
    if (counts := provenance.get("counts")) and counts != data["classes"]:
        notes.append("The manifest lists other scans than were made: rows were removed, added or relabelled since.")
    if (note := selection_note(provenance)) and note not in notes:
        notes.append(note)
    front["use"]["prohibited"] = card_words.prohibited_uses(front, stated["use"]["prohibited"])
    front["limits"]["found"] = card_words.found_limits(front, notes)
    return front | {"gaps": [".".join(path) for path in find_gaps(front)]}


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, which people stumble over."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _as_yaml(front: Mapping[str, Any]) -> str:
    return yaml.dump(dict(front), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
