"""The fidelity tables of a report as Markdown, against the held-out test split.

python -m benchmarks.fidelity_table report/report.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.markdown import head_of, row_of

# Figures that decide the verdict, with what they are multiplied by and their digits; then the others.
DECIDING = {"kid": ("KID-{} x 1000", 1000.0, 2), "frechet": ("FD-{}", 1.0, 1)}
OTHERS = {
    "frechet_infinite": ("FD∞-{}", 1),
    "fid": ("FID", 1),
    "precision": ("precision", 2),
    "density": ("density", 2),
    "recall": ("recall", 2),
    "coverage": ("coverage", 2),
    "ssim": ("SSIM within", 3),
    "ms_ssim": ("MS-SSIM within", 3),
    "intensity": ("intensities", 3),
    "texture": ("textures", 2),
}
SYNTHETIC, REAL = ("value", "low", "high"), ("real_median", "real_low", "real_high")


def numbers(measured: Mapping[str, Any], names: tuple[str, ...], *, scale: float = 1.0, digits: int = 2) -> list[str]:
    """Return figures as text, a dash for what is not known."""
    return ["–" if measured[name] is None else f"{measured[name] * scale:.{digits}f}" for name in names]


def interval(measured: Mapping[str, Any], names: tuple[str, ...], *, scale: float, digits: int) -> str:
    """Return `value (low to high)`."""
    value, low, high = numbers(measured, names, scale=scale, digits=digits)
    return f"{value} ({low} to {high})"


def beside(measured: Mapping[str, Any] | None, digits: int) -> str:
    """Return `value / real (low to high)`, a dash for what was not measured."""
    if measured is None:
        return "–"
    value, real, low, high = numbers(measured, ("value", *REAL), digits=digits)
    return f"{value} / {real} ({low} to {high})"


def main() -> None:
    """Print the figures that decide, then all others, a row for each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.json of medsynth evaluate")
    report = json.loads(parser.parse_args().report.read_text())
    fidelity = report["fidelity"]
    name = fidelity["extractor"]["name"]
    found = {row["label"] or "all classes": row["held_out"] for row in fidelity["rows"] if row["held_out"]}
    verdicts = {item["label"] or "all classes": item["verdict"] for item in report["verdict"]["fidelity"]}
    columns = [title for each, _, _ in DECIDING.values() for title in (each.format(name), "real against real")]
    print(head_of(["class", "scans a side", *columns, "verdict"]))
    for label, figures in found.items():
        cells = [
            interval(figures[key], names, scale=scale, digits=digits)
            for key, (_, scale, digits) in DECIDING.items()
            for names in (SYNTHETIC, REAL)
        ]
        print(row_of([label, str(figures["scans_a_side"]), *cells, verdicts[label]]))
    others = {key: each for key, each in OTHERS.items() if any(figures.get(key) for figures in found.values())}
    print("\nSynthetic / real against real (95 % of real against real):\n")
    print(head_of(["class", *(title.format(name) for title, _ in others.values())]))
    for label, figures in found.items():
        print(row_of([label, *(beside(figures.get(key), digits) for key, (_, digits) in others.items())]))


if __name__ == "__main__":
    main()
