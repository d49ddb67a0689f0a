"""What the protocols look at: arrays with one row per scan, so that anybody's scans can be judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SEEN, HELD_OUT = ("train", "val"), ("test",)  # what a generator may have seen, and what it must not


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanArrays:
    """Real or synthetic scans.

    `scans` `(N, C, *spatial)` in [-1, 1] and their `features` `(N, D)` may be memory maps; `labels` `(N,)` index `classes`;
    `splits` are text and `patients` numbers. `donors` `(N,)` is the row of the real scan that each synthetic scan was edited
    from (-1: none), and `real_pixels` `(N,)` says which contain pixels of real scans; None without either.
    """

    scans: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: np.ndarray
    patients: np.ndarray
    donors: np.ndarray | None = None
    real_pixels: np.ndarray | None = None

    def rows_of(self, label: str, splits: tuple[str, ...] = (*SEEN, *HELD_OUT)) -> np.ndarray:
        """Return the rows of the scans of a class, in some splits or all, ascending."""
        # With hundreds of classes, only the scans of one are looked at closely.
        rows = np.flatnonzero(self.labels == (self.classes.index(label) if label in self.classes else -1))
        return rows[np.isin(self.splits[rows], splits)]
