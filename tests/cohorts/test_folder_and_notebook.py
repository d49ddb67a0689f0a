"""Plain class folders as a cohort in memory, and a cohort as a notebook shows it."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medsynth.cohorts import Cohort, Row, index_folder, read_cohort, write_cohort
from medsynth.config import Loading
from medsynth.errors import DataError

QUIET = Loading(progress=False)


def test_class_folders_are_a_cohort_in_memory_and_nothing_is_written(image_folder):
    folder = image_folder({"flu": 10, "rare": 3})
    before = sorted(folder.rglob("*"))
    cohort = index_folder(folder, loading=QUIET)
    assert sorted(folder.rglob("*")) == before
    assert (cohort.folder, cohort.roots) == (folder, {})
    assert all(cohort.file_of(row).is_file() for row in cohort.rows)
    assert {row.path.split("/")[0] == row.label for row in cohort.rows} == {True}
    assert Counter((row.label, row.split) for row in cohort.rows) == {
        ("flu", "train"): 7,
        ("flu", "val"): 2,
        ("flu", "test"): 1,
        ("rare", "train"): 1,
        ("rare", "val"): 1,
        ("rare", "test"): 1,
    }
    assert index_folder(folder, loading=QUIET) == cohort
    assert index_folder(folder, loading=QUIET, seed=1) != cohort


def test_equal_scans_of_class_folders_are_one_patient(image_folder):
    folder = image_folder({"flu": 20})
    for number in range(10, 20):
        (folder / f"flu/flu{number}_0.png").write_bytes((folder / "flu/flu0_0.png").read_bytes())
    rows = index_folder(folder, loading=QUIET).rows
    copies = [row for row in rows if row.path == "flu/flu0_0.png" or row.path[7:9].isdigit()]
    assert len(rows) == 20
    assert (len(copies), len({row.patient_id for row in copies}), len({row.split for row in copies})) == (11, 1, 1)


def test_class_folders_with_bad_scans_are_refused(image_folder):
    folder = image_folder({"flu": 4})
    with pytest.raises(DataError, match="need a folder of scans"):
        index_folder(folder / "none", loading=QUIET)
    (folder / "flu/flu0_0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"flu0_0\.png.*1 of 4 scans cannot be read"):
        index_folder(folder, loading=QUIET)


def pictures(page: str) -> list[np.ndarray]:
    contents = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))) for content in contents]


def test_a_notebook_shows_counts_and_up_to_eight_scans_of_all_classes(image_folder):
    folder = image_folder({"flu": 10, "<b>rare": 3})
    cohort = index_folder(folder, loading=QUIET)
    page = cohort._repr_html_()
    assert "<tr><td>flu</td><td>7 (7)</td><td>2 (2)</td><td>1 (1)</td></tr>" in page
    assert "<b>" not in page
    assert [picture.shape for picture in pictures(page)] == [(16, 16)] * 8
    captions = Counter(re.findall(r"<figcaption>(.*?)</figcaption>", page))
    assert captions == {"flu": 5, "&lt;b&gt;rare": 3}
    cohort.file_of(cohort.rows[0]).unlink()
    assert len(pictures(cohort._repr_html_())) == 7, "the others are still shown"


def test_a_notebook_says_which_scans_are_synthetic(image_folder):
    real = index_folder(image_folder({"flu": 4}), loading=QUIET)
    made = replace(real, rows=tuple(replace(row, attributes={"synthetic": "1"}) for row in real.rows))
    assert "ynthetic" not in real._repr_html_()
    assert "<b>Synthetic scans</b>" in made._repr_html_()
    assert "<b>1 synthetic scans</b>" in replace(real, rows=(*real.rows[1:], made.rows[0]))._repr_html_()


@pytest.mark.parametrize(
    ("attributes", "command"),
    [
        ({}, "medsynth train --cohort '{}' --out run"),
        ({"synthetic": "1"}, "medsynth evaluate --real cohort.csv --synthetic '{}' --out report"),
    ],
)
def test_the_summary_of_a_cohort_that_was_read_ends_with_the_next_command(tmp_path, attributes, command):
    rows = (Row(path="a.png", label="flu", patient_id="P", split="train", attributes=attributes),)
    cohort = Cohort(folder=tmp_path, rows=rows)
    assert cohort.summary() == cohort.table()
    write_cohort(cohort, tmp_path / "my cohort.csv")
    read = read_cohort(tmp_path / "my cohort.csv")
    assert read == cohort
    assert read.summary() == f"{cohort.table()}\nnext: {command.format(tmp_path / 'my cohort.csv')}"
