from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.measure import block_reduce
from skimage.metrics import structural_similarity as oracle

from medsynth.errors import DataError
from medsynth.measures.similarity import (
    multiscale_levels,
    multiscale_similarity,
    multiscale_weights,
    pair_similarities,
    random_pairs,
    structural_similarity,
)


def scans_like_each_other(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    first = generator.uniform(-1, 1, size=shape).astype(np.float32)
    return first, (0.7 * first + 0.2 * generator.uniform(-1, 1, size=shape)).astype(np.float32)


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    return float(structural_similarity(torch.from_numpy(first)[None, None], torch.from_numpy(second)[None, None])[0])


def test_agrees_with_skimage():
    first, second = scans_like_each_other((24, 31))
    expected = oracle(
        first, second, data_range=2, gaussian_weights=True, use_sample_covariance=False, sigma=1.5
    )  # fmt: skip
    assert similarity(first, second) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", [(12, 13, 14), (8, 9)])
def test_a_window_of_seven_serves_volumes_and_small_pictures(shape):
    first, second = (scan.astype(np.float64) for scan in scans_like_each_other(shape))

    def blurred(scan: np.ndarray) -> np.ndarray:
        return gaussian_filter(scan, 1.5, radius=3)[(slice(3, -3),) * len(shape)]

    means = blurred(first), blurred(second)
    variances = blurred(first**2) - means[0] ** 2, blurred(second**2) - means[1] ** 2
    covariance = blurred(first * second) - means[0] * means[1]
    light, structure = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    expected = ((2 * means[0] * means[1] + light) * (2 * covariance + structure)) / (
        (means[0] ** 2 + means[1] ** 2 + light) * (sum(variances) + structure)
    )
    assert similarity(first.astype(np.float32), second.astype(np.float32)) == pytest.approx(expected.mean(), rel=1e-4)


def test_equal_scans_have_similarity_one_and_others_less():
    scans = np.random.default_rng(1).uniform(-1, 1, size=(3, 2, 16, 16)).astype(np.float16)
    values = pair_similarities(scans, np.array([[0, 0], [1, 2]]))
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values[1] < 0.5


def multiscale_oracle(first: np.ndarray, second: np.ndarray, weights: tuple[float, ...]) -> float:
    """The product over scales, each half as fine, of contrast and structure, at the coarsest of SSIM, by skimage."""
    product = 1.0
    for scale, weight in enumerate(weights):
        # So large a first constant leaves nothing of the luminance term, hence contrast and structure alone.
        luminance = 0.01 if scale == len(weights) - 1 else 1e6
        value = oracle(
            first, second, K1=luminance, data_range=2, gaussian_weights=True, use_sample_covariance=False, sigma=1.5
        )
        product *= value**weight
        first, second = (
            block_reduce(scan[: scan.shape[0] // 2 * 2, : scan.shape[1] // 2 * 2], 2, np.mean)
            for scan in (first, second)
        )
    return product


@pytest.mark.parametrize(("side", "levels"), [(23, 2), (64, 3), (176, 5)])
def test_multiscale_agrees_with_skimage_scale_by_scale(side, levels):
    generator = np.random.default_rng(3)
    first = gaussian_filter(generator.normal(size=(side, side)), 1.0).clip(-1, 1)
    second = (0.8 * first + 0.1 * gaussian_filter(generator.normal(size=(side, side)), 1.0)).clip(-1, 1)
    assert multiscale_levels((side, side)) == levels
    expected = multiscale_oracle(first, second, multiscale_weights(levels))
    pair = [torch.from_numpy(scan.astype(np.float32))[None, None] for scan in (first, second)]
    assert multiscale_similarity(*pair)[0] == pytest.approx(expected, rel=1e-4)
    assert 0.1 < expected < 0.99


def test_scales_are_as_many_as_the_window_fits_into():
    assert [multiscale_levels((side, 200)) for side in (8, 16, 21, 22, 28, 43, 44, 98, 99, 176)] == [
        0, 1, 1, 2, 2, 2, 3, 3, 4, 5,
    ]  # fmt: skip
    assert [multiscale_levels((side,) * 3) for side in (6, 8, 14, 28, 32)] == [0, 1, 2, 3, 3]
    for levels in (2, 5):
        assert sum(multiscale_weights(levels)) == pytest.approx(1)
    assert multiscale_weights(5) == pytest.approx((0.0448, 0.2856, 0.3001, 0.2363, 0.1333), rel=1e-3)


def test_multiscale_of_equal_volumes_is_one_and_of_small_ones_refused():
    volumes = np.random.default_rng(4).uniform(-1, 1, size=(2, 1, 28, 28, 28)).astype(np.float16)
    values = pair_similarities(volumes, np.array([[0, 0], [0, 1]]), multiscale_similarity)
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values[1] < 0.5
    with pytest.raises(DataError, match="16 x 16"):
        multiscale_similarity(*[torch.zeros(1, 1, 16, 16)] * 2)


@pytest.mark.parametrize(("count", "pairs"), [(2, 5), (7, 100), (8, 100), (8, 11), (100, 200)])
def test_random_pairs_are_different_and_spread_evenly(count, pairs):
    chosen = random_pairs(count, pairs, np.random.default_rng(2))
    assert len(chosen) == min(pairs, count * (count - 1) // 2)
    assert len({frozenset(pair) for pair in chosen.tolist()}) == len(chosen)
    used = np.bincount(chosen.ravel(), minlength=count)
    assert used.max() - used.min() <= 2


def test_one_scan_has_no_pairs():
    assert random_pairs(1, 10, np.random.default_rng(0)).shape == (0, 2)
    assert pair_similarities(np.zeros((1, 1, 8, 8)), np.zeros((0, 2), dtype=int)).shape == (0,)
