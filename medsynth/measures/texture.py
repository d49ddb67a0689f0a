"""Intensities and textures: what scans are made of, whatever they show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import energy_distance, wasserstein_distance
from skimage.feature import graycomatrix, graycoprops
from tqdm import tqdm

from medsynth.errors import DataError

_BINS = 256
_LEVELS = 32
_REACHES = (1, 4)
_ANGLES = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
_PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
_INTENSITY_FEATURES = (
    "mean", "standard deviation", "skewness", "10th percentile", "median", "90th percentile", "entropy", "uniformity",
)  # fmt: skip
# A spread below this share of the values themselves is rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTable:
    """Named features of scans: `values` float64 `(N, F)`, `names` of the F columns."""

    names: tuple[str, ...]
    values: np.ndarray


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


@dataclass(frozen=True, kw_only=True)
class IntensityDistances:
    """Distances of the intensities of two sets, in units of the model range (which is 2 wide), mean over channels."""

    wasserstein: float
    energy: float


def intensity_distances(first: np.ndarray, second: np.ndarray) -> IntensityDistances:
    """Return how far apart the pooled intensities of two sets are, from histograms `(m, C, bins)` and `(n, C, bins)`.

    The 1-Wasserstein distance is how far, on average, a voxel's value has to move; the energy distance (Székely & Rizzo
    2013, with the square root, as in scipy) weighs gaps between the distributions more. Bins move the former by 2 / bins
    at most. `DataError` for an empty set, or for histograms that differ in channels or bins.
    """
    if first.shape[1:] != second.shape[1:] or min(len(first), len(second)) == 0:
        raise DataError(
            f"histograms: need at least one scan a side with equal (channels, bins), "
            f"got {first.shape} and {second.shape}; try one grid for both"
        )
    centres = _bin_centres(first.shape[2])
    pooled = list(zip(first.mean(axis=0), second.mean(axis=0), strict=True))
    return IntensityDistances(
        wasserstein=float(np.mean([wasserstein_distance(centres, centres, *pair) for pair in pooled])),
        energy=float(np.mean([energy_distance(centres, centres, *pair) for pair in pooled])),
    )


def intensity_features(histograms: np.ndarray) -> FeatureTable:
    """Return first-order features of each channel of each scan from histograms `(N, C, bins)`.

    Mean, standard deviation, skewness (0 where nothing varies), percentiles (to half a bin), entropy in bits and
    uniformity (as in Zwanenburg et al. 2016, arXiv 1612.07003), named `channel 0 mean` and so on.
    """
    centres = _bin_centres(histograms.shape[2])
    mean = histograms @ centres
    apart = centres - mean[..., None]
    deviation = np.sqrt((histograms * apart**2).sum(axis=-1))
    third = (histograms * apart**3).sum(axis=-1)
    skewness = np.divide(third, deviation**3, out=np.zeros_like(third), where=deviation > _ROUNDING)
    below = np.cumsum(histograms, axis=-1)
    percentiles = [centres[(below < share - _ROUNDING).sum(axis=-1)] for share in (0.1, 0.5, 0.9)]
    entropy = -(histograms * np.log2(np.where(histograms > 0, histograms, 1))).sum(axis=-1)
    uniformity = np.square(histograms).sum(axis=-1)
    columns = np.stack([mean, deviation, skewness, *percentiles, entropy, uniformity], axis=-1)
    return FeatureTable(
        names=tuple(
            f"channel {channel} {name}" for channel in range(histograms.shape[1]) for name in _INTENSITY_FEATURES
        ),
        values=columns.reshape(len(columns), -1),
    )


def texture_features(scans: np.ndarray, indices: np.ndarray | None = None, *, progress: bool = True) -> FeatureTable:
    """Return grey-level co-occurrence features of scans `(*, C, *spatial)` in [-1, 1] (Haralick et al. 1973).

    Of each channel (and, of volumes, of each of the three central planes) 32 grey levels give symmetric co-occurrence
    matrices at 1 and 4 pixels in four directions; contrast, dissimilarity, homogeneity, energy, correlation and entropy
    (in nats) are averaged over the directions. Names read `channel 0 plane 2 contrast at 4`; plane k is across spatial axis k,
    and a 2D scan is plane 0. A plane that does not vary has correlation 1. Scans (which may be a memory map) at `indices`, all
    by default, are read one by one. `DataError` for planes less than 5 pixels wide, NaN, or another number of axes.
    """
    if scans.ndim not in (4, 5):
        raise DataError(f"scans: need axes (scan, channel, 2 or 3 spatial), got {scans.ndim} axes")
    if min(scans.shape[2:]) <= max(_REACHES):
        raise DataError(
            f"scans: need at least {max(_REACHES) + 1} pixels a side for textures, "
            f"got {' x '.join(map(str, scans.shape[2:]))}; try a larger grid"
        )
    chosen = np.arange(len(scans)) if indices is None else indices
    planes = 1 if scans.ndim == 4 else 3
    values = np.zeros((len(chosen), scans.shape[1], planes, len(_PROPERTIES), len(_REACHES)))
    for row, index in enumerate(tqdm(chosen, desc="textures", unit="scan", disable=not progress)):
        for channel, levels in enumerate(_levels(scans[index], _LEVELS)):
            for plane, picture in enumerate(_central_planes(levels)):
                values[row, channel, plane] = _co_occurrence(picture)
    names = tuple(
        f"channel {channel} plane {plane} {name} at {reach}"
        for channel in range(scans.shape[1])
        for plane in range(planes)
        for name in _PROPERTIES
        for reach in _REACHES
    )
    return FeatureTable(names=names, values=values.reshape(len(chosen), -1))


def standardised_distances(references: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the 1-Wasserstein distance of each feature's values, in standard deviations of the references, `(F,)`.

    Features are `(m, F)` and `(n, F)`. 1 is what a shift by one standard deviation of the references gives. Where the
    references do not vary it is 0 if the candidates agree with them, else infinite. Never 0 for two finite draws of one
    distribution: compare it with real against real. `DataError` for an empty side or different features.
    """
    if references.shape[1:] != candidates.shape[1:] or min(len(references), len(candidates)) == 0:
        raise DataError(
            f"features: need at least one scan a side with equal features, got {references.shape} and {candidates.shape}"
        )
    distances = np.array([
        wasserstein_distance(one, other) for one, other in zip(references.T, candidates.T, strict=True)
    ])  # fmt: skip
    rounding = _ROUNDING * np.abs(references).max(axis=0)
    spread = references.std(axis=0)
    spread[spread <= rounding] = 0
    distances[distances <= rounding] = 0
    return np.divide(distances, spread, out=np.where(distances > 0, np.inf, 0.0), where=spread > 0)


def _levels(scan: np.ndarray, count: int) -> np.ndarray:
    """Return a scan in [-1, 1] as whole grey levels from 0 to `count` - 1."""
    values = np.asarray(scan, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError("scans: need finite values, got NaN or infinity; try preparing the cohort again")
    return ((values + 1) * (count / 2)).clip(0, count - 1).astype(np.uint8 if count <= 256 else np.int64)


def _bin_centres(bins: int) -> np.ndarray:
    centres: np.ndarray = (np.arange(bins) + 0.5) * (2 / bins) - 1
    return centres


def _central_planes(channel: np.ndarray) -> list[np.ndarray]:
    if channel.ndim == 2:
        return [channel]
    return [channel.take(length // 2, axis=axis) for axis, length in enumerate(channel.shape)]


def _co_occurrence(levels: np.ndarray) -> np.ndarray:
    """Return the properties of a picture of whole grey levels, `(properties, reaches)`, mean over directions."""
    matrix = graycomatrix(levels, _REACHES, _ANGLES, levels=_LEVELS, symmetric=True, normed=True)
    return np.stack([graycoprops(matrix, name).mean(axis=1) for name in _PROPERTIES])
