"""What a data card can say from files alone: the set, its provenance, the report of its evaluation, and who is represented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsynth.cohorts import Cohort, Row
from medsynth.config import Loading
from medsynth.errors import DataError
from medsynth.files import hash_file
from medsynth.scans import read_header, scan_suffix
from medsynth.sets import made_by_medsynth

# Columns that say how a scan was made, not what it shows; `given_from` is of medsynth 0.1.
MADE = {
    "synthetic", "seed", "run", "method", "donor", "observed_from", "given_from", "region_from", "contains_real_pixels", "text"
}  # fmt: skip
_FORMATS = {".png": "PNG", ".npz": "NPZ", ".nii": "NIfTI", ".nii.gz": "NIfTI"}
_GEOMETRY = {"NIfTI", "DICOM"}  # formats whose files can hold the voxel size
_INTERVAL = ("value", "low", "high")
_FEW = 5  # patients below which a value is counted with other rare ones
_FEW_FOR_QUANTILES = 20
_MOST_VALUES = 8  # more different texts are names or remarks, not groups
_OTHER = "other or rare"


def describe_data(synthetic: Cohort, manifest: Path, *, loading: Loading = Loading()) -> dict[str, Any]:
    """Return counts, format and grid of a set, and its manifest's checksum; None for what its files do not say.

    Headers of all scans are read. Raises `DataError` for a scan that is missing or cannot be read.
    """
    headers = [read_header(synthetic.file_of(row), loading=loading) for row in synthetic.rows]
    # Files without a suffix that we know can only be DICOM.
    formats = {_FORMATS.get(scan_suffix(row.path) or "", "DICOM") for row in synthetic.rows}
    spacings = {tuple(round(length, 4) for length in header.spacing) for header in headers}
    # A DICOM picture without a pixel size is read as if its pixels were 1 mm.
    unknown = "DICOM" in formats and any(set(spacing) == {1.0} for spacing in spacings)
    return {
        "scans": len(synthetic.rows),
        "classes": dict(sorted(Counter(row.label for row in synthetic.rows).items())),
        "format": " and ".join(sorted(formats)),
        "grid": _extents({header.shape[1:] for header in headers}),
        "voxel_mm": _extents(spacings) if formats <= _GEOMETRY and not unknown else None,
        "manifest": manifest.name,
        "manifest_sha256": hash_file(manifest),
    }


def _extents(found: set[tuple[Any, ...]]) -> str:
    return "varies" if len(found) > 1 else " x ".join(f"{length:g}" for length in next(iter(found)))


def describe_generator(provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how a set was made, from the `provenance.json` of `medsynth sample` or `edit`; None for sets of others."""
    if not made_by_medsynth(provenance):
        return None
    facts: dict[str, Any] = {"tool": "medsynth", "steps": provenance.get("steps_trained")}
    facts |= {key: provenance.get(key) for key in ("method", "run", "seed", "solver", "guidance", "sessions")}
    if provenance.get("method") == "edit":
        donors = provenance.get("donors") or {}
        strength = () if provenance.get("edit") == "inpaint" else ("strength",)  # a region is painted from noise alone
        facts["edits"] = {key: provenance.get(key) for key in ("donor_class", "target_class", *strength)}
        facts["edits"] |= {f"donor_{key}": donors.get(key) for key in ("scans", "patients")}
    return facts


def trained_classes(provenance: Mapping[str, Any]) -> dict[str, dict[str, int]] | None:
    """Return the scans and patients of each class that the generator was trained on; None if the provenance lacks them."""
    scans, patients = (provenance.get(key) for key in ("training_scans", "training_patients"))
    if not made_by_medsynth(provenance) or not isinstance(scans, Mapping) or not isinstance(patients, Mapping):
        return None
    return {label: {"scans": scans[label], "patients": patients[label]} for label in scans if label in patients}


