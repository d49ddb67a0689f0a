"""Nearest neighbours of scans that may have been mirrored, shifted, and changed in contrast and brightness.

Two scans are compared by their normalised cross-correlation (Lewis 1995, Vision Interface, 120): the inner part of one,
mirrored along any axes, against every window of the other that a shift reaches. All pairs are ranked at low resolution by
matrix products; the few best pairs are measured at full resolution by Fourier transforms. The number of spatial axes comes
from the arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d
from tqdm import tqdm

from medsynth.errors import DataError
from medsynth.measures.neighbours import check_same_shape

_SEARCH_SIDE = {2: 32, 3: 16}  # pixels a side at low resolution, by the number of spatial axes
_POOLING: dict[int, Any] = {2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}
_NUMBERS_AT_ONCE = 2**23  # float32 numbers in the largest block: 32 MiB
_FLAT = 1e-5  # norm of the contrast below which a scan counts as flat


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """The nearest references of each query, each of another group, nearest first.

    `distances` float64 `(Q, K)` and `indices` int64 `(Q, K)` into the references; infinity and -1 where a query has fewer
    than K neighbours.
    """

    distances: np.ndarray
    indices: np.ndarray


class AlignedReferences:
    """Scans among which the nearest to a query are found, also if one was changed after copying.

    The distance of two scans is sqrt(2 - 2 c), from 0 to 2, where c is the largest normalised cross-correlation over all flips
    and shifts of up to `shift` pixels (at most a quarter of each axis), so contrast and brightness do not count. Both scans are
    smoothed first with a Gaussian of `smoothing` pixels, so noise hardly counts. A scan without contrast is at distance
    sqrt(2) of all.

    `scans` `(R, C, *spatial)`, of which only those at `among` count, may be a memory map; `groups` `(R,)` are their patients, as
    integers from 0. `DataError` without references.
    """

    def __init__(
        self,
        scans: np.ndarray,
        *,
        groups: np.ndarray,
        among: np.ndarray | None = None,
        shift: int = 4,
        smoothing: float = 1.0,
    ) -> None:
        members = np.arange(len(scans)) if among is None else np.asarray(among)
        if len(members) == 0:
            raise DataError("references: need at least one scan to compare with, got none")
        self._scans, self._groups = scans, np.asarray(groups)
        # Scans of a group lie in one block, or two.
        self._members = members[np.argsort(self._groups[members], kind="stable")]
        self._search = _Search(tuple(scans.shape[2:]), shift, smoothing)

    def nearest(
        self,
        queries: np.ndarray,
        count: int,
        *,
        rows: np.ndarray | None = None,
        barred: np.ndarray | None = None,
        progress: bool = False,
        title: str = "comparing scans",
    ) -> Neighbours:
        """Return the `count` nearest references of each query, one of each group at most.

        `queries` `(N, C, *spatial)`, of which only those at `rows` `(Q,)` count, may be a memory map. `barred` `(Q,)` is a group
        that a query may not find (its own), or -1. Memory is bounded by a few blocks and a low-resolution copy of the queries.
        `DataError` for another shape.
        """
        check_same_shape(queries, self._scans)
        rows = np.arange(len(queries)) if rows is None else np.asarray(rows)
        own = np.full(len(rows), -1) if barred is None else np.asarray(barred)
        distances = np.full((len(rows), count), np.inf)
        indices = np.full((len(rows), count), -1, dtype=np.int64)
        if len(rows) == 0:
            return Neighbours(distances=distances, indices=indices)
        low = torch.cat([self._search.shrink(queries[rows[part]]) for part in _blocks(len(rows), 256)])
        with tqdm(total=len(self._members), desc=title, unit="real scan", disable=not progress, leave=False) as bar:
            found, flips = self._rank(low, torch.from_numpy(own.astype(np.int64))[:, None], 2 * count, bar)
        members, groups = self._members, self._groups
        for place in tqdm(range(len(rows)), desc=f"{title}, closely", unit="scan", disable=not progress, leave=False):
            near = found[place] >= 0
            if not near.any():
                continue
            # All scans of these patients: at low resolution another one may be nearer than the one that was copied.
            flip_of = dict(zip(groups[found[place][near]], flips[place][near], strict=True))
            candidates = members[np.isin(groups[members], list(flip_of))]
            mirrored = np.array([flip_of[group] for group in groups[candidates]])
            measured = self._search.measure(queries[rows[place]], self._scans[candidates], mirrored)
            order = np.argsort(measured, kind="stable")
            _, first = np.unique(groups[candidates[order]], return_index=True)
            kept = order[np.sort(first)][:count]
            distances[place, : len(kept)], indices[place, : len(kept)] = measured[kept], candidates[kept]
        return Neighbours(distances=distances, indices=indices)

    def _rank(self, low: Tensor, barred: Tensor, count: int, bar: tqdm) -> tuple[np.ndarray, np.ndarray]:
        """Return the references `(Q, count)` that low resolution finds nearest, one of each group in a block, and their flips.

        -1 where there are fewer.
        """
        search, members = self._search, self._members
        best = torch.full((len(low), count), -torch.inf)
        chosen = torch.full((len(low), count), -1, dtype=torch.int64)
        turned = torch.zeros((len(low), count), dtype=torch.int64)
        probe = search.windows(low[:1])[0]
        at_once = max(1, _NUMBERS_AT_ONCE // probe.numel())
        queries_at_once = max(1, _NUMBERS_AT_ONCE // (min(at_once, len(members)) * len(probe)))
        for part in _blocks(len(members), at_once):
            numbers = torch.from_numpy(members[part].astype(np.int64))
            patients = torch.from_numpy(self._groups[members[part]].astype(np.int64))
            windows = search.windows(search.shrink(self._scans[members[part]]))
            for some in _blocks(len(low), queries_at_once):
                # The largest correlation of each query with each reference over shifts, then over flips.
                flat = windows.flatten(0, 1).T
                by_flip = [(one @ flat).reshape(len(one), len(windows), -1).amax(2) for one in search.inner(low[some])]
                likeness, flips = torch.stack(by_flip).max(0)
                likeness = likeness.masked_fill(barred[some] == patients, -torch.inf)
                likeness = _best_of_groups(likeness, patients)
                scores = torch.cat([best[some], likeness], dim=1)
                best[some], order = scores.topk(count, dim=1)
                chosen[some] = torch.cat([chosen[some], numbers.expand(len(likeness), -1)], dim=1).gather(1, order)
                turned[some] = torch.cat([turned[some], flips], dim=1).gather(1, order)
            bar.update(len(numbers))
        chosen[best == -torch.inf] = -1
        return chosen.numpy(), turned.numpy()


def aligned_distances(
    queries: np.ndarray, references: np.ndarray, *, shift: int = 4, smoothing: float = 1.0
) -> np.ndarray:
    """Return the distance of each query `(N, C, *spatial)` to the reference in the same place, float64 `(N,)`, as above."""
    check_same_shape(queries, references)
    search = _Search(tuple(queries.shape[2:]), shift, smoothing)
    every = np.arange(len(search.flips))
    pairs = zip(queries, references, strict=True)
    return np.array([search.measure(query, np.stack([other] * len(every)), every).min() for query, other in pairs])


class _Search:
    """Scans of one shape at two resolutions: flips of the inner part of one, windows of the other."""

    def __init__(self, shape: tuple[int, ...], shift: int, smoothing: float) -> None:
        self._smoothing = smoothing
        self._axes = tuple(range(-len(shape), 0))
        mirrored = product((False, True), repeat=len(shape))
        self.flips = [tuple(axis for axis, on in zip(self._axes, each, strict=True) if on) for each in mirrored]
        self._margins = tuple(min(shift, length // 4) for length in shape)
        self._low = tuple(min(length, _SEARCH_SIDE[len(shape)]) for length in shape)
        # The margin at low resolution, rounded up so that no shift is missed.
        self._low_margins = tuple(
            min(side // 4, -(-margin * side // length))
            for margin, side, length in zip(self._margins, self._low, shape, strict=True)
        )

    def smooth(self, scans: np.ndarray) -> Tensor:
        """Return scans `(N, C, *spatial)` as float32, smoothed, with the edges continued."""
        result = np.array(scans, dtype=np.float32)
        if self._smoothing:
            widths = (0, 0, *[self._smoothing] * len(self._axes))
            result = gaussian_filter(result, widths, mode="nearest", truncate=3)
        return torch.from_numpy(result)

    def shrink(self, scans: np.ndarray) -> Tensor:
        """Return scans at low resolution, averaged over areas."""
        return _POOLING[len(self._low)](self.smooth(scans), self._low)

    def inner(self, low: Tensor) -> list[Tensor]:
        """Return the inner part of low-resolution scans in each flip, `(N, pixels)` each, with mean 0 and norm 1."""
        for axis, margin in zip(self._axes, self._low_margins, strict=True):
            low = low.narrow(axis, margin, low.shape[axis] - 2 * margin)
        return [_scaled(low.flip(flip).flatten(1)) for flip in self.flips]

    def windows(self, low: Tensor) -> Tensor:
        """Return the windows of low-resolution scans that shifts reach, `(N, shifts, pixels)`, with mean 0 and norm 1."""
        rank = len(self._axes)
        for axis, margin in zip(range(2, 2 + rank), self._low_margins, strict=True):
            low = low.unfold(axis, low.shape[axis] - 2 * margin, 1)
        return _scaled(low.movedim(1, 1 + rank).flatten(1, rank).flatten(2))

    def measure(self, query: np.ndarray, candidates: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Return the distances `(K,)` of a query `(C, *spatial)` in the flip of each candidate to these `(K, C, *spatial)`."""
        inner = self.smooth(query[None]).double()
        for axis, margin in zip(self._axes, self._margins, strict=True):
            inner = inner.narrow(axis, margin, inner.shape[axis] - 2 * margin)
        inner = inner - inner.mean()
        turned, places = np.unique(flips, return_inverse=True)
        mirrored = torch.cat([inner.flip(self.flips[flip]) for flip in turned])
        others = self.smooth(candidates).double()
        # Near 0 the variance of a window loses fewer digits.
        others = others - others.flatten(1).mean(1).reshape(-1, *[1] * (others.ndim - 1))
        ones = torch.ones_like(inner[:, :1])
        products = self._correlate(others, mirrored, torch.from_numpy(places))
        sums = self._correlate(others.sum(1, keepdim=True), ones)
        squares = self._correlate(others.square().sum(1, keepdim=True), ones)
        spread = (squares - sums.square() / inner.numel()).clamp(min=0).sqrt()
        contrast = torch.where((spread > _FLAT) & (inner.norm() > _FLAT), spread * inner.norm(), torch.inf)
        likeness = (products / contrast).flatten(1).amax(1).clamp(max=1)
        distances: np.ndarray = (2 - 2 * likeness).sqrt().numpy()
        return distances

    def _correlate(self, others: Tensor, inner: Tensor, places: Tensor | None = None) -> Tensor:
        """Return the sums of products of `others` `(K, C, *spatial)` with `inner`, laid at every shift, over channels.

        `inner` is one for all, or several, of which `places` `(K,)` is the one for each of the others.
        """
        size = others.shape[2:]
        spectrum = torch.fft.rfftn(others, s=size, dim=self._axes)
        laid = torch.fft.rfftn(inner, s=size, dim=self._axes).conj()
        spectrum *= laid if places is None else laid[places]
        sums = torch.fft.irfftn(spectrum.sum(1), s=size, dim=self._axes)
        for axis, margin in zip(self._axes, self._margins, strict=True):
            sums = sums.narrow(axis, 0, 2 * margin + 1)  # where nothing has wrapped around
        return sums


def _best_of_groups(likeness: Tensor, patients: Tensor) -> Tensor:
    """Return the likeness `(q, r)` with all but the best reference of each group at minus infinity."""
    unique, places = patients.unique(return_inverse=True)
    if len(unique) == len(patients):
        return likeness
    places = places.expand_as(likeness)
    best = likeness.new_full((len(likeness), len(unique)), -torch.inf).scatter_reduce(1, places, likeness, "amax")
    return likeness.masked_fill(likeness < best.gather(1, places), -torch.inf)


def _scaled(rows: Tensor) -> Tensor:
    """Return rows (the last axis) less their mean, over their norm; 0 for rows without contrast."""
    rows = rows - rows.mean(-1, keepdim=True)
    norm = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(norm > 10 * _FLAT, norm, torch.inf)


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))
