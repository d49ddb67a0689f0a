"""Nearest neighbours of scans that may have been copied in whole or in part, and changed after copying.

Every reference is ranked twice, under every mirroring, quarter turn and zoom: by the whole scan at low resolution, and by
*patches*. Each patch of a query is compared with those near its place; a reference that holds the same patches in the same places
collects evidence, however the rest of the scan was changed. Those that come first are measured at full resolution: the whole by
normalised cross-correlation (Lewis 1995, Vision Interface, 120) over shifts, and blocks of it one by one. The number of spatial
axes comes from the arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from medsynth.errors import DataError
from medsynth.measures.neighbours import check_same_shape

_FLAT = 1e-5  # norm of the contrast below which a scan counts as flat
_QUERIES_AT_ONCE, _REFERENCES_AT_ONCE = {2: 512, 3: 128}, {2: 256, 3: 64}
_SAMPLE = 512  # references that say how alike patches are by chance
_CLOSELY = 2  # groups of which every scan is measured
_POOL: dict[int, Any] = {2: functional.avg_pool2d, 3: functional.avg_pool3d}
_ZOOM: dict[int, Any] = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """The nearest references of each query, each of another group.

    `distances` float64 `(Q, K)` and `indices` int64 `(Q, K)` into the references, nearest first; infinity and -1 where a query
    has fewer than K neighbours. `evidence` `(Q, K)` says how much of a query the references at `evidence_indices` hold, most
    first: how many patches agree, over the distance of the blocks that agree best; 0 and -1 without. `part_distances` `(Q,)` is
    the latter for the first of them: 0 where a quarter of the query is in it unchanged; infinity without.
    """

    distances: np.ndarray
    indices: np.ndarray
    evidence: np.ndarray
    evidence_indices: np.ndarray
    part_distances: np.ndarray


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Scores, rows and poses `(Q, K)` of the references that rank first, the highest score first; minus infinity: none."""

    scores: Tensor
    rows: Tensor
    poses: Tensor

    @classmethod
    def empty(cls, queries: int, length: int) -> _Ranking:
        nothing = torch.zeros((queries, length), dtype=torch.int64)
        return cls(torch.full((queries, length), -torch.inf), nothing, nothing)

    def with_more(self, scores: Tensor, rows: Tensor, poses: Tensor) -> _Ranking:
        """Return the ranking with references at `rows` `(R,)` and their scores and poses `(Q, R)`."""
        best, order = torch.cat([self.scores, scores], dim=1).topk(self.scores.shape[1], dim=1)
        rows = torch.cat([self.rows, rows.expand(len(scores), -1)], dim=1).gather(1, order)
        return _Ranking(best, rows, torch.cat([self.poses, poses], dim=1).gather(1, order))


