"""The figures of docs/rare_classes.md, from the JSON files of `screen` and `confirm`.

    python -m benchmarks.rare_class.figures --screen benchmarks/results/rare_class_screen.json \
        --confirm benchmarks/results/rare_class_{10,40,160}.json --out docs/images
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def frontier(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Gain of the best arm on development scans against distance to the nearest training scan."""
    for row in rows:
        near, gain = row["likeness"], row["gain_ci"]
        ratio = near["synthetic_median"] / near["development_median"]
        guided = row["name"].split()[0] in ("against", "guidance")
        axes.errorbar(
            ratio, gain["value"], [[gain["value"] - gain["low"]], [gain["high"] - gain["value"]]],
            fmt="o" if guided else "s", color="#0072B2" if guided else "#D55E00", markersize=5, linewidth=0.7, capsize=2,
        )  # fmt: skip
        axes.annotate(row["name"], (ratio, gain["value"]), xytext=(5, 3), textcoords="offset points", fontsize=7)
    axes.axvline(1, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_xlabel("distance to the nearest rare training scan,\nmedian, held-out real scans = 1 (copies: near 0)")
    axes.set_ylabel("Δ AUROC on development scans")


def by_patients(axes: Axes, results: list[dict[str, Any]]) -> None:
    """Gain on test scans against the number of real rare training patients, every set and the mean with its interval."""
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
        figure = Figure(figsize=(5.2, 3.6), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        draw(axes, content)
        axes.axhline(0, color="#000000", linewidth=0.8)
        axes.grid(color="#dddddd", linewidth=0.5)
        figure.savefig(arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
