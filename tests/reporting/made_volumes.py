"""Contact sheets of made-up volumes, without training anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medsynth.evaluation import Evaluation, build_report
from medsynth.evaluation.fidelity import Sheet


def marked_volume(side: int = 16, *, level: float = 1.0) -> np.ndarray:
    """Return `(1, side, side, side)` of -1 whose octant towards head, front and right has `level`."""
    volume = np.full((1, side, side, side), -1.0, dtype=np.float32)
    volume[0, side // 2 :, : side // 2, : side // 2] = level
    return volume


def volume_sheet(label: str, rows: int = 2, *, side: int = 16) -> Sheet:
    """Return a sheet whose synthetic volumes are marked brightly, and whose real ones are marked in grey."""
    synthetic = np.stack([marked_volume(side)] * rows)
    real = np.stack([marked_volume(side, level=0.0)] * rows)
    return Sheet(
        label=label,
        real=real,
        nearest=real,
        synthetic=synthetic,
        distances=np.ones(rows),
        spacing=(2.0, 1.0, 1.0),
        ends=(-1000.0, 400.0),
    )


def bare_evaluation(sheets: Sequence[Sheet] = ()) -> Evaluation:
    """Return an evaluation with sheets, but without any part."""
    return Evaluation(report=build_report(), sheets=tuple(sheets))