class AlignedReferences:
    """Scans among which the nearest to a query are found, also if one was copied in part, or changed after copying.

    The distance of two scans is sqrt(2 - 2 c), from 0 to 2, where c is the largest normalised cross-correlation over all
    mirrorings, quarter turns of the last two axes, and shifts of up to `shift` pixels (at most a quarter of each axis), so
    contrast and brightness do not count. Both scans are smoothed first with a Gaussian of `smoothing` pixels, so noise hardly
    counts. A scan without contrast is at distance sqrt(2) of all. It is measured for the references that rank first, in the pose
    in which they do, so for scans that are not alike it is an upper bound.

    `scans` `(R, C, *spatial)`, of which only those at `among` count, may be a memory map; `groups` `(R,)` are their patients, as
    integers from 0. Without `parts`, only copies of whole scans are looked for, mirrored at most. `DataError` without references.
    """

    def __init__(
        self,
        scans: np.ndarray,
        *,
        groups: np.ndarray,
        among: np.ndarray | None = None,
        shift: int = 4,
        smoothing: float = 1.0,
        parts: bool = True,
    ) -> None:
        members = np.arange(len(scans)) if among is None else np.asarray(among)
        if len(members) == 0:
            raise DataError("references: need at least one scan to compare with, got none")
        self._scans, self._groups = scans, np.asarray(groups)
        # Scans of a group lie in one block, or two.
        self._members = members[np.argsort(self._groups[members], kind="stable")]
        self._of_members = self._groups[self._members]
        self._alignment = _Alignment(tuple(scans.shape[2:]), shift, smoothing)
        sample = np.sort(np.random.default_rng(0).permutation(self._members)[:_SAMPLE])
        self._patches = _Patches(scans[sample], True, shift) if parts else None
        self._whole = _Whole(scans[sample], parts, shift)
        self._poses = (self._patches or self._whole).poses  # the same ones first
        self._blocks = _Blocks(scans.ndim - 2)

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
        that a query may not find (its own), or -1. Memory does not grow with the references. `DataError` for another shape.
        """
        check_same_shape(queries, self._scans)
        rows = np.arange(len(queries)) if rows is None else np.asarray(rows)
        own = np.full(len(rows), -1) if barred is None else np.asarray(barred)
        result = Neighbours(
            distances=np.full((len(rows), count), np.inf),
            indices=np.full((len(rows), count), -1, dtype=np.int64),
            evidence=np.zeros((len(rows), count)),
            evidence_indices=np.full((len(rows), count), -1, dtype=np.int64),
            part_distances=np.full(len(rows), np.inf),
        )
        total, axes = len(rows) * len(self._members), queries.ndim - 2
        with tqdm(total=total, desc=title, unit="pair", unit_scale=True, disable=not progress, leave=False) as bar:
            for part in _blocks(len(rows), _QUERIES_AT_ONCE[axes]):
                chunk = queries[rows[part]]
                ranked = self._rank(chunk, own[part], count, bar)
                for place, scan in enumerate(chunk, part.start):
                    _, candidates, poses = self._first(ranked[-1], place - part.start, count)
                    if len(candidates) == 0:
                        continue
                    if self._patches is not None:
                        evidence, found, lie = self._first(ranked[0], place - part.start, count)
                        near = self._blocks.measure(scan, self._scans[found], [self._poses[each] for each in lie])
                        evidence = (1 + evidence) / near
                        order = np.argsort(-evidence, kind="stable")
                        result.evidence[place, : len(order)] = evidence[order]
                        result.evidence_indices[place, : len(order)] = found[order]
                        result.part_distances[place] = near[order[0]]
                        # The first of each ranking come first.
                        candidates = np.concatenate([found[order[:1]], candidates, found[order[1:]]])
                        poses = np.concatenate([lie[order[:1]], poses, lie[order[1:]]])
                    candidates, poses = self._with_siblings(candidates, poses)
                    measured = self._alignment.measure(
                        scan, self._scans[candidates], [self._poses[each] for each in poses]
                    )
                    nearest = np.argsort(measured, kind="stable")
                    _, first = np.unique(self._groups[candidates[nearest]], return_index=True)
                    kept = nearest[np.sort(first)][:count]
                    result.distances[place, : len(kept)] = measured[kept]
                    result.indices[place, : len(kept)] = candidates[kept]
        return result

    def _rank(self, queries: np.ndarray, barred: np.ndarray, count: int, bar: tqdm) -> list[_Ranking]:
        """Return the references that rank first by patches, where these are looked for, and by the whole scan."""
        own = torch.from_numpy(barred.astype(np.int64))[:, None]
        ways = [self._whole] if self._patches is None else [self._patches, self._whole]
        asked = [way.ask(queries) for way in ways]
        rankings = [_Ranking.empty(len(queries), 2 * count) for _ in ways]
        for part in _blocks(len(self._members), _REFERENCES_AT_ONCE[queries.ndim - 2]):
            scans, members = self._scans[self._members[part]], self._members[part].astype(np.int64)
            groups = torch.from_numpy(self._of_members[part].astype(np.int64))
            for number, way in enumerate(ways):
                scores, poses = way.evidence(asked[number], scans)
                scores = _best_of_groups(scores.masked_fill(own == groups, -torch.inf), groups)
                rankings[number] = rankings[number].with_more(scores, torch.from_numpy(members), poses)
            bar.update(len(queries) * len(members))
        return rankings

    def _first(self, ranking: _Ranking, query: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the scores, rows and poses of the references of up to `count` groups that rank first for a query."""
        scores, rows, poses = (each[query].numpy() for each in (ranking.scores, ranking.rows, ranking.poses))
        _, first = np.unique(self._groups[rows], return_index=True)
        order = np.sort(first[scores[first] > -np.inf])[:count]
        return scores[order], rows[order], poses[order]

    def _with_siblings(self, found: np.ndarray, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return candidates and their poses, with all scans of the first groups: another one may be what was copied."""
        parts = []
        for row, pose in zip(found[:_CLOSELY], poses, strict=False):
            start, end = np.searchsorted(self._of_members, [self._groups[row], self._groups[row] + 1])
            siblings = self._members[start:end]
            parts.append((siblings[siblings != row], pose))
        rows = np.concatenate([found, *(siblings for siblings, _ in parts)])
        return rows, np.concatenate([poses, *(np.full(len(siblings), pose) for siblings, pose in parts)])


def aligned_distances(
    queries: np.ndarray, references: np.ndarray, *, shift: int = 4, smoothing: float = 1.0
) -> np.ndarray:
    """Return the distance of each query `(N, C, *spatial)` to the reference in the same place, float64 `(N,)`, as above."""
    check_same_shape(queries, references)
    alignment = _Alignment(tuple(queries.shape[2:]), shift, smoothing)
    every = [pose for pose in _poses(queries.ndim - 2) if not pose.zoom]
    pairs = zip(queries, references, strict=True)
    return np.array([alignment.measure(query, np.stack([other] * len(every)), every).min() for query, other in pairs])


@dataclass(frozen=True)
class _Pose:
    """How a copy may lie: mirrored along `flips`, then turned in the plane of the last two axes.

    `zoom` is how many pixels of the grid were cut off along each axis before the rest was enlarged.
    """

    flips: tuple[int, ...]
    turns: int
    zoom: int = 0

    def apply(self, scans: Tensor) -> Tensor:
        """Return scans `(..., *spatial)` mirrored and turned."""
        return scans.flip(self.flips).rot90(self.turns, (-2, -1))

    def apply_to_slopes(self, slopes: Tensor) -> Tensor:
        """Return the slopes `(N, C, axes, *spatial)` of scans after `apply`."""
        slopes = self.apply(slopes)
        parts = list(slopes.unbind(2))
        for axis in self.flips:
            parts[axis] = -parts[axis]
        for _ in range(self.turns):
            parts[-2:] = [-parts[-1], parts[-2]]
        return torch.stack(parts, 2)


def _poses(axes: int, turned: bool = True) -> list[_Pose]:
    """Return all mirrorings, and with `turned` also quarter turns and a zoom with and without mirroring."""
    flips = [*product(*[((), (-axis,)) for axis in ((1,) if axes == 2 else (3, 1))])]
    plain = [_Pose(sum(each, ()), turns) for turns in range(0, 4, 1 if turned else 2) for each in flips]
    zooms = ((8, 12) if axes == 2 else (4,)) if turned else ()
    return plain + [_Pose(each, 0, zoom) for zoom in zooms for each in ((), (-1,))]


@dataclass(frozen=True, eq=False)
class _Asked:
    """The patches of Q queries in one pose: `vectors` `(B, Q, D)`, and the `windows` of references to compare each with.

    `typical` and `deviation` `(B, Q)` are the mean and standard deviation of its likeness to references drawn at random.
    """

    vectors: Tensor
    windows: list[tuple[slice, ...]]
    typical: Tensor
    deviation: Tensor


class _Patches:
    """Patches of scans as vectors, and how many of a query's are found in their places in references.

    Scans are brought to a grid of 64 a side (32 in 3D). Their gradients are divided by the local contrast, and the size of each
    component and of each product of two is averaged over cells of 4 pixels: histograms of directions without sign (after Dalal
    and Triggs 2005, CVPR, 886), so brightness, contrast and inversion do not count. A patch of 4 cells a side (2 in 3D) is the
    vector of its cells in `_LENGTH` principal components.
    """

    _CELL, _LENGTH = {2: 4, 3: 4}, 32
    _SIDE, _WIDTH, _PLACES, _EDGE, _BLUR = {2: 64, 3: 32}, {2: 4, 3: 2}, {2: 4, 3: 3}, {2: 2, 3: 1}, {2: 1.5, 3: 1.0}
    _NEAR_ONE = 0.1  # likeness that is lost where a copy lies between two windows
    _COMMON = 1.0  # standard deviations that count for nothing
    _CENTRED, _ZOOMED = False, True

    def __init__(self, sample: np.ndarray, turned: bool, shift: int) -> None:
        axes = sample.ndim - 2
        self._axes, self._side, self._width = axes, self._SIDE[axes], self._WIDTH[axes]
        self.poses = [pose for pose in _poses(axes, turned) if self._ZOOMED or not pose.zoom]
        self._cell = self._CELL[axes]
        # Cells by which a patch may have moved: 4 to 8 pixels of the grid.
        moved = max(4, min(8, shift * self._side / min(sample.shape[2:])))
        self._reach = math.ceil(moved / self._cell)
        # Cells at the edge of which no window is needed.
        self._margin = 0 if self._ZOOMED else max(0, self._EDGE[axes] - self._reach)
        self._mean, self._basis = torch.zeros(()), None
        windows = self._windows(self._features(self._grid(sample))).flatten(0, axes)
        self._mean = windows.mean(0)
        _, vectors = torch.linalg.eigh((windows - self._mean).T @ (windows - self._mean))
        self._basis = vectors[:, -self._LENGTH :].contiguous()
        self._known = self._of_references(sample)

    def ask(self, queries: np.ndarray) -> list[_Asked]:
        """Return the patches of queries `(Q, C, *spatial)` in every pose."""
        grid = self._grid(queries)
        zooms = sorted({pose.zoom for pose in self.poses})
        features = {zoom: self._features(self._shrunk(grid, zoom)) for zoom in zooms}
        asked = [self._ask(self._posed(features[pose.zoom], pose), pose.zoom) for pose in self.poses]
        for zoom in zooms:  # the more zoomed, the more windows a patch is compared with
            members = [place for place, pose in enumerate(self.poses) if pose.zoom == zoom]
            spreads = []
            for patch in range(len(asked[members[0]].vectors)):
                known = [self._likeness_of(asked[place], patch, self._known) for place in members]
                spreads.append(torch.std_mean(torch.stack(known), (0, 2)))
            deviation, typical = (torch.stack(each) for each in zip(*spreads, strict=True))
            for place in members:
                asked[place] = replace(asked[place], typical=typical, deviation=deviation.clamp(min=0.02))
        return asked

    def evidence(self, asked: list[_Asked], scans: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return how much of queries is found in references `(R, C, *spatial)`, `(Q, R)`, and in which pose."""
        windows = self._of_references(scans)
        best = pose = torch.zeros(0)
        for number, one in enumerate(asked):
            total = torch.zeros(one.vectors.shape[1], len(scans))
            for patch in range(len(one.vectors)):
                likeness = self._likeness_of(one, patch, windows)
                surprise = (likeness - one.typical[patch, :, None]) / one.deviation[patch, :, None] - self._COMMON
                total += surprise.relu_().square_()
            if number == 0:
                best, pose = total, torch.zeros(total.shape, dtype=torch.int64)
            else:
                pose[total > best] = number
                best = torch.maximum(best, total)
        return best, pose

    def _ask(self, features: Tensor, zoom: int) -> _Asked:
        windows, slack = self._windows(features), zoom // self._cell
        places = windows.shape[1]
        edge = 0 if zoom else self._EDGE[self._axes] - self._margin
        starts = np.unique(np.linspace(edge, places - 1 - edge, self._PLACES[self._axes]).round().astype(int))
        chosen = list(product(starts, repeat=self._axes))
        reach = 0 if zoom else self._reach  # what was cut off says where a zoomed copy lies
        near = [tuple(slice(max(0, at - reach), at + reach + slack + 1) for at in each) for each in chosen]
        vectors = torch.stack([windows[(slice(None), *each)] for each in chosen])
        nothing = torch.zeros(0)
        return _Asked(vectors, near, nothing, nothing)

    def _likeness_of(self, asked: _Asked, patch: int, references: Tensor) -> Tensor:
        """Return 1 / (1.1 - c) `(Q, R)`, where c is the largest correlation of a patch with the windows near its place."""
        windows = references[asked.windows[patch]].flatten(0, self._axes - 1)
        best = asked.vectors[patch] @ windows[0].T
        for window in windows[1:]:
            torch.maximum(best, asked.vectors[patch] @ window.T, out=best)
        return (1 + self._NEAR_ONE - best.clamp_(max=1)).reciprocal_()

    def _of_references(self, scans: np.ndarray) -> Tensor:
        """Return the windows of scans, `(*places, R, D)`."""
        return self._windows(self._features(self._grid(scans))).movedim(0, self._axes).contiguous()

    def _grid(self, scans: np.ndarray) -> Tensor:
        return _on_grid(scans, self._side)

    def _shrunk(self, grid: Tensor, zoom: int) -> Tensor:
        size = (self._side - zoom,) * self._axes
        return functional.interpolate(grid, size=size, mode=_ZOOM[self._axes]) if zoom else grid

    def _posed(self, features: Tensor, pose: _Pose) -> Tensor:
        return pose.apply_to_slopes(features)

    def _features(self, grid: Tensor) -> Tensor:
        """Return the gradient of scans on the grid over the contrast around it, `(N, C, axes, *spatial)`."""
        axes = self._axes
        smooth = _blurred(grid, self._BLUR[axes])
        slopes = torch.stack(torch.gradient(smooth, dim=tuple(range(2, 2 + axes))), 2)
        contrast = _blurred(slopes.square().sum(2), self._cell).sqrt()
        floor = contrast.flatten(2).mean(2) / 4 + 1e-4
        return slopes / (contrast + floor.reshape(*floor.shape, *[1] * axes))[:, :, None]

    def _parts(self, features: Tensor) -> Tensor:
        """Return what is averaged over cells, `(N, channels, *spatial)`."""
        axes = range(self._axes)
        pairs = [features[:, :, one] * features[:, :, two] for one in axes for two in range(one)]
        products = torch.stack(pairs, 2)
        products = products.sign() * products.abs().sqrt()
        return torch.cat([features.abs(), products.relu(), (-products).relu()], 2).flatten(1, 2)

    def _windows(self, features: Tensor) -> Tensor:
        """Return every patch as a vector of length 1, `(N, *places, D)`."""
        axes = self._axes
        windows = _POOL[axes](self._parts(features), self._cell)
        for axis in range(2, 2 + axes):
            windows = windows.narrow(axis, self._margin, windows.shape[axis] - 2 * self._margin)
            windows = windows.unfold(axis, self._width, 1)
        windows = windows.movedim(1, 1 + axes).flatten(1 + axes)
        if self._CENTRED:
            windows = windows - windows.mean(-1, keepdim=True)
        windows = _unit(windows, 1e-3) - self._mean
        return windows if self._basis is None else _unit(windows @ self._basis, 0.2)


class _Whole(_Patches):
    """The same with one patch of nearly the whole scan, of intensities less their mean: normalised cross-correlation."""

    _CELL, _LENGTH, _CENTRED, _ZOOMED = {2: 2, 3: 4}, 48, True, False
    _WIDTH, _PLACES, _EDGE = {2: 24, 3: 6}, {2: 1, 3: 1}, {2: 4, 3: 1}

    def _posed(self, features: Tensor, pose: _Pose) -> Tensor:
        return pose.apply(features)

    def _features(self, grid: Tensor) -> Tensor:
        return _blurred(grid, self._BLUR[self._axes])

    def _parts(self, features: Tensor) -> Tensor:
        return features


class _Blocks:
    """How near the parts of two scans are that agree best: blocks of one, each compared with those near its place."""

    _SIDE, _SIZE, _STEP, _REACH = {2: 64, 3: 32}, {2: 16, 3: 12}, {2: 8, 3: 10}, 4
    _BEST = 0.25  # share of the blocks that counts
    _LEAST = 0.02  # distance that says no more than this
    _CONTRAST = 0.01  # standard deviation below which a block is flat

    def __init__(self, axes: int) -> None:
        self._axes, self._side = axes, self._SIDE[axes]

    def measure(self, query: np.ndarray, others: np.ndarray, poses: Sequence[_Pose]) -> np.ndarray:
        """Return the mean distance `(K,)` of the best blocks of a query `(C, *spatial)` in the pose of each of the others."""
        result = np.empty(len(others))
        scan, grid = (_on_grid(np.asarray(each), self._side) for each in (query[None], others))
        zooms = np.array([pose.zoom for pose in poses])
        for zoom in np.unique(zooms):
            some = np.flatnonzero(zooms == zoom)
            posed = torch.cat([poses[int(place)].apply(scan) for place in some])
            # A query that was enlarged is compared with others that are.
            side = round(self._side * self._side / (self._side - zoom))
            distances = self._distances(posed, _on_grid(grid[some].numpy(), side))
            best = distances.sort(1).values[:, : max(1, round(self._BEST * distances.shape[1]))]
            result[some] = best.mean(1).clamp(min=self._LEAST).numpy()
        return result

    def _distances(self, scans: Tensor, others: Tensor) -> Tensor:
        """Return the distance `(K, B)` of each block of scans to the nearest one in others, which may be larger."""
        axes, size, count = self._axes, self._SIZE[self._axes], len(scans)
        slack = others.shape[-1] - scans.shape[-1]
        blocks = self._cut(_blurred(scans, 1.0), size)
        blocks = blocks - blocks.flatten(2).mean(2).reshape(*blocks.shape[:2], *[1] * (axes + 1))
        reach = 0 if slack else self._REACH
        around = functional.pad(_blurred(others, 1.0), [reach] * 2 * axes, mode="replicate")
        near = self._cut(around, size + 2 * reach + slack)
        near = near - near.flatten(2).mean(2).reshape(*near.shape[:2], *[1] * (axes + 1))
        total, channels = blocks.shape[0] * blocks.shape[1], blocks.shape[2]
        convolve = {2: functional.conv2d, 3: functional.conv3d}[axes]
        products = convolve(near.reshape(1, total * channels, *near.shape[3:]), blocks.flatten(0, 1), groups=total)
        near, voxels = near.flatten(0, 1), size**axes
        sums, squares = self._sums(near.sum(1)), self._sums(near.square().sum(1))
        spread = (squares - sums.square() / (voxels * channels)).clamp(min=0).sqrt()
        norms = blocks.flatten(0, 1).flatten(1).norm(dim=1).reshape(-1, *[1] * axes)
        flat = self._CONTRAST * math.sqrt(voxels * channels)
        contrast = torch.where((spread > flat) & (norms > flat), spread * norms, torch.inf)
        likeness = (products[0].abs() / contrast).flatten(1).amax(1).clamp(max=1)
        return (2 - 2 * likeness).sqrt().reshape(count, -1)

    def _sums(self, values: Tensor) -> Tensor:
        """Return the sum of every window of a block's size, `(N, *windows)`, by running sums along one axis after the other."""
        size = self._SIZE[self._axes]
        for axis in range(1, 1 + self._axes):
            sums, count = values.cumsum(axis), values.shape[axis] - size
            before = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums.narrow(axis, 0, count)], axis)
            values = sums.narrow(axis, size - 1, count + 1) - before
        return values

    def _cut(self, scans: Tensor, size: int) -> Tensor:
        """Return the blocks of scans, `(K, B, C, *size)`."""
        axes = self._axes
        for axis in range(2, 2 + axes):
            scans = scans.unfold(axis, size, self._STEP[axes])
        return scans.flatten(2, 1 + axes).transpose(1, 2)


