from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from medsynth.errors import DataError
from medsynth.measures.texture import (
    intensity_distance,
    intensity_histograms,
    standardised_distances,
    texture_features,
)


def histograms(scans: np.ndarray, bins: int = 256) -> np.ndarray:
    return intensity_histograms(scans, bins=bins, progress=False)


def textures(scans: np.ndarray) -> list[dict[str, float]]:
    """Return the features by name: channel by channel, plane by plane."""
    planes = 1 if scans.ndim == 4 else 3
    names = [
        f"channel {channel} plane {plane} {name} at {reach}"
        for channel in range(scans.shape[1])
        for plane in range(planes)
        for name in ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
        for reach in (1, 4)
    ]
    return [dict(zip(names, row, strict=True)) for row in texture_features(scans, progress=False).tolist()]


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
    np.testing.assert_array_equal(found, texture_features(scans[chosen], progress=False))


def test_a_shift_of_all_intensities_is_its_own_distance():
    scans = np.random.default_rng(1).uniform(-1, 0.4, size=(3, 2, 9, 9))
    assert intensity_distance(histograms(scans), histograms(scans + 0.25)) == pytest.approx(0.25)
    assert intensity_distance(histograms(scans), histograms(scans[::-1])) == pytest.approx(0, abs=1e-9)


def test_the_intensity_distance_is_that_of_the_pooled_values():
    generator = np.random.default_rng(2)
    first, second = on_bin_centres(generator, (3, 1, 6, 6)), 0.5 * on_bin_centres(generator, (4, 1, 5, 5), 128)
    found = intensity_distance(histograms(first), histograms(second))
    assert found == pytest.approx(wasserstein_distance(first.ravel(), second.ravel()), abs=2 / 256)


def test_channels_are_compared_one_by_one():
    dark, bright = np.full((1, 8, 8), -0.5), np.full((1, 8, 8), 0.5)
    found = intensity_distance(
        histograms(np.concatenate([dark, bright])[None]), histograms(np.concatenate([bright, dark])[None])
    )
    assert found == pytest.approx(1)


def test_an_even_scan_has_no_texture():
    texture = textures(np.full((1, 1, 6, 6), 0.3))[0]
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
