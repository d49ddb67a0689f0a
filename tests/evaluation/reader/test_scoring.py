"""Scores of answers against hand-computed and published values, scipy and scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest

from medsynth.errors import DataError
from medsynth.evaluation.reader import KEY_FILE, score_files
from medsynth.evaluation.reader.answers import Answer
from medsynth.evaluation.reader.scoring import exact_share, score_answers, smallest_accuracy_found
from medsynth.files import write_json
from tests.evaluation.reader.made import study_key

KEY = study_key("rrrrssss", "iiwwiiww")


def said(reader: str, answers: str, labels: str = "", *, confidence: str = "") -> list[Answer]:
    """Return answers from letters, `-` for none."""
    named = {"i": "ill", "w": "well", "-": None}
    labels, confidence = labels or "-" * len(answers), confidence or "-" * len(answers)
    return [
        Answer(
            reader=reader,
            case=case,
            answer="real" if answer == "r" else "synthetic",
            label=named[label],
            confidence=None if sure == "-" else int(sure),
            seconds=float(case),
        )
        for case, (answer, label, sure) in enumerate(zip(answers, labels, confidence, strict=True), start=1)
        if answer != "-"
    ]


def test_figures_of_one_reader_by_hand():
    result = score_answers(said("AB", "rrrssssr", "iiwiiwww", confidence="55515-32"), KEY)
    (reader,) = result.readers
    figures = reader.figures
    counts = {name: (getattr(figures, name).right, getattr(figures, name).of) for name in figures.__dataclass_fields__}
    assert counts == {
        "accuracy": (6, 8),
        "sensitivity": (3, 4),
        "specificity": (3, 4),
        "class_on_real": (3, 4),
        "class_on_synthetic": (3, 4),
    }
    assert figures.accuracy.value == 0.75
    # Two-sided: 2 * (28 + 8 + 1) / 256.
    assert figures.accuracy.p_value == pytest.approx(74 / 256)
    assert figures.sensitivity.p_value is None
    assert reader.confidence_right == pytest.approx((5 + 5 + 5 + 5 + 3) / 5)
    assert reader.confidence_wrong == pytest.approx((1 + 2) / 2)
    assert reader.seconds == 4.5
    assert reader.verdict == result.verdict == "not told apart"
    assert result.pooled is None


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        (0, 10, 0.0, 0.30849710781876083),
        (10, 10, 0.6915028921812392, 1.0),
        (5, 10, 0.18708602844739735, 0.8129139715526027),
        (26, 40, beta.ppf(0.025, 26, 15), beta.ppf(0.975, 27, 14)),
    ],
)
def test_intervals_are_those_of_clopper_and_pearson(right, of, low, high):
    found = exact_share(right, of, against_half=True)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert found.p_value == pytest.approx(binomtest(right, of, 0.5).pvalue)
    # The ends are where the tails are 2.5 %.
    if right:
        assert binom.sf(right - 1, of, found.low) == pytest.approx(0.025)


def test_interval_and_p_value_say_the_same():
    for of in (6, 20, 41):
        for right in range(of + 1):
            found = exact_share(right, of, against_half=True)
            assert (found.p_value < 0.05) == (not found.low <= 0.5 <= found.high)


def test_no_answers_give_no_share():
    found = exact_share(0, 0)
    assert (found.value, found.low, found.high, found.p_value) == (None, None, None, None)


@pytest.mark.parametrize("answers", [6, 20, 40, 41, 200])
def test_smallest_accuracy_found_has_just_eighty_percent_power(answers):
    accuracy = smallest_accuracy_found(answers)
    rejected = [right for right in range(answers + 1) if binomtest(right, answers, 0.5).pvalue < 0.05]
    power = binom.pmf(rejected, answers, accuracy).sum()
    assert power == pytest.approx(0.8, abs=1e-6)
    assert binom.pmf(rejected, answers, accuracy - 0.01).sum() < 0.8


def test_too_few_answers_find_nothing():
    assert [smallest_accuracy_found(answers) for answers in range(6)] == [None] * 6
    # Six: all must be right, so accuracy^6 = .8 (the other tail is below 1e-8).
    assert smallest_accuracy_found(6) == pytest.approx(0.8 ** (1 / 6), abs=1e-4)
    result = score_answers(said("AB", "rrrss"), study_key("rrrss", "iiiii"))
    assert result.readers[0].figures.accuracy.value == 1
    assert result.verdict == "cannot tell"
    assert "Too few answers to judge: 5, at least 6 needed." in result.sentence()


def test_a_reader_who_sees_all_and_one_who_is_always_wrong():
    key = study_key("r" * 10 + "s" * 10, "i" * 20)
    right = score_answers(said("AB", "r" * 10 + "s" * 10), key)
    wrong = score_answers(said("AB", "s" * 10 + "r" * 10), key)
    assert (right.verdict, wrong.verdict) == ("told apart", "told apart")
    assert (
        "20 of 20 scans correctly as real or synthetic (100 %, 95 % interval 83 % to 100 %, p < 0.001)"
        in right.sentence()
    )
    assert "the synthetic scans are taken for real" in wrong.sentence()
    constant = score_answers(said("AB", "s" * 20), key)
    assert constant.verdict == "not told apart"
    assert (constant.readers[0].figures.sensitivity.value, constant.readers[0].figures.specificity.value) == (1, 0)


def test_open_cases_do_not_count_and_are_named():
    result = score_answers(said("AB", "rr-sssss", "-iiwi-ww"), KEY)
    figures = result.readers[0].figures
    assert (figures.accuracy.right, figures.accuracy.of) == (6, 7)
    assert (figures.class_on_real.right, figures.class_on_real.of) == (2, 2)
    assert result.as_dict()["notes"] == ["AB did not answer 1 of 8 cases."]


def simulated(readers: int, cases: int, skill: np.ndarray, seed: int, hardness: np.ndarray | None = None):
    generator = np.random.default_rng(seed)
    key = study_key("rs" * (cases // 2), "i" * cases)
    hardness = np.zeros(cases) if hardness is None else hardness
    answers = []
    for number in range(readers):
        right = generator.random(cases) < np.clip(skill[number] + hardness, 0, 1)
        letters = "".join(
            ("r" if hit else "s") if case.source == "real" else ("s" if hit else "r")
            for hit, case in zip(right, key.cases, strict=True)
        )
        answers += said(f"R{number}", letters)
    return key, answers


def test_several_readers_are_averaged_with_an_interval_over_readers_and_cases():
    key, answers = simulated(12, 40, np.full(12, 0.7), seed=1)
    result = score_answers(answers, key)
    shares = [reader.figures.accuracy for reader in result.readers]
    pooled = result.pooled.accuracy
    assert pooled.value == pytest.approx(np.mean([share.value for share in shares]))
    assert (pooled.right, pooled.of) == (sum(share.right for share in shares), 480)
    assert pooled.low < pooled.value < pooled.high
    # Twelve readers say more than one.
    assert pooled.high - pooled.low < min(share.high - share.low for share in shares)
    assert result.sentence().startswith(f"12 readers together identified {pooled.right} of 480")
    assert score_answers(answers, key) == result, "the bootstrap is seeded"


def test_readers_who_only_repeat_each_other_add_nothing():
    """Equal answers: the interval is about that of one reader, not a tenth of its width."""
    key = study_key("rs" * 20, "i" * 40)
    letters = "rs" * 13 + "sr" * 7
    answers = [answer for number in range(10) for answer in said(f"R{number}", letters)]
    result = score_answers(answers, key)
    pooled, alone = result.pooled.accuracy, result.readers[0].figures.accuracy
    assert pooled.value == alone.value == 0.65
    assert pooled.high - pooled.low == pytest.approx(alone.high - alone.low, rel=0.15)


def test_the_pooled_interval_covers():
    """A new draw of readers of mean skill .65 and of cases: 95 % intervals miss it in 5 % of the trials, or less."""
    missed = 0
    for trial in range(60):
        generator = np.random.default_rng(1000 + trial)
        skill = generator.normal(0.65, 0.08, size=5)
        hardness = generator.normal(0, 0.1, size=40)
        key, answers = simulated(5, 40, skill, seed=trial, hardness=hardness)
        found = score_answers(answers, key, seed=trial).pooled.accuracy
        missed += not found.low <= 0.65 <= found.high
    # Binomial(60, .05): 8 or more in 1 % of the cases.
    assert missed < 8


def test_readers_who_are_all_right_get_the_exact_interval_of_the_cases():
    answers = [answer for name in ("AB", "CD") for answer in said(name, "rrrrssss")]
    pooled = score_answers(answers, KEY).pooled.accuracy
    exact = exact_share(8, 8, against_half=True)
    assert (pooled.right, pooled.of, pooled.value) == (16, 16, 1)
    assert (pooled.low, pooled.high, pooled.p_value) == (exact.low, exact.high, exact.p_value)


def test_the_result_is_plain_json_without_scans(tmp_path):
    key, answers = simulated(2, 8, np.array([1.0, 0.5]), seed=0)
    content = score_answers(answers, key).as_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["cases"] == {"real": 4, "synthetic": 4}
    assert content["real_splits"] == {"test": 4}
    assert [reader["name"] for reader in content["readers"]] == ["R0", "R1"]


def test_files_are_scored_against_the_key_in_the_report_folder(tmp_path):
    file = tmp_path / "a.csv"
    rows = [f"{KEY.study},{answer.case},AB,{answer.answer},,,1" for answer in said("AB", "rrrrsssr")]
    file.write_text("\n".join(["study,case,reader,answer,class,confidence,seconds", *rows]))
    with pytest.raises(DataError, match=r"reader_study_key.json: need the key of the study"):
        score_files([file], tmp_path)
    write_json(tmp_path / KEY_FILE, KEY.as_dict())
    assert score_files([file], tmp_path).readers[0].figures.accuracy.right == 7


def test_answers_about_other_scans_are_refused():
    result = score_answers(said("AB", "rrrrssss"), KEY)
    result.check_sets(dict(KEY.sets))
    with pytest.raises(DataError, match="need answers about these real and synthetic scans"):
        result.check_sets({**KEY.sets, "synthetic": "c" * 64})


def test_nothing_answered_is_refused():
    with pytest.raises(DataError, match="need at least one answer"):
        score_answers([], KEY)
