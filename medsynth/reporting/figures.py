"""Charts for the report, as SVG that takes the colour of the text around it, and the text of its page.

Drawn without pyplot, so that nothing global is left behind. Lines differ in dashes and points in shape, too: they are told apart
in black and white.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import LogFormatter

# Okabe & Ito's colours (legible on white and on black) with a dash pattern each.
STYLES = (
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("#888888", (0, (5, 1, 1, 1, 1, 1))),
)
_INK = "#010203"  # stands for the colour of the page's text until the drawing is done
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medsynth",
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "font.family": "sans-serif",
    "font.size": 9.5,
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart for the report: `svg` is markup, `alt` says what it shows to who cannot see it."""

    title: str
    svg: str
    alt: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """One line of a chart: `x` and `y` `(N,)`, points with NaN in `y` are left out; `low` and `high` make a band."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One row of a forest plot: a value with its interval (None: unknown); `kind` numbers the shape of its point."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    kind: int = 0


@dataclass(frozen=True, kw_only=True)
class Steps:
    """One histogram: the share in each bin; `filled` or as an outline."""

    name: str
    shares: Sequence[float]
    filled: bool = False


def line_figure(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    alt: str,
    log_y: bool = False,
    square: bool = False,
    reference: tuple[Sequence[float], Sequence[float]] | None = None,
    marks: Sequence[tuple[float, float, int]] = (),
) -> Figure:
    """Return lines over a common axis, with a legend; lines without any point are left out.

    `square`: both axes from 0 to 1. `reference` is a dotted line, `marks` are points (x, y, number of the line they belong to).
    """
    with matplotlib.rc_context(_SETTINGS):
        drawing, axes = _paper(height=4.2 if square else 3.2)
        if reference is not None:
            axes.plot(*reference, color=_INK, alpha=0.5, linewidth=0.8, linestyle=":")
        for index, line in enumerate(lines):
            x, y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
            known = np.isfinite(y)
            if not known.any():
                continue
            colour, dashes = STYLES[index % len(STYLES)]
            marker = "os^Dv"[index % 5] if known.sum() < 30 else None
            axes.plot(x[known], y[known], color=colour, linestyle=dashes, marker=marker, markersize=4, label=line.name)
            if line.low is not None and line.high is not None:
                axes.fill_between(x[known], line.low[known], line.high[known], color=colour, alpha=0.16, linewidth=0)
        for across, up, index in marks:
            axes.plot([across], [up], "os^Dv"[index % 5], color=STYLES[index % len(STYLES)][0], markersize=7)
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_PlainNumbers())
            axes.yaxis.set_minor_formatter(_PlainNumbers(labelOnlyBase=False, minor_thresholds=(2, 0.4)))
        if square:
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(color=_INK, alpha=0.14, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[1]:
            drawing.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=1 if square else 2)
        return Figure(title=title, svg=_svg(drawing, alt), alt=alt)


def forest_figure(
    title: str, rows: Sequence[Interval], *, x_label: str, alt: str, reference: float | None = None
) -> Figure:
    """Return a forest plot: a row for each interval, first on top; `reference` is a vertical line. Unknown rows are left out."""
    known = [(row, row.value) for row in rows if row.value is not None]
    with matplotlib.rc_context(_SETTINGS):
        drawing, axes = _paper(height=0.9 + 0.24 * len(known))
        if reference is not None:
            axes.axvline(reference, color=_INK, alpha=0.6, linewidth=0.9, linestyle="--")
        for place, (row, value) in enumerate(known):
            colour = STYLES[row.kind % len(STYLES)][0]
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
            axes.plot([value], [place], "os^Dv"[row.kind % 5], color=colour, markersize=5.5)
        axes.set_yticks(range(len(known)), [row.name for row, _ in known])
        axes.set_ylim(len(known) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(x_label, loc="right")
        axes.grid(axis="x", color=_INK, alpha=0.14, linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        return Figure(title=title, svg=_svg(drawing, alt), alt=alt)


def steps_figure(
    title: str,
    edges: Sequence[float],
    steps: Sequence[Steps],
    *,
    x_label: str,
    y_label: str,
    alt: str,
    limit: float | None = None,
) -> Figure:
    """Return histograms over common bins with `edges` `(B + 1,)`; `limit` is a vertical line. Empty histograms are left out."""
    with matplotlib.rc_context(_SETTINGS):
        drawing, axes = _paper(height=2.8)
        for index, each in enumerate(steps):
            if not any(each.shares):
                continue
            colour, dashes = STYLES[index % len(STYLES)]
            if each.filled:
                axes.stairs(each.shares, edges, fill=True, color=colour, alpha=0.35, label=each.name)
            else:
                axes.stairs(each.shares, edges, color=colour, linestyle=dashes, linewidth=1.6, label=each.name)
        if limit is not None:
            axes.axvline(limit, color=_INK, linewidth=1.0, linestyle=(0, (4, 3)), label="threshold")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[1]:
            drawing.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=2)
        return Figure(title=title, svg=_svg(drawing, alt), alt=alt)


def loss_figure(steps: np.ndarray, training: np.ndarray, validation: np.ndarray | None = None) -> Figure:
    """Return the loss over the training steps, all `(N,)`, from the columns of a run's `metrics.csv` (NaN where unknown)."""
    lines = [Line(name="training", x=steps, y=training)]
    if validation is not None:
        lines.append(Line(name="validation", x=steps, y=validation))
    ends = "; ".join(f"{line.name} {_range(line.y)}" for line in lines)
    alt = f"Line chart of the loss over the training steps: {ends}."
    return line_figure("Loss while training", lines, x_label="step", y_label="loss", alt=alt, log_y=True)


