"""One group of scans compared with a group of real scans, beside the real scans compared with themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medsynth.config import FidelityOptions
from medsynth.evaluation.draws import as_indicators, disjoint_halves, half_size, random_picks
from medsynth.measures.distances import (
    Kernels,
    Projection,
    frechet_distance,
    kernel_distance_interval,
    projected_dims,
)
from medsynth.measures.similarity import pair_similarities, random_pairs

Reading = Literal["as close", "further", "closer", "as varied", "less varied", "more varied", "cannot tell"]

TOO_FEW = 10  # scans on a side below which a figure says little
_SPAN = 256
_TAILS = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A figure with its 95 % interval, beside the same figure of real scans against real scans (`real_*`)."""

    value: float
    low: float
    high: float
    real_median: float
    real_low: float
    real_high: float
    reading: Reading


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Candidates against real scans of a reference split.

    `scans_a_side` scans stand on either side of every figure, also real against real. Of one class there are also
    `kid_of_all`, KID of all its scans (value, low, high), which needs no equal numbers, and `ssim`, the mean SSIM within
    the candidates beside that within halves of the real scans.
    """

    real_scans: int
    candidates: int
    scans_a_side: int
    too_few: bool
    pca_dims: int
    kid: Measured
    kid_of_all: tuple[float, float, float] | None
    frechet: Measured
    ssim: Measured | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Scans of one class of one set: `scans[indices]`, their `features` `(n, D)` and their `patients` `(n,)`."""

    scans: np.ndarray
    indices: np.ndarray
    features: np.ndarray
    patients: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def thinned(self, share: float, generator: np.random.Generator) -> Group:
        """Return a random part of the group, in order; the group itself where `share` is 1 or more."""
        if share >= 1:
            return self
        kept = np.sort(generator.permutation(len(self))[: max(1, int(share * len(self)))])
        return Group(
            scans=self.scans,
            indices=self.indices[kept],
            features=self.features[kept],
            patients=self.patients[kept],
        )


def compare(
    references: Sequence[Group],
    candidates: Sequence[Group],
    *,
    options: FidelityOptions,
    generator: np.random.Generator,
) -> Comparison | None:
    """Return how far candidates are from real scans, or None if there are not even two real scans of two patients.

    Both are given class by class (for one class: one group each). In each of `options.repeats` repeats, two halves A and B
    of the real scans without a common patient and a set S of the candidates are drawn, with the same number of scans
    of each class in all three; figures are of (A, S) and, beside it, of (A, B). So both have the same bias and the same
    scatter, and classes are mixed alike.
    """
    usable = [
        (real, others, size)
        for real, others in zip(references, candidates, strict=True)
        if (size := min(half_size(real.patients), len(others)))
    ]
    if not usable:
        return None
    references, candidates, sizes = zip(*usable, strict=True)
    draws = [
        (*disjoint_halves(real.patients, size, options.repeats, generator),
         random_picks(len(others), size, options.repeats, generator))
        for real, others, size in zip(references, candidates, sizes, strict=True)
    ]  # fmt: skip
    one, other, picked = (
        _joined([draw[which] for draw in draws], [len(group) for group in groups])
        for which, groups in ((0, references), (1, references), (2, candidates))
    )
    real, others = _features(references), _features(candidates)
    dims = projected_dims(options.pca_dims, sum(sizes))
    kernels = Kernels.of(real, others)
    return Comparison(
        real_scans=len(real),
        candidates=len(others),
        scans_a_side=sum(sizes),
        too_few=sum(sizes) < TOO_FEW,
        pca_dims=dims,
        kid=_kernel_figure(kernels, one, other, picked),
        kid_of_all=_kernel_figure_of_all(kernels, generator) if len(sizes) == 1 else None,
        frechet=_frechet_figure(real, others, dims, one, other, picked),
        ssim=_similarity_figure(references[0], candidates[0], one, other, options, generator)
        if len(sizes) == 1
        else None,
    )


def _kernel_figure(kernels: Kernels, one: np.ndarray, other: np.ndarray, picked: np.ndarray) -> Measured:
    real_count, count = kernels.cross.shape
    halves = as_indicators(one, real_count), as_indicators(other, real_count)
    return _distance(kernels.across(halves[0], as_indicators(picked, count)), kernels.inside(*halves))


