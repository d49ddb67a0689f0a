"""A run as it is used in a notebook: its classes, a few scans, a picture."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from medsynth.runs import Run

if TYPE_CHECKING:
    from medsynth.generation import SyntheticScan


class NotebookRun(Run):
    """A run that samples and shows itself."""

    @classmethod
    def of(cls, run: Run) -> NotebookRun:
        """Return the same run with what a notebook wants."""
        return cls(**{field.name: getattr(run, field.name) for field in fields(run)})

    def sample(self, count: int | str | Mapping[str, int] = 4, **options: Any) -> list[SyntheticScan]:
        """Return new scans in memory: `count` of every class, or `{"viral": 4}`; options are those of `medsynth.generate`."""
        from medsynth.generation import generate

        return list(generate(self, count=count, **options))

    def _repr_html_(self) -> str:
        """Return what a notebook shows: classes, grid, steps, and the last preview."""
        scans = ", ".join(
            f"{html.escape(label)} ({number} scans)"
            for label, number in zip(self.spec.classes, self.spec.class_counts, strict=True)
        )
        grid = " × ".join(map(str, self.spec.shape[1:]))
        pictures = sorted((self.folder / "previews").glob("*.png"))
        shown = ""
        if pictures:
            encoded = b64encode(pictures[-1].read_bytes()).decode("ascii")
            shown = f'<img alt="synthetic scans of every class" src="data:image/png;base64,{encoded}">'
        return f"<p><b>medsynth run</b>: {scans}; grid {grid}; {self.steps} steps</p>{shown}"
