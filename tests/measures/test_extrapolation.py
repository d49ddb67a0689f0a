from __future__ import annotations

import numpy as np
import pytest

from medsynth.measures.distances import Projection, frechet_distance
from medsynth.measures.extrapolation import extrapolated_frechet_distance


def extrapolated(first: np.ndarray, second: np.ndarray, dims: int, seed: int = 0) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    found = extrapolated_frechet_distance(first, second, dims=dims, generator=generator, subsets=6)
    return found.value, found.observed


def assert_unbiased(values: np.ndarray, truth: float) -> None:
    assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize("sizes", [(120, 120), (90, 240)])
def test_two_draws_of_one_gaussian_are_at_zero(sizes):
    draws = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        first, second = (generator.normal(size=(size, 10)) for size in sizes)
        draws.append(extrapolated(first, second, 10, seed))
    values, observed = np.array(draws).T
    assert observed.mean() > 10 * observed.std(ddof=1) / np.sqrt(30)  # the bias that is to go
    assert_unbiased(values, 0)
    assert abs(values.mean()) < 0.15 * observed.mean()
    assert values.std() < 2 * observed.std()


def test_what_the_fitted_axes_add_goes_too():
    # 60 dimensions of falling variance cut to 12 axes, which are fitted to the first set only
    scale = np.arange(1, 61) ** -0.5
    draws = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        draws.append(extrapolated(*(generator.normal(size=(2, 120, 60)) * scale), 12, seed))
    values, observed = np.array(draws).T
    assert_unbiased(values, 0)
    assert abs(values.mean()) < 0.15 * observed.mean()


def test_a_shifted_and_stretched_gaussian_is_at_its_distance():
    # |shift|² + d (1 - 1.3)² = 0.25 · 8 + 0.09 · 8
    draws = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        draws.append(
            extrapolated(generator.normal(size=(150, 8)), 0.5 + 1.3 * generator.normal(size=(150, 8)), 8, seed)
        )
    values, observed = np.array(draws).T
    assert_unbiased(values, 2.72)
    assert observed.mean() > 2.72 + 4 * observed.std(ddof=1) / np.sqrt(30)


def test_the_line_starts_at_the_distance_of_the_whole_sets():
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(61, 20)), 0.2 + generator.normal(size=(90, 20))
    found = extrapolated_frechet_distance(first, second, dims=64, generator=generator)
    axes = Projection.fit(first, 10)  # a third of half of 61, rounded down
    assert found.dims == 10
    assert found.observed == pytest.approx(frechet_distance(axes.project(first), axes.project(second)))
    assert found.shrinkages[0] == 1
    assert found.shrinkages[-1] == pytest.approx(2, rel=0.02)
    slope, value = np.polyfit(found.shrinkages, found.distances, 1)
    assert (found.value, slope > 0) == (pytest.approx(value), True)


def test_a_set_against_itself_is_at_zero():
    features = np.random.default_rng(2).normal(size=(60, 5))
    assert extrapolated(features, features, 5) == pytest.approx((0, 0), abs=1e-9)


def test_too_few_items_cannot_be_told():
    few, many = np.random.default_rng(3).normal(size=(5, 4)), np.random.default_rng(4).normal(size=(50, 4))
    assert np.isnan(extrapolated(few, many, 4)).all()
    assert np.isfinite(extrapolated(many[:6], many, 4)).all()
