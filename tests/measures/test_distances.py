from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from medsynth.measures.distances import (
    Kernels,
    Projection,
    extrapolated_frechet_distance,
    frechet_distance,
    kernel_distance,
    kernel_distance_interval,
    projected_dims,
)


class FirstPixels(torch.nn.Module):
    """Stands for a feature network: its features are the first 12 values of a picture."""

    num_features = 12

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.flatten(1)[:, :12]


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    mixing = generator.normal(size=(12, 12))
    return generator.normal(size=(90, 12)) @ mixing, 0.3 + generator.normal(size=(90, 12)) @ mixing * 1.1


def test_frechet_distance_agrees_with_torchmetrics(features):
    metric = FrechetInceptionDistance(feature=FirstPixels(), normalize=True).set_dtype(torch.float64)
    for rows, real in zip(features, (True, False), strict=True):
        padded = np.zeros((len(rows), 3, 2, 2))
        padded.reshape(len(rows), -1)[:] = rows
        metric.update(torch.from_numpy(padded), real=real)
    assert frechet_distance(*features) == pytest.approx(float(metric.compute()), rel=1e-4)


@pytest.mark.parametrize("shape", [(90, 12), (30, 40), (12, 40)])
def test_frechet_distance_is_the_formula_also_for_fewer_items_than_dimensions(shape):
    generator = np.random.default_rng(8)
    first, second = generator.normal(size=shape), 0.2 + 1.3 * generator.normal(size=(shape[0] + 3, shape[1]))
    moments = [(rows.mean(axis=0), np.cov(rows, rowvar=False)) for rows in (first, second)]
    product = sqrtm(moments[0][1] @ moments[1][1])
    expected = ((moments[0][0] - moments[1][0]) ** 2).sum() + np.trace(moments[0][1] + moments[1][1] - 2 * product).real
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)


def test_kernel_distance_agrees_with_torchmetrics(features):
    expected = float(poly_mmd(*map(torch.from_numpy, features)))
    assert kernel_distance(Kernels.of(*features)) == pytest.approx(expected, rel=1e-4)


def test_kernel_distance_of_unequal_sizes_is_the_mean_over_pairs():
    first, second = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0], [3.0]])
    # kernel (x y + 1)³: within the first 1; within the second (3³ + 4³ + 7³) / 3; across (1 + 1 + 1 + 2³ + 3³ + 4³) / 6
    assert kernel_distance(Kernels.of(first, second)) == pytest.approx(1 + 434 / 3 - 2 * 102 / 6)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    generator = np.random.default_rng(2)
    values = [
        kernel_distance(Kernels.of(generator.normal(size=(20, 4)), generator.normal(size=(30, 4)))) for _ in range(400)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert min(values) < 0


def test_kernel_distance_of_subsets_equals_that_of_the_picked_rows(features):
    first, second = features
    generator = np.random.default_rng(3)
    one, other = (generator.permutation(90) < 30 for _ in range(2))
    kernels = Kernels.of(first, second)
    across = kernels.across(one[None].astype(float), other[None].astype(float))
    assert across[0] == pytest.approx(kernel_distance(Kernels.of(first[one], second[other])))
    inside = kernels.inside(one[None].astype(float), ~one[None] * 1.0)
    assert inside[0] == pytest.approx(kernel_distance(Kernels.of(first[one], first[~one])))


def test_interval_of_the_kernel_distance_covers_the_truth():
    # Scalars N(0, 1) against N(1, 1): E(xy + 1)³ = 1 + 3 E[x²]E[y²] + 3 E[x]E[y] + E[x³]E[y³], so the truth is
    # (1 + 3) + (1 + 3·4 + 3 + 16) - 2 (1 + 3·2) = 22
    covered = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        kernels = Kernels.of(generator.normal(size=(120, 1)), 1 + generator.normal(size=(120, 1)))
        low, high = kernel_distance_interval(kernels, generator)
        covered += low <= 22 <= high
    assert 85 <= covered <= 100


def test_frechet_distance_of_known_gaussians():
    # Commuting covariances: the squared difference of means and of standard deviations along each axis.
    rows = np.random.default_rng(4).normal(size=(40, 3))
    rows -= rows.mean(axis=0)
    white = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T
    rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    first, second = (white * deviations @ rotation.T for deviations in ([1.0, 2.0, 3.0], [2.0, 2.0, 1.0]))
    assert frechet_distance(first, second + np.array([0.0, 3.0, 4.0])) == pytest.approx(25 + 1 + 0 + 4)


def test_a_set_against_itself_gives_zero(features):
    assert frechet_distance(features[0], features[0]) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features[0][:8], features[0][:8]) == pytest.approx(0, abs=1e-6)
    # KID is unbiased: it leaves out the pairs of an item with itself, so of one and the same set it is below 0, not 0.
    assert kernel_distance(Kernels.of(features[0], features[0])) < 0
    flat = np.tile(features[0][:, :1], (1, 12))  # a singular covariance
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(60, 12), (9, 12)])
def test_projection_finds_the_axes_of_the_svd(shape):
    rows = np.random.default_rng(5).normal(size=shape) * np.linspace(1, 4, 12)
    coordinates = Projection.fit(rows, 4).project(rows)
    left, values, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(coordinates), np.abs(left[:, :4] * values[:4]), rtol=1e-6, atol=1e-8)


def test_projection_keeps_no_more_axes_than_the_features_span():
    line = np.outer(np.arange(10.0), np.ones(20))
    assert Projection.fit(line, 5).axes.shape == (1, 20)
    same = Projection.fit(np.full((6, 20), 0.3), 5)
    assert same.axes.shape == (0, 20)
    assert np.isnan(frechet_distance(same.project(line), same.project(line)))


def test_dimensions_stay_below_a_third_of_the_scans():
    assert [projected_dims(64, smaller) for smaller in (1, 30, 191, 192, 5000)] == [1, 10, 63, 64, 64]


def extrapolated(first: np.ndarray, second: np.ndarray, dims: int, seed: int = 0) -> tuple[float, float]:
    """The extrapolated distance, and that of the whole sets on as many axes."""
    generator = np.random.default_rng(seed)
    found = extrapolated_frechet_distance(first, second, dims=dims, generator=generator, subsets=6)
    axes = Projection.fit(first, projected_dims(dims, min(len(first), len(second)) // 2))
    return found, frechet_distance(axes.project(first), axes.project(second))


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


def test_a_set_is_at_zero_from_itself_also_extrapolated():
    features = np.random.default_rng(2).normal(size=(60, 5))
    assert extrapolated(features, features, 5) == pytest.approx((0, 0), abs=1e-9)


def test_too_few_items_cannot_be_extrapolated():
    few, many = np.random.default_rng(3).normal(size=(5, 4)), np.random.default_rng(4).normal(size=(50, 4))
    assert np.isnan(extrapolated(few, many, 4)[0])
    assert np.isfinite(extrapolated(many[:6], many, 4)[0])
