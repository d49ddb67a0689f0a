"""Which scans a study shows."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.reader.study import (
    KEY_FILE,
    ReaderStudy,
    check_reader_study,
    find_key,
    plan_study,
)
from medsynth.files import write_json
from tests.evaluation.reader.made import SETS, prepared, real_cohort, synthetic_cohort

MANY = {"train": 20, "val": 20, "test": 20}


def chosen_rows(study: ReaderStudy, source: str) -> list[int]:
    """Return the row numbers of a side, read from the levels of the pictures."""
    levels = [scan.flat[0] for scan, case in zip(study.scans, study.key.cases, strict=True) if case.source == source]
    sign = 1 if source == "real" else -1
    assert all(sign * level > 0 for level in levels), "a picture belongs to the source that the key names"
    return [round(sign * float(level) * 512) - 1 for level in levels]


def test_half_is_real_and_classes_are_alike_on_either_side():
    real = real_cohort({"ill": MANY, "well": MANY, "only real": MANY})
    made = synthetic_cohort({"ill": 30, "well": 30})
    study = plan_study(real, made, count=20, sets=SETS)
    counts = Counter((case.source, case.label) for case in study.key.cases)
    assert counts == {(source, label): 5 for source in ("real", "synthetic") for label in ("ill", "well")}
    for source, cohort in (("real", real), ("synthetic", made)):
        rows = chosen_rows(study, source)
        labels = [case.label for case in study.key.cases if case.source == source]
        assert labels == [cohort.rows[row].label for row in rows]
    assert study.key.sets == SETS
    assert study.key.classes == ("ill", "well")


def test_real_scans_are_of_the_test_split_while_it_lasts():
    real = real_cohort({"ill": {"train": 9, "val": 2, "test": 3}, "well": MANY})
    made = synthetic_cohort({"ill": 60, "well": 60})

    def splits(count: int) -> dict[str, int]:
        return plan_study(real, made, count=count, sets=SETS).key.real_splits()

    assert splits(12) == {"test": 6}
    assert splits(20) == {"test": 8, "val": 2}
    # Five held-out patients of `ill`: the other class makes up for it before any training scan is shown.
    study = plan_study(real, made, count=80, sets=SETS)
    assert Counter(case.label for case in study.key.cases if case.source == "real") == {"ill": 5, "well": 35}
    assert study.key.real_splits() == {"test": 23, "val": 17}
    assert study.key.notes() == ["17 of the 40 real scans of the reader study are from the validation split."]


def test_training_scans_are_the_last_resort_and_are_named():
    real = real_cohort({"ill": {"train": 9, "val": 1, "test": 2}})
    study = plan_study(real, synthetic_cohort({"ill": 9}), count=10, sets=SETS)
    assert study.key.real_splits() == {"test": 2, "val": 1, "train": 2}
    assert "2 of the 5 real scans of the reader study are training scans" in study.key.notes()[0]


def test_a_patient_is_shown_once_and_as_the_rarer_class():
    both = [("ill", f"P{number}", "test") for number in range(4)] + [
        ("well", f"P{number}", "test") for number in range(12)
    ]
    real = prepared(both, levels=[(1 + place) / 512 for place in range(16)])
    study = plan_study(real, synthetic_cohort({"ill": 9, "well": 9}), count=24, sets=SETS)
    rows = chosen_rows(study, "real")
    assert len({real.rows[row].patient_id for row in rows}) == len(rows) == 12
    assert Counter(real.rows[row].label for row in rows) == {"ill": 4, "well": 8}


def test_a_donor_is_shown_once():
    made = prepared(
        [("ill", f"SYNTH-{number}", "train") for number in range(8)],
        levels=[-(1 + place) / 512 for place in range(8)],
        donors=["3", "3", "3", "3", "5", "5", "7", "7"],
    )
    study = plan_study(real_cohort({"ill": MANY}), made, count=6, sets=SETS)
    assert {made.rows[row].attributes["donor"] for row in chosen_rows(study, "synthetic")} == {"3", "5", "7"}
    with pytest.raises(ConfigError, match=r"need 4 real and as many .* got 3 of either; try --reader_study 6"):
        plan_study(real_cohort({"ill": MANY}), made, count=8, sets=SETS)


def test_the_same_seed_gives_the_same_study_and_another_another():
    real, made = real_cohort({"ill": MANY, "well": MANY}), synthetic_cohort({"ill": 30, "well": 30})
    one, again, other = (plan_study(real, made, count=20, sets=SETS, seed=seed) for seed in (0, 0, 1))
    assert one.key == again.key
    assert np.array_equal(one.scans, again.scans)
    assert one.key.study != other.key.study
    assert one.key.cases != other.key.cases


def test_the_order_cannot_be_worked_out_from_the_seed_alone():
    """Two studies of equal sizes and seed, but of other scans, are shuffled in other ways."""
    made = synthetic_cohort({"ill": 30, "well": 30})
    orders = set()
    for key in "abc":
        real = real_cohort({"ill": MANY, "well": MANY})
        study = plan_study(
            prepared([(r.label, r.patient_id, r.split) for r in real.rows], levels=real.scans[:, 0, 0, 0], key=key),
            made, count=20, sets=SETS,
        )  # fmt: skip
        orders.add(tuple(case.source for case in study.key.cases))
    assert len(orders) == 3


def test_sources_are_shuffled():
    """Over many seeds each case is real about half of the time."""
    real, made = real_cohort({"ill": MANY, "well": MANY}), synthetic_cohort({"ill": 30, "well": 30})
    drawn = [
        [case.source == "real" for case in plan_study(real, made, count=10, sets=SETS, seed=seed).key.cases]
        for seed in range(200)
    ]
    # Standard error .035; ten cases.
    assert np.abs(np.mean(drawn, axis=0) - 0.5).max() < 0.14


@pytest.mark.parametrize("count", [-2, 1, 41])
def test_a_number_that_is_no_study_is_refused(count):
    with pytest.raises(ConfigError, match=f"reader_study: need an even number of cases, got {count}"):
        check_reader_study(count)


def test_another_study_in_the_folder_is_kept():
    real, made = real_cohort({"ill": MANY}), synthetic_cohort({"ill": 30})
    study = plan_study(real, made, count=10, sets=SETS)
    same = plan_study(real, made, count=10, known=study.key, sets=SETS)
    assert same.key == study.key
    with pytest.raises(
        ConfigError, match=f"without another study, got the study {study.key.study}.*reader_study_key.json"
    ):
        plan_study(real, made, count=12, known=study.key, sets=SETS)


def test_the_key_names_no_scan_and_reads_back(tmp_path):
    real, made = real_cohort({"ill": MANY, "well": MANY}), synthetic_cohort({"ill": 30, "well": 30})
    key = plan_study(real, made, count=20, sets=SETS).key
    assert find_key(tmp_path) is None
    write_json(tmp_path / KEY_FILE, key.as_dict())
    assert find_key(tmp_path) == key
    text = (tmp_path / KEY_FILE).read_text()
    assert "secret" not in text
    assert "SYNTH" not in text


def test_a_damaged_key_is_refused(tmp_path):
    key = plan_study(real_cohort({"ill": MANY}), synthetic_cohort({"ill": 30}), count=4, sets=SETS).key
    whole = key.as_dict()
    for damaged in (
        "{",
        "[]",
        json.dumps(whole | {"schema": "other"}),
        json.dumps(whole | {"classes": ["well"]}),
        json.dumps(whole | {"cases": []}),
        json.dumps(whole | {"cases": whole["cases"][1:]}),
        json.dumps(whole | {"cases": [whole["cases"][0] | {"source": "neither"}]}),
        json.dumps(whole | {"study": 7}),
    ):
        (tmp_path / KEY_FILE).write_text(damaged)
        with pytest.raises(DataError, match=r"reader_study_key.json: need the key that .* wrote"):
            find_key(tmp_path)
