"""What a data card can say from files alone: the set, its provenance and the report of its evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsynth.cohorts import Cohort
from medsynth.errors import DataError
from medsynth.files import hash_file
from medsynth.scans import read_header, scan_suffix

SET_FORMAT = "medsynth-set/1"
_FORMATS = {".png": "PNG", ".npz": "NPZ", ".nii": "NIfTI", ".nii.gz": "NIfTI"}
_GEOMETRY = {"NIfTI", "DICOM"}  # formats whose files can say how large a voxel is
_SUBGROUP_FIGURE = "auroc"


def describe_data(synthetic: Cohort, manifest: Path) -> dict[str, Any]:
    """Return counts, format and grid of a set, and its manifest's checksum; None for what its files do not say.

    Headers of all scans are read. Raises `DataError` for a scan that is missing or cannot be read.
    """
    headers = [read_header(synthetic.file_of(row)) for row in synthetic.rows]
    # DICOM is told by its content; nothing else is readable without a suffix.
    formats = {_FORMATS.get(scan_suffix(row.path) or "", "DICOM") for row in synthetic.rows}
    spacings = {tuple(round(length, 4) for length in header.spacing) for header in headers}
    # A DICOM picture that does not say how large its pixels are is read as if they were 1 mm.
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


def describe_generator(provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how a set was made, from the `provenance.json` of `medsynth sample` or `edit`; None for sets of others."""
    if provenance.get("format") != SET_FORMAT:
        return None
    facts = {
        "tool": "medsynth",
        "method": provenance.get("method"),
        "run": provenance.get("run"),
        "steps": provenance.get("steps_trained"),
        "seed": provenance.get("seed"),
        "solver": provenance.get("solver"),
        "guidance": provenance.get("guidance"),
    }
    if provenance.get("method") == "edit":
        donors = provenance.get("donors") or {}
        strength = () if provenance.get("edit") == "inpaint" else ("strength",)  # a region is painted from noise alone
        facts["edits"] = {
            **{key: provenance.get(key) for key in ("donor_class", "target_class", *strength)},
            **{f"donor_{key}": donors.get(key) for key in ("scans", "patients")},
        }
    return {**facts, "sessions": provenance.get("sessions")}


def learnt_classes(provenance: Mapping[str, Any]) -> dict[str, dict[str, int]] | None:
    """Return the scans and patients of each class that the generator was trained on; None if the provenance lacks them."""
    scans, patients = (provenance.get(key) for key in ("training_scans", "training_patients"))
    if provenance.get("format") != SET_FORMAT or not isinstance(scans, Mapping) or not isinstance(patients, Mapping):
        return None
    return {label: {"scans": scans[label], "patients": patients[label]} for label in scans if label in patients}


