from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from medsynth.errors import DataError
from medsynth.measures.classification import auroc, ranking_metrics
from medsynth.measures.statistics import Estimate, Resampled, Resamples, Scored, holm, resample_metric


def mean_score(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ scores / weights.sum(axis=1)


def resampled(metric, truth: np.ndarray, scores: np.ndarray, draws: Resamples) -> Resampled:
    (found,) = resample_metric(metric, Scored(truth=truth, scores=scores, resamples=draws))
    return found


def auroc_difference(
    truth: np.ndarray, first: np.ndarray, second: np.ndarray, *, generator: np.random.Generator, resamples: int
) -> Estimate:
    draws = Resamples.draw(np.arange(len(truth)), len(first), generator=generator, resamples=resamples)
    return resampled(auroc, truth, first, draws).minus(resampled(auroc, truth, second, draws)).estimate()


def test_all_scans_of_a_patient_are_drawn_together():
    patients = np.array([7, 3, 7, 9, 3, 7])
    draws = Resamples.draw(patients, 5, generator=np.random.default_rng(0), resamples=500)
    assert draws.patients == 3
    for patient in (3, 7, 9):
        columns = draws.scans[:, patients == patient]
        assert (columns == columns[:, :1]).all()
    assert (draws.scans[:, [0, 1, 3]].sum(axis=1) == 3).all()  # as many patients as there are
    np.testing.assert_allclose(draws.seeds.sum(axis=1), 1)
    assert set(np.unique(draws.seeds)) <= {0, 0.25, 0.5, 0.75, 1}


def test_standard_errors_are_those_of_the_mean_over_patients_and_over_seeds():
    generator = np.random.default_rng(1)
    truth, ones = np.zeros(150), np.ones((5, 150))
    of_patients, of_seeds = generator.normal(size=150), generator.normal(size=5)
    draws = Resamples.draw(np.arange(150), 5, generator=generator, resamples=20_000)
    found = resampled(mean_score, truth, ones * of_patients, draws).estimate()
    assert found.standard_error == pytest.approx(of_patients.std() / np.sqrt(150), rel=0.03)
    assert found.value == pytest.approx(of_patients.mean())
    found = resampled(mean_score, truth, ones * of_seeds[:, None], draws).estimate()
    assert found.standard_error == pytest.approx(of_seeds.std(ddof=1) / np.sqrt(5), rel=0.03)


def test_interval_of_many_patients_is_the_normal_one():
    generator = np.random.default_rng(2)
    values = generator.normal(size=400)
    draws = Resamples.draw(np.arange(400), 1, generator=generator, resamples=20_000)
    found = resampled(mean_score, np.zeros(400), values[None], draws).estimate(level=0.9)
    reach = norm.ppf(0.95) * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.05 * reach)


@pytest.mark.parametrize("seed_deviation", [0.0, 0.15])
def test_interval_covers_the_truth(seed_deviation):
    # patient and seed effects, and their interaction; the truth is 0.3
    covered = 0
    for repeat in range(300):
        generator = np.random.default_rng(repeat)
        scores = 0.3 + generator.normal(size=60) + generator.normal(size=(5, 60))
        scores += seed_deviation * generator.normal(size=(5, 1))
        draws = Resamples.draw(np.arange(60), 5, generator=generator, resamples=300)
        found = resampled(mean_score, np.zeros(60), scores, draws).estimate()
        covered += found.low <= 0.3 <= found.high
    assert 275 <= covered <= 297  # 95 % of 300 is 285; the two-way bootstrap may be a little wide


def test_interval_covers_the_known_difference_of_two_aurocs():
    # Binormal scores: a patient's own part N(truth, 1) and noise of each training; AUROC is Φ(1 / √(2 (1 + noise²))).
    noises = 0.5, 1.0
    expected = float(np.subtract(*(norm.cdf(1 / np.sqrt(2 * (1 + noise**2))) for noise in noises)))
    covered = 0
    for repeat in range(120):
        generator = np.random.default_rng(repeat)
        truth = np.arange(120) < 40
        shown = truth + generator.normal(size=120)
        arms = [shown + noise * generator.normal(size=(5, 120)) for noise in noises]
        found = auroc_difference(truth, *arms, generator=generator, resamples=200)
        covered += found.low <= expected <= found.high
    assert covered >= 107  # 95 % of 120 is 114


def test_difference_is_paired():
    generator = np.random.default_rng(3)
    truth = np.arange(100) < 30
    scores = truth + generator.normal(size=(3, 100))
    better = scores + 0.1 * truth
    found = auroc_difference(truth, better, scores, generator=generator, resamples=500)
    draws = Resamples.draw(np.arange(100), 3, generator=generator, resamples=500)
    alone = resampled(auroc, truth, scores, draws).estimate()
    assert found.low > 0
    assert found.p_value < 0.05
    assert found.standard_error < 0.3 * alone.standard_error
    same = auroc_difference(truth, scores, scores, generator=generator, resamples=50)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize("seeds", [1, 5])