def describe_evaluation(report: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the verdicts of a report with the figures behind them; None for what was not measured.

    A figure without an interval counts as not measured. Raises `DataError` for a damaged report.
    """
    parts = {"privacy": _privacy, "fidelity": _fidelity, "downstream": _downstream}
    try:
        settings, study = report["settings"], report.get("reader_study")
        return {
            **{key: settings.get(key) for key in ("real_scans", "synthetic_scans", "grid", "intensity", "features")},
            "sets": {name: report["sets"][name] for name in ("real", "synthetic")},
            "versions": dict(report["versions"]),
            "headline": report["verdict"]["headline"]["sentence"],
            "identical": _identical(report),
            **{name: None if report[name] is None else describe(report) for name, describe in parts.items()},
            "reader_study": {key: study[key] for key in ("verdict", "sentence")} if study else None,
        }
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise DataError(f"{file}: this report is damaged ({error}); run medsynth evaluate again") from error


def _privacy(report: Mapping[str, Any]) -> dict[str, Any]:
    privacy, membership = report["privacy"], report["privacy"]["membership"]
    overall = [] if membership is None else [row for row in membership["rows"] if row["label"] is None]
    found = {
        **{key: privacy[key] for key in ("verdict", "sentence")},
        "set_aside": privacy["dropped"],
        "repeated": sum(len(rows) - 1 for rows in privacy["repeated"]),
        "classes": {
            row["label"]: {
                **{key: row[key] for key in ("verdict", "sentence", "flagged", "identical", "judged")},
                "real_patients": row["held_out_patients"],
                "power": _share(row["power"]),
                "false_alarms": _share(row["false_alarms"]),
            }
            for row in privacy["rows"]
        },
        "membership": _figure({**overall[0], "value": overall[0]["auc"]}) if overall else None,
    }
    return found | ({"edits": _rounded(privacy["edits"])} if privacy["edits"] else {})


def _fidelity(report: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"extractor": report["fidelity"]["extractor"]["title"], "all": None, "classes": {}}
    keys = (*_INTERVAL, "real_low", "real_high")
    for row, verdict in zip(report["fidelity"]["rows"], report["verdict"]["fidelity"], strict=True):
        compared = row["held_out"] or {}
        likeness = {key: verdict[key] for key in ("verdict", "sentence")}
        likeness |= {name: _figure(compared.get(name), keys) for name in ("kid", "frechet", "recall", "coverage")}
        if row["label"] is None:
            found["all"] = likeness
        else:
            found["classes"][row["label"]] = likeness
    return found


def _downstream(report: Mapping[str, Any]) -> dict[str, Any]:
    part, verdict = report["downstream"], report["verdict"]["downstream"]
    tier = part["tiers"][-1]
    figures = tier["differences"][0]["figures"]  # the first is to the strongest cheap baseline
    return {
        **{key: verdict[key] for key in ("verdict", "sentence")},
        "rare_class": part["task"]["rare_class"],
        "tier": tier["name"],
        "baseline": tier["baseline"],
        "arm": tier["synthetic"],
        "test_patients": part["task"]["test"]["rare_patients"],
        # Differences with the intervals that decide the verdict.
        **{
            name: _figure(figures[name] | {end: figures[name][f"adjusted_{end}"] for end in ("low", "high")})
            for name in ("auroc", "auprc", "sensitivity")
        },
        "subgroups": {
            f"{group['column']} = {group['value']}": {
                **{key: group[key] for key in ("verdict", "rare_patients")},
                "auroc": _figure(group["figures"]["auroc"]),
            }
            for group in part["subgroups"]["groups"]
        },
        "subgroups_too_small": part["subgroups"]["too_small"],
    }


def _figure(figure: Mapping[str, Any] | None, keys: Sequence[str] = _INTERVAL) -> dict[str, float] | None:
    if figure is None or any(figure[key] is None for key in keys):
        return None
    return _rounded({key: figure[key] for key in keys})


def _share(share: Mapping[str, Any]) -> dict[str, Any] | None:
    return None if not share["of"] else _rounded({key: share[key] for key in ("found", "of", "share", "low", "high")})


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}


def _identical(report: Mapping[str, Any]) -> int:
    """Count synthetic scans that are identical to real ones, also those set aside: their files are still there."""
    privacy = report["privacy"]
    aside = [] if privacy is None else [copy for copy in privacy["copies"] if copy["dropped"]]
    return int(report["identical"]) + sum("identical" in copy["reason"] for copy in aside)


def cover_attributes(synthetic: Cohort, real: Cohort | None) -> dict[str, Any] | None:
    """Return, for each attribute column, its distribution over the synthetic scans and over the real training scans.

    Columns of numbers give the median and the 5th and 95th percentile, columns of up to eight different texts a count of each;
    others are left out, since they may name somebody. Texts that fewer than five patients of a side have are counted together,
    and numbers of fewer than twenty patients are not shown. None if there is no such column; `synthetic` or `real` is None where
    that side lacks the column.
    """
    sides = {"synthetic": synthetic.rows, "real": () if real is None else real.select(split="train").rows}
    every = [row for rows in sides.values() for row in rows]
    found: dict[str, Any] = {}
    for name in sorted({name for row in every for name in row.attributes} - MADE):
        texts = [row.attributes[name] for row in every if name in row.attributes]
        many = len(set(texts)) > _MOST_VALUES
        if many and _are_numbers(texts):
            found[name] = {side: _quantiles(rows, name) for side, rows in sides.items()}
        elif not many and len(set(texts)) >= 2:
            found[name] = {side: _counts(rows, name) for side, rows in sides.items()}
    return found or None


def cover_classes(real: Cohort) -> dict[str, dict[str, int]]:
    """Return the training scans and patients of each class of a real cohort."""
    counts = {label: by_split["train"] for label, by_split in real.counts().items()}
    return {label: {"scans": scans, "patients": patients} for label, (scans, patients) in counts.items()}


def class_shares(made: Mapping[str, int], trained: Mapping[str, Mapping[str, int]] | None) -> list[dict[str, Any]]:
    """Return for each class its synthetic scans and their share, and training scans, share and patients, None where unknown."""
    total, real_total = sum(made.values()), sum(facts["scans"] for facts in (trained or {}).values())
    none: dict[str, Any] = dict.fromkeys(("scans", "patients"), None if trained is None else 0)
    rows = []
    for label in sorted({*made, *(trained or {})}):
        count, facts = made.get(label, 0), (trained or {}).get(label, none)
        share = facts["scans"] / real_total if real_total else None
        real = {"real": facts["scans"], "real_share": share, "patients": facts["patients"]}
        rows.append({"label": label, "made": count, "made_share": count / total, **real})
    return rows


def _are_numbers(texts: Sequence[str]) -> bool:
    try:
        return bool(np.isfinite([float(text) for text in texts]).all())
    except ValueError:
        return False


def _quantiles(rows: Sequence[Row], name: str) -> dict[str, Any] | None:
    known = [row for row in rows if name in row.attributes]
    if len({row.patient_id for row in known}) < _FEW_FOR_QUANTILES:
        return None
    low, median, high = np.quantile([float(row.attributes[name]) for row in known], [0.05, 0.5, 0.95]).tolist()
    return {"scans": len(rows), "known": len(known), **_rounded({"low": low, "median": median, "high": high})}


def _counts(rows: Sequence[Row], name: str) -> dict[str, Any] | None:
    known = [row for row in rows if name in row.attributes]
    patients: dict[str, set[str]] = {}
    for row in known:
        patients.setdefault(row.attributes[name], set()).add(row.patient_id)
    common = {value for value, having in patients.items() if len(having) >= _FEW}
    counts = Counter(value if value in common else _OTHER for value in (row.attributes[name] for row in known))
    return {"scans": len(rows), "known": len(known), "values": dict(sorted(counts.items()))} if known else None
