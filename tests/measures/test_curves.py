"""ROC and reliability curves against scikit-learn and closed forms."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as reference

from medsynth.errors import ConfigError, DataError
from medsynth.measures.classification import sensitivity_at_specificity
from medsynth.measures.curves import resample_reliability, resample_roc, roc_curve
from medsynth.measures.statistics import Resamples


@pytest.fixture
def scored():
    draw = np.random.default_rng(3)
    truth = draw.random(400) < 0.3
    return truth, np.round(draw.normal(size=(3, 400)) + 1.2 * truth, 2)  # with ties


def draws_of(patients, seeds=3, resamples=300):
    return Resamples.draw(patients, seeds, generator=np.random.default_rng(0), resamples=resamples)


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
    expected = sensitivity_at_specificity(truth, scores[1], weights, specificity=specificity)
    np.testing.assert_allclose(found, expected)


def test_area_below_the_mean_curve_is_the_mean_auroc(scored):
    truth, scores = scored
    curve = resample_roc(truth, scores, draws_of(np.arange(400)), points=2001)
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
        curve = resample_roc(truth, scores, draws_of(np.arange(300), seeds=1), points=11)
        expected = norm.sf(norm.isf(0.3) - 1)
        inside.append(curve.low[3] <= expected <= curve.high[3])
    assert np.mean(inside) > 0.85


def test_roc_without_the_class_is_unknown():
    assert np.isnan(roc_curve(np.zeros(5), np.arange(5.0), np.ones((1, 5)), np.array([0.1]))).all()


def test_reliability_agrees_with_scikit_learn(scored):
    truth, _ = scored
    probabilities = 1 / (1 + np.exp(-np.random.default_rng(2).normal(size=(1, 400)) - truth))
    curve = resample_reliability(truth, probabilities, draws_of(np.arange(400), seeds=1), bins=5)
    shares, means = calibration_curve(truth, probabilities[0], n_bins=5, strategy="quantile")
    np.testing.assert_allclose(curve.x, means)
    np.testing.assert_allclose(curve.y, shares)
    assert ((curve.low <= curve.y) & (curve.y <= curve.high)).all()


def test_reliability_of_true_probabilities_lies_on_the_diagonal():
    draw = np.random.default_rng(5)
    probabilities = draw.random((1, 20000))
    truth = draw.random(20000) < probabilities[0]
    curve = resample_reliability(truth, probabilities, draws_of(np.arange(20000), seeds=1, resamples=50), bins=10)
    np.testing.assert_allclose(curve.x, curve.y, atol=0.03)


def test_equal_probabilities_make_one_bin():
    truth = np.arange(40) < 10
    curve = resample_reliability(truth, np.full((2, 40), 0.25), draws_of(np.arange(40), seeds=2))
    np.testing.assert_allclose([curve.x, curve.y], 0.25)


def test_refusals(scored):
    truth, scores = scored
    with pytest.raises(DataError, match="like the resamples"):
        resample_roc(truth, scores[:2], draws_of(np.arange(400)))
    with pytest.raises(ConfigError, match="bins"):
        resample_reliability(truth, np.full((3, 400), 0.5), draws_of(np.arange(400)), bins=0)
