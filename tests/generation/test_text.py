"""Scans conditioned on a sentence, for runs trained with `condition.text`."""

import csv
import json

import numpy as np
import pytest

import medsynth
from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.errors import ConfigError
from medsynth.scans import Scan, write_scan
from medsynth.seeds import numpy_generator

SENTENCES = ("Small bright nodule in the left lung.", "Large dark shadow in the right lung.", "No finding.")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
    """A run on 40 pictures with a sentence each."""
    folder = tmp_path_factory.mktemp("text")
    rows = []
    for number in range(40):
        random = numpy_generator(0, "text", number)
        array = random.normal(80 + 60 * (number % 3), 5, (1, 16, 16)).clip(0, 255).astype(np.uint8)
        write_scan(Scan(array=array), folder / f"{number}.png")
        rows.append(
            Row(
                path=f"{number}.png",
                label="dark" if number % 4 else "bright",
                patient_id=f"secret-{number}",
                split="train" if number < 32 else "val",
                attributes={"report": SENTENCES[number % 3]} if number % 5 else {},
            )
        )
    write_cohort(Cohort(folder=folder, rows=tuple(rows)), folder / "cohort.csv")
    options = medsynth.load_config(str(tiny_config)) | {"max_steps": 6, "condition": {"text": "report"}}
    return medsynth.train(**options, cohort=folder / "cohort.csv", out=folder / "run", progress=False)


def sample(run, out, **options):
    return medsynth.sample(run=run.folder, out=out, **{"count": "dark=2", "progress": False} | options)


def test_the_sentence_is_in_cohort_and_provenance_and_reaches_the_scan(run, tmp_path):
    assert run.spec.text > 0
    made = sample(run, tmp_path / "set", text=" small nodule, left lung ")
    with (tmp_path / "set" / "cohort.csv").open() as stream:
        assert {row["text"] for row in csv.DictReader(stream)} == {"small nodule, left lung"}
    assert json.loads((tmp_path / "set" / "provenance.json").read_text())["text"] == "small nodule, left lung"
    other = sample(run, tmp_path / "other", text="large shadow")
    plain = sample(run, tmp_path / "plain")
    assert all("text" not in row.attributes for row in plain.rows)
    first = [medsynth.read_scan(each.file_of(each.rows[0])).array for each in (made, other, plain)]
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
    memory = list(medsynth.generate(run, count="dark=2", text="small nodule, left lung"))
    np.testing.assert_array_equal(memory[0].scan.array, first[0])
    with pytest.raises(ConfigError, match=r"need the settings this set was begun with, got text 'small nodule"):
        sample(run, tmp_path / "set", text="large shadow")


def test_a_sentence_without_a_known_word_is_refused(run, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"text: this run knows no word of 'Purple elephant!'; use words of its training sentences, such as",
    ):
        sample(run, tmp_path / "set", text="Purple elephant!")
    assert not (tmp_path / "set").exists()


def test_a_run_without_text_says_so(tiny_run, tmp_path):
    with pytest.raises(ConfigError, match=r"text: this run was trained without condition\.text; leave out --text, or"):
        sample(tiny_run, tmp_path / "set", text="small nodule")
    assert not (tmp_path / "set").exists()
