import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch

import medsynth
from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.cohorts.attributes import Attribute, AttributeTable
from medsynth.errors import ConfigError, DataError
from medsynth.generation.where import AttributeDraw, parse_where
from medsynth.scans import Scan, write_scan
from medsynth.seeds import numpy_generator

SIZE = Attribute(name="size", mean=10, std=4, low=2, high=18)
SIDE = Attribute(name="side", categories=("left", "right"))
# Large ones are always on the right, and one of them has no known side.
TABLE = AttributeTable(
    attributes=(SIZE, SIDE),
    labels=("a",) * 6 + ("b",),
    values=(("2", "left"), ("4", "left"), ("6", "left"), ("14", "right"), ("16", "right"), ("18", ""), ("10", "left")),
)


def drawer_of(where, source):
    return AttributeDraw(table=TABLE, where=where, wanted=parse_where(where, TABLE.attributes), source=source)


def draws(where="", source="scans", label="a", count=200):
    drawer = drawer_of(where, source)
    return [drawer.draw(label, seed) for seed in range(count)]


def test_values_stay_together_as_in_training_scans():
    for size, side in draws():
        assert (float(size) < 10) == (side == "left")
        assert 2 <= float(size) <= 18
    sizes = np.array([float(size) for size, _ in draws()])
    nearest = np.abs(sizes[:, None] - [2, 4, 6, 14, 16, 18]).min(axis=1)
    assert nearest.max() < 0.4 * 5, "moved by tenths of a standard deviation"
    assert len(set(sizes)) > 150, "the exact values of patients are not handed out"
    assert {side for _, side in draws()} == {"left", "right", ""}


def test_where_keeps_the_rows_that_hold_it():
    assert {side for _, side in draws("size=13..17")} == {"right"}
    assert all(13 <= float(size) <= 17 for size, _ in draws("size=13..17"))
    assert all(float(size) < 8 for size, _ in draws("side=left"))
    assert {side for _, side in draws("side=left|right")} == {"left", "right"}, (
        "a side that is not known is none of these"
    )
    assert draws("size=13..", label="a")[:50] == draws("size=13..", count=50)


def test_ranges_are_drawn_evenly_and_the_rest_from_the_nearest_scan():
    found = draws("size=15..25", source="ranges", count=400)
    sizes = np.array([float(size) for size, _ in found])
    assert sizes.min() < 15.3
    assert sizes.max() > 24.7
    assert abs(sizes.mean() - 20) < 0.6
    assert all(side == "right" for size, side in found if float(size) < 16.9)
    assert all(side == "" for size, side in found if float(size) > 17.1), "that of the scan of 18"


def test_beyond_training_is_said():
    def notes(where, source="ranges"):
        return drawer_of(where, source).notes(["a"])

    assert notes("size=15..25") == ["size: 15..25 goes beyond 2 to 18 in training scans; such scans are extrapolated"]
    assert notes("size=5..") == notes("size=3..18") == []
    assert "a: only 2 training scans fit" in notes("size=13..17", "scans")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour=red", "need attribute=values once for each of size, side, got 'colour=red'"),
        ("size", "got 'size'; try size=2..18"),
        ("size=6..4", "low <= high, got 'size=6..4'"),
        ("size=..", "low <= high"),
        ("size=big", "need a number or a range, got 'size=big'"),
        ("size=nan", "low <= high"),
        ("side=up", r"need values of side \(left, right\), got 'up'; try side=left"),
        ("size=3,size=4", "once for each"),
    ],
)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_where(text, TABLE.attributes)