def _kernel_figure_of_all(kernels: Kernels, generator: np.random.Generator) -> tuple[float, float, float]:
    everything = (np.ones((1, count)) for count in kernels.cross.shape)
    return float(kernels.across(*everything)[0]), *kernel_distance_interval(kernels, generator)


def _frechet_figure(
    real: np.ndarray, others: np.ndarray, dims: int, one: np.ndarray, other: np.ndarray, picked: np.ndarray
) -> Measured:
    """Return the Fréchet distance along the principal axes of half A, to which B and S are equally new.

    Axes of all real scans would hold more of the variance of B than of S, and favour S. The axes of a half lie in the span of
    all real scans; it is only for speed that this span is cut to its first dimensions.
    """
    span = Projection.fit(real, max(_SPAN, 2 * dims))
    real, others = span.project(real), span.project(others)
    across, inside = [], []
    for half, rest, draw in zip(one, other, picked, strict=True):
        axes = Projection.fit(real[half], dims)
        start = axes.project(real[half])
        across.append(frechet_distance(start, axes.project(others[draw])))
        inside.append(frechet_distance(start, axes.project(real[rest])))
    return _distance(np.array(across), np.array(inside))


def _distance(across: np.ndarray, inside: np.ndarray) -> Measured:
    value, real_median = float(np.median(across)), float(np.median(inside))
    low, high = _quantiles(across)
    real_low, real_high = _quantiles(inside)
    reading: Reading = "as close"
    if np.isnan(value) or np.isnan(real_high):
        reading = "cannot tell"
    elif value > real_high:
        reading = "further"
    elif value < real_low:
        reading = "closer"
    return Measured(
        value=value,
        low=low,
        high=high,
        real_median=real_median,
        real_low=real_low,
        real_high=real_high,
        reading=reading,
    )


def _similarity_figure(
    reference: Group,
    candidate: Group,
    one: np.ndarray,
    other: np.ndarray,
    options: FidelityOptions,
    generator: np.random.Generator,
) -> Measured:
    """Return the mean SSIM within the candidates beside the interval for as many new real scans as a half has.

    The halves' own scatter about the mean of all is too small for new scans, since both are parts of that
    mean; the difference of two halves has the scatter of two independent sets.
    """
    real, others = (_Similarities.of(group, options.ssim_pairs, generator) for group in (reference, candidate))
    count = len(candidate)
    value = float(others.values.mean()) if len(others.values) else float("nan")
    low, high = _quantiles(others.means(random_picks(count, count // 2, options.repeats, generator)))
    halves = real.means(one), real.means(other)
    real_median = float(np.median(halves[0]))
    below, above = _quantiles(halves[0] - halves[1])
    reading: Reading = "as varied"
    if np.isnan(value) or np.isnan(above):
        reading = "cannot tell"
    elif value > real_median + above:
        reading = "less varied"
    elif value < real_median + below:
        reading = "more varied"
    return Measured(
        value=value,
        low=low,
        high=high,
        real_median=real_median,
        real_low=real_median + below,
        real_high=real_median + above,
        reading=reading,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Similarities:
    """SSIM `values` `(P,)` of `pairs` `(P, 2)` of positions among `count` scans."""

    pairs: np.ndarray
    values: np.ndarray
    count: int

    @classmethod
    def of(cls, group: Group, pairs: int, generator: np.random.Generator) -> _Similarities:
        """Return SSIM of up to `pairs` random pairs of scans of the group."""
        chosen = random_pairs(len(group), pairs, generator)
        values = pair_similarities(group.scans, group.indices[chosen])
        return cls(pairs=chosen, values=values, count=len(group))

    def means(self, picks: np.ndarray) -> np.ndarray:
        """Return the mean over the pairs inside each draw `(repeats, size)`; NaN where there is none."""
        chosen = as_indicators(picks, self.count)
        inside = chosen[:, self.pairs[:, 0]] * chosen[:, self.pairs[:, 1]]
        total = inside.sum(axis=1)
        return np.divide(inside @ self.values, total, out=np.full(len(picks), np.nan), where=total > 0)


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(known, _TAILS)
    return float(low), float(high)


def _joined(draws: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Return draws of each group as draws of positions in the concatenated groups."""
    starts = np.cumsum([0, *sizes[:-1]])
    return np.concatenate([draw + start for draw, start in zip(draws, starts, strict=True)], axis=1)


def _features(groups: Sequence[Group]) -> np.ndarray:
    return np.concatenate([group.features for group in groups])
