"""Euclidean neighbours: the nearest scan, and the precision, recall, density and coverage of one set of features in another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from medsynth.errors import DataError

# Squared distances come from an expanded square, so their rounding error is at most this share of the squared lengths;
# what is nearer to the edge of a ball than that counts as outside.
_ROUNDING = 1e-10


def nearest_distances(
    queries: np.ndarray, references: np.ndarray, *, among: np.ndarray | None = None, block: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Return the Euclidean distance of each query to its nearest reference, and the index of that reference.

    `queries` is `(Q, ...)`, `references` is `(R, ...)` (arrays or memory maps; items are flattened), of which only those at
    the indices `among` count, if given. At most `block` items of each are held as float64 at a time. Distances are evaluated
    from differences, so an exact copy has distance 0. Returns float64 `(Q,)` and int64 `(Q,)`. `DataError` if there is no
    reference, or if the items differ in size.
    """
    members = np.arange(len(references)) if among is None else np.asarray(among)
    if len(members) == 0:
        raise DataError("references: need at least one scan to compare with, got none")
    check_same_shape(queries, references)
    # Distances do not change when both sets move; near the origin the expanded square loses fewer digits.
    centre = _rows(references[members[:block]]).mean(dim=0)
    distances, indices = np.empty(len(queries)), np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), block):
        rows = _rows(queries[start : start + block])
        nearest, chosen = np.full(len(rows), np.inf), np.zeros(len(rows), dtype=np.int64)
        for first in range(0, len(members), block):
            found = members[first : first + block]
            apart, places = torch.cdist(rows - centre, _rows(references[found]) - centre).min(dim=1)
            closer = apart.numpy() < nearest
            nearest[closer], chosen[closer] = apart.numpy()[closer], found[places.numpy()[closer]]
        distances[start : start + block] = (rows - _rows(references[chosen])).norm(dim=1).numpy()
        indices[start : start + block] = chosen
    return distances, indices


def check_same_shape(queries: np.ndarray, references: np.ndarray) -> None:
    """Raise `DataError` where the items of two arrays differ in shape."""
    if tuple(queries.shape[1:]) != tuple(references.shape[1:]):
        raise DataError(
            f"references: need scans of shape {tuple(queries.shape[1:])} like the queries, "
            f"got {tuple(references.shape[1:])}; try one grid for both"
        )


def _rows(items: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(items, dtype=np.float64)).reshape(len(items), -1)


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """How the balls around the items of one set hold the items of the other.

    `precision` is the share of candidates inside any reference's ball (fidelity), `recall` the share of references inside any
    candidate's ball (diversity), `density` the mean number of reference balls around a candidate, divided by k (about 1 for
    two draws of one distribution, may be above), `coverage` the share of references whose ball holds a candidate.
    All but `density` lie in [0, 1]. Precision, density and coverage are NaN without more than k references and one candidate,
    recall without more than k candidates and one reference.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Spacings:
    """All squared distances of two sets, from which precision, recall, density and coverage of any subsets are counted.

    Precision and recall are those of Kynkäänniemi et al. 2019 (arXiv 1904.06991), density and coverage those of Naeem et al. 2020
    (arXiv 2002.09797), with `neighbours` as k. Balls reach to the k-th neighbour within the set and are open, as in the code of
    the latter, so that the density of a set in itself is exactly 1 unless distances tie; a ball of radius 0 (an item with
    k copies in its own set) holds nothing. All four depend on the sizes and on k, so compare only equal sizes.

    `first` is `(m, m)`, `second` `(n, n)`; `apart` `(m, n)` and `first_apart` `(m, m)` are distances between the two sets,
    and within the first, plus their largest rounding error. Subsets are positions `(s,)`.
    """

    first: np.ndarray
    second: np.ndarray
    first_apart: np.ndarray
    apart: np.ndarray

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> Spacings:
        """Return the squared distances of features `(m, d)` and `(n, d)`."""
        # Distances do not depend on the centre, but their rounding does.
        centre = first[:1024].mean(axis=0, dtype=np.float64)
        one, other = (features.astype(np.float64) - centre for features in (first, second))
        within, across = _squares(one, one), _squares(one, other)
        return cls(
            first=within[0],
            second=_squares(other, other)[0],
            first_apart=within[0] + within[1],
            apart=across[0] + across[1],
        )

    def across(self, references: np.ndarray, candidates: np.ndarray, *, neighbours: int) -> Manifold:
        """Return the measures of a subset of the second set on one of the first set."""
        own, other = self.first[np.ix_(references, references)], self.second[np.ix_(candidates, candidates)]
        return _counted(own, other, self.apart[np.ix_(references, candidates)], neighbours)

    def inside(self, references: np.ndarray, candidates: np.ndarray, *, neighbours: int) -> Manifold:
        """Return the measures of a subset of the first set on another, disjoint one of the first set."""
        own, other = (self.first[np.ix_(rows, rows)] for rows in (references, candidates))
        return _counted(own, other, self.first_apart[np.ix_(references, candidates)], neighbours)


def _squares(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return squared distances `(r, c)`, and their largest rounding errors `(r, c)`."""
    lengths = np.square(rows).sum(axis=1)[:, None] + np.square(columns).sum(axis=1)
    squares: np.ndarray = lengths - 2 * (rows @ columns.T)
    return squares.clip(min=0), lengths * _ROUNDING


def _counted(references: np.ndarray, candidates: np.ndarray, apart: np.ndarray, neighbours: int) -> Manifold:
    """Return the measures from squared distances within both sets and, with the margin of rounding, between them."""
    unknown = float("nan")
    rows, columns = apart.shape
    held = apart < _squared_radii(references, neighbours)[:, None]
    recalled = apart < _squared_radii(candidates, neighbours)
    known = rows > neighbours and columns > 0
    return Manifold(
        precision=float(held.any(axis=0).mean()) if known else unknown,
        recall=float(recalled.any(axis=1).mean()) if columns > neighbours and rows > 0 else unknown,
        density=float(held.sum(axis=0).mean() / neighbours) if known else unknown,
        coverage=float(held.any(axis=1).mean()) if known else unknown,
    )


def _squared_radii(squares: np.ndarray, neighbours: int) -> np.ndarray:
    if len(squares) <= neighbours:
        return np.full(len(squares), np.inf)
    others = squares.copy()
    np.fill_diagonal(others, np.inf)
    radii: np.ndarray = np.partition(others, neighbours - 1, axis=1)[:, neighbours - 1]
    return radii
