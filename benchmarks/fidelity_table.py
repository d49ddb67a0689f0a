"""The fidelity tables of a report as Markdown, against the held-out test split.

python -m benchmarks.fidelity_table report/report.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def interval(measured: dict[str, Any] | None, prefix: str = "", scale: float = 1.0, digits: int = 2) -> str:
    """Return `value (low to high)` of a figure, or of real against real with the prefix `real_`."""
    if measured is None:
        return "–"
    names = ("real_median", "real_low", "real_high") if prefix else ("value", "low", "high")
    value, low, high = ("–" if measured[name] is None else f"{measured[name] * scale:.{digits}f}" for name in names)
    return f"{value} ({low} to {high})"


def main() -> None:
    """Print a row of the figures that decide and their interval, then one of all others, for each class."""
    report = json.loads(Path(sys.argv[1]).read_text())
    fidelity = report["fidelity"]
    name = fidelity["extractor"]["name"]
    found = {row["label"] or "all classes": row["held_out"] for row in fidelity["rows"] if row["held_out"]}
    verdicts = {item["label"] or "all classes": item["reading"] for item in report["verdict"]["fidelity"]}
    deciding = (("kid", f"KID-{name} x 1000", 1000.0, 2), ("frechet", f"FD-{name}", 1.0, 1))
    columns = [title for _, title, _, _ in deciding for title in (title, "real v. real")]
    print(row_of(["class", "scans a side", *columns, "reading"]))
    print("|" + "---|" * (len(columns) + 3))
    for label, figures in found.items():
        cells = [
            interval(figures[key], prefix, scale=scale, digits=digits)
            for key, _, scale, digits in deciding
            for prefix in ("", "real_")
        ]
        print(row_of([label, str(figures["scans_a_side"]), *cells, verdicts[label]]))
    informing = {
        "frechet_infinite": (f"FD∞-{name}", 1),
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
    shown = {key: told for key, told in informing.items() if any(figures.get(key) for figures in found.values())}
    print("\nSynthetic / real against real (95 % of real against real):\n")
    print(row_of(["class", *(title for title, _ in shown.values())]))
    print("|" + "---|" * (len(shown) + 1))
    for label, figures in found.items():
        print(row_of([label, *(beside(figures.get(key), digits) for key, (_, digits) in shown.items())]))


def row_of(cells: list[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def beside(measured: dict[str, Any] | None, digits: int) -> str:
    """Return `value / real (low to high)`; a dash for what was not measured or cannot be told."""
    if measured is None:
        return "–"
    names = ("value", "real_median", "real_low", "real_high")
    value, real, low, high = ("–" if measured[name] is None else f"{measured[name]:.{digits}f}" for name in names)
    return f"{value} / {real} ({low} to {high})"


if __name__ == "__main__":
    main()
