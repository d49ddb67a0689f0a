from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.cohorts import Row
from medsynth.cohorts.splitting import check_fractions, kept_scans, largest_remainder, parse_keep, split_patients
from medsynth.errors import ConfigError

FRACTIONS = (0.7, 0.15, 0.15)


def single_label(counts: dict[str, int]) -> dict[str, set[str]]:
    return {f"{label}{number}": {label} for label, count in counts.items() for number in range(count)}


def split(labels_of: dict[str, set[str]], fractions: tuple[float, float, float] = FRACTIONS, *, seed: int = 0):
    """Return the split of each patient, who has one scan of each label."""
    pairs = [(label, patient) for patient, labels in labels_of.items() for label in labels]
    labels, patients = zip(*pairs, strict=True)
    return dict(zip(patients, split_patients(labels, patients, fractions, seed=seed), strict=True))


@given(
    counts=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 60), min_size=1),
    fractions=st.sampled_from([FRACTIONS, (0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.9, 0.1, 0.0), (1.0, 0.0, 0.0)]),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_each_class_is_shared_out_in_proportion(counts, fractions, seed):
    split_of = split(single_label(counts), fractions, seed=seed)
    assert len(split_of) == sum(counts.values())
    for label, count in counts.items():
        got = Counter(part for patient, part in split_of.items() if patient.startswith(label))
        for part, fraction in zip(("train", "val", "test"), fractions, strict=True):
            assert abs(got[part] - count * fraction) < 2
            assert (got[part] > 0) == (fraction > 0) or count < 3


@given(
    labels_of=st.dictionaries(st.integers(0, 99).map(str), st.sets(st.sampled_from("abcd"), min_size=1), min_size=1),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_patient_gets_one_split_whatever_the_order(labels_of, seed):
    split_of = split(labels_of, seed=seed)
    assert set(split_of) == set(labels_of)
    assert set(split_of.values()) <= {"train", "val", "test"}
    assert split(dict(reversed(labels_of.items())), seed=seed) == split_of


def test_another_seed_splits_otherwise():
    labels_of = single_label({"a": 30})
    assert split(labels_of, seed=0) != split(labels_of, seed=1)


def test_a_common_label_makes_up_for_where_a_rarer_one_went():
    # p1 and p2 go with the rare label into training; the third patient of the common label is free to be elsewhere.
    split_of = split({"p1": {"rare", "common"}, "p2": {"rare", "common"}, "p3": {"common"}}, seed=0)
    assert (split_of["p1"], split_of["p2"]) == ("train", "train")
    assert split_of["p3"] != "train"


@pytest.mark.parametrize(
    ("count", "shares"),
    [(1, [1, 0, 0]), (2, [2, 0, 0]), (3, [1, 1, 1]), (4, [2, 1, 1]), (10, [7, 2, 1]), (20, [14, 3, 3])],
)
def test_largest_remainder(count, shares):
    assert largest_remainder(count, FRACTIONS) == shares


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.5), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1), (0.0, 0.5, 0.5), (float("nan"), 0.5, 0.5)]
)
def test_wrong_fractions(fractions):
    with pytest.raises(ConfigError, match="sum to 1"):
        check_fractions(fractions)


def test_keep_is_parsed():
    assert parse_keep([" viral_pneumonia = 40 / 10", "a=b=0/2 "]) == {
        "viral_pneumonia": {"train": 40, "val": 10},
        "a=b": {"train": 0, "val": 2},
    }


@pytest.mark.parametrize(
    "text",
    ["viral", "=4/1", " =4/1", "viral=40", "viral=x/10", "viral=40/", "viral=40/-1", "viral=40/1/2", "v=\u0664/1"],
)
def test_keep_errors_name_the_text(text):
    with pytest.raises(ConfigError, match=f"need LABEL=TRAIN/VAL in numbers of patients, got '{text.strip()}'; try "):
        parse_keep(["other=1/1", text])


def test_keep_names_a_label_once():
    with pytest.raises(ConfigError, match="got 'v' twice"):
        parse_keep(["v=4/1", "v=3/1"])


def cohort_rows() -> list[Row]:
    """Return 20 train, 10 val and 10 test patients with two rare scans and a common one each."""
    splits = ["train"] * 20 + ["val"] * 10 + ["test"] * 10
    labels = ("rare", "rare", "common")
    return [Row(path="", label=label, patient_id=f"P{n}", split=splits[n]) for n in range(40) for label in labels]


def test_keep_leaves_that_many_patients_and_touches_nothing_else():
    rows = cohort_rows()
    stays = kept_scans(rows, {"rare": {"train": 7, "val": 3}}, seed=0)
    left = [row for row, stay in zip(rows, stays, strict=True) if stay]
    assert Counter((row.label, row.split) for row in left) == {
        ("rare", "train"): 14,
        ("rare", "val"): 6,
        ("rare", "test"): 20,
        ("common", "train"): 20,
        ("common", "val"): 10,
        ("common", "test"): 10,
    }
    assert len({row.patient_id for row in left if (row.label, row.split) == ("rare", "train")}) == 7


def test_keep_draws_by_seed_and_fewer_are_part_of_more():
    rows = cohort_rows()

    def drawn(train: int, seed: int) -> set[str]:
        stays = kept_scans(rows, {"rare": {"train": train, "val": 0}}, seed=seed)
        kept = [row for row, stay in zip(rows, stays, strict=True) if stay]
        return {row.patient_id for row in kept if (row.label, row.split) == ("rare", "train")}

    assert drawn(7, 0) == drawn(7, 0) != drawn(7, 1)
    assert drawn(3, 0) < drawn(7, 0)


def test_keep_refuses_what_is_not_there():
    rows = cohort_rows()
    with pytest.raises(ConfigError, match="common, rare"):
        kept_scans(rows, {"raer": {"train": 1, "val": 1}}, seed=0)
    with pytest.raises(ConfigError, match="need at most 10 val patients, got 11"):
        kept_scans(rows, {"rare": {"train": 1, "val": 11}}, seed=0)