def holds_real_pixels(
    synthetic: Cohort, provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> bool | None:
    """Return whether pixels of real scans are in the set, by its own columns, its provenance and its evaluation.

    A scan that is identical to a real one counts, wherever it came from. None where nothing says.
    """
    said = {row.attributes.get("contains_real_pixels") for row in synthetic.rows}
    identical = evaluation is not None and bool(evaluation["identical"])
    if "1" in said or provenance.get("contains_real_pixels") is True or identical:
        return True
    return False if said == {"0"} or provenance.get("format") == SET_FORMAT else None


def describe_evaluation(report: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the readings of a report with the figures behind them; None for what was not measured.

    A figure whose interval could not be told counts as not measured. Raises `DataError` for a damaged report.
    """
    try:
        settings = report["settings"]
        return {
            "real_scans": settings.get("real_scans"),
            "synthetic_scans": settings.get("synthetic_scans"),
            "grid": settings.get("grid"),
            "intensity": settings.get("intensity"),
            "features": settings.get("features"),
            "sets": {name: report["sets"][name] for name in ("real", "synthetic")},
            "versions": dict(report["versions"]),
            **({"headline": headline["sentence"]} if (headline := report["verdict"].get("headline")) else {}),
            "identical": _identical(report),
            "privacy": None if report["privacy"] is None else _privacy(report),
            "fidelity": None if report["fidelity"] is None else _fidelity(report),
            "downstream": None if report["downstream"] is None else _downstream(report),
            "reader_study": None if not (study := report.get("reader_study")) else _reader_study(study),
        }
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise DataError(
            f"{file}: need a whole report, got a damaged one ({error}); try medsynth evaluate again"
        ) from error


def _privacy(report: Mapping[str, Any]) -> dict[str, Any]:
    privacy = report["privacy"]
    found = {
        "reading": privacy["reading"],
        "sentence": privacy["sentence"],
        "set_aside": privacy["dropped"],
        "repeated": sum(len(rows) - 1 for rows in privacy["repeated"]),
        "classes": {
            row["label"]: {
                **{key: row[key] for key in ("reading", "sentence", "flagged", "identical", "judged")},
                "real_patients": row["held_out_patients"],
                "power": _share(row["power"]),
                "false_alarms": _share(row["false_alarms"]),
            }
            for row in privacy["rows"]
        },
        "membership": _membership(privacy["membership"]),
    }
    if privacy["edits"]:
        found["edits"] = _rounded(privacy["edits"])
    return found


def _membership(membership: Mapping[str, Any] | None) -> dict[str, float] | None:
    rows = [] if membership is None else [row for row in membership["rows"] if row["label"] is None]
    return _figure({"value": rows[0]["auc"], "low": rows[0]["low"], "high": rows[0]["high"]}) if rows else None


def _fidelity(report: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"extractor": report["fidelity"]["extractor"]["title"], "all": None, "classes": {}}
    for row, verdict in zip(report["fidelity"]["rows"], report["verdict"]["fidelity"], strict=True):
        compared = row["held_out"] or {}
        likeness = {
            "reading": verdict["reading"],
            "sentence": verdict["sentence"],
            **{key: _figure(compared.get(key), beside_real=True) for key in ("kid", "frechet", "recall", "coverage")},
        }
        if row["label"] is None:
            found["all"] = likeness
        else:
            found["classes"][row["label"]] = likeness
    return found


def _downstream(report: Mapping[str, Any]) -> dict[str, Any]:
    downstream = report["downstream"]
    tier, verdict = downstream["tiers"][-1], report["verdict"]["downstream"]
    figures = tier["differences"][0]["figures"]  # the first is to the strongest cheap baseline
    return {
        "reading": verdict["reading"],
        "sentence": verdict["sentence"],
        "rare_class": downstream["task"]["rare_class"],
        "tier": tier["name"],
        "baseline": tier["baseline"],
        "arm": tier["synthetic"],
        "test_patients": downstream["task"]["test"]["rare_patients"],
        **{name: _adjusted(figures[name]) for name in ("auroc", "auprc", "sensitivity")},
        "subgroups": {
            f"{group['column']} = {group['value']}": {
                "reading": group["reading"],
                "rare_patients": group["rare_patients"],
                "auroc": _figure(group["figures"][_SUBGROUP_FIGURE]),
            }
            for group in downstream["subgroups"]["groups"]
        },
        "subgroups_too_small": downstream["subgroups"]["too_small"],
    }


def _reader_study(study: Mapping[str, Any]) -> dict[str, str]:
    return {key: study[key] for key in ("reading", "sentence")}


def _adjusted(figure: Mapping[str, Any]) -> dict[str, float] | None:
    """A difference with the interval that goes with its verdict."""
    return _figure({"value": figure["value"], "low": figure["adjusted_low"], "high": figure["adjusted_high"]})


def _figure(figure: Mapping[str, Any] | None, *, beside_real: bool = False) -> dict[str, float] | None:
    keys = ("value", "low", "high", *(("real_low", "real_high") if beside_real else ()))
    if figure is None or any(figure[key] is None for key in keys):
        return None
    return _rounded({key: figure[key] for key in keys})


def _share(share: Mapping[str, Any]) -> dict[str, Any] | None:
    return None if not share["of"] else _rounded({key: share[key] for key in ("found", "of", "share", "low", "high")})


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}


def _identical(report: Mapping[str, Any]) -> int | None:
    """Synthetic scans that are identical to real ones, also those that were set aside: they are still among the files."""
    if report["privacy"] is not None:
        return sum("identical" in copy["reason"] for copy in report["privacy"]["copies"])
    if report["fidelity"] is not None:
        return sum(row["counts"]["identical"] for row in report["fidelity"]["rows"] if row["label"] is not None)
    return None


def _extents(found: set[tuple[Any, ...]]) -> str | None:
    if len(found) > 1:
        return "varies"
    return " x ".join(f"{length:g}" for length in next(iter(found)))
