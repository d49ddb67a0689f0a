"""One group of scans compared with a group of real scans, beside the real scans compared with themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from medsynth.measures.distances import (
    Kernels,
    Projection,
    extrapolated_frechet_distance,
    frechet_distance,
    kernel_distance,
    kernel_distance_interval,
    projected_dims,
)
from medsynth.measures.neighbours import Spacings
from medsynth.measures.texture import intensity_distance, standardised_distances

TOO_FEW = 10  # scans per side below which a figure says little
_TAILS = (0.025, 0.975)
_SPAN = 256
# Slow figures use only the first of the draws.
_EXTRAPOLATIONS, _SUBSETS = 30, 2
_FULL_DISTANCES = 10

Verdict = Literal["as close", "further", "closer", "as varied", "less varied", "more varied", "cannot tell"]
Draws = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class FidelitySettings:
    """Sizes of the fidelity table."""

    max_scans: int = 2000  # of each class and side at most, drawn at random
    pca_dims: int = 64  # principal axes before the Fréchet distance
    repeats: int = 100  # random halvings of the real scans behind each real-versus-real figure
    neighbours: int = 5  # that span the balls of precision, recall, density and coverage
    ssim_pairs: int = 200  # random pairs of scans behind each SSIM figure
    sheet_scans: int = 8  # synthetic scans of each class on the contact sheet
    sheet_classes: int = 24  # contact sheets at most, of the classes with the fewest real scans


# Verdicts on a figure below, within and above the interval of real against real.
Words = tuple[Verdict, Verdict, Verdict]
DISTANCE: Words = ("closer", "as close", "further")
FAITHFULNESS: Words = ("further", "as close", "closer")
VARIETY: Words = ("less varied", "as varied", "more varied")
LIKENESS: Words = ("more varied", "as varied", "less varied")


@dataclass(frozen=True)
class Measured:
    """A figure with its 95 % interval, beside the same figure of real scans against real scans (`real_*`)."""

    value: float
    low: float
    high: float
    real_median: float
    real_low: float
    real_high: float
    verdict: Verdict

    @classmethod
    def beside(cls, value: tuple[float, float, float], real: tuple[float, float, float], words: Words) -> Measured:
        """Return a figure and its verdict, from (middle, low, high) of the candidates and of real against real."""
        middle, (_, low, high) = value[0], real
        below, verdict, above = words
        if np.isnan([middle, low, high]).any() or not np.isfinite(high):
            verdict = "cannot tell"
        elif not low <= middle <= high:
            verdict = above if middle > high else below
        return cls(*value, *real, verdict)

    @classmethod
    def of_draws(cls, across: np.ndarray, inside: np.ndarray, words: Words) -> Measured:
        """Return a figure from its values in the draws `(R,)` of candidates, and in those of real against real."""
        value, real = ((float(np.median(draws)), *interval(draws)) for draws in (across, inside))
        return cls.beside(value, real, words)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Candidates against real scans of a reference split.

    Every figure compares `scans_a_side` scans with as many, also real against real; None is what does not apply.

    Distance: `kid`; `frechet` along `pca_dims` principal axes, and `frechet_infinite`, extrapolated to infinitely many scans;
    `precision` and `density`; `fid` where features are those of FID, over all their dimensions, with `fid_comparable` false
    where there are fewer than twice as many scans as dimensions. Of one class also `kid_of_all`, KID of all its scans (value,
    low, high), which needs no equal numbers. Variety: `recall`, `coverage`, and of one class `ssim` and `ms_ssim`, the mean
    within the candidates beside that within halves of the real scans. Pixels: `intensity`, the Wasserstein distance of pooled
    values in units of the model range (2 wide), and `texture`, the median over co-occurrence features of their distances in
    standard deviations.
    """

    real_scans: int
    candidates: int
    scans_a_side: int
    too_few: bool
    pca_dims: int
    kid: Measured
    kid_of_all: tuple[float, float, float] | None
    frechet: Measured
    frechet_infinite: Measured
    fid: Measured | None
    fid_comparable: bool
    precision: Measured
    density: Measured
    recall: Measured
    coverage: Measured
    ssim: Measured | None
    ms_ssim: Measured | None
    intensity: Measured
    texture: Measured | None

    def deciding(self, extractor: str) -> dict[str, Measured]:
        """Return the figures that decide the verdict, by their names in the report: KID, FD, and FID if comparable."""
        figures = {f"KID-{extractor}": self.kid, f"FD-{extractor}": self.frechet}
        if self.fid is not None and self.fid_comparable:
            figures["FID"] = self.fid
        return figures


