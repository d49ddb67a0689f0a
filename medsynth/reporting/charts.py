"""Charts of the parts of an evaluation, from `report.json` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medsynth.reporting.figures import Figure, Interval, Line, Steps, forest_figure, line_figure, steps_figure

# Numbers of the shapes of a forest plot's points.
_KINDS = {"baseline": 0, "synthetic": 1, "control": 2, "ceiling": 3}


def downstream_figures(part: Mapping[str, Any]) -> list[Figure]:
    """Return the forest plot of all arms of the last tier, ROC curves and reliability curves."""
    tier = part["tiers"][-1]
    return [
        arms_figure(tier, part["task"]["rare_class"]),
        roc_figure(tier, part["specificity"]),
        reliability_figure(tier),
    ]


def arms_figure(tier: Mapping[str, Any], rare: str) -> Figure:
    """Return AUROC of all arms with intervals, the best on top; the dashed line is the strongest cheap baseline."""
    arms = sorted(tier["arms"], key=lambda arm: -(arm["test"]["auroc"]["value"] or 0))
    rows, told, level = [], [], None
    for arm in arms:
        found = arm["test"]["auroc"]
        kind = "ceiling" if arm["kind"] in ("ceiling", "curve") else arm["kind"]
        mark = {"baseline": " ◂ baseline", "synthetic": " ◂ chosen"}.get(arm["chosen"] or "", "")
        rows.append(
            Interval(
                name=arm["name"] + mark,
                value=found["value"],
                low=found["low"],
                high=found["high"],
                kind=_KINDS.get(kind, 2),
            )
        )
        if arm["chosen"] == "baseline":
            level = found["value"]
        if arm["chosen"] and found["value"] is not None:
            told.append(f"{arm['name']} {found['value']:.3f}")
    return forest_figure(
        "All arms",
        rows,
        x_label="AUROC (95 % interval)",
        alt=f"Forest plot of the AUROC of {len(rows)} arms, {rare} against the rest, best first. Chosen on validation: "
        f"{'; '.join(told)}. The table of all arms has the same figures.",
        reference=level,
    )


def roc_figure(tier: Mapping[str, Any], specificity: float) -> Figure:
    """Return the ROC curves of the chosen baseline and synthetic arm, with the points of their validation thresholds."""
    lines, marks, told = [], [], []
    of_arm = {arm["name"]: arm["test"] for arm in tier["arms"]}
    for number, each in enumerate(tier["curves"]):
        lines.append(_line(f"{each['role']}: {each['arm']}", each["roc"]))
        test = of_arm[each["arm"]]
        point = test["specificity"]["value"], test["sensitivity"]["value"]
        if None not in point:
            marks.append((1 - point[0], point[1], number))
            told.append(f"{each['arm']} finds {point[1]:.0%} at a specificity of {point[0]:.0%}")
    return line_figure(
        "ROC curves",
        lines,
        x_label="1 - specificity",
        y_label="sensitivity",
        square=True,
        reference=((0, 1), (0, 1)),
        marks=marks,
        alt=f"ROC curves on test scans. At thresholds of {specificity:.0%} specificity on validation: {'; '.join(told)}.",
    )


def reliability_figure(tier: Mapping[str, Any]) -> Figure:
    """Return the reliability curves of the chosen baseline and synthetic arm; on the dotted line probabilities are true."""
    lines, told = [], []
    of_arm = {arm["name"]: arm["test"] for arm in tier["arms"]}
    for each in tier["curves"]:
        lines.append(_line(f"{each['role']}: {each['arm']}", each["reliability"]))
        error = of_arm[each["arm"]]["ece"]["value"]
        told.append(f"{each['arm']} {'not known' if error is None else f'{error:.3f}'}")
    return line_figure(
        "Calibration",
        lines,
        x_label="mean probability said",
        y_label="share that is so",
        square=True,
        reference=((0, 1), (0, 1)),
        alt=f"Reliability curves on test scans. Expected calibration error: {'; '.join(told)}.",
    )


def distance_figure(row: Mapping[str, Any]) -> Figure:
    """Return how distances to the nearest training scan are spread, of one class of the privacy gate."""
    found, threshold = row["histogram"], row["figures"]["pixels"]["threshold"]
    spreads = row["figures"]["pixels"]
    told = [
        f"{name} {spreads[key]['median']:.3g}"
        for key, name in (("synthetic", "synthetic"), ("held_out", "held-out real"), ("planted", "planted copies"))
        if spreads[key]["median"] is not None
    ]
    limit = "" if threshold is None else f" The threshold is at {threshold:.3g}."
    return steps_figure(
        f"Distances of {row['label']}",
        found["edges"],
        [
            Steps(name="held-out real scans", shares=found["held_out"], filled=True),
            Steps(name="synthetic scans", shares=found["synthetic"]),
            Steps(name="planted copies", shares=found["planted"]),
        ],
        x_label="distance in pixels to the nearest training scan",
        y_label="share of scans",
        limit=threshold,
        alt=f"Histogram of the distances to the nearest training scan, medians: {'; '.join(told)}.{limit}",
    )


def _line(name: str, curve: Mapping[str, list[float | None]]) -> Line:
    """Return a curve of the report, None as NaN."""
    known = {
        key: np.array([np.nan if value is None else value for value in curve[key]]) for key in ("x", "y", "low", "high")
    }
    return Line(name=name, **known)
