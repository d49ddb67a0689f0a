"""The fidelity table of a report as Markdown, against the held-out test split.

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
    value, low, high = (measured[name] * scale for name in names)
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Print the table."""
    report = json.loads(Path(sys.argv[1]).read_text())
    print(
        "| class | scans a side | KID x 1000 | real v. real | FD (PCA) | real v. real | SSIM within | real | reading |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    verdicts = {item["label"]: item["reading"] for item in report["verdict"]["fidelity"]}
    for row in report["fidelity"]["rows"]:
        found = row["held_out"]
        if found is None:
            continue
        cells = [
            row["label"] or "all classes",
            str(found["scans_a_side"]),
            interval(found["kid"], scale=1000),
            interval(found["kid"], "real_", scale=1000),
            interval(found["frechet"], digits=1),
            interval(found["frechet"], "real_", digits=1),
            interval(found["ssim"], digits=3),
            interval(found["ssim"], "real_", digits=3),
            verdicts[row["label"]],
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
