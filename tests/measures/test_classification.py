from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from medsynth.errors import DataError
from medsynth.measures.classification import (
    Metric,
    auroc,
    brier_score,
    calibration_error,
    ranking_metrics,
    thresholds_at_specificity,
)


def average_precision(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return ranking_metrics(truth, scores, weights)[1]


def plain(metric: Metric, truth: list[int] | np.ndarray, scores: list[float] | np.ndarray) -> float:
    return float(metric(np.array(truth), np.array(scores), np.ones((1, len(truth))))[0])


@pytest.fixture(params=[None, 1], ids=["all different", "many ties"])
def resampled(request) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    truth = generator.uniform(size=80) < 0.3
    scores = (0.5 * truth + generator.normal(size=80)).clip(-1, 2) / 3 + 1 / 3
    weights = generator.integers(0, 4, size=(20, 80))
    return truth, scores if request.param is None else scores.round(request.param), weights


@pytest.mark.parametrize(
    ("metric", "oracle"),
    [(auroc, roc_auc_score), (average_precision, average_precision_score), (brier_score, brier_score_loss)],
)
def test_agrees_with_scikit_learn_in_every_resample(resampled, metric, oracle):
    truth, scores, weights = resampled
    expected = [oracle(truth, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(metric(truth, scores, weights), expected, rtol=1e-9)
    repeated = np.repeat(np.arange(80), weights[0])
    assert plain(metric, truth[repeated], scores[repeated]) == pytest.approx(expected[0])


@pytest.mark.parametrize("least", [0.0, 0.5, 0.9, 1.0])
def test_a_threshold_is_the_best_point_of_the_roc_curve_in_every_resample(resampled, least):
    truth, scores, weights = resampled
    found = thresholds_at_specificity(truth, scores, weights, least)
    for row, threshold in zip(weights, found, strict=True):
        false, true, levels = roc_curve(truth, scores, sample_weight=row, drop_intermediate=False)
        allowed = false <= 1 - least + 1e-9
        called = scores >= threshold
        assert row[called & truth].sum() / row[truth].sum() == pytest.approx(true[allowed].max())
        assert row[called & ~truth].sum() / row[~truth].sum() <= 1 - least + 1e-9
        assert threshold <= levels[allowed][-1]


def test_nine_in_ten_of_ten():
    # Of ten scans of the rest one may be called positive: the scan of the class at 0.85 is found, the one at 0.5 is not.
    truth, scores = np.array([1, 1] + [0] * 10), np.array([0.85, 0.5, 0.9, 0.8, *np.linspace(0, 0.4, 8)])
    assert thresholds_at_specificity(truth, scores, np.ones((1, 12)), 0.9) == 0.85


def test_a_threshold_may_lie_above_all_scores_and_needs_scans_of_the_rest():
    truth, scores = np.array([1, 0]), np.array([0.2, 0.7])
    found = thresholds_at_specificity(truth, scores, np.array([[1, 1], [1, 0]]), 1.0)
    assert 0.7 < found[0] < 0.7001
    assert np.isnan(found[1])


def test_order_is_all_or_nothing():
    assert plain(auroc, [0, 0, 1, 1], [1, 2, 3, 4]) == plain(average_precision, [0, 0, 1, 1], [1, 2, 3, 4]) == 1
    assert plain(auroc, [1, 1, 0, 0], [1, 2, 3, 4]) == 0
    assert plain(auroc, [0, 1, 0, 1], [5, 5, 5, 5]) == 0.5


def test_calibration_error_by_hand():
    # Bins of 0.5: (0.1, 0.5 | 0, 1) gap |0.3 - 0.5| = 0.2; (0.6, 0.8, 1 | 1, 0, 1) gap |0.8 - 2/3| = 2/15.
    # An edge (0.5) belongs to the bin below.
    truth, scores = np.array([0, 1, 1, 0, 1]), np.array([0.1, 0.5, 0.6, 0.8, 1.0])
    weights = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 3]])
    found = calibration_error(truth, scores, weights, bins=2)
    assert found.tolist() == pytest.approx([(2 * 0.2 + 3 * 2 / 15) / 5, 0.1 / 4])
    assert plain(brier_score, truth, scores) == pytest.approx((0.01 + 0.25 + 0.16 + 0.64 + 0) / 5)


def test_calibrated_probabilities_have_little_error_and_shifted_ones_their_shift():
    generator = np.random.default_rng(1)
    probabilities = generator.uniform(0.1, 0.8, size=40_000)
    truth = generator.uniform(size=40_000) < probabilities
    assert plain(calibration_error, truth, probabilities) < 0.015
    assert plain(calibration_error, truth, probabilities + 0.15) == pytest.approx(0.15, abs=0.01)


def test_metrics_of_missing_scans_are_undefined():
    truth, scores = np.array([1, 1, 0]), np.array([0.2, 0.8, 0.5])
    weights = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    assert np.isnan(auroc(truth, scores, weights)).all()
    assert np.isnan(average_precision(truth, scores, weights)).tolist() == [False, True, True]
    assert np.isnan(brier_score(truth, scores, weights)).tolist() == [False, False, True]


def test_scores_that_are_not_finite_are_refused():
    for metric in (auroc, lambda *given: thresholds_at_specificity(*given, 0.9)):
        with pytest.raises(DataError, match="finite"):
            plain(metric, [0, 1], [0.1, np.nan])


def test_ties_and_the_layout_of_the_weights_make_no_difference(resampled):
    truth, scores, weights = resampled
    expected = ranking_metrics(truth, scores, weights)
    np.testing.assert_allclose(ranking_metrics(truth, scores, np.asfortranarray(weights)), expected, rtol=1e-12)
    # Repeated scans are ties, handled by other code than scores that all differ.
    twice = ranking_metrics(np.repeat(truth, 2), np.repeat(scores, 2), np.repeat(weights, 2, axis=1))
    np.testing.assert_allclose(twice, expected, rtol=1e-12)
    area, precision = ranking_metrics(np.array([1, 1]), np.array([0.1, 0.2]), np.ones((2, 2)))
    assert np.isnan(area).all()
    assert precision.tolist() == [1, 1]
