"""The figures of docs/rare_classes.md, from the JSON files of `screen` and `confirm`.

    python -m benchmarks.rare_class.figures --screen benchmarks/results/rare_class_screen.json \
        --confirm benchmarks/results/rare_class_{10,40,160}.json --out docs/images
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def frontier(figure: Figure, rows: list[dict[str, Any]]) -> None:
    """Gain of the best arm on development scans, and beside it the distance to the nearest training scan, nearest first."""

    def ratio_of(row: dict[str, Any]) -> float:
        return float(row["likeness"]["synthetic_median"] / row["likeness"]["development_median"])

    ordered = sorted(rows, key=ratio_of, reverse=True)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, row in enumerate(ordered):
        gain = row["gain_ci"]
        guided = row["name"].split()[0] in ("against", "guidance")
        style = {"color": "#0072B2" if guided else "#D55E00", "fmt": "o" if guided else "s", "markersize": 5}
        spread = [[gain["value"] - gain["low"]], [gain["high"] - gain["value"]]]
        left.errorbar(gain["value"], place, xerr=spread, linewidth=0.8, capsize=2, **style)
        right.errorbar(ratio_of(row), place, **style)
    left.set_yticks(range(len(ordered)), [row["name"] for row in ordered])
    left.axvline(0, color="#000000", linewidth=0.8)
    left.set_xlabel("Δ AUROC, development scans")
    right.axvline(1, color="#888888", linewidth=0.8, linestyle="--")
    right.set_xlim(0, 1.15)
    right.set_xlabel("nearest rare training scan\n(held-out = 1, copies = 0)")
    for axes in (left, right):
        axes.grid(color="#dddddd", linewidth=0.5)


def by_patients(figure: Figure, results: list[dict[str, Any]]) -> None:
    """Gain on test scans against the number of real rare training patients, every set and the mean with its interval."""
    axes = figure.add_subplot()
    for result in sorted(results, key=lambda one: one["patients"]):
        count, whole = result["patients"], result["gain_ci"]["auroc"]
        sets = [row["gain_ci"]["auroc"]["value"] for row in result["rows"]]
        axes.plot([count * 1.08] * len(sets), sets, "o", color="#D55E00", markersize=3, fillstyle="none")
        spread = [[whole["value"] - whole["low"]], [whole["high"] - whole["value"]]]
        axes.errorbar(count, whole["value"], spread, fmt="o", color="#0072B2", capsize=3)
    axes.set_xscale("log")
    axes.set_xticks([one["patients"] for one in results], [str(one["patients"]) for one in results])
    axes.minorticks_off()
    axes.set_xlabel("real rare training patients")
    axes.set_ylabel("Δ AUROC on test scans")
    axes.axhline(0, color="#000000", linewidth=0.8)
    axes.grid(color="#dddddd", linewidth=0.5)


def main() -> None:
    """Write both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screen", type=Path, required=True)
    parser.add_argument("--confirm", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    screened = json.loads(arguments.screen.read_text())["rows"]
    confirmed = [json.loads(path.read_text()) for path in arguments.confirm]
    for name, draw, content in (
        ("rare_class_frontier", frontier, screened),
        ("rare_class_patients", by_patients, confirmed),
    ):
        figure = Figure(figsize=(6.0, 3.2), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, content)
        figure.savefig(arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
