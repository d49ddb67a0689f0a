"""The report of an evaluation: its figures, and what they mean in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from medsynth.evaluation.comparison import TOO_FEW, Reading
from medsynth.evaluation.fidelity import FidelityResult, FidelityRow
from medsynth.versions import installed_versions

SCHEMA = "medsynth-report/1"


def build_report(
    fidelity: FidelityResult, *, settings: Mapping[str, str | int | float | None] | None = None
) -> dict[str, Any]:
    """Return the content of `report.json`: figures, verdicts, versions and settings, without any path, file name or ID.

    `settings` are further facts about what was evaluated (a run's fingerprint, solver, steps); the caller answers for them
    naming no file and no patient. Parts that were not evaluated are None.
    """
    return {
        "schema": SCHEMA,
        "fidelity": fidelity.as_dict(),
        "privacy": None,
        "downstream": None,
        "verdict": {"fidelity": [fidelity_verdict(row, fidelity.extractor) for row in fidelity.rows]},
        "versions": installed_versions(),
        "settings": {**(settings or {}), "seed": fidelity.seed, "fidelity": asdict(fidelity.options)},
    }


def fidelity_verdict(row: FidelityRow, extractor: str) -> dict[str, str | None]:
    """Return what the figures of one class say against the held-out scans.

    `reading` is `as close`, `further` or `cannot tell`; `sentence` says it plainly, with the figures behind it; `label` is
    None for all classes together.
    """
    reading, sentence = _reading(row, extractor)
    return {"label": row.label, "reading": reading, "sentence": sentence}


def _reading(row: FidelityRow, extractor: str) -> tuple[Reading, str]:
    found = row.held_out
    if found is None:
        return "cannot tell", "Cannot tell, since there are not enough held-out real scans of different patients."
    if found.too_few:
        return "cannot tell", (
            f"Cannot tell, since only {found.scans_a_side} scans stand on either side (at least {TOO_FEW} are needed)."
        )
    reading: Reading = "as close"
    text = "As close to held-out real scans as two halves of these are to each other."
    figures = {f"KID-{extractor}": found.kid, f"FD-{extractor}": found.frechet}
    apart = {measure: figure for measure, figure in figures.items() if figure.reading == "further"}
    if apart:
        reading = "further"
        shown = "; ".join(
            f"{measure} {figure.value:.3g}, real against real at most {figure.real_high:.3g}"
            for measure, figure in apart.items()
        )
        text = f"Further from held-out real scans than two halves of these are from each other ({shown})."
        if row.real_seen is not None and "further" in (row.real_seen.kid.reading, row.real_seen.frechet.reading):
            text += " So are the real scans that the generator saw: the real splits themselves differ."
    if found.ssim is not None and found.ssim.reading in ("less varied", "more varied"):
        text += f" They are {found.ssim.reading} than the real scans."
    if row.seen is not None and not row.seen.too_few and "closer" in (row.seen.kid.reading, row.seen.frechet.reading):
        text += (
            " They are closer to the real scans that the generator saw than two halves of these are: look for copies."
        )
    return reading, text