@dataclass(frozen=True, eq=False)
class Similarities:
    """How alike scans of a group are: `values` `(P,)` of `pairs` `(P, 2)` of positions among `count` scans."""

    pairs: np.ndarray
    values: np.ndarray
    count: int

    def means(self, picks: np.ndarray) -> np.ndarray:
        """Return the mean over the pairs inside each draw `(repeats, size)`; NaN where there is none."""
        chosen = as_indicators(picks, self.count)
        inside = chosen[:, self.pairs[:, 0]] * chosen[:, self.pairs[:, 1]]
        total = inside.sum(axis=1)
        return np.divide(inside @ self.values, total, out=np.full(len(picks), np.nan), where=total > 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """What is compared of the scans of one class of one set: all arrays have one row per scan.

    `features` `(n, D)`, `patients` `(n,)`, `intensities` (histograms `(n, C, bins)`), `textures` `(n, F)` or None for scans too
    small for them; `similarities` by the name of the measure, of the whole group.
    """

    features: np.ndarray
    patients: np.ndarray
    intensities: np.ndarray
    textures: np.ndarray | None
    similarities: Mapping[str, Similarities] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    def thinned(self, share: float, generator: np.random.Generator) -> Group:
        """Return a random part of the group, in order, without similarities; the group itself where `share` is 1 or more."""
        if share >= 1:
            return self
        kept = np.sort(generator.permutation(len(self))[: max(1, int(share * len(self)))])
        return replace(
            self,
            features=self.features[kept],
            patients=self.patients[kept],
            intensities=self.intensities[kept],
            textures=None if self.textures is None else self.textures[kept],
            similarities={},
        )


def compare_groups(
    references: Sequence[Group],
    candidates: Sequence[Group],
    *,
    settings: FidelitySettings,
    generator: np.random.Generator,
    fid: bool = False,
) -> Comparison | None:
    """Return how far candidates are from real scans, or None if there are not even two real scans of two patients.

    Both are given class by class (for one class: one group each). In each of `settings.repeats` repeats, two halves A and B
    of the real scans without a common patient and a set S of the candidates are drawn, with the same number of scans
    of each class in all three; figures are of (A, S) and, beside it, of (A, B). So both have the same bias and the same
    scatter, and classes are mixed alike. `fid` says that the features are those of FID.
    """
    usable = [
        (real, others, size)
        for real, others in zip(references, candidates, strict=True)
        if (size := min(half_size(real.patients), len(others)))
    ]
    if not usable:
        return None
    references, candidates, sizes = zip(*usable, strict=True)
    draws = _draw(references, candidates, sizes, settings.repeats, generator)

    def joined(name: str) -> tuple[np.ndarray, np.ndarray]:
        one, other = ([getattr(group, name) for group in side] for side in (references, candidates))
        return np.concatenate(one), np.concatenate(other)

    real, others = joined("features")
    size = sum(sizes)
    dims = projected_dims(settings.pca_dims, size)
    kernels = Kernels.of(real, others)
    one, other, picked = map(as_indicators, draws, (len(real), len(real), len(others)))
    alone = len(sizes) == 1
    frechet, infinite = _frechet_figures(real, others, dims, draws, generator)
    return Comparison(
        real_scans=len(real),
        candidates=len(others),
        scans_a_side=size,
        too_few=size < TOO_FEW,
        pca_dims=dims,
        kid=Measured.of_draws(kernels.across(one, picked), kernels.inside(one, other), DISTANCE),
        kid_of_all=(kernel_distance(kernels), *kernel_distance_interval(kernels, generator)) if alone else None,
        frechet=frechet,
        frechet_infinite=infinite,
        fid=_by_draw(frechet_distance, real, others, draws, first=_FULL_DISTANCES) if fid else None,
        fid_comparable=fid and size >= 2 * real.shape[1],
        **_manifold_figures(real, others, draws, settings.neighbours),
        ssim=_similarity_figure("ssim", references[0], candidates[0], draws, generator) if alone else None,
        ms_ssim=_similarity_figure("ms_ssim", references[0], candidates[0], draws, generator) if alone else None,
        intensity=_by_draw(intensity_distance, *joined("intensities"), draws),
        texture=None if references[0].textures is None else _by_draw(_texture_distance, *joined("textures"), draws),
    )


def half_size(patients: np.ndarray) -> int:
    """Return how many scans each of two halves without a common patient surely has, whatever the order of patients.

    `patients` `(N,)` is the patient of each scan. With one scan per patient this is half of the scans, rounded down.
    """
    most = np.unique(patients, return_counts=True)[1].max(initial=1)
    return int(len(patients) - most + 1) // 2


def disjoint_halves(
    patients: np.ndarray, size: int, repeats: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return `repeats` random pairs of halves of `size` scans each, positions `(repeats, size)` twice, no patient in both.

    `size` is at most `half_size(patients)`. Two scans of one patient are alike; halves that shared patients would
    seem closer than any new patients can be.
    """
    assert size <= half_size(patients), "halves without a common patient do not reach this size"
    _, numbers, counts = np.unique(patients, return_inverse=True, return_counts=True)
    halves = np.empty((2, repeats, size), dtype=np.int64)
    for repeat in range(repeats):
        side = np.empty(len(counts), dtype=np.int64)
        filled = [0, 0]
        for patient in generator.permutation(len(counts)):
            side[patient] = int(filled[1] < filled[0])
            filled[side[patient]] += counts[patient]
        for half in (0, 1):
            halves[half, repeat] = generator.permutation(np.flatnonzero(side[numbers] == half))[:size]
    return halves[0], halves[1]


def random_picks(count: int, size: int, repeats: int, generator: np.random.Generator) -> np.ndarray:
    """Return `repeats` random draws of `size` out of `count` items without replacement, positions `(repeats, size)`."""
    return np.stack([generator.permutation(count)[:size] for _ in range(repeats)])


def as_indicators(picks: np.ndarray, count: int) -> np.ndarray:
    """Return draws `(repeats, size)` as rows of zeros and ones `(repeats, count)`."""
    indicators = np.zeros((len(picks), count))
    np.put_along_axis(indicators, picks, 1.0, axis=1)
    return indicators


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the central 95 % of draws `(R,)` that are known; NaN where none is."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return float("nan"), float("nan")
    # Between an infinite draw and a finite one nothing can be interpolated.
    low, high = np.quantile(known, _TAILS, method="linear" if np.isfinite(known).all() else "nearest")
    return float(low), float(high)


def _draw(
    references: Sequence[Group],
    candidates: Sequence[Group],
    sizes: Sequence[int],
    repeats: int,
    generator: np.random.Generator,
) -> Draws:
    """Return A, B and S of every repeat as positions in the concatenated groups, `(repeats, sum of sizes)` each."""
    drawn: list[list[np.ndarray]] = [[], [], []]
    starts = [0, 0, 0]
    for real, others, size in zip(references, candidates, sizes, strict=True):
        one, other = disjoint_halves(real.patients, size, repeats, generator)
        picks = one, other, random_picks(len(others), size, repeats, generator)
        for which, (pick, count) in enumerate(zip(picks, (len(real), len(real), len(others)), strict=True)):
            drawn[which].append(pick + starts[which])
            starts[which] += count
    one, other, picked = (np.concatenate(parts, axis=1) for parts in drawn)
    return one, other, picked


def _frechet_figures(
    real: np.ndarray, others: np.ndarray, dims: int, draws: Draws, generator: np.random.Generator
) -> tuple[Measured, Measured]:
    """Return the Fréchet distance along the principal axes of half A, to which B and S are equally new; also extrapolated.

    Axes of all real scans would hold more of the variance of B than of S, and favour S. The axes of a half lie in the span of
    all real scans, which is cut to its first dimensions only for speed.
    """
    span = Projection.fit(real, max(_SPAN, 2 * dims))
    real, others = span.project(real), span.project(others)

    def along_axes(first: np.ndarray, second: np.ndarray) -> float:
        axes = Projection.fit(first, dims)
        return frechet_distance(axes.project(first), axes.project(second))

    extrapolated = partial(extrapolated_frechet_distance, dims=dims, generator=generator, subsets=_SUBSETS)
    plain = _by_draw(along_axes, real, others, draws)
    return plain, _by_draw(extrapolated, real, others, draws, first=_EXTRAPOLATIONS)


def _manifold_figures(real: np.ndarray, others: np.ndarray, draws: Draws, neighbours: int) -> dict[str, Measured]:
    spacings = Spacings.of(real, others)
    halves = list(zip(*draws, strict=True))
    across = [spacings.across(half, draw, neighbours=neighbours) for half, _, draw in halves]
    inside = [spacings.inside(half, rest, neighbours=neighbours) for half, rest, _ in halves]
    words = {"precision": FAITHFULNESS, "density": FAITHFULNESS, "recall": VARIETY, "coverage": VARIETY}
    figures = {}
    for name, said in words.items():
        one, other = (np.array([getattr(found, name) for found in side]) for side in (across, inside))
        figures[name] = Measured.of_draws(one, other, said)
    return figures


def _texture_distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.median(standardised_distances(first, second)))


def _similarity_figure(
    name: str, reference: Group, candidate: Group, draws: Draws, generator: np.random.Generator
) -> Measured | None:
    """Return the mean likeness within the candidates beside the interval for as many new real scans as a half has.

    The halves' own scatter about the mean of all is too small for new scans, since both are parts of that
    mean; the difference of two halves has the scatter of two independent sets.
    """
    if name not in reference.similarities or name not in candidate.similarities:
        return None
    real, others = reference.similarities[name], candidate.similarities[name]
    count, repeats = len(candidate), len(draws[0])
    value = float(others.values.mean()) if len(others.values) else float("nan")
    around = interval(others.means(random_picks(count, count // 2, repeats, generator)))
    halves = real.means(draws[0]), real.means(draws[1])
    real_median = float(np.median(halves[0]))
    below, above = interval(halves[0] - halves[1])
    return Measured.beside((value, *around), (real_median, real_median + below, real_median + above), LIKENESS)


def _by_draw(
    distance: Callable[..., float], real: np.ndarray, others: np.ndarray, draws: Draws, first: int | None = None
) -> Measured:
    """Return a distance of (A, S) in each draw, or the `first` ones, beside that of (A, B), from one row per scan."""
    taken = list(zip(*draws, strict=True))[:first]
    across = [distance(real[half], others[draw]) for half, _, draw in taken]
    inside = [distance(real[half], real[rest]) for half, rest, _ in taken]
    return Measured.of_draws(np.array(across), np.array(inside), DISTANCE)
