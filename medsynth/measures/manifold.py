"""Precision, recall, density and coverage: does one set of features lie where the other lies, and everywhere it lies?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medsynth.errors import ConfigError, DataError

# Squared distances come from an expanded square, so they carry a rounding error of this share of the squared lengths at
# most; whatever is nearer to the edge of a ball than that lies outside.
_ROUNDING = 1e-10


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """How the balls around the items of one set hold the items of the other.

    `precision` is the share of candidates inside any reference's ball (fidelity), `recall` the share of references inside any
    candidate's ball (diversity), `density` the mean number of reference balls around a candidate, divided by k (about 1 for
    two draws of one distribution, may be above), `coverage` the share of references whose ball holds a candidate.
    All but `density` lie in [0, 1]; NaN is what the sets are too small for.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_measures(
    references: np.ndarray, candidates: np.ndarray, *, neighbours: int = 5, block: int = 1024
) -> Manifold:
    """Return how candidates `(n, d)` lie on the manifold of references `(m, d)`, made of balls to the k-th neighbour.

    Precision and recall are those of Kynkäänniemi et al. 2019 (arXiv 1904.06991), density and coverage
    those of Naeem et al. 2020 (arXiv 2002.09797), with `neighbours` as k. Balls are open,
    as in the code of the latter, so that the density of a set in itself is exactly 1 unless distances tie; a ball
    of radius 0 (an item with k copies in its own set) holds nothing. All four depend on m, n and k, so compare only equal
    sizes. Memory holds `block` items of each set as float64, their distances and a few numbers an item.

    Precision, density and coverage are NaN without more than k references and one candidate, recall is NaN without more than
    k candidates and one reference. `DataError` for features of different widths or with NaN, `ConfigError` for k below 1.
    """
    if references.ndim != 2 or candidates.ndim != 2 or references.shape[1] != candidates.shape[1]:
        raise DataError(
            f"candidates: need features of shape (scans, {references.shape[-1]}) like the references, "
            f"got {candidates.shape}; try one extractor for both"
        )
    reference_balls = neighbour_radii(references, neighbours, block=block) ** 2
    candidate_balls = neighbour_radii(candidates, neighbours, block=block) ** 2
    around = np.zeros(len(candidates), dtype=np.int64)
    covered = np.zeros(len(references), dtype=bool)
    recalled = np.zeros(len(references), dtype=bool)
    centre = _centre(references)
    for rows in _blocks(len(references), block):
        for columns in _blocks(len(candidates), block):
            squares, margin = _squares(references[rows], candidates[columns], centre)
            squares += margin
            held = squares < reference_balls[rows, None]
            around[columns] += held.sum(axis=0)
            covered[rows] |= held.any(axis=1)
            recalled[rows] |= (squares < candidate_balls[columns]).any(axis=1)
    told = len(references) > neighbours and len(candidates) > 0
    return Manifold(
        precision=float((around > 0).mean()) if told else float("nan"),
        recall=float(recalled.mean()) if len(candidates) > neighbours and len(references) > 0 else float("nan"),
        density=float(around.mean() / neighbours) if told else float("nan"),
        coverage=float(covered.mean()) if told else float("nan"),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Spacings:
    """All squared distances of two sets, from which the measures of any of their subsets are counted.

    `first` is `(m, m)`, `second` `(n, n)`, `cross` `(m, n)`; `first_lengths` `(m,)` and `second_lengths` `(n,)` bound the
    rounding.
    Subsets are positions `(s,)`; results are those of `manifold_measures` of the picked features.
    """

    first: np.ndarray
    second: np.ndarray
    cross: np.ndarray
    first_lengths: np.ndarray
    second_lengths: np.ndarray

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> Spacings:
        """Return the squared distances of features `(m, d)` and `(n, d)`."""
        centre = _centre(first)
        one, other = (features.astype(np.float64) - centre for features in (first, second))
        lengths = np.square(one).sum(axis=1), np.square(other).sum(axis=1)
        return cls(
            first=_expanded(one, one, lengths[0], lengths[0]),
            second=_expanded(other, other, lengths[1], lengths[1]),
            cross=_expanded(one, other, *lengths),
            first_lengths=lengths[0],
            second_lengths=lengths[1],
        )

    def across(self, references: np.ndarray, candidates: np.ndarray, *, neighbours: int) -> Manifold:
        """Return the measures of a subset of the second set on one of the first set."""
        margin = (self.first_lengths[references][:, None] + self.second_lengths[candidates]) * _ROUNDING
        return _counted(
            _picked(self.first, references, references),
            _picked(self.second, candidates, candidates),
            _picked(self.cross, references, candidates) + margin,
            neighbours,
        )

    def inside(self, references: np.ndarray, candidates: np.ndarray, *, neighbours: int) -> Manifold:
        """Return the measures of a subset of the first set on another, disjoint one of the first set."""
        margin = (self.first_lengths[references][:, None] + self.first_lengths[candidates]) * _ROUNDING
        return _counted(
            _picked(self.first, references, references),
            _picked(self.first, candidates, candidates),
            _picked(self.first, references, candidates) + margin,
            neighbours,
        )


def _picked(squares: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return squares[rows][:, columns]


def _counted(references: np.ndarray, candidates: np.ndarray, apart: np.ndarray, neighbours: int) -> Manifold:
    """Return the measures from squared distances within both sets and, with the margin of rounding, between them."""
    unknown = float("nan")
    rows, columns = apart.shape
    real, made = _squared_radii(references, neighbours), _squared_radii(candidates, neighbours)
    held = apart < real[:, None]
    told = rows > neighbours and columns > 0
    return Manifold(
        precision=float(held.any(axis=0).mean()) if told else unknown,
        recall=float((apart < made).any(axis=1).mean()) if columns > neighbours and rows > 0 else unknown,
        density=float(held.sum(axis=0).mean() / neighbours) if told else unknown,
        coverage=float(held.any(axis=1).mean()) if told else unknown,
    )


def _squared_radii(squares: np.ndarray, neighbours: int) -> np.ndarray:
    if len(squares) <= neighbours:
        return np.full(len(squares), np.inf)
    others = squares.copy()
    np.fill_diagonal(others, np.inf)
    radii: np.ndarray = np.partition(others, neighbours - 1, axis=1)[:, neighbours - 1]
    return radii


def neighbour_radii(features: np.ndarray, neighbours: int, *, block: int = 1024) -> np.ndarray:
    """Return the Euclidean distance of each of features `(n, d)` to its k-th nearest other one, float64 `(n,)`.

    Infinite where there are no k others. Memory holds two blocks of items and their distances. `ConfigError` for
    `neighbours` (k) below 1, `DataError` for features that are not finite.
    """
    if neighbours < 1:
        raise ConfigError(f"neighbours: need at least 1, got {neighbours}")
    if not all(np.isfinite(features[rows]).all() for rows in _blocks(len(features), block)):
        raise DataError("features: need finite numbers, got NaN or infinity; try another extractor or check the scans")
    radii = np.full(len(features), np.inf)
    centre = _centre(features)
    for rows in _blocks(len(features), block):
        nearest = np.full((rows.stop - rows.start, neighbours), np.inf)
        for columns in _blocks(len(features), block):
            squares, _ = _squares(features[rows], features[columns], centre)
            if rows == columns:
                np.fill_diagonal(squares, np.inf)
            both = np.concatenate([nearest, squares], axis=1)
            nearest = np.partition(both, neighbours - 1, axis=1)[:, :neighbours]
        radii[rows] = np.sqrt(nearest.max(axis=1))
    return radii


def _squares(rows: np.ndarray, columns: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return squared distances `(r, c)`, never negative, and the bound of their rounding errors `(r, c)`."""
    first, second = (part.astype(np.float64) - centre for part in (rows, columns))
    lengths = np.square(first).sum(axis=1), np.square(second).sum(axis=1)
    return _expanded(first, second, *lengths), (lengths[0][:, None] + lengths[1]) * _ROUNDING


def _expanded(rows: np.ndarray, columns: np.ndarray, *lengths: np.ndarray) -> np.ndarray:
    squares: np.ndarray = lengths[0][:, None] + lengths[1] - 2 * (rows @ columns.T)
    return squares.clip(min=0)


def _centre(features: np.ndarray) -> np.ndarray:
    """Return a point amid the features: distances do not depend on it, but their rounding does."""
    centre: np.ndarray = features[:1024].mean(axis=0, dtype=np.float64) if len(features) else np.zeros(())
    return centre


def _blocks(count: int, block: int) -> Iterator[slice]:
    for start in range(0, count, block):
        yield slice(start, min(start + block, count))