def memorisation_figure(
    steps: np.ndarray,
    sample_median: np.ndarray,
    held_out_median: np.ndarray,
    *,
    sample_p5: np.ndarray | None = None,
    held_out_p5: np.ndarray | None = None,
    label: str | None = None,
) -> Figure:
    """Return the memorisation curve: the distance of samples to the nearest training scan over the training steps.

    All are `(N,)` (NaN where unknown): median and 5th percentile of the distances of samples, and of held-out real scans.
    `label` names the class. Samples that come much nearer than held-out scans are copies.
    """
    curves = {
        "samples, median": sample_median,
        "held-out real, median": held_out_median,
        "samples, 5th percentile": sample_p5,
        "held-out real, 5th percentile": held_out_p5,
    }
    lines = [Line(name=name, x=steps, y=values) for name, values in curves.items() if values is not None]
    ends = "; ".join(f"{line.name} {_range(line.y)}" for line in lines)
    return line_figure(
        "Memorisation curve" if label is None else f"Memorisation curve of {label}",
        lines,
        x_label="step",
        y_label="distance to nearest training scan",
        alt=f"Line chart of the distance to the nearest training scan over the training steps: {ends}.",
    )


class _PlainNumbers(LogFormatter):
    """Labels of a logarithmic axis as numbers; the usual ones are formulas."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _paper(height: float) -> tuple[Drawing, Axes]:
    drawing = Drawing(figsize=(5.0, height), layout="constrained", facecolor="none")
    FigureCanvasSVG(drawing)
    axes = drawing.add_subplot()
    axes.set_facecolor("none")
    return drawing, axes


def _svg(drawing: Drawing, alt: str) -> str:
    """Return a drawing as an element of a page: one root, no global style, names of its own, the page's ink."""
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
    root = f'<svg class="chart" role="img" aria-label="{escape(alt, quote=True)}" {view.group()} xmlns:xlink="http://www.w3.org/1999/xlink">'
    return root + text[text.index(">") + 1 :]


def _range(values: np.ndarray) -> str:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return f"from {known[0]:.3g} to {known[-1]:.3g}" if len(known) else "not measured"
