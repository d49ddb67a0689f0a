"""ROC and reliability curves against scikit-learn and closed forms."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as reference

from medsynth.errors import DataError
from medsynth.measures.classification import thresholds_at_specificity
from medsynth.measures.curves import resample_operating_point, resample_reliability, resample_roc, roc_curve
from medsynth.measures.statistics import Resamples, Scored


@pytest.fixture
def scored():
    draw = np.random.default_rng(3)
    truth = draw.random(400) < 0.3
    return truth, np.round(draw.normal(size=(3, 400)) + 1.2 * truth, 2)  # with ties


def drawn(truth, scores, resamples=300, generator=None):
    """Return scores with resamples of the scans, a patient a scan."""
    generator = generator or np.random.default_rng(0)
    draws = Resamples.draw(np.arange(len(truth)), len(scores), generator=generator, resamples=resamples)
    return Scored(truth=truth, scores=scores, resamples=draws)


def test_roc_passes_through_the_corners_of_scikit_learn(scored):
    truth, scores = scored
    rates, sensitivity, _ = reference(truth, scores[0], drop_intermediate=False)
    corners = np.array([sensitivity[rates <= rate + 1e-12].max() for rate in rates])
    np.testing.assert_allclose(roc_curve(truth, scores[0], np.ones((1, 400)), rates)[0], corners)


@pytest.mark.parametrize("specificity", [0.5, 0.9, 0.95, 1.0])
def test_roc_is_the_sensitivity_at_each_specificity_in_every_resample(scored, specificity):
    truth, scores = scored
    weights = np.random.default_rng(1).poisson(1.0, (20, 400)).astype(float)
    found = roc_curve(truth, scores[1], weights, np.array([1 - specificity]))[:, 0]
    thresholds = thresholds_at_specificity(truth, scores[1], weights, specificity)
    expected = [
        row[truth & (scores[1] >= at)].sum() / row[truth].sum() for row, at in zip(weights, thresholds, strict=True)
    ]
    np.testing.assert_allclose(found, expected)


def test_area_below_the_mean_curve_is_the_mean_auroc(scored):
    truth, scores = scored
    curve = resample_roc(drawn(truth, scores), points=2001)
    expected = np.mean([roc_auc_score(truth, one) for one in scores])
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(expected, abs=0.01)
    assert (curve.low <= curve.y + 1e-9).mean() > 0.95
    assert (curve.high >= curve.y - 1e-9).mean() > 0.95
    assert curve.y[-1] == curve.low[-1] == 1


def test_band_of_the_roc_covers_the_true_curve():
    """Scores are normal, so the true curve is known: sensitivity = 1 - F(F^-1(1 - rate) - shift)."""
    from scipy.stats import norm

    inside = []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        truth = np.arange(300) < 100
        scores = draw.normal(size=(1, 300)) + truth
        curve = resample_roc(drawn(truth, scores), points=11)
        expected = norm.sf(norm.isf(0.3) - 1)
        inside.append(curve.low[3] <= expected <= curve.high[3])
    assert np.mean(inside) > 0.85


def test_roc_without_the_class_is_unknown():
    assert np.isnan(roc_curve(np.zeros(5), np.arange(5.0), np.ones((1, 5)), np.array([0.1]))).all()


def test_reliability_agrees_with_scikit_learn(scored):
    truth, _ = scored
    probabilities = 1 / (1 + np.exp(-np.random.default_rng(2).normal(size=(1, 400)) - truth))
    curve = resample_reliability(drawn(truth, probabilities), bins=5)
    shares, means = calibration_curve(truth, probabilities[0], n_bins=5, strategy="quantile")
    np.testing.assert_allclose(curve.x, means)
    np.testing.assert_allclose(curve.y, shares)
    assert ((curve.low <= curve.y) & (curve.y <= curve.high)).all()


def test_reliability_of_true_probabilities_lies_on_the_diagonal():
    draw = np.random.default_rng(5)
    probabilities = draw.random((1, 20000))
    truth = draw.random(20000) < probabilities[0]
    curve = resample_reliability(drawn(truth, probabilities, resamples=50), bins=10)
    np.testing.assert_allclose(curve.x, curve.y, atol=0.03)


def test_equal_probabilities_make_one_bin():
    truth = np.arange(40) < 10
    curve = resample_reliability(drawn(truth, np.full((2, 40), 0.25)))
    np.testing.assert_allclose([curve.x, curve.y], 0.25)


def share(called, members, weights):
    return weights[called & members].sum() / weights[members].sum()


@pytest.mark.parametrize("digits", [1, 8])
def test_each_resample_finds_its_own_threshold_on_validation(digits):
    generator = np.random.default_rng(0)
    val_truth, truth = np.arange(60) < 15, np.arange(80) < 30
    val_scores, scores = (part + generator.normal(size=(2, len(part))).round(digits) for part in (val_truth, truth))
    validation, test = (drawn(*part, 12, generator) for part in ((val_truth, val_scores), (truth, scores)))
    found = resample_operating_point(validation, test, specificity=0.9)
    for seed in range(2):
        (threshold,) = thresholds_at_specificity(val_truth, val_scores[seed], np.ones((1, 60)), 0.9)
        called = scores[seed] >= threshold
        assert found["sensitivity"].observed[seed] == pytest.approx(share(called, truth, np.ones(80)))
        assert found["specificity"].observed[seed] == pytest.approx(1 - share(called, ~truth, np.ones(80)))
        for resample in range(12):
            # Thresholds may also lie at scans that were not drawn: the lowest score that keeps the specificity.
            weights = validation.resamples.scans[resample]
            rest = ~val_truth
            allowed = [
                score
                for score in np.r_[val_scores[seed], np.nextafter(val_scores[seed].max(), np.inf)]
                if weights[rest] @ (val_scores[seed][rest] < score) >= 0.9 * weights[rest].sum() - 1e-9
            ]
            called, one = scores[seed] >= min(allowed), test.resamples.scans[resample].astype(float)
            assert found["sensitivity"].values[resample, seed] == pytest.approx(share(called, truth, one))
            assert found["specificity"].values[resample, seed] == pytest.approx(1 - share(called, ~truth, one))
    np.testing.assert_allclose(
        found["balanced_accuracy"].values, (found["sensitivity"].values + found["specificity"].values) / 2
    )


def test_scatter_of_the_threshold_widens_the_interval():
    generator = np.random.default_rng(1)
    truth, scores = np.arange(4000) < 2000, generator.normal(size=(1, 4000))
    errors = []
    for count in (30, 3000):
        val_scores = generator.normal(size=(1, count))
        validation = drawn(np.zeros(count), val_scores, 300, generator)
        found = resample_operating_point(validation, drawn(truth, scores, 300, generator), specificity=0.9)
        errors.append(found["specificity"].estimate().standard_error)
    # Binomial scatter of a tenth of the validation scans, about sqrt(.09 / 30) against that of 2,000 test scans.
    assert errors[0] > 0.03 > 0.012 > errors[1]


def test_resamples_that_do_not_fit_are_refused(scored):
    truth, scores = scored
    draws = drawn(truth, scores).resamples
    with pytest.raises(DataError, match="like the resamples"):
        Scored(truth=truth, scores=scores[:2], resamples=draws)
