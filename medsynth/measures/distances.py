"""Distances between two sets of features: kernel distance (KID), and Fréchet distance, also for infinitely many scans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

_HALVES = 100  # pairs of random halves behind the interval of KID
# Extrapolation: sizes of the subsets, from the whole sets down to this share.
_POINTS = 4
_SMALLEST_SHARE = 0.5


def polynomial_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return `(m, n)` float64 values of the kernel (x·y / d + 1)³ of KID (Bińkowski et al. 2018, arXiv 1801.01401)."""
    inner = first.astype(np.float64) @ second.astype(np.float64).T
    return (inner / first.shape[1] + 1.0) ** 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernels:
    """The kernel between all items of two sets, from which KID of any of their subsets is a sum.

    `first` is `(m, m)`, `second` `(n, n)`, `cross` `(m, n)`. Subsets are given as rows of zeros and ones, `(S, m)` or
    `(S, n)`; results are `(S,)`.
    """

    first: np.ndarray
    second: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> Kernels:
        """Return the kernels of features `(m, d)` and `(n, d)`."""
        return cls(
            first=polynomial_kernel(first, first),
            second=polynomial_kernel(second, second),
            cross=polynomial_kernel(first, second),
        )

    def across(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return KID of subsets of the first set against subsets of the second set."""
        return _within(self.first, first) + _within(self.second, second) - 2 * _between(self.cross, first, second)

    def inside(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return KID of subsets of the first set against other, disjoint subsets of the first set."""
        return _within(self.first, one) + _within(self.first, other) - 2 * _between(self.first, one, other)


def kernel_distance(kernels: Kernels) -> float:
    """Return the unbiased squared MMD of two sets: KID (Bińkowski et al. 2018, arXiv 1801.01401).

    Zero on average for two draws of one distribution, whatever their sizes, so it may be slightly negative. NaN if either
    set has fewer than two items.
    """
    first, second = (np.ones((1, count)) for count in kernels.cross.shape)
    return float(kernels.across(first, second)[0])


def kernel_distance_interval(kernels: Kernels, generator: np.random.Generator) -> tuple[float, float]:
    """Return a 95 % interval of KID from random halves of both sets.

    Half-samples without replacement vary about the full-sample value as that value does about the truth (the delete-half
    jackknife, Shao & Wu 1989, Annals of Statistics 17, 1176), so no scaling is needed; where the two distributions agree, and KID
    converges faster, the interval is wider than necessary. NaN below 4 items on a side.
    """
    sizes = len(kernels.first), len(kernels.second)
    if min(sizes) < 4:
        return float("nan"), float("nan")
    halves = [np.zeros((_HALVES, size)) for size in sizes]
    for rows in halves:
        for row in rows:
            row[generator.permutation(len(row))[: len(row) // 2]] = 1
    low, high = np.quantile(kernels.across(halves[0], halves[1]), [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """Principal axes of a set of features: `mean` `(d,)`, orthonormal `axes` `(k, d)`, by falling variance."""

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, dims: int) -> Projection:
        """Return the first `dims` principal axes of features `(n, d)`, fewer (or none) where they span fewer."""
        rows = features.astype(np.float64)
        mean = rows.mean(axis=0)
        rows = rows - mean
        count, width = rows.shape
        # The smaller of the two Gram matrices has the same non-zero eigenvalues as the larger one.
        matrix = rows @ rows.T if count < width else rows.T @ rows
        kept = min(dims, len(matrix))
        if kept == 0 or not matrix.any():
            return cls(mean=mean, axes=np.zeros((0, width)))
        values, vectors = eigh(matrix, subset_by_index=[len(matrix) - kept, len(matrix) - 1])
        spanned = values > max(values[-1], 0.0) * 1e-10
        values, vectors = values[spanned][::-1], vectors[:, spanned][:, ::-1]
        axes = (rows.T @ vectors / np.sqrt(values)).T if count < width else vectors.T
        return cls(mean=mean, axes=np.ascontiguousarray(axes))

    def project(self, features: np.ndarray) -> np.ndarray:
        """Return float64 coordinates `(n, k)` of features `(n, d)` along the axes."""
        return (features.astype(np.float64) - self.mean) @ self.axes.T


def projected_dims(requested: int, smaller: int) -> int:
    """Return how many principal axes a Fréchet distance may use: at most a third of the scans on the smaller side.

    A covariance of k dimensions has k (k + 1) / 2 entries; with fewer than some 3 k scans its error dwarfs the distance.
    """
    return max(1, min(requested, smaller // 3))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the squared Fréchet distance of Gaussians fitted to features `(m, d)` and `(n, d)` (Dowson & Landau 1982).

    With Inception features this is FID (Heusel et al. 2017, arXiv 1706.08500). Covariances are the unbiased ones. Never negative;
    NaN if either set has fewer than two items, or without dimensions.
    """
    if min(len(first), len(second)) < 2 or first.shape[1] == 0:
        return float("nan")
    sets = [rows.astype(np.float64) for rows in (first, second)]
    means = [rows.mean(axis=0) for rows in sets]
    scaled = [(rows - mean) / np.sqrt(len(rows) - 1) for rows, mean in zip(sets, means, strict=True)]
    # Covariances are A = R'R and B = S'S with triangular R and S. The trace of (A B)^(1/2) is the sum of the singular values
    # of R S', without a square root of small differences, so that equal sets give 0 to rounding.
    triangles = [np.asarray(np.linalg.qr(rows, mode="r")) for rows in scaled]
    overlap = np.linalg.svd(triangles[0] @ triangles[1].T, compute_uv=False).sum()
    spread = np.square(scaled[0]).sum() + np.square(scaled[1]).sum()
    return float(max(0.0, np.square(means[0] - means[1]).sum() + spread - 2 * overlap))


def extrapolated_frechet_distance(
    first: np.ndarray, second: np.ndarray, *, dims: int, generator: np.random.Generator, subsets: int = 8
) -> float:
    """Return the Fréchet distance of features `(m, d)` and `(n, d)`, extrapolated to infinitely many items on both sides.

    The distance of finite sets exceeds the true one by a term that falls as 1 / n (Chong & Forsyth 2020, arXiv 1911.07023);
    a least-squares line in 1 / n, from the whole sets down to halves of both, removes it. Here both sets are small,
    so both shrink alike. As in the fidelity table, the distance is along principal axes of the first set; each
    subset finds its own, so that the error of axes fitted to few items is removed as well. There are at most `dims` axes, and no
    more than a third of the items of the smallest subset. Each point but the first is the mean of `subsets` random subsets.

    The result is unbiased as far as the line holds, so it may be negative; its scatter is some 1.2 times that of the distance
    itself. Project wide features to some hundred dimensions first (`Projection`), since each subset takes time. NaN below 6
    items on a side.
    """
    if min(len(first), len(second)) < 6:
        return float("nan")
    sizes = [
        (round(len(first) / shrinkage), round(len(second) / shrinkage))
        for shrinkage in np.linspace(1, 1 / _SMALLEST_SHARE, _POINTS)
    ]
    whole, kept = 1 / len(first) + 1 / len(second), projected_dims(dims, min(sizes[-1]))

    def subset_distance(size: tuple[int, int]) -> float:
        # Both sides draw by one order, which is as good as two for independent sets, and keeps a set at 0 from itself.
        order = generator.permutation(max(len(first), len(second)))
        one, other = (side[order[order < len(side)][:of]] for side, of in zip((first, second), size, strict=True))
        axes = Projection.fit(one, kept)
        return frechet_distance(axes.project(one), axes.project(other))

    # How many times smaller than the sets the subsets are.
    shrinkages = [(1 / one + 1 / other) / whole for one, other in sizes]
    distances = [
        np.mean([subset_distance(size) for _ in range(1 if size == (len(first), len(second)) else subsets)])
        for size in sizes
    ]
    return float(np.polyfit(shrinkages, distances, 1)[1])


def _within(kernel: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Return the mean kernel over ordered pairs of different items of each subset."""
    size = subsets.sum(axis=1)
    total = ((subsets @ kernel) * subsets).sum(axis=1) - subsets @ np.diag(kernel)
    return np.divide(total, size * (size - 1), out=np.full(len(subsets), np.nan), where=size > 1)


def _between(kernel: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the mean kernel over pairs of an item of each row subset and an item of the column subset."""
    pairs = rows.sum(axis=1) * columns.sum(axis=1)
    total = ((rows @ kernel) * columns).sum(axis=1)
    return np.divide(total, pairs, out=np.full(len(rows), np.nan), where=pairs > 0)
