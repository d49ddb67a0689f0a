"""Shares of classes and subgroups, real and synthetic."""

from pathlib import Path

from medsynth.cohorts import Cohort, Row
from medsynth.reporting.card_facts import class_shares, cover_attributes, cover_classes


def cohort(attributes, *, label="a", split="train", scans_a_patient=1):
    rows = tuple(
        Row(
            path=f"{number}.png",
            label=label,
            patient_id=f"P{number // scans_a_patient}",
            split=split,
            attributes=each,
        )
        for number, each in enumerate(attributes)
    )
    return Cohort(folder=Path("nowhere"), rows=rows, roots={})


def test_texts_are_counted_and_rare_ones_merged():
    made = cohort([{"sex": "f", "seed": "1"}] * 6 + [{"sex": "m"}] * 2 + [{}])
    real = cohort([{"sex": "f"}] * 10 + [{"sex": "x"}] * 4 + [{"sex": "m"}] * 5)
    found = cover_attributes(made, real)
    assert found == {
        "sex": {
            "synthetic": {"scans": 9, "known": 8, "values": {"f": 6, "other or rare": 2}},
            "real": {"scans": 19, "known": 19, "values": {"f": 10, "m": 5, "other or rare": 4}},
        }
    }


def test_rare_is_counted_in_patients_and_real_means_the_training_split():
    real = cohort([{"sex": "f"}] * 8 + [{"sex": "m"}] * 8, scans_a_patient=4)
    assert cover_attributes(cohort([{}]), real)["sex"]["real"]["values"] == {"other or rare": 16}
    assert cover_attributes(cohort([{}]), cohort([{"sex": "f"}, {"sex": "m"}], split="test")) is None


def test_numbers_give_quantiles_where_enough_patients_have_them():
    ages = [{"age": str(age)} for age in range(101)]
    found = cover_attributes(cohort(ages[:19]), cohort(ages))["age"]
    assert found["synthetic"] is None
    assert found["real"] == {"scans": 101, "known": 101, "low": 5.0, "median": 50.0, "high": 95.0}


def test_names_and_remarks_are_left_out():
    named = cohort([{"name": f"Doe {number}", "site": "one"} for number in range(30)])
    assert cover_attributes(named, None) is None


def test_shares_of_classes():
    real = cohort([{}] * 3)
    assert cover_classes(real) == {"a": {"scans": 3, "patients": 3}}
    rows = class_shares({"a": 1, "b": 3}, {"a": {"scans": 3, "patients": 2}, "c": {"scans": 1, "patients": 1}})
    assert [(row["label"], row["made_share"], row["real_share"]) for row in rows] == [
        ("a", 0.25, 0.75),
        ("b", 0.75, 0.0),
        ("c", 0.0, 0.25),
    ]
    assert class_shares({"a": 1}, None)[0]["real_share"] is None
