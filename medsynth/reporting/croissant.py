"""`croissant.json`: a synthetic set in the vocabulary of MLCommons Croissant 1.0 and its responsible-AI extension."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from medsynth.cohorts import Cohort
from medsynth.reporting.card_facts import class_shares
from medsynth.scans import scan_suffix, split_item

_CONFORMS_TO = ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"]
_BYTES = "application/octet-stream"
_MEDIA_TYPES = {
    ".png": "image/png", ".nii": _BYTES, ".nii.gz": "application/gzip", ".npz": _BYTES, None: "application/dicom"
}  # fmt: skip
_MANIFEST = "manifest"


def describe_croissant(
    front: Mapping[str, Any], synthetic: Cohort, columns: Sequence[str], *, warnings: Sequence[str]
) -> dict[str, Any]:
    """Return the set of a card's front matter as JSON-LD: manifest with checksum, scan files, and the manifest's `columns`.

    Files are named relative to the manifest's folder. What the card leaves open is left out; `warnings` go into the description.
    """
    terms = json.loads(files("medsynth.reporting").joinpath("croissant_terms.json").read_text(encoding="utf-8"))
    known = {"license": front["licence"], "citeAs": front["citation"]}
    known |= {"version": front.get("version"), "datePublished": front.get("published")}
    scans = f"{front['data']['scans']} synthetic medical scans of {', '.join(front['data']['classes'])}"
    return {
        "@context": terms["context"],
        "@type": "sc:Dataset",
        "conformsTo": _CONFORMS_TO,
        "name": front["title"],
        "description": " ".join([f"{scans}. Not for diagnosis.", *warnings, "See data_card.md for details."]),
        **{key: value for key, value in known.items() if value is not None},
        **_responsible(front),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": _MANIFEST,
                "name": _MANIFEST,
                "description": "The manifest: one row for each scan.",
                "contentUrl": front["data"]["manifest"],
                "encodingFormat": "text/csv",
                "sha256": front["data"]["manifest_sha256"],
            },
            *_file_sets(synthetic),
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "scans",
                "name": "scans",
                "description": "Every scan with its class and origin. All cells are text.",
                "key": {"@id": "scans/path"},
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"scans/{name}",
                        "name": f"scans/{name}",
                        "description": terms["columns"].get(column, "An attribute of the scan."),
                        "dataType": "sc:Text",
                        "source": {"fileObject": {"@id": _MANIFEST}, "extract": {"column": column}},
                    }
                    for column, name in ((column, quote(column, safe="")) for column in columns)
                ],
            }
        ],
    }


def _responsible(front: Mapping[str, Any]) -> dict[str, Any]:
    """Return the RAI fields that the card can fill."""
    generator, evaluation = front["generator"], front["evaluation"]
    privacy = None if evaluation is None else evaluation["privacy"]
    verdict = "not evaluated." if privacy is None else f"{privacy['verdict']}. {privacy['sentence']}"
    intended = [f"Intended: {use}" for use in front["use"]["intended"] or ()]
    found: dict[str, Any] = {
        "rai:dataUseCases": intended + [f"Prohibited: {use}" for use in front["use"]["prohibited"]],
        "rai:dataLimitations": [*(front["limits"]["stated"] or ()), *front["limits"]["found"]],
        "rai:personalSensitiveInformation": [f"Copies of scans that the generator was trained on: {verdict}"],
    }
    if generator is not None:
        found["rai:dataCollection"] = (
            f"Synthetic: made by {generator['tool']} ({generator['method']}) with a model trained on real scans for "
            f"{generator['steps']} steps (fingerprint {generator['run']}), seed {generator['seed']}."
        )
    shares = [
        f"{row['label']}: {100 * row['made_share']:.1f} % of this set, {100 * row['real_share']:.1f} % of the scans that the "
        "generator was trained on."
        for row in class_shares(front["data"]["classes"], front["coverage"]["real_classes"])
        if row["real_share"] is not None
    ]
    return found | ({"rai:dataBiases": shares} if shares else {})


def _file_sets(synthetic: Cohort) -> list[dict[str, Any]]:
    """Return one file set for each kind of file beside the manifest."""
    patterns: dict[str, set[str]] = {}
    for row in synthetic.rows:
        if row.root is None:
            file, suffix = split_item(row.path)[0], scan_suffix(row.path)
            ending = suffix or file.suffix
            pattern = f"**/*{ending}" if len(file.parts) > 1 else f"*{ending}"
            if not ending or (synthetic.folder / file).is_dir():
                pattern = f"{file.parts[0]}/**"
            patterns.setdefault(_MEDIA_TYPES[suffix], set()).add(pattern)
    return [
        {
            "@type": "cr:FileSet",
            "@id": f"files{number}",
            "name": f"files{number}",
            "description": "The scans, as listed in the manifest.",
            "encodingFormat": media_type,
            "includes": sorted(patterns[media_type]),
        }
        for number, media_type in enumerate(sorted(patterns), start=1)
    ]