class _Alignment:
    """The distance of scans of one shape in given poses, over shifts."""

    def __init__(self, shape: tuple[int, ...], shift: int, smoothing: float) -> None:
        self._smoothing = smoothing
        self._axes = tuple(range(-len(shape), 0))
        self._turns = shape[-1] == shape[-2]
        self._margins = tuple(min(shift, length // 4) for length in shape)

    def measure(self, query: np.ndarray, candidates: np.ndarray, poses: Sequence[_Pose]) -> np.ndarray:
        """Return the distances `(K,)` of a query `(C, *spatial)` in the pose of each candidate to these `(K, C, *spatial)`."""
        smooth = self._smooth(query[None])
        different = list(dict.fromkeys(poses))
        places = np.array([different.index(pose) for pose in poses])
        inner = torch.cat([self._posed(smooth, pose) for pose in different])
        for axis, margin in zip(self._axes, self._margins, strict=True):
            inner = inner.narrow(axis, margin, inner.shape[axis] - 2 * margin)
        count, one = inner[0].numel(), inner[:1]
        inner = inner - inner.flatten(1).mean(1).reshape(-1, *[1] * (inner.ndim - 1))
        norms = inner.flatten(1).norm(dim=1)[places].reshape(-1, *[1] * len(self._axes))
        others = self._smooth(candidates)
        # Near 0 the variance of a window loses fewer digits.
        others = others - others.flatten(1).mean(1).reshape(-1, *[1] * (others.ndim - 1))
        ones = torch.ones_like(one[:, :1])
        products = self._correlate(others, inner, torch.from_numpy(places))
        sums = self._correlate(others.sum(1, keepdim=True), ones)
        squares = self._correlate(others.square().sum(1, keepdim=True), ones)
        spread = (squares - sums.square() / count).clamp(min=0).sqrt()
        contrast = torch.where((spread > _FLAT) & (norms > _FLAT), spread * norms, torch.inf)
        likeness = (products / contrast).flatten(1).amax(1).clamp(max=1)
        distances: np.ndarray = (2 - 2 * likeness).sqrt().numpy()
        return distances

    def _posed(self, scans: Tensor, pose: _Pose) -> Tensor:
        return pose.apply(scans) if self._turns or pose.turns % 2 == 0 else scans.flip(pose.flips)

    def _smooth(self, scans: np.ndarray) -> Tensor:
        return _blurred(torch.from_numpy(np.array(scans, dtype=np.float32)), self._smoothing).double()

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


def _on_grid(scans: np.ndarray, side: int) -> Tensor:
    """Return scans `(N, C, *spatial)` as float32 with `side` pixels along each axis."""
    grid, axes = torch.from_numpy(np.array(scans, dtype=np.float32)), scans.ndim - 2
    if all(length == side for length in grid.shape[2:]):
        return grid
    # Only in 2D does torch average over areas.
    return functional.interpolate(grid, size=(side,) * axes, mode=_ZOOM[axes], antialias=axes == 2)


def _blurred(scans: Tensor, width: float) -> Tensor:
    """Return scans `(N, C, *spatial)` smoothed with a Gaussian, with the edges continued."""
    if not width:
        return scans
    widths = (0, 0, *[width] * (scans.ndim - 2))
    return torch.from_numpy(gaussian_filter(scans.numpy(), widths, mode="nearest", truncate=3))


def _best_of_groups(evidence: Tensor, groups: Tensor) -> Tensor:
    """Return the evidence `(q, r)` with all but the best reference of each group at minus infinity."""
    unique, places = groups.unique(return_inverse=True)
    if len(unique) == len(groups):
        return evidence
    places = places.expand_as(evidence)
    best = evidence.new_full((len(evidence), len(unique)), -torch.inf).scatter_reduce(1, places, evidence, "amax")
    return evidence.masked_fill(evidence < best.gather(1, places), -torch.inf)


def _unit(vectors: Tensor, floor: float) -> Tensor:
    """Return vectors (the last axis) over their norm, where that is above `floor`."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=floor)


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))
