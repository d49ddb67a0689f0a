"""How classes and subgroups are spread over a synthetic set, beside the real scans that its generator learnt from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from medsynth.cohorts import Cohort, Row

# Columns that say how a scan was made, not what it shows.
MADE = ("synthetic", "seed", "run", "method", "donor", "given_from", "region_from", "contains_real_pixels")
_FEW = 5  # patients below which a text is not told apart from other rare ones
_FEW_FOR_QUANTILES = 20
_MOST_VALUES = 8  # more different texts are names or remarks, not groups
_OTHER = "other or rare"


def cover_attributes(synthetic: Cohort, real: Cohort | None) -> dict[str, Any] | None:
    """Return, for each attribute column, how it is spread over the synthetic scans and over the real training scans.

    Columns of numbers give the median and the 5th and 95th percentile, columns of up to eight different texts a count for
    each; others are left out, since they may name somebody. Texts that fewer than five patients of a side have are counted
    together, and numbers of fewer than twenty are not told. None without any such column; `synthetic` or `real` is None where
    that side lacks the column.
    """
    made = synthetic.rows
    learnt = () if real is None else real.select(split="train").rows
    names = sorted({name for row in (*made, *learnt) for name in row.attributes} - set(MADE))
    found: dict[str, Any] = {}
    for name in names:
        texts = [row.attributes[name] for row in (*made, *learnt) if name in row.attributes]
        numbers = _numbers(texts)
        if numbers is not None and len(set(texts)) > _MOST_VALUES:
            found[name] = {"synthetic": _quantiles(made, name), "real": _quantiles(learnt, name)}
        elif 2 <= len(set(texts)) <= _MOST_VALUES:
            found[name] = {"synthetic": _counts(made, name), "real": _counts(learnt, name)}
    return found or None


def cover_classes(real: Cohort) -> dict[str, dict[str, int]]:
    """Return the training scans and patients of each class of a real cohort."""
    return {
        label: dict(zip(("scans", "patients"), by_split["train"], strict=True))
        for label, by_split in real.counts().items()
    }


def class_shares(made: Mapping[str, int], learnt: Mapping[str, Mapping[str, int]] | None) -> list[dict[str, Any]]:
    """Return a row a class: scans and their share of the set, training scans, their share and patients; None: not known."""
    total = sum(made.values())
    real_total = None if learnt is None else sum(facts["scans"] for facts in learnt.values())
    rows = []
    for label in sorted({*made, *(learnt or {})}):
        real = None if learnt is None else learnt.get(label, {"scans": 0, "patients": 0})
        rows.append(
            {
                "label": label,
                "made": made.get(label, 0),
                "made_share": made.get(label, 0) / total,
                "real": None if real is None else real["scans"],
                "real_share": None if real is None or not real_total else real["scans"] / real_total,
                "patients": None if real is None else real["patients"],
            }
        )
    return rows


def _numbers(texts: list[str]) -> np.ndarray | None:
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None


def _known(rows: tuple[Row, ...], name: str) -> list[Row]:
    return [row for row in rows if name in row.attributes]


def _quantiles(rows: tuple[Row, ...], name: str) -> dict[str, Any] | None:
    known = _known(rows, name)
    if len({row.patient_id for row in known}) < _FEW_FOR_QUANTILES:
        return None
    low, median, high = np.quantile([float(row.attributes[name]) for row in known], [0.05, 0.5, 0.95])
    facts = {"low": low, "median": median, "high": high}
    return {"scans": len(rows), "known": len(known), **{key: float(f"{value:.4g}") for key, value in facts.items()}}


def _counts(rows: tuple[Row, ...], name: str) -> dict[str, Any] | None:
    known = _known(rows, name)
    if not known:
        return None
    patients: dict[str, set[str]] = {}
    for row in known:
        patients.setdefault(row.attributes[name], set()).add(row.patient_id)
    counts = Counter(
        value if len(patients[value]) >= _FEW else _OTHER for value in (row.attributes[name] for row in known)
    )
    return {"scans": len(rows), "known": len(known), "values": dict(sorted(counts.items()))}
