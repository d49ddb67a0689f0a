import math
from dataclasses import replace

import numpy as np
import pytest

from medsynth.cohorts import Cohort, Row
from medsynth.cohorts.attributes import AttributeTable, parse_names, read_attributes
from medsynth.config import ConditionOptions
from medsynth.errors import ConfigError, DataError
from medsynth.scans import Scan, write_scan


@pytest.fixture
def cohort(tmp_path):
    columns = {
        "diameter_mm": ["5", "7.5", "10", "", "40"],
        "side": ["left", "right", "left", "", "middle"],
        "stage": ["1", "2", "1", "2", "2"],
    }
    splits = ["train", "train", "train", "train", "test"]
    rows = tuple(
        Row(
            path=f"{number}.png",
            label="ab"[number % 2],
            patient_id=f"P{number}",
            split=split,
            attributes={name: values[number] for name, values in columns.items() if values[number]},
        )
        for number, split in enumerate(splits)
    )
    for row in rows:
        write_scan(Scan(array=np.zeros((1, 4, 4), dtype=np.uint8)), tmp_path / row.path)
    return Cohort(folder=tmp_path, rows=rows)


def read(cohort, attributes):
    return read_attributes(cohort, ConditionOptions(attributes=attributes))


def test_numbers_are_standardised_and_ranged_over_training_scans_alone(cohort):
    table = read(cohort, "diameter_mm,side")
    diameter, side = table.attributes
    known = np.array([5, 7.5, 10])
    assert (diameter.mean, diameter.std) == pytest.approx((known.mean(), known.std()))
    assert (diameter.low, diameter.high, diameter.whole) == (5, 10, False)
    assert side.categories == ("left", "right")
    assert table.encode()[:3, 0] == pytest.approx((known - 7.5) / known.std())
    assert table.encode()[:3, 1].tolist() == [0, 1, 0]
    assert np.isnan(table.encode()[3]).all(), "empty cells are not known"
    assert table.encode()[4, 0] == pytest.approx((40 - 7.5) / known.std())
    assert math.isnan(table.encode()[4, 1]), "a category that no training scan has"


def test_a_column_of_numbers_can_be_a_category(cohort):
    stage, forced = (read(cohort, name).attributes[0] for name in ("stage", "stage:category"))
    assert (stage.categories, stage.whole) == ((), True)
    assert forced.categories == ("1", "2")


def test_spacing_comes_from_headers_unless_it_is_a_column(cohort, tmp_path):
    for number, row in enumerate(cohort.rows):
        affine = np.diag([-0.5, -0.5, 1.0 + number, 1])
        write_scan(Scan(array=np.zeros((1, 3, 4, 4), dtype=np.int16), affine=affine), tmp_path / f"{row.path}.nii.gz")
    volumes = replace(cohort, rows=tuple(replace(row, path=f"{row.path}.nii.gz") for row in cohort.rows))
    assert [row[0] for row in read(volumes, "spacing_mm").values] == ["1", "2", "3", "4", "5"]
    own = replace(
        volumes,
        rows=tuple(replace(row, attributes={"spacing_mm": str(9 - number)}) for number, row in enumerate(volumes.rows)),
    )
    assert [row[0] for row in read(own, "spacing_mm").values] == ["9", "8", "7", "6", "5"]


def test_what_cannot_be_learnt_is_refused(cohort):
    with pytest.raises(ConfigError, match=r"need columns of the cohort \(diameter_mm, modality, side.*got 'weight'"):
        read(cohort, "weight")
    with pytest.raises(ConfigError, match="each column once"):
        parse_names("side,side")
    with pytest.raises(ConfigError, match="none of medsynth's own"):
        parse_names("text")
    with pytest.raises(ConfigError, match="none of medsynth's own"):
        parse_names("seed")
    same = replace(cohort, rows=tuple(replace(row, attributes={"stage": "1"}) for row in cohort.rows))
    with pytest.raises(ConfigError, match="differs between training scans, got stage = 1 everywhere"):
        read(same, "stage")
    rows = tuple(
        replace(cohort.rows[0], path=f"{number}.png", attributes={"name": f"Jane {number}"}) for number in range(65)
    )
    with pytest.raises(ConfigError, match="at most 64 categories, got 65 of name, which may name patients"):
        read(replace(cohort, rows=rows), "name")
    wrong = (*cohort.rows[:4], replace(cohort.rows[4], attributes={"diameter_mm": "large"}))
    with pytest.raises(DataError, match=r"4\.png: need a number for diameter_mm, got 'large'"):
        read(replace(cohort, rows=wrong), "diameter_mm")


def test_a_table_survives_json_in_an_order_that_tells_nothing(cohort):
    table = read(cohort, "diameter_mm,side")
    kept = table.select([3, 2, 1, 0])
    assert kept == table.select([0, 1, 2, 3]), "sorted by content"
    assert kept.labels == ("a", "a", "b", "b")
    assert AttributeTable.from_dict(kept.as_dict(), table.attributes) == kept
    with pytest.raises(ValueError, match="columns"):
        AttributeTable.from_dict(kept.as_dict(), table.attributes[:1])
    broken = kept.as_dict()
    broken["rows"][0][2] = "middle"
    with pytest.raises(ValueError, match="not in tuple"):
        AttributeTable.from_dict(broken, table.attributes)
