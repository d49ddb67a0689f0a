"""Intensities and textures of scans, and their distances between two sets."""

from __future__ import annotations

import numpy as np
from scipy.stats import wasserstein_distance
from skimage.feature import graycomatrix, graycoprops
from tqdm import tqdm

from medsynth.errors import DataError

_BINS = 256
_LEVELS = 32
_REACHES = (1, 4)
_ANGLES = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
_PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
# A spread below this share of the values themselves is rounding.
_ROUNDING = 1e-9


def intensity_histograms(
    scans: np.ndarray, indices: np.ndarray | None = None, *, bins: int = _BINS, progress: bool = True
) -> np.ndarray:
    """Return the share of each intensity in each channel of each scan, float64 `(N, C, bins)`, summing to 1.

    `scans` is `(*, C, *spatial)` in [-1, 1], maybe a memory map, of which those at `indices` (all by default) are read one
    by one. Bins are equally wide from -1 to 1; values outside count in the outermost. `DataError` for scans with NaN.
    """
    chosen = np.arange(len(scans)) if indices is None else indices
    histograms = np.zeros((len(chosen), scans.shape[1], bins))
    for row, index in enumerate(tqdm(chosen, desc="intensities", unit="scan", disable=not progress)):
        for channel, values in enumerate(_levels(scans[index], bins)):
            histograms[row, channel] = np.bincount(values.ravel(), minlength=bins) / values.size
    return histograms


def intensity_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the 1-Wasserstein distance of the pooled intensities of two sets, from histograms `(*, C, bins)`.

    It is how far, on average, a voxel's value has to move, in units of the model range (which is 2 wide), mean over channels;
    bins change it by 2 / bins at most.
    """
    centres = (np.arange(first.shape[2]) + 0.5) * (2 / first.shape[2]) - 1
    pooled = zip(first.mean(axis=0), second.mean(axis=0), strict=True)
    return float(np.mean([wasserstein_distance(centres, centres, *pair) for pair in pooled]))


def texture_features(scans: np.ndarray, indices: np.ndarray | None = None, *, progress: bool = True) -> np.ndarray:
    """Return grey-level co-occurrence features of scans `(*, C, *spatial)` in [-1, 1], float64 `(N, F)` (Haralick et al. 1973).

    Each channel (of volumes, each of the three central planes, across one spatial axis after the other) has 32 grey levels and
    symmetric co-occurrence matrices at 1 and 4 pixels in four directions. Contrast, dissimilarity, homogeneity, energy,
    correlation and entropy (in nats), each at 1 and at 4 pixels, are averaged over the directions. A plane that does not vary
    has correlation 1. Scans (which may be a memory map) at `indices`, all by default, are read one by one. `DataError` for
    planes less than 5 pixels wide, NaN, or another number of axes.
    """
    if scans.ndim not in (4, 5):
        raise DataError(f"scans: need axes (scan, channel, 2 or 3 spatial), got {scans.ndim} axes")
    if min(scans.shape[2:]) <= max(_REACHES):
        raise DataError(
            f"scans: need at least {max(_REACHES) + 1} pixels a side for textures, "
            f"got {' x '.join(map(str, scans.shape[2:]))}; try a larger grid"
        )
    chosen = np.arange(len(scans)) if indices is None else indices
    rows = []
    for index in tqdm(chosen, desc="textures", unit="scan", disable=not progress):
        planes = [plane for channel in _levels(scans[index], _LEVELS) for plane in _central_planes(channel)]
        matrices = [
            graycomatrix(plane, _REACHES, _ANGLES, levels=_LEVELS, symmetric=True, normed=True) for plane in planes
        ]
        rows.append([graycoprops(matrix, name).mean(axis=1) for matrix in matrices for name in _PROPERTIES])
    return np.array(rows).reshape(len(rows), -1)


def standardised_distances(references: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the 1-Wasserstein distance of each feature's values, in standard deviations of the references, `(F,)`.

    Features are `(m, F)` and `(n, F)`. 1 is what a shift by one standard deviation of the references gives. Where the
    references do not vary it is 0 if the candidates agree with them, else infinite. Never 0 for two finite draws of one
    distribution: compare it with real against real.
    """
    distances = np.array([
        wasserstein_distance(one, other) for one, other in zip(references.T, candidates.T, strict=True)
    ])  # fmt: skip
    rounding = _ROUNDING * np.abs(references).max(axis=0)
    spread = references.std(axis=0)
    spread[spread <= rounding] = 0
    distances[distances <= rounding] = 0
    return np.divide(distances, spread, out=np.where(distances > 0, np.inf, 0.0), where=spread > 0)


def _levels(scan: np.ndarray, count: int) -> np.ndarray:
    """Return a scan in [-1, 1] as whole grey levels from 0 to `count` - 1, at most 256."""
    values = np.asarray(scan, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError("scans: need finite values, got NaN or infinity; try preparing the cohort again")
    return ((values + 1) * (count / 2)).clip(0, count - 1).astype(np.uint8)


def _central_planes(channel: np.ndarray) -> list[np.ndarray]:
    if channel.ndim == 2:
        return [channel]
    return [channel.take(length // 2, axis=axis) for axis, length in enumerate(channel.shape)]
