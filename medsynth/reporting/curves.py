"""The training curves of a run, for its report."""

from __future__ import annotations

import numpy as np

from medsynth.reporting.figures import Figure, loss_figure, memorisation_figure
from medsynth.runs import Run


def training_figures(run: Run) -> list[Figure]:
    """Return the loss curve and the memorisation curve of a run, as far as its metrics.csv has them."""
    metrics = run.read_metrics()
    figures = []
    if "train_loss" in metrics:
        steps, columns = _aligned(metrics, ["train_loss", "val_loss"])
        figures.append(loss_figure(steps, columns[0], columns[1] if "val_loss" in metrics else None))
    for label in run.spec.classes:
        kinds = ("sample_median", "held_out_median", "sample_p5", "held_out_p5")
        names = [f"memorisation/{label}/{kind}" for kind in kinds]
        if all(name in metrics for name in names):
            steps, columns = _aligned(metrics, names)
            figures.append(
                memorisation_figure(
                    steps, columns[0], columns[1], sample_p5=columns[2], held_out_p5=columns[3], label=label
                )
            )
    return figures


def _aligned(
    metrics: dict[str, tuple[np.ndarray, np.ndarray]], names: list[str]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Steps of all named metrics together, and each metric at them, NaN where it was not logged."""
    known = [metrics[name][0] for name in names if name in metrics]
    steps = np.unique(np.concatenate(known))
    columns = []
    for name in names:
        column = np.full(len(steps), np.nan)
        if name in metrics:
            column[np.searchsorted(steps, metrics[name][0])] = metrics[name][1]
        columns.append(column)
    return steps, columns
