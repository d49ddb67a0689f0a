from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import skew, wasserstein_distance

from medsynth.errors import DataError
from medsynth.measures.texture import (
    intensity_distances,
    intensity_features,
    intensity_histograms,
    standardised_distances,
    texture_features,
)


def histograms(scans: np.ndarray, bins: int = 256) -> np.ndarray:
    return intensity_histograms(scans, bins=bins, progress=False)


def textures(scans: np.ndarray) -> list[dict[str, float]]:
    found = texture_features(scans, progress=False)
    return [dict(zip(found.names, row, strict=True)) for row in found.values.tolist()]


def on_bin_centres(generator: np.random.Generator, shape: tuple[int, ...], bins: int = 256) -> np.ndarray:
    return (np.square(generator.uniform(size=shape)) * bins).astype(int) * (2 / bins) - 1 + 1 / bins


def test_histograms_count_what_is_there():
    scan = np.array([[[-1.0, -1.0], [-0.1, 1.0]], [[0.6, 0.6], [0.6, 5.0]]])
    found = histograms(np.stack([scan, -scan]), bins=4)
    assert found.shape == (2, 2, 4)
    assert found[0].tolist() == [[0.5, 0.25, 0, 0.25], [0, 0, 0, 1]]
    assert found[1].tolist() == [[0.25, 0, 0.25, 0.5], [1, 0, 0, 0]]


def test_only_the_chosen_scans_are_read():
    scans = np.random.default_rng(0).uniform(-1, 1, size=(4, 1, 8, 8)).astype(np.float16)
    scans[2] = np.nan
    chosen = np.array([3, 0])
    np.testing.assert_array_equal(intensity_histograms(scans, chosen, progress=False), histograms(scans[chosen]))
    found = texture_features(scans, chosen, progress=False)
    np.testing.assert_array_equal(found.values, texture_features(scans[chosen], progress=False).values)


def test_a_shift_of_all_intensities_is_its_own_distance():
    scans = np.random.default_rng(1).uniform(-1, 0.4, size=(3, 2, 9, 9))
    assert intensity_distances(histograms(scans), histograms(scans + 0.25)).wasserstein == pytest.approx(0.25)
    same = intensity_distances(histograms(scans), histograms(scans[::-1]))
    assert (same.wasserstein, same.energy) == pytest.approx((0, 0), abs=1e-9)


def test_intensity_distances_are_those_of_the_pooled_values():
    generator = np.random.default_rng(2)
    first, second = on_bin_centres(generator, (3, 1, 6, 6)), 0.5 * on_bin_centres(generator, (4, 1, 5, 5), 128)
    found = intensity_distances(histograms(first), histograms(second))
    pooled = first.ravel(), second.ravel()
    assert found.wasserstein == pytest.approx(wasserstein_distance(*pooled), abs=2 / 256)
    across, one, other = (np.abs(a[:, None] - b).mean() for a, b in (pooled, pooled[:1] * 2, pooled[1:] * 2))
    assert found.energy == pytest.approx(np.sqrt(2 * across - one - other), abs=2 / 256)


def test_channels_are_compared_one_by_one():
    dark, bright = np.full((1, 8, 8), -0.5), np.full((1, 8, 8), 0.5)
    found = intensity_distances(
        histograms(np.concatenate([dark, bright])[None]), histograms(np.concatenate([bright, dark])[None])
    )
    assert found.wasserstein == pytest.approx(1)


def test_intensity_features_are_those_of_the_values():
    scans = on_bin_centres(np.random.default_rng(3), (2, 2, 7, 11))
    found = intensity_features(histograms(scans))
    assert found.values.shape == (2, 16)
    named = dict(zip(found.names, found.values[1], strict=True))
    values = scans[1, 1].ravel()
    assert named["channel 1 mean"] == pytest.approx(values.mean())
    assert named["channel 1 standard deviation"] == pytest.approx(values.std())
    assert named["channel 1 skewness"] == pytest.approx(skew(values))
    for name, share in (("10th percentile", 10), ("median", 50), ("90th percentile", 90)):
        assert named[f"channel 1 {name}"] == pytest.approx(np.percentile(values, share, method="inverted_cdf"))
    shares = np.unique(values, return_counts=True)[1] / values.size
    assert named["channel 1 entropy"] == pytest.approx(-(shares * np.log2(shares)).sum())
    assert named["channel 1 uniformity"] == pytest.approx((shares**2).sum())


