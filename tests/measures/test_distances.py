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
    frechet_distance,
    gaussian_distance,
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
    assert kernel_distance(*features) == pytest.approx(expected, rel=1e-4)


def test_kernel_distance_of_unequal_sizes_is_the_mean_over_pairs():
    first, second = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0], [3.0]])
    # kernel (x y + 1)³: within the first 1; within the second (3³ + 4³ + 7³) / 3; across (1 + 1 + 1 + 2³ + 3³ + 4³) / 6
    assert kernel_distance(first, second) == pytest.approx(1 + 434 / 3 - 2 * 102 / 6)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    generator = np.random.default_rng(2)
    values = [kernel_distance(generator.normal(size=(20, 4)), generator.normal(size=(30, 4))) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert min(values) < 0


def test_kernel_distance_of_subsets_equals_that_of_the_picked_rows(features):
    first, second = features
    generator = np.random.default_rng(3)
    one, other = (generator.permutation(90) < 30 for _ in range(2))
    kernels = Kernels.of(first, second)
    across = kernels.across(one[None].astype(float), other[None].astype(float))
    assert across[0] == pytest.approx(kernel_distance(first[one], second[other]))
    inside = kernels.inside(one[None].astype(float), ~one[None] * 1.0)
    assert inside[0] == pytest.approx(kernel_distance(first[one], first[~one]))


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
    rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    first, second = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    distance = gaussian_distance(
        np.zeros(3), rotation * first @ rotation.T, np.array([0.0, 3.0, 4.0]), rotation * second @ rotation.T
    )
    assert distance == pytest.approx(25 + 1 + 0 + 4)


def test_a_set_against_itself_gives_zero(features):
    assert frechet_distance(features[0], features[0]) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features[0][:8], features[0][:8]) == pytest.approx(0, abs=1e-6)
    # KID is unbiased: it leaves out the pairs of an item with itself, so of one and the same set it is below 0, not 0.
    assert kernel_distance(features[0], features[0]) < 0
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
