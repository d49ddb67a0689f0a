"""The Fréchet distance that infinitely many scans would have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsynth.measures.distances import Projection, frechet_distance, projected_dims

_POINTS = 4
_SMALLEST_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Extrapolated:
    """A line through Fréchet distances of subsets, over the reciprocal of their size.

    `value` is where the line meets infinite size: unbiased as far as the line holds, so it may be negative. `observed` is
    the distance of the whole sets, `dims` the number of principal axes. `shrinkages` `(P,)` says how many times smaller than
    the sets the subsets were (1: the sets themselves) and `distances` `(P,)` how far apart they were on average.
    """

    value: float
    observed: float
    dims: int
    shrinkages: np.ndarray
    distances: np.ndarray


def extrapolated_frechet_distance(
    first: np.ndarray,
    second: np.ndarray,
    *,
    dims: int,
    generator: np.random.Generator,
    subsets: int = 8,
) -> Extrapolated:
    """Return the Fréchet distance of features `(m, d)` and `(n, d)`, extrapolated to infinitely many items on both sides.

    The distance of finite sets exceeds the true one by a term that falls as 1 / n (Chong & Forsyth 2020, arXiv 1911.07023);
    a least-squares line in 1 / n, from the whole sets down to halves of both, removes it. Here both sets are small,
    so both shrink alike. As in the fidelity table, the distance is along principal axes of the first set; each
    subset finds its own, so that what axes fitted to few items add is removed as well. There are at most `dims` axes, and no
    more than a third of the items of the smallest subset. `subsets` random subsets stand behind each point but the first.

    The scatter of `value` is some 1.2 times that of the distance itself; compare it with that of real against real. Cut
    wide features to a span of some hundred dimensions first (`Projection`), or each subset takes its time. NaN below 6 items
    on a side.
    """
    sizes = [
        (round(len(first) / shrinkage), round(len(second) / shrinkage))
        for shrinkage in np.linspace(1, 1 / _SMALLEST_SHARE, _POINTS)
    ]
    smaller = min(len(first), len(second))
    axes = projected_dims(dims, min(sizes[-1]))
    if smaller < 6:
        nothing = np.zeros(0)
        return Extrapolated(value=float("nan"), observed=float("nan"), dims=axes, shrinkages=nothing, distances=nothing)
    whole = 1 / len(first) + 1 / len(second)
    shrinkages = np.array([(1 / one + 1 / other) / whole for one, other in sizes])
    distances = np.array([
        np.mean([
            _subset_distance(first, second, (one, other), axes, generator)
            for _ in range(1 if (one, other) == (len(first), len(second)) else subsets)
        ])
        for one, other in sizes
    ])  # fmt: skip
    _, value = np.polyfit(shrinkages, distances, 1)
    return Extrapolated(
        value=float(value), observed=float(distances[0]), dims=axes, shrinkages=shrinkages, distances=distances
    )


def _subset_distance(
    first: np.ndarray, second: np.ndarray, sizes: tuple[int, int], dims: int, generator: np.random.Generator
) -> float:
    # Both sides draw by one order, which is as good as two for independent sets, and keeps a set at 0 from itself.
    order = generator.permutation(max(len(first), len(second)))
    one, other = (
        features[order[order < len(features)][:size]] for features, size in zip((first, second), sizes, strict=True)
    )
    axes = Projection.fit(one, dims)
    return frechet_distance(axes.project(one), axes.project(other))
