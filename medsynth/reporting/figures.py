"""Line figures for the report, drawn without pyplot, so that nothing global is left behind."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing

# Okabe & Ito's colours with a dash pattern each: told apart in black and white and by colour-blind readers.
_STYLES = (
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("#000000", (0, (5, 1, 1, 1, 1, 1))),
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture for the report: `png` holds the file, `alt` says what it shows to who cannot see it."""

    title: str
    png: bytes
    alt: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """One line of a figure: `x` and `y` `(N,)`; points with NaN in `y` are left out."""

    name: str
    x: np.ndarray
    y: np.ndarray


def line_figure(
    title: str, lines: Sequence[Line], *, x_label: str, y_label: str, alt: str, log_y: bool = False
) -> Figure:
    """Return lines over a common axis, with a legend; lines without any point are left out."""
    drawing = Drawing(figsize=(5.0, 3.2), dpi=180, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    for index, line in enumerate(lines):
        x, y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
        known = np.isfinite(y)
        if not known.any():
            continue
        colour, dashes = _STYLES[index % len(_STYLES)]
        marker = "o" if known.sum() < 30 else None
        axes.plot(x[known], y[known], color=colour, linestyle=dashes, marker=marker, markersize=3.5, label=line.name)
    if log_y:
        axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", metadata={"Software": None})
    return Figure(title=title, png=buffer.getvalue(), alt=alt)


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


def _range(values: np.ndarray) -> str:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return f"from {known[0]:.3g} to {known[-1]:.3g}" if len(known) else "not measured"
