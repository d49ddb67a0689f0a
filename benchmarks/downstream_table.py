"""The downstream part of a report as Markdown: arms, differences of the chosen synthetic arm, subgroups, learning curve.

python -m benchmarks.downstream_table report/report.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PRIMARY = {"auroc": "AUROC", "auprc": "AUPRC", "sensitivity": "sensitivity"}
ALL = {
    **PRIMARY,
    "specificity": "specificity",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier",
    "ece": "ECE",
}


def shown(found: dict[str, Any], prefix: str = "", *, sign: bool = False) -> str:
    """Return `value (low to high)`; `prefix` picks the adjusted interval."""
    values = (found["value"], found[f"{prefix}low"], found[f"{prefix}high"])
    form = "{:+.3f}" if sign else "{:.3f}"
    value, low, high = ("–" if each is None else form.format(each) for each in values)
    return f"{value} ({low} to {high})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def worth(value: float | None, points: list[dict[str, Any]]) -> str:
    """Return a number of patients in words."""
    if value is None:
        return f"more than {points[-1]['patients']}"
    return f"fewer than {points[0]['patients']}" if value == 0 else f"{value:.0f}"


def main() -> None:
    """Print the tables."""
    part = json.loads(Path(sys.argv[1]).read_text())["downstream"]
    print(f"**{part['verdict']['reading']}**: {part['verdict']['sentence']}\n")
    for tier in part["tiers"]:
        print(f"Tier {tier['name']}, {part['seeds']} trainings an arm\n")
        rows = []
        for arm in tier["arms"]:
            name = f"**{arm['name']}**" if arm["chosen"] else arm["name"]
            kind = {"baseline": "strongest baseline", "synthetic": "chosen"}.get(arm["chosen"], arm["kind"])
            cells = [shown(arm["test"][figure]) for figure in PRIMARY]
            cells += [f"{arm['test'][figure]['value']:.3f}" for figure in ALL if figure not in PRIMARY]
            rows.append([name, kind, f"{arm['validation']['criterion']:.3f}", *cells])
        print(table(["arm", "kind", "validation", *ALL.values()], rows) + "\n")
        rows = [
            [
                f"{difference['against']} ({difference['arm']})",
                *(shown(difference["figures"][figure], "adjusted_", sign=True) for figure in PRIMARY),
            ]
            for difference in tier["differences"]
        ]
        print(table([f"{tier['synthetic']} minus", *(f"Δ {name}" for name in PRIMARY.values())], rows) + "\n")
    if groups := part["subgroups"]["groups"]:
        rows = [
            [
                f"{group['column']} = {group['value']}",
                str(group["rare_patients"]),
                *(shown(group["figures"][figure], sign=True) for figure in PRIMARY),
                group["reading"],
            ]
            for group in groups
        ]
        print(table(["subgroup", "rare patients", *(f"Δ {name}" for name in PRIMARY.values()), "reading"], rows) + "\n")
    if curve := part["learning_curve"]:
        rows = [[str(point["patients"]), *(shown(point[figure]) for figure in PRIMARY)] for point in curve["points"]]
        rows.append(
            [f"{curve['real_patients']} and the set", *(shown(curve["augmented"][figure]) for figure in PRIMARY)]
        )
        rows.append(
            [
                "worth",
                *(
                    f"{worth(curve['worth'][figure]['patients'], curve['points'])} "
                    f"({worth(curve['worth'][figure]['low'], curve['points'])} to "
                    f"{worth(curve['worth'][figure]['high'], curve['points'])})"
                    for figure in PRIMARY
                ),
            ]
        )
        print(table(["real rare patients", *PRIMARY.values()], rows))


if __name__ == "__main__":
    main()
