"""Structural similarity of scans (SSIM and MS-SSIM), and of random pairs within one set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from monai.metrics import MultiScaleSSIMMetric, SSIMMetric

from medsynth.errors import DataError

_BATCH_VOXELS = 2**22
_WINDOW = {2: 11, 3: 7}  # Wang et al. 2004 use 11 in 2D; in 3D that window would take four times as long as 7
_SIGMA = 1.5
# How much each scale counts, from the finest (Wang, Simoncelli & Bovik 2003).
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

Similarity = Callable[[torch.Tensor, torch.Tensor], np.ndarray]


def structural_similarity(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Return SSIM of each pair of scans `(N, C, *spatial)` in [-1, 1] (Wang et al. 2004), float64 `(N,)`.

    Gaussian window of 1.5 pixels standard deviation, 11 pixels wide in 2D and 7 in 3D, narrower (odd) where the scan is
    smaller; mean over channels and over all window positions inside the scan. 1 means equal.
    """
    rank = first.ndim - 2
    if rank not in _WINDOW:
        raise DataError(f"scans: need axes (scan, channel, 2 or 3 spatial), got {first.ndim} axes")
    smallest = min(first.shape[2:])
    window = min(_WINDOW[rank], smallest - (smallest + 1) % 2)
    metric = SSIMMetric(spatial_dims=rank, data_range=2.0, win_size=window, kernel_sigma=_SIGMA, reduction="none")
    return _of_scans(metric, first, second)


def multiscale_levels(spatial: tuple[int, ...]) -> int:
    """Return the number of scales of MS-SSIM, each half as wide as the one before, for scans of this size: 5 at most.

    The window of SSIM has to fit into the coarsest; below two scales there is no MS-SSIM.
    """
    if len(spatial) not in _WINDOW:
        return 0
    reach, side = _WINDOW[len(spatial)] - 1, min(spatial)
    fitting = [
        levels
        for levels in range(1, len(_SCALES) + 1)
        # MONAI asks for the square of the number of halvings, whatever the window needs.
        if side // 2 ** (levels - 1) > reach and side // max(1, levels - 1) ** 2 > reach
    ]
    return max(fitting, default=0)


def multiscale_weights(levels: int) -> tuple[float, ...]:
    """Return the exponents of the scales, from the finest: those of the paper, scaled to sum 1 where there are fewer than 5."""
    chosen = _SCALES[:levels]
    return tuple(weight / sum(chosen) for weight in chosen)


def multiscale_similarity(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Return MS-SSIM of each pair of scans `(N, C, *spatial)` in [-1, 1], float64 `(N,)` (Wang, Simoncelli & Bovik 2003).

    Windows are those of `structural_similarity`, the number of scales is `multiscale_levels`, and contrasts below 0 count as
    0. 1 means equal. `DataError` for scans too small for two scales, or of another rank.
    """
    levels = multiscale_levels(tuple(first.shape[2:]))
    if levels < 2:
        raise DataError(
            f"scans: need a larger grid for MS-SSIM, got {' x '.join(map(str, first.shape[2:]))}; try SSIM alone"
        )
    rank = first.ndim - 2
    metric = MultiScaleSSIMMetric(
        spatial_dims=rank,
        data_range=2.0,
        kernel_size=_WINDOW[rank],
        kernel_sigma=_SIGMA,
        weights=multiscale_weights(levels),
        reduction="none",
    )
    return _of_scans(metric, first, second)


def _of_scans(metric: SSIMMetric | MultiScaleSSIMMetric, first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return metric(first, second).reshape(len(first), -1).mean(dim=1).double().numpy()


def random_pairs(count: int, pairs: int, generator: np.random.Generator) -> np.ndarray:
    """Return up to `pairs` different unordered pairs of `count` items, `(P, 2)`; each item is in about equally many."""
    order = generator.permutation(count)
    chosen: list[np.ndarray] = []
    for offset in range(1, count // 2 + 1):
        pair = np.stack([order, np.roll(order, -offset)], axis=1)
        # Half-way round, each pair comes twice.
        chosen.append(pair[: count // 2] if 2 * offset == count else pair)
        if sum(map(len, chosen)) >= pairs:
            break
    return np.concatenate(chosen)[:pairs] if chosen else np.zeros((0, 2), dtype=np.int64)


def pair_similarities(
    scans: np.ndarray, pairs: np.ndarray, similarity: Similarity = structural_similarity
) -> np.ndarray:
    """Return SSIM, or another similarity, of pairs `(P, 2)` of indices into scans `(N, C, *spatial)` in [-1, 1].

    Float64 `(P,)`. The mean over random pairs measures how little a set varies: a set of equal scans has 1. Memory holds one
    batch.
    """
    batch = max(1, _BATCH_VOXELS // int(np.prod(scans.shape[1:])))
    parts = [np.zeros(0)]
    for start in range(0, len(pairs), batch):
        sides = [
            torch.from_numpy(np.asarray(scans[pairs[start : start + batch, side]], dtype=np.float32)) for side in (0, 1)
        ]
        parts.append(similarity(*sides))
    return np.concatenate(parts)