def test_interval_and_p_value_agree(seeds):
    generator = np.random.default_rng(4)
    values = generator.normal(size=(seeds, 50)) + generator.normal(size=(seeds, 1))
    draws = Resamples.draw(np.arange(50), seeds, generator=generator, resamples=4000)
    arm = resampled(mean_score, np.zeros(50), values, draws)
    start = resampled(mean_score, np.zeros(50), np.full((seeds, 50), arm.estimate().low), draws)
    assert arm.minus(start).estimate().p_value == pytest.approx(0.05, abs=0.004)


def test_few_seeds_that_differ_widen_the_interval():
    generator = np.random.default_rng(5)
    draws = Resamples.draw(np.arange(50), 5, generator=generator, resamples=4000)
    values = np.array([0.0, 1.0, 2.0, 3.0, 4.0])[:, None] * np.ones(50)
    found = resampled(mean_score, np.zeros(50), values, draws).estimate()
    # four of five drawn, all alike in 1 of 625: the t distribution of 4 degrees of freedom asks for the 0.27 % tails
    assert found.high - found.low > 2 * 1.96 * found.standard_error * 1.1


def test_parts_of_the_resamples_do_not_change_the_result(monkeypatch):
    generator = np.random.default_rng(6)
    truth, scores = np.arange(40) < 12, generator.normal(size=(2, 40))
    draws = Resamples.draw(np.arange(40) // 2, 2, generator=generator, resamples=30)
    scored = Scored(truth=truth, scores=scores, resamples=draws)
    whole = resample_metric(ranking_metrics, scored)
    monkeypatch.setattr("medsynth.measures.statistics._NUMBERS_AT_ONCE", 280)
    for found, expected in zip(resample_metric(ranking_metrics, scored), whole, strict=True):
        np.testing.assert_array_equal(found.values, expected.values)
    one = ranking_metrics(truth, scores[1], draws.scans[17:18])
    assert [found.values[17, 1] for found in whole] == pytest.approx(one[:, 0])


def test_undefined_resamples_are_left_out_while_they_are_few():
    generator = np.random.default_rng(7)
    for positives, known in ((6, True), (1, False)):
        truth = np.arange(60) < positives
        draws = Resamples.draw(np.arange(60), 2, generator=generator, resamples=400)
        found = resampled(auroc, truth, generator.normal(size=(2, 60)), draws).estimate()
        assert np.isfinite(found.value)
        assert np.isfinite([found.low, found.high, found.p_value]).tolist() == [known] * 3


def test_a_part_of_the_scans_is_drawn_as_in_the_whole():
    generator = np.random.default_rng(10)
    draws = Resamples.draw(np.arange(30), 2, generator=generator, resamples=20)
    chosen = np.arange(30) % 3 == 0
    np.testing.assert_array_equal(draws.among(chosen).scans, draws.scans[:, chosen])


def test_a_clear_difference_is_clear_at_few_seeds_and_any_number_of_resamples():
    # Half of the variance is that of four seeds: no percentile of 300 resamples lies far enough out, the t interval does.
    generator = np.random.default_rng(11)
    values = 5 + generator.normal(size=60) / 4 + generator.normal(size=(4, 1)) / 20
    draws = Resamples.draw(np.arange(60), 4, generator=generator, resamples=300)
    found = resampled(mean_score, np.zeros(60), values, draws)
    assert found.estimate().p_value < 1e-4
    assert found.estimate(level=0.999).low > 4
    narrow, wide = (found.estimate(level=level) for level in (0.95, 0.999))
    assert wide.low < narrow.low < 5 < narrow.high < wide.high


def test_holm_by_hand():
    # sorted .005 ×5, .01 ×4, .02 ×3, .025 ×2 (below the one before: stays .06), .3 ×1
    found = holm(np.array([0.02, 0.3, 0.005, 0.025, 0.01]))
    assert found.tolist() == pytest.approx([0.06, 0.3, 0.025, 0.06, 0.04])
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]
    assert holm(np.array([0.04])).tolist() == [0.04]
    np.testing.assert_allclose(holm(np.array([0.01, np.nan, 0.02])), [0.03, np.nan, 0.04])


def test_refuses_what_cannot_be_compared():
    generator = np.random.default_rng(8)
    draws, others = (Resamples.draw(np.arange(4), 2, generator=generator, resamples=5) for _ in range(2))
    truth, scores = np.array([0, 1, 0, 1]), np.zeros((2, 4))
    with pytest.raises(DataError, match="same draws"):
        resampled(auroc, truth, scores, draws).minus(resampled(auroc, truth, scores, others))
    with pytest.raises(DataError, match="like the resamples"):
        Scored(truth=truth, scores=scores[:1], resamples=draws)
