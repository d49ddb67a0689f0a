"""Structural similarity, and how alike the scans of one set are."""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics import SSIMMetric

from medsynth.errors import DataError

_BATCH_VOXELS = 2**22
_WINDOW = {2: 11, 3: 7}  # Wang et al. 2004 use 11 in 2D; in 3D that window would take four times as long as 7
_SIGMA = 1.5


def structural_similarity(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Return SSIM of each pair of scans `(N, C, *spatial)` in [-1, 1] (Wang et al. 2004, equation 13), float64 `(N,)`.

    Gaussian window of 1.5 pixels standard deviation, 11 pixels wide in 2D and 7 in 3D, narrower (odd) where the scan is
    smaller; mean over channels and over all window positions inside the scan. 1 means equal.
    """
    rank = first.ndim - 2
    if rank not in _WINDOW:
        raise DataError(f"scans: need axes (scan, channel, 2 or 3 spatial), got {first.ndim} axes")
    smallest = min(first.shape[2:])
    window = min(_WINDOW[rank], smallest - (smallest + 1) % 2)
    metric = SSIMMetric(spatial_dims=rank, data_range=2.0, win_size=window, kernel_sigma=_SIGMA, reduction="none")
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


def pair_similarities(scans: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return SSIM of the pairs `(P, 2)` of indices into scans `(N, C, *spatial)` in [-1, 1], float64 `(P,)`.

    The mean over random pairs measures how little a set varies: a set of equal scans has 1. Memory holds one batch.
    """
    batch = max(1, _BATCH_VOXELS // int(np.prod(scans.shape[1:])))
    parts = [np.zeros(0)]
    for start in range(0, len(pairs), batch):
        sides = [
            torch.from_numpy(np.asarray(scans[pairs[start : start + batch, side]], dtype=np.float32)) for side in (0, 1)
        ]
        parts.append(structural_similarity(*sides))
    return np.concatenate(parts)
