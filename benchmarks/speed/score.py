"""FD-Lite0 of drawn scans against held-out real ones, beside that of two real halves, at the same number of scans."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medsynth.evaluation.fidelity.comparison import DISTANCE, Measured, disjoint_halves, half_size, random_picks
from medsynth.measures.distances import Projection, frechet_distance, projected_dims
from medsynth.seeds import numpy_generator

_PCA_DIMS = 64
_SPAN = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Features `(N, D)` of scans with their class and patient, `(N,)` each."""

    values: np.ndarray
    labels: np.ndarray
    patients: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Score:
    """FD-Lite0 of `scans` scans a side along `dims` principal axes, beside real against real."""

    scans: int
    dims: int
    frechet: Measured

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {"scans": self.scans, "dims": self.dims, **asdict(self.frechet)}


def class_counts(labels: np.ndarray, patients: np.ndarray, scans: int) -> dict[int, int]:
    """Return how many of `scans` scans each class has, in the shares of the real ones `(N,)`.

    Never more than either of two halves of the real scans without a common patient has; so the total may be smaller.
    """
    numbers, found = np.unique(labels, return_counts=True)
    exact = scans * found / found.sum()
    counts = np.floor(exact).astype(int)
    for place in np.argsort(counts - exact, kind="stable")[: scans - counts.sum()]:
        counts[place] += 1
    most = [half_size(patients[labels == number]) for number in numbers]
    return {int(number): min(int(count), limit) for number, count, limit in zip(numbers, counts, most, strict=True)}


def score(real: Features, made: Features, scans: int, *, repeats: int = 60, seed: int = 0) -> Score:
    """Return how far `made` is from the real scans, as the fidelity table of `medsynth evaluate` does for all classes together.

    In each repeat two halves A and B of the real scans without a common patient and a draw S of the made ones have the same
    number of each class; the axes are those of A. The figure is the median of (A, S), beside it that of (A, B). The halves
    depend on the seed alone, so scores of several methods stand on the same ones.
    """
    counts = class_counts(real.labels, real.patients, scans)
    generator = numpy_generator(seed, "speed", "halves", scans)
    one, other, picked = [], [], []
    for number, count in counts.items():
        rows, mine = np.flatnonzero(real.labels == number), np.flatnonzero(made.labels == number)
        halves = disjoint_halves(real.patients[rows], count, repeats, generator)
        one.append(rows[halves[0]])
        other.append(rows[halves[1]])
        picked.append(mine[random_picks(len(mine), count, repeats, numpy_generator(seed, "speed", "made", number))])
    draws = [np.concatenate(parts, axis=1) for parts in (one, other, picked)]
    size = draws[0].shape[1]
    dims = projected_dims(_PCA_DIMS, size)
    span = Projection.fit(real.values, max(_SPAN, 2 * dims))
    known, new = span.project(real.values), span.project(made.values)
    across, inside = [], []
    for half, rest, drawn in zip(*draws, strict=True):
        axes = Projection.fit(known[half], dims)
        base = axes.project(known[half])
        across.append(frechet_distance(base, axes.project(new[drawn])))
        inside.append(frechet_distance(base, axes.project(known[rest])))
    return Score(scans=size, dims=dims, frechet=Measured.of_draws(np.array(across), np.array(inside), DISTANCE))


def tolerance(score: dict[str, Any]) -> float:
    """Return the difference below which two scores count as equal: half the width of the interval of real against real."""
    return float(score["real_high"] - score["real_low"]) / 2
