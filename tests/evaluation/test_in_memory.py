"""Two arrays compared: Gaussian textures, whose distribution is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import medsynth.evaluation
from medsynth.config import FeatureOptions
from medsynth.errors import DataError

PIXELS = FeatureOptions(extractor="tests.evaluation.made:pixels")


def textures(count: int, seed: int, *, width: float = 2.0, side: int = 24) -> np.ndarray:
    """Gaussian textures of mean 100 and standard deviation 10, `width` pixels wide."""
    noise = np.random.default_rng(seed).normal(size=(count, side, side))
    smooth = gaussian_filter(noise, (0, width, width), mode="wrap")
    return 100 + 10 * (smooth - smooth.mean((1, 2), keepdims=True)) / smooth.std()


def compare(real: np.ndarray, synthetic: np.ndarray) -> dict:
    return medsynth.evaluation.compare(real, synthetic, features=PIXELS)


def test_new_draws_of_one_distribution_are_as_close_as_two_halves():
    found = compare(textures(60, 0), textures(40, 1))
    assert (found["verdict"], found["scans_a_side"], found["identical"]) == ("as close", 30, 0)
    assert {found[name]["verdict"] for name in ("kid", "frechet", "intensity", "texture")} == {"as close"}
    assert found["kid"]["real_low"] <= found["kid"]["value"] <= found["kid"]["real_high"]
    assert found["sentence"].startswith("As close to real scans as two halves of these")


def test_a_shift_is_found_and_measured_in_any_range_and_layout():
    real, made = textures(60, 0), textures(40, 1) + 5
    found = compare(real, made)
    low, high = np.percentile(real, (0.1, 99.9))
    assert found["verdict"] == "further"
    assert found["intensity"]["value"] == pytest.approx(5 / (high - low) * 2, rel=0.1)
    scaled = compare(1000 * real[:, None] - 7, 1000 * made[:, None] - 7)
    for name in ("kid", "intensity", "recall"):
        assert scaled[name]["value"] == pytest.approx(found[name]["value"], rel=1e-3), name


def test_other_textures_of_the_same_intensities_are_found():
    found = compare(textures(60, 0), textures(40, 1, width=1.0))
    assert found["texture"]["verdict"] == found["frechet"]["verdict"] == "further"
    assert found["intensity"]["verdict"] == "as close"


def test_copies_of_few_scans_lack_variety():
    found = compare(textures(60, 0), textures(40, 1)[np.arange(40) % 2])
    assert found["recall"]["verdict"] == found["ssim"]["verdict"] == "less varied"


def test_volumes_and_the_default_features():
    real, made = (np.stack([textures(8, seed + part) for part in range(24)]) for seed in (0, 100))
    found = medsynth.evaluation.compare(real[:12, :, :8, :8], made[:4, :, :8, :8])
    assert found["features"].startswith("EfficientNet-Lite0")
    assert (found["verdict"], found["scans_a_side"]) == ("cannot tell", 4)
    assert (
        found["sentence"]
        == "Too few scans to judge: 12 real scans of one class, 20 needed; 4 synthetic scans of one class, 10 needed."
    )


@pytest.mark.parametrize(
    ("real", "synthetic", "words"),
    [
        (np.zeros((4, 8, 8)), np.zeros((4, 9, 8)), r"of equal shape except N, got \(4, 8, 8\) and \(4, 9, 8\)"),
        (np.zeros((4, 8)), np.zeros((4, 8)), "need two arrays"),
        (np.zeros((1, 8, 8)), np.zeros((4, 8, 8)), "at least two real scans and a synthetic one, got 1 and 4"),
        (np.full((4, 8, 8), np.nan), np.zeros((4, 8, 8)), "need finite values"),
        (np.ones((4, 8, 8)), np.ones((4, 8, 8)), "not all equal"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(real, synthetic, words):
    with pytest.raises(DataError, match=words):
        compare(real, synthetic)
