from __future__ import annotations

import numpy as np
import pytest

from medsynth.errors import DataError
from medsynth.measures.classification import sensitivity, specificity, threshold_at_specificity
from medsynth.measures.operating import resample_operating_point
from medsynth.measures.statistics import Resamples


@pytest.mark.parametrize("digits", [1, 8])
def test_each_resample_finds_its_own_threshold_on_validation(digits):
    generator = np.random.default_rng(0)
    val_truth, truth = np.arange(60) < 15, np.arange(80) < 30
    val_scores, scores = (part + generator.normal(size=(2, len(part))).round(digits) for part in (val_truth, truth))
    val_draws, draws = (Resamples.draw(np.arange(count), 2, generator=generator, resamples=12) for count in (60, 80))
    found = resample_operating_point(val_truth, val_scores, val_draws, truth, scores, draws)
    for seed in range(2):
        expected = threshold_at_specificity(val_truth, val_scores[seed])
        assert found.thresholds[seed] == expected
        ones = np.ones((1, 80))
        assert found.sensitivity.observed[seed] == pytest.approx(sensitivity(truth, scores[seed] - expected, ones)[0])
        assert found.specificity.observed[seed] == pytest.approx(specificity(truth, scores[seed] - expected, ones)[0])
        for resample in range(12):
            # Thresholds may also lie at scans that were not drawn: the lowest score that keeps the specificity.
            weights = val_draws.scans[resample]
            rest = ~val_truth
            allowed = [
                score
                for score in np.r_[val_scores[seed], np.nextafter(val_scores[seed].max(), np.inf)]
                if weights[rest] @ (val_scores[seed][rest] < score) >= 0.9 * weights[rest].sum() - 1e-9
            ]
            one = draws.scans[resample : resample + 1].astype(float)
            for metric, given in ((sensitivity, found.sensitivity), (specificity, found.specificity)):
                expected = metric(truth, scores[seed] - min(allowed), one)[0]
                assert given.values[resample, seed] == pytest.approx(expected)
    np.testing.assert_allclose(
        found.balanced_accuracy.values, (found.sensitivity.values + found.specificity.values) / 2
    )


def test_scatter_of_the_threshold_widens_the_interval():
    generator = np.random.default_rng(1)
    truth, scores = np.arange(4000) < 2000, generator.normal(size=(1, 4000))
    errors = []
    for count in (30, 3000):
        val_scores = generator.normal(size=(1, count))
        val_draws, draws = (
            Resamples.draw(np.arange(size), 1, generator=generator, resamples=300) for size in (count, 4000)
        )
        found = resample_operating_point(np.zeros(count), val_scores, val_draws, truth, scores, draws)
        errors.append(found.specificity.estimate().standard_error)
    # Binomial scatter of a tenth of the validation scans, about sqrt(.09 / 30) against that of 2,000 test scans.
    assert errors[0] > 0.03 > 0.012 > errors[1]


def test_refuses_resamples_that_do_not_fit():
    generator = np.random.default_rng(2)
    draws = Resamples.draw(np.arange(5), 2, generator=generator, resamples=10)
    others = Resamples.draw(np.arange(5), 2, generator=generator, resamples=9)
    truth, scores = np.array([0, 1, 0, 1, 0]), generator.normal(size=(2, 5))
    with pytest.raises(DataError, match="validation_scores"):
        resample_operating_point(truth, scores, others, truth, scores, draws)
    with pytest.raises(DataError, match="rest"):
        resample_operating_point(np.ones(5), scores, draws, truth, scores, draws)
