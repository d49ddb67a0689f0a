"""`croissant.json`: a synthetic set in the vocabulary of MLCommons Croissant 1.0, with its terms for responsible AI."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from medsynth.cohorts import Cohort, Row
from medsynth.reporting.card_words import banners, listed, percent
from medsynth.reporting.coverage import class_shares
from medsynth.scans import scan_suffix, split_item

_CONFORMS_TO = ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"]
# The terms of the vocabulary, as its specification has them.
_CROISSANT_TERMS = (
    "citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes",
    "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated", "replace",
    "samplingRate", "separator", "source", "subField", "transform",
)  # fmt: skip
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _CROISSANT_TERMS},
}
_BYTES, _DICOM = "application/octet-stream", "application/dicom"
_MEDIA_TYPES = {".png": "image/png", ".nii": _BYTES, ".nii.gz": "application/gzip", ".npz": _BYTES}
_MANIFEST = "manifest"
_COLUMNS = {
    "path": "File of the scan, relative to the manifest.",
    "mask": "File of the scan's mask, relative to the manifest.",
    "root": "Name of the folder that paths are relative to.",
    "label": "Class that the scan was made as.",
    "patient_id": "Patient that the scan counts as; synthetic scans of medsynth have a made-up one each.",
    "split": "Split that the scan belongs to.",
    "synthetic": "1: the scan is synthetic.",
    "seed": "Seed that the scan was drawn from.",
    "run": "First digits of the fingerprint of the trained model.",
    "method": "How it was made: sample, from noise alone; edit, from a real scan.",
    "donor": "Row number, from 0, of the real scan that it was made from, in the real cohort, which is not part of this set.",
    "selection_probability": "Probability of its class by a classifier of real training scans, by which it was selected.",
    "selection_distance": "Distance to the nearest real training scan, by which it was selected.",
    "region_from": "Row number, from 0, of the real scan whose mask was painted over, in a cohort that is not part of this set.",
    "given_from": "Row number, from 0, of the real scan that gave it a mask or images, in a cohort that is not part of this set.",
    "contains_real_pixels": "1 where pixels of a real scan are in it.",
}


def describe_croissant(front: Mapping[str, Any], synthetic: Cohort, columns: Sequence[str]) -> dict[str, Any]:
    """Return the set of a card's front matter as JSON-LD: manifest with checksum, scan files, and the manifest's `columns`.

    Files are named relative to the manifest's folder. What the card leaves open is left out.
    """
    manifest = front["data"]["manifest"]
    known = {"license": front["licence"], "citeAs": front["citation"]}
    known |= {"version": front.get("version"), "datePublished": front.get("published")}
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _CONFORMS_TO,
        "name": front["title"],
        "description": _description(front),
        **{key: value for key, value in known.items() if value is not None},
        **_responsible(front),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": _MANIFEST,
                "name": _MANIFEST,
                "description": "The manifest: a row a scan.",
                "contentUrl": manifest,
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
                "field": [_field(column, name) for column, name in _names(columns).items()],
            }
        ],
    }


def _description(front: Mapping[str, Any]) -> str:
    warnings = " ".join(text.replace("*", "").replace("`", "") for text in banners(front))
    return (
        f"{front['data']['scans']} synthetic medical scans of {listed(list(front['data']['classes']))}. Not for diagnosis. "
        f"{warnings} data_card.md says more."
    ).replace("  ", " ")


def _responsible(front: Mapping[str, Any]) -> dict[str, Any]:
    """The RAI fields that the card can fill."""
    generator, evaluation = front["generator"], front["evaluation"]
    found: dict[str, Any] = {}
    if generator is not None:
        found["rai:dataCollection"] = (
            f"Synthetic: made by {generator['tool']} ({generator['method']}) with a model trained on real scans for "
            f"{generator['steps']} steps (fingerprint {generator['run']}), seed {generator['seed']}."
        )
    found["rai:dataUseCases"] = [f"Intended: {use}" for use in front["use"]["intended"] or ()] + [
        f"Prohibited: {use}" for use in front["use"]["prohibited"]
    ]
    found["rai:dataLimitations"] = [*(front["limits"]["stated"] or ()), *front["limits"]["found"]]
    shares = [
        f"{row['label']}: {percent(row['made_share'])} of this set, {percent(row['real_share'])} of the scans that the generator "
        "was trained on."
        for row in class_shares(front["data"]["classes"], front["coverage"]["real_classes"])
        if row["real_share"] is not None
    ]
    if shares:
        found["rai:dataBiases"] = shares
    privacy = None if evaluation is None else evaluation["privacy"]
    judged = "not judged." if privacy is None else f"{privacy['reading']}. {privacy['sentence']}"
    found["rai:personalSensitiveInformation"] = [
        f"Whether the set copies scans that its generator learnt from: {judged}"
    ]
    return found


def _file_sets(synthetic: Cohort) -> list[dict[str, Any]]:
    """One set of files for each kind of file among those that lie beside the manifest."""
    patterns: dict[str, set[str]] = {}
    for row in synthetic.rows:
        if row.root is None:
            pattern, media_type = _kind(synthetic, row)
            patterns.setdefault(media_type, set()).add(pattern)
    return [
        {
            "@type": "cr:FileSet",
            "@id": f"files{number}",
            "name": f"files{number}",
            "description": "The scans; the manifest names each.",
            "encodingFormat": media_type,
            "includes": sorted(patterns[media_type]),
        }
        for number, media_type in enumerate(sorted(patterns), start=1)
    ]


def _kind(synthetic: Cohort, row: Row) -> tuple[str, str]:
    """Return a pattern that fits the file (or the files of the folder) of a scan, and their media type."""
    file, suffix = split_item(row.path)[0], scan_suffix(row.path)
    media_type = _DICOM if suffix is None else _MEDIA_TYPES[suffix]
    ending = file.suffix if suffix is None else suffix
    if not ending or (synthetic.folder / file).is_dir():
        return f"{file.parts[0]}/**", media_type
    return f"**/*{ending}" if len(file.parts) > 1 else f"*{ending}", media_type


def _names(columns: Sequence[str]) -> dict[str, str]:
    """Names of columns that may stand in an `@id`, which takes no blanks; each differs from the others."""
    names: dict[str, str] = {}
    for column in columns:
        name = re.sub(r"[^\w.-]", "_", column)
        while name in names.values():
            name += "_"
        names[column] = name
    return names


def _field(column: str, name: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"scans/{name}",
        "name": f"scans/{name}",
        "description": _COLUMNS.get(column, "A fact about the scan."),
        "dataType": "sc:Text",
        "source": {"fileObject": {"@id": _MANIFEST}, "extract": {"column": column}},
    }
