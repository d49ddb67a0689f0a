"""What an evaluation, and the training before it, cost."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import torch

from medsynth.runs import Run


class Clock:
    """Measures how long each part of an evaluation takes; what a former call had finished counts as nothing."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Count the time since the last lap for `part`."""
        now = time.perf_counter()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._last
        self._last = now

    def cost(self, run: Run | None = None) -> dict[str, Any]:
        """Return seconds of each part, what was computed with, and, of `run`, about how long its steps took."""
        return {
            "seconds": {part: round(seconds, 1) for part, seconds in self._seconds.items()},
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "training_seconds": None if run is None else training_seconds(run),
        }


def training_seconds(run: Run) -> float | None:
    """Return about how long the steps of a run took, from the rates in its `metrics.csv`; None where there are none.

    Validation, previews and interruptions are not counted.
    """
    metrics = run.read_metrics()
    batch = run.options.get("batch_size")
    if "scans_per_s" not in metrics or not batch:
        return None
    steps, rates = metrics["scans_per_s"]
    seconds = 0.0
    done = 0
    for step, rate in zip(steps.tolist(), rates.tolist(), strict=True):
        # A step that was repeated after an interruption is logged twice.
        if rate > 0 and step > done:
            seconds += (step - done) * batch / rate
            done = step
    return round(seconds, 1)
