"""Charts of the report, as SVG in the text colour of the page.

They are drawn without pyplot, so that no global state remains. Lines differ in dashes and points in shape as well as in colour,
so that charts can be read in black and white.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import LogFormatter

from medsynth.runs import Run

# Okabe and Ito's colours (legible on white and on black), each with a dash pattern.
_STYLES = (
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("#888888", (0, (5, 1, 1, 1, 1, 1))),
)
_MARKERS = "os^Dv"
_MARKER_OF_KIND = {"baseline": 0, "synthetic": 1, "control": 2, "ceiling": 3}
_INK = "#010203"  # stands for the text colour of the page until the chart is drawn
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medsynth",
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "font.family": "sans-serif",
    "font.size": 9.5,
}
_DISTANCES = {
    "sample_median": "samples, median",
    "held_out_median": "held-out real, median",
    "sample_p5": "samples, 5th percentile",
    "held_out_p5": "held-out real, 5th percentile",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart of the report: `svg` is markup, `alt` describes it for readers who cannot see it."""

    title: str
    svg: str
    alt: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """One line of a chart: `x` and `y` `(N,)`; points with NaN in `y` are left out; `low` and `high` make a band."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def training_figures(run: Run) -> list[Figure]:
    """Return the loss curve of a run, and for each class its memorisation curve, as far as `metrics.csv` has them."""
    metrics = run.read_metrics()
    figures = []
    losses = {"training": "train_loss", "validation": "val_loss"}
    if found := {name: metrics[key] for name, key in losses.items() if key in metrics}:
        figures.append(training_figure("Training loss", found, y_label="loss", log_y=True))
    for label in run.spec.classes:
        keys = {name: f"memorisation/{label}/{kind}" for kind, name in _DISTANCES.items()}
        if all(key in metrics for key in keys.values()):
            found = {name: metrics[key] for name, key in keys.items()}
            distance = "distance to nearest training scan"
            figures.append(training_figure(f"Memorisation of {label}", found, y_label=distance))
    return figures


def training_figure(
    title: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, y_label: str, log_y: bool = False
) -> Figure:
    """Return named curves over the training steps, each as its steps and values `(N,)`, NaN where not measured."""
    lines = [Line(name=name, x=steps, y=values) for name, (steps, values) in curves.items()]
    known = {line.name: line.y[np.isfinite(line.y)] for line in lines}
    ends = [f"{name} {f'from {y[0]:.3g} to {y[-1]:.3g}' if len(y) else 'not measured'}" for name, y in known.items()]
    alt = f"Line chart of the {y_label} over the training steps: {'; '.join(ends)}."
    return line_figure(title, lines, ("step", y_label), alt=alt, log_y=log_y)


def downstream_figures(part: Mapping[str, Any]) -> list[Figure]:
    """Return the forest plot of all arms of the last tier (the best on top), the ROC curves and the reliability curves."""
    tier, rare = part["tiers"][-1], part["task"]["rare_class"]
    arms = [arm for arm in tier["arms"] if arm["test"]["auroc"]["value"] is not None]
    arms.sort(key=lambda arm: -arm["test"]["auroc"]["value"])
    chosen = [f"{arm['name']} {arm['test']['auroc']['value']:.3f}" for arm in arms if arm["chosen"]]
    alt = (
        f"Forest plot of the AUROC of {len(arms)} arms, {rare} against the rest, best first. Chosen on validation: "
        f"{'; '.join(chosen)}. The table of all arms has the same figures."
    )
    marks = {"baseline": " ◂ baseline", "synthetic": " ◂ chosen", None: ""}
    with _paper(height=0.9 + 0.24 * len(arms)) as (drawing, axes):
        for place, arm in enumerate(arms):
            found, kind = arm["test"]["auroc"], _MARKER_OF_KIND.get(arm["kind"], 2)
            colour = _STYLES[kind][0]
            if arm["chosen"] == "baseline":
                axes.axvline(found["value"], color=_INK, alpha=0.6, linewidth=0.9, linestyle="--")
            if found["low"] is not None and found["high"] is not None:
                ends = [found["low"], found["high"]]
                axes.plot(ends, [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
            axes.plot([found["value"]], [place], _MARKERS[kind], color=colour, markersize=5.5)
        axes.set_yticks(range(len(arms)), [arm["name"] + marks[arm["chosen"] or None] for arm in arms])
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("AUROC (95 % interval)", loc="right")
        axes.grid(axis="x", color=_INK, alpha=0.14, linewidth=0.6)
        axes.spines["left"].set_visible(False)
        forest = Figure(title="All arms", svg=_svg(drawing, alt), alt=alt)
    return [forest, *_curve_figures(tier, part["specificity"])]


def _curve_figures(tier: Mapping[str, Any], specificity: float) -> list[Figure]:
    """Draw the ROC and reliability curves of the chosen baseline and synthetic arm, and the points of their thresholds."""
    test = {arm["name"]: {name: each["value"] for name, each in arm["test"].items()} for arm in tier["arms"]}
    marks, reached, errors = [], [], []
    for number, arm in enumerate(each["arm"] for each in tier["curves"]):
        at, finds, error = (test[arm][name] for name in ("specificity", "sensitivity", "ece"))
        if at is not None and finds is not None:
            marks.append((1 - at, finds, number))
            reached.append(f"{arm} has a sensitivity of {finds:.0%} at a specificity of {at:.0%}")
        errors.append(f"{arm} {'not known' if error is None else f'{error:.3f}'}")
    curves: dict[str, list[Line]] = {"roc": [], "reliability": []}
    for each, kind in ((each, kind) for each in tier["curves"] for kind in curves):
        points = {key: np.array(each[kind][key], dtype=np.float64) for key in ("x", "y", "low", "high")}  # None is NaN
        curves[kind].append(Line(name=f"{each['role']}: {each['arm']}", **points))
    at_thresholds = f"At thresholds of {specificity:.0%} specificity on validation: {'; '.join(reached)}."
    alt = f"ROC curves on test scans. {at_thresholds}"
    labels = ("1 - specificity", "sensitivity")
    figure = line_figure("ROC curves", curves["roc"], labels, alt=alt, square=True, marks=marks)
    alt = f"Reliability curves on test scans. Expected calibration error: {'; '.join(errors)}."
    labels = ("mean predicted probability", "observed share")
    return [figure, line_figure("Calibration", curves["reliability"], labels, alt=alt, square=True)]


def distance_figure(row: Mapping[str, Any]) -> Figure:
    """Return the histogram of distances to the nearest training scan, for one class of the privacy gate."""
    spreads, found = row["figures"]["pixels"], row["histogram"]
    kinds = {"held_out": "held-out real scans", "synthetic": "synthetic scans", "planted": "planted copies"}
    medians = [f"{name} {spreads[k]['median']:.3g}" for k, name in kinds.items() if spreads[k]["median"] is not None]
    threshold = spreads["threshold"]
    limit = "" if threshold is None else f" The threshold is at {threshold:.3g}."
    alt = f"Histogram of the distances to the nearest training scan, medians: {'; '.join(medians)}.{limit}"
    with _paper(height=2.8) as (drawing, axes):
        for (kind, name), (colour, dashes) in zip(kinds.items(), _STYLES, strict=False):
            if kind == "held_out" and any(found[kind]):
                axes.stairs(found[kind], found["edges"], fill=True, color=colour, alpha=0.35, label=name)
            elif any(found[kind]):
                axes.stairs(found[kind], found["edges"], color=colour, linestyle=dashes, linewidth=1.6, label=name)
        if threshold is not None:
            axes.axvline(threshold, color=_INK, linewidth=1.0, linestyle=(0, (4, 3)), label="threshold")
        axes.set_xlim(found["edges"][0], found["edges"][-1])
        axes.set(xlabel="distance in pixels to the nearest training scan", ylabel="share of scans")
        if axes.get_legend_handles_labels()[1]:
            drawing.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=2)
        return Figure(title=f"Distances of {row['label']}", svg=_svg(drawing, alt), alt=alt)


def line_figure(
    title: str,
    lines: Sequence[Line],
    labels: tuple[str, str],
    *,
    alt: str,
    log_y: bool = False,
    square: bool = False,
    marks: Sequence[tuple[float, float, int]] = (),
) -> Figure:
    """Return lines over a common axis, with a legend; `labels` are those of x and y; lines without any point are left out.

    `square`: both axes from 0 to 1, with the diagonal. `marks` are points (x, y, number of the line that they belong to).
    """
    with _paper(height=4.2 if square else 3.2) as (drawing, axes):
        if square:
            axes.plot((0, 1), (0, 1), color=_INK, alpha=0.5, linewidth=0.8, linestyle=":")
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        for index, line in enumerate(lines):
            x, y, known = line.x, line.y, np.isfinite(line.y)
            if not known.any():
                continue
            colour, dashes = _STYLES[index % len(_STYLES)]
            marker = _MARKERS[index % len(_MARKERS)] if known.sum() < 30 else None
            axes.plot(x[known], y[known], color=colour, linestyle=dashes, marker=marker, markersize=4, label=line.name)
            if line.low is not None and line.high is not None:
                axes.fill_between(x[known], line.low[known], line.high[known], color=colour, alpha=0.16, linewidth=0)
        for across, up, index in marks:
            style = index % len(_STYLES)
            axes.plot([across], [up], _MARKERS[style], color=_STYLES[style][0], markersize=7)
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_PlainNumbers())
            axes.yaxis.set_minor_formatter(_PlainNumbers(labelOnlyBase=False, minor_thresholds=(2, 0.4)))
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.grid(color=_INK, alpha=0.14, linewidth=0.6)
        if axes.get_legend_handles_labels()[1]:
            drawing.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=1 if square else 2)
        return Figure(title=title, svg=_svg(drawing, alt), alt=alt)


class _PlainNumbers(LogFormatter):
    """Labels of a logarithmic axis as plain numbers instead of formulas."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


@contextmanager
def _paper(height: float) -> Iterator[tuple[Drawing, Axes]]:
    """Yield a drawing of `height` inches and its axes, to be saved before the context ends."""
    with matplotlib.rc_context(_SETTINGS):
        drawing = Drawing(figsize=(5.0, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(drawing)
        axes = drawing.add_subplot()
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        yield drawing, axes


def _svg(drawing: Drawing, alt: str) -> str:
    """Return a drawing as an element of a page: one root, no global style, unique names, the page's text colour."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    own = "c" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'\bid="', f'id="{own}-', text)
    text = re.sub(r"url\(#", f"url(#{own}-", text)
    text = re.sub(r'href="#', f'href="#{own}-', text)
    text = text.replace(_INK, "currentColor")
    view = re.search(r'viewBox="[^"]+"', text)
    assert view is not None
    label = escape(alt, quote=True)
    root = f'<svg class="chart" role="img" aria-label="{label}" {view[0]} xmlns:xlink="http://www.w3.org/1999/xlink">'
    return root + text[text.index(">") + 1 :]