def test_an_even_scan_has_no_spread_and_no_texture():
    scan = np.full((1, 1, 6, 6), 0.3)
    found = intensity_features(histograms(scan))
    named = dict(zip(found.names, found.values[0], strict=True))
    assert named["channel 0 skewness"] == named["channel 0 entropy"] == 0
    texture = textures(scan)[0]
    expected = {"contrast": 0, "dissimilarity": 0, "homogeneity": 1, "energy": 1, "correlation": 1, "entropy": 0}
    assert texture == {f"channel 0 plane 0 {name} at {at}": value for name, value in expected.items() for at in (1, 4)}


def test_a_chessboard_differs_from_its_neighbours_but_not_across_the_corner():
    board = np.where(np.indices((32, 32)).sum(axis=0) % 2, 1.0, -1.0)
    texture = textures(board[None, None])[0]
    assert texture["channel 0 plane 0 contrast at 1"] == pytest.approx(31**2 / 2)
    assert texture["channel 0 plane 0 dissimilarity at 1"] == pytest.approx(31 / 2)
    assert texture["channel 0 plane 0 correlation at 1"] == pytest.approx(0)
    assert texture["channel 0 plane 0 contrast at 4"] == 0
    assert texture["channel 0 plane 0 entropy at 4"] == pytest.approx(np.log(2), rel=1e-3)


def test_texture_is_that_of_all_pairs_of_neighbours():
    scan = np.random.default_rng(4).uniform(-1, 1, size=(9, 13))
    levels = np.floor((scan + 1) * 16)
    pairs = [
        (levels[:, :-1], levels[:, 1:]),
        (levels[:-1], levels[1:]),
        (levels[:-1, :-1], levels[1:, 1:]),
        (levels[:-1, 1:], levels[1:, :-1]),
    ]
    both_ways = [np.array([[*a.ravel(), *b.ravel()], [*b.ravel(), *a.ravel()]]) for a, b in pairs]
    texture = textures(scan[None, None])[0]

    def found(name: str) -> float:
        return texture[f"channel 0 plane 0 {name} at 1"]

    gaps = [np.abs(a - b) for a, b in both_ways]
    assert found("contrast") == pytest.approx(np.mean([(gap**2).mean() for gap in gaps]))
    assert found("dissimilarity") == pytest.approx(np.mean([gap.mean() for gap in gaps]))
    assert found("homogeneity") == pytest.approx(np.mean([(1 / (1 + gap**2)).mean() for gap in gaps]))
    assert found("correlation") == pytest.approx(np.mean([np.corrcoef(pair)[0, 1] for pair in both_ways]))


def test_a_volume_is_seen_in_its_three_central_planes():
    volume = np.random.default_rng(5).uniform(-1, 1, size=(1, 2, 6, 7, 8))
    texture = textures(volume)[0]
    for plane, picture in enumerate((volume[0, 1, 3], volume[0, 1, :, 3], volume[0, 1, :, :, 4])):
        for name, value in textures(picture[None, None])[0].items():
            assert texture[name.replace("channel 0 plane 0", f"channel 1 plane {plane}")] == value
    assert len(texture) == 2 * 3 * 12


def test_standardised_distance_counts_standard_deviations():
    references = np.random.default_rng(6).normal(size=(200, 3)) * [1, 10, 0.01]
    moved = references + references.std(axis=0) * [0, 1, -2]
    np.testing.assert_allclose(standardised_distances(references, moved), [0, 1, 2], atol=1e-9)
    others = np.random.default_rng(7).normal(size=(200, 3))
    expected = np.abs(np.sort(references, axis=0) - np.sort(others, axis=0)).mean(axis=0) / references.std(axis=0)
    np.testing.assert_allclose(standardised_distances(references, others), expected)


def test_features_that_do_not_vary_agree_or_are_infinitely_far():
    references, candidates = np.full((5, 2), 0.1), np.array([[0.1, 0.1], [0.1, 0.3]])
    assert standardised_distances(references, candidates).tolist() == [0, np.inf]


def test_refuses_what_cannot_be_measured():
    with pytest.raises(DataError, match="finite"):
        histograms(np.full((1, 1, 8, 8), np.nan))
    with pytest.raises(DataError, match="axes"):
        texture_features(np.zeros((8, 8)), progress=False)
    with pytest.raises(DataError, match="5 pixels"):
        texture_features(np.zeros((1, 1, 4, 8)), progress=False)
    with pytest.raises(DataError, match="bins"):
        intensity_distances(np.ones((1, 1, 8)), np.ones((1, 1, 16)))
    with pytest.raises(DataError, match="equal features"):
        standardised_distances(np.ones((3, 2)), np.ones((0, 2)))