def test_no_such_scan_is_said_with_the_way_out():
    with pytest.raises(ConfigError, match=r"need a training scan of b that fits, got none of 1.*where_from ranges"):
        draws("side=right", label="b")


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory, tiny_config):
    """A run that was conditioned on the brightness of its scans, and its cohort."""
    folder = tmp_path_factory.mktemp("conditioned")
    rows = []
    for number in range(40):
        random = numpy_generator(0, "told", number)
        level = float(np.round(random.uniform(50, 200), 2))
        write_scan(
            Scan(array=random.normal(level, 5, (1, 16, 16)).clip(0, 255).astype(np.uint8)), folder / f"{number}.png"
        )
        attributes = {"level": str(level)} | ({"site": "AB"[number % 2]} if number % 3 else {})
        rows.append(
            Row(
                path=f"{number}.png",
                label="dark" if number % 4 else "bright",
                patient_id=f"secret-{number}",
                split="train" if number < 32 else "val",
                attributes=attributes,
            )
        )
    write_cohort(Cohort(folder=folder, rows=tuple(rows)), folder / "cohort.csv")
    options = medsynth.load_config(str(tiny_config)) | {"max_steps": 6}
    run = medsynth.train(
        **options,
        cohort=folder / "cohort.csv",
        out=folder / "run",
        condition=medsynth.config.ConditionOptions(attributes="level,site"),
        progress=False,
    )
    return folder, run


def test_a_run_keeps_what_occurs_together_and_nobody_s_name(conditioned):
    folder, run = conditioned
    assert [attribute.name for attribute in run.spec.attributes] == ["level", "site"]
    rows = run.attribute_table()
    assert len(rows.labels) == 32
    assert list(rows.labels) == sorted(rows.labels)
    everything = b"".join(path.read_bytes() for path in (folder / "run").rglob("*.json"))
    assert b"secret" not in everything
    assert medsynth.load_run(folder / "run").spec == run.spec


def test_a_set_says_what_each_scan_was_conditioned_on(conditioned, tmp_path):
    folder, run = conditioned
    options = {"run": folder / "run", "count": "dark=3,bright=2", "where": "level=60..150", "progress": False}
    medsynth.sample(**options, out=tmp_path / "set", batch_size=2)
    with (tmp_path / "set" / "cohort.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert all(60 <= float(row["level"]) <= 150 for row in rows)
    assert {row["site"] for row in rows} <= {"A", "B", ""}
    provenance = json.loads((tmp_path / "set" / "provenance.json").read_text())
    assert (provenance["where"], provenance["where_from"]) == ("level=60..150", "scans")
    made = list(medsynth.generate(run, count="dark=3,bright=2", where="level=60..150", batch_size=2))
    assert [scan.scan.attributes["level"] for scan in made] == [row["level"] for row in rows]
    with pytest.raises(ConfigError, match="need the settings this set was begun with, got where"):
        medsynth.sample(**options | {"where": ""}, out=tmp_path / "set", batch_size=2)


def test_attributes_reach_the_scan(conditioned):
    _, run = conditioned
    denoiser = run.load_denoiser()
    noisy, sigma, labels = torch.zeros(3, 1, 16, 16), torch.ones(3), torch.zeros(3, dtype=torch.long)
    attributes = torch.tensor([[-1.5, 0.0], [1.5, 0.0], [math.nan, math.nan]])
    denoised = denoiser(noisy, sigma, denoiser.embedding.make(labels, attributes))
    assert (denoised[0] - denoised[1]).abs().max() > 1e-3
    unknown = denoiser(noisy, sigma, denoiser.embedding.make(labels))
    assert torch.equal(unknown[2], denoised[2]), "without attributes, all are unknown"
    withheld = denoiser.embedding.withhold(
        denoiser.embedding.make(labels, attributes), torch.tensor([True, False, False])
    )
    assert withheld.label.tolist() == [2, 0, 0]
    assert withheld.attributes[0].isnan().all()
    assert withheld.attributes[1].tolist() == [1.5, 0.0]


def test_another_table_is_refused(conditioned, tmp_path):
    folder, _ = conditioned
    shutil.copytree(folder / "run", tmp_path / "run")
    path = tmp_path / "run" / "attributes.json"
    path.write_text(path.read_text().replace('"A"', '"B"'))
    with pytest.raises(DataError, match=r"attributes\.json: need the attributes of the run's training scans"):
        medsynth.sample(run=tmp_path / "run", count=1, out=tmp_path / "set", progress=False)


def test_attributes_need_a_run_that_knows_them(tiny_run, tmp_path):
    with pytest.raises(ConfigError, match=r"where: this run was trained without condition\.attributes"):
        medsynth.sample(run=tiny_run.folder, count=1, where="level=3", out=tmp_path / "set", progress=False)
