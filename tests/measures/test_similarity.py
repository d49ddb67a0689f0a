from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity as oracle

from medsynth.measures.similarity import pair_similarities, random_pairs, structural_similarity


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
