"""Synthetic sets on disk: opened from any generator, written from any scans, handed over beside real ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from medsynth.cohorts import Cohort, Row, read_cohort, write_cohort
from medsynth.config import Loading
from medsynth.errors import ConfigError, DataError
from medsynth.scans import Scan, read_scan, write_scan
from medsynth.sets import (
    generator_of,
    grid_of,
    holds_real_pixels,
    open_real,
    open_synthetic,
    read_provenance,
    resume_set,
    write_augmented,
    write_scans,
)

QUIET = Loading(progress=False)


def picture(value: int, label: str | None = None, **facts) -> Scan:
    return Scan(array=np.full((1, 10, 10), value, dtype=np.uint8), label=label, **facts)


@pytest.fixture
def real(tmp_path) -> Cohort:
    rows = []
    for number, label in enumerate(["ill", "ill", "well", "well"]):
        write_scan(picture(number), tmp_path / "real" / f"{number}.png")
        split = "test" if number == 3 else "train"
        rows.append(Row(path=f"{number}.png", label=label, patient_id=f"P{number}", split=split))
    cohort = Cohort(folder=tmp_path / "real", rows=tuple(rows))
    write_cohort(cohort, tmp_path / "real" / "cohort.csv")
    return cohort


def synthetic_csv(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "cohort.csv"
    path.write_text(text)
    return path


def class_folders(folder: Path, *, scans: int = 3) -> Path:
    for label in ("ill", "well"):
        for number in range(scans):
            write_scan(picture(10 * number + len(label)), folder / label / f"{number}.png")
    return folder


def test_a_synthetic_csv_needs_only_paths_and_labels(tmp_path, real):
    path = synthetic_csv(tmp_path / "made", "path,label\na.png,ill \nb.png,well\n")
    for named in (path, path.parent):
        cohort = open_synthetic(named, real)
        assert [(row.path, row.label, row.patient_id, row.split) for row in cohort.rows] == [
            ("a.png", "ill", "SYNTH-0", "train"),
            ("b.png", "well", "SYNTH-1", "train"),
        ]
        assert cohort.folder == path.parent


@pytest.mark.parametrize(
    ("header", "cells", "expected"),
    [
        ("path,label,split", "a.png,ill,val", ("SYNTH-0", "val")),
        ("path,label,patient_id", "a.png,ill,S7", ("S7", "train")),
    ],
)
def test_a_column_that_is_there_counts(tmp_path, real, header, cells, expected):
    row = open_synthetic(synthetic_csv(tmp_path / "made", f"{header}\n{cells}\n"), real).rows[0]
    assert (row.patient_id, row.split) == expected


def test_a_whole_synthetic_csv_is_read_as_any_cohort(tmp_path, real):
    path = synthetic_csv(tmp_path / "made", "path,label,patient_id,split,synthetic\na.png,ill,S1,train,1\n")
    assert open_synthetic(path, real) == read_cohort(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\n../a.png,ill\n", "without '..'"),
        ("path,label\na.png,ill\na.png,ill\n", "each scan once"),
        ("path,label\na.png,\n", "need a label in every row"),
        ("file,label\na.png,ill\n", "need the column 'path'"),
        ("path,label,split\na.png,ill,\n", "need the split"),
        (
            "path,label\na.png,alien\n",
            r"made/cohort.csv: need classes of the real cohort \(ill, well\), got alien; try",
        ),
        ("path,label,patient_id,split\na.png,alien,S1,train\n", r"made/cohort.csv: need classes .* got alien; try"),
    ],
)
def test_what_is_refused_of_a_synthetic_csv(tmp_path, real, text, words):
    with pytest.raises(DataError, match=words):
        open_synthetic(synthetic_csv(tmp_path / "made", text), real)


def test_class_folders_are_a_cohort_or_a_set(tmp_path, real):
    found = open_real(class_folders(tmp_path / "folders", scans=8), loading=QUIET)
    assert found.classes == ("ill", "well")
    assert {row.split for row in found.rows} == {"train", "val", "test"}
    made = open_synthetic(class_folders(tmp_path / "made", scans=1), real, loading=QUIET)
    assert [(row.path, row.label, row.patient_id, row.split) for row in made.rows] == [
        ("ill/0.png", "ill", "SYNTH-0", "train"),
        ("well/0.png", "well", "SYNTH-1", "train"),
    ]
    assert not list((tmp_path / "made").rglob("*.csv")), "nothing is written"
    write_scan(picture(5), tmp_path / "made" / "alien" / "0.png")
    with pytest.raises(DataError, match=r"made: need classes of the real cohort .*got alien"):
        open_synthetic(tmp_path / "made", real, loading=QUIET)


def test_a_folder_with_neither_says_how_to_go_on(tmp_path, real):
    (tmp_path / "made").mkdir()
    for open_it in (open_real, open_synthetic):
        with pytest.raises(
            DataError, match=r"made: need cohort.csv or one folder per class, got neither; try a CSV .*medsynth index"
        ):
            open_it(tmp_path / "made")


def test_a_set_that_was_interrupted_is_no_folder_of_classes(tmp_path):
    class_folders(tmp_path / "made")
    (tmp_path / "made" / "provenance.json").write_text("{}")
    with pytest.raises(DataError, match=r"need a complete set, got one without cohort\.csv; try the command"):
        open_synthetic(tmp_path / "made")


def test_synthetic_scans_are_no_real_cohort(tmp_path):
    path = synthetic_csv(tmp_path / "made", "path,label,patient_id,split,synthetic\na.png,ill,S1,train,1\n")
    with pytest.raises(DataError, match="need real scans, got rows that say synthetic=1"):
        open_real(path)


def test_the_run_that_made_a_set_is_known_by_its_provenance(tmp_path):
    path = synthetic_csv(tmp_path / "made", "path,label\na.png,ill\n")
    made = open_synthetic(path)
    assert (generator_of(made), read_provenance(made), holds_real_pixels(made)) == (None, {}, None)
    for content, generator, pixels in (
        ({"another": "program"}, None, None),
        ([], None, None),
        ({"format": "medsynth-set/1", "run": "b" * 64}, "b" * 64, False),
        ({"format": "medsynth-set/2", "run": "b" * 64, "contains_real_pixels": True}, "b" * 64, True),
        (
            {"format": "medsynth-set/2", "run": "b" * 64, "contains_real_pixels": False, "edit": "inpaint"},
            "b" * 64,
            True,
        ),
        ({"run": ""}, None, None),
        ({"run": 7}, None, None),
    ):
        (path.parent / "provenance.json").write_text(json.dumps(content))
        assert generator_of(made) == generator
        assert holds_real_pixels(made) is pixels
    (path.parent / "provenance.json").write_text("{")
    with pytest.raises(DataError, match=r"made/provenance.json: need the provenance of the set, got no JSON"):
        generator_of(made)


def test_a_set_goes_on_with_the_same_settings_only(tmp_path):
    folder = tmp_path / "set"
    assert resume_set(folder, {"seed": 0}) == []
    folder.mkdir()
    file = folder / "provenance.json"
    settings = {"format": "medsynth-set/2", "seed": 0, "solver": {"steps": 20}}
    file.write_text(json.dumps(settings | {"sessions": [{"device": "cpu"}]}))
    assert resume_set(folder, settings) == [{"device": "cpu"}]
    with pytest.raises(ConfigError, match=r"got seed 0 -> 1; solver\.steps 20 -> 4; try another --out"):
        resume_set(folder, settings | {"seed": 1, "solver": {"steps": 4}})
    file.write_text(json.dumps({"format": "medsynth-set/1", "sessions": []}))
    with pytest.raises(ConfigError, match=r"begun with medsynth 0\.1; install medsynth-diffusion==0\.1\.0"):
        resume_set(folder, settings)
    file.write_text("{")
    with pytest.raises(DataError, match="got damaged JSON"):
        resume_set(folder, settings)
    file.unlink()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="got other files"):
        resume_set(folder, settings)


def test_scans_of_any_generator_become_a_set(tmp_path, real):
    rng = np.random.default_rng(0)
    scans = [
        Scan(array=rng.normal(size=(1, 10, 10)).astype(np.float32), label=label, attributes={"size": size})
        for label, size in (("ill", 4.5), ("well", 2.0), ("ill", "large"))
    ]
    file = write_scans(iter(scans), tmp_path / "made")
    assert file == tmp_path / "made" / "cohort.csv"
    made = open_synthetic(tmp_path / "made", real)
    assert [(row.label, row.split, row.attributes["synthetic"]) for row in made.rows] == [
        ("ill", "train", "1"),
        ("well", "train", "1"),
        ("ill", "train", "1"),
    ]
    assert [row.attributes["size"] for row in made.rows] == ["4.5", "2.0", "large"]
    assert len({row.patient_id for row in made.rows}) == 3
    for row, scan in zip(made.rows, scans, strict=True):
        found = read_scan(made.file_of(row))
        np.testing.assert_array_equal(found.array, scan.array)
        assert (found.provenance["synthetic"], found.provenance["generator"]) == ("YES", "unknown")
    provenance = read_provenance(made)
    assert (provenance["synthetic"], provenance["generator"]) == (True, "unknown")
    assert provenance["counts"] == {"ill": 2, "well": 1}
    assert (generator_of(made), holds_real_pixels(made)) == (None, None)
    assert grid_of(made).size == (10, 10)
    with pytest.raises(ConfigError, match="need a new folder for a synthetic set, got one with files"):
        write_scans(scans, tmp_path / "made")


def test_scans_without_a_label_are_refused(tmp_path):
    with pytest.raises(DataError, match="need a label for every scan, got none for scan 1"):
        write_scans([picture(1, "ill"), picture(2)], tmp_path / "made")
    assert not (tmp_path / "made" / "cohort.csv").exists()
    with pytest.raises(DataError, match="need at least one scan"):
        write_scans([], tmp_path / "none")


def test_the_hand_over_names_both_folders_and_leaves_files_where_they_are(tmp_path, real):
    write_scans([picture(7, "ill"), picture(8, "ill"), picture(9, "well")], tmp_path / "made")
    made = open_synthetic(tmp_path / "made", real)
    cohort = write_augmented(real, made, tmp_path / "augmented" / "cohort.csv", dropped=[1])
    assert read_cohort(tmp_path / "augmented" / "cohort.csv").rows == cohort.rows
    with (tmp_path / "augmented" / "cohort.csv").open() as stream:
        rows = [(row["root"], row["label"], row["split"], row["synthetic"]) for row in csv.DictReader(stream)]
    assert rows == [
        ("real", "ill", "train", "0"),
        ("real", "ill", "train", "0"),
        ("real", "well", "train", "0"),
        ("synthetic", "ill", "train", "1"),
        ("synthetic", "well", "train", "1"),
    ]
    values = [int(read_scan(cohort.file_of(row)).array.max()) for row in cohort.rows]
    assert values == [0, 1, 2, 7, 9]
    both = write_augmented(real, made, tmp_path / "both.csv", splits=("train", "test"))
    assert [row.split for row in both.rows] == ["train"] * 3 + ["test"] + ["train"] * 3


def test_no_cache_is_taken_from_a_set_that_is_judged(tmp_path, real):
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "cohort.csv").write_text("path,label\na.png,ill\n")
    with pytest.raises(ConfigError, match=r"cache_dir: need a folder outside the set that is judged"):
        open_synthetic(folder, real, loading=Loading(cache_dir=folder / "deep" / "cache"))
    assert len(open_synthetic(folder, real, loading=Loading(cache_dir=tmp_path / "cache")).rows) == 1


def test_rows_say_which_run_made_a_set_where_the_provenance_is_gone(tmp_path):
    path = synthetic_csv(tmp_path / "made", "path,label,run\na.png,ill,bbbbbbbbbbbbbbbb\n")
    path.write_text("path,label,patient_id,split,run\na.png,ill,S1,train,bbbbbbbbbbbbbbbb\n")
    made = open_synthetic(path)
    assert generator_of(made) == "b" * 16
    (path.parent / "provenance.json").write_text(json.dumps({"run": "b" * 64}))
    assert generator_of(made) == "b" * 64
    (path.parent / "provenance.json").write_text(json.dumps({"run": "a" * 64}))
    with pytest.raises(DataError, match="need the scans of one run, got"):
        generator_of(made)


def test_a_set_leads_nowhere_outside_its_folder(tmp_path):
    """Neither a root, nor a link in place of one of its files, nor one in place of a scan."""
    outside = tmp_path / "outside"
    write_scan(picture(1), outside / "a.png")
    text = "path,label,patient_id,split,root\na.png,ill,S1,train,there\n"
    path = synthetic_csv(tmp_path / "made", text)
    for target in ("../outside", str(outside)):
        (path.parent / "cohort.yaml").write_text(f"roots: {{there: {target}}}")
        with pytest.raises(
            DataError, match=r"need the scans of a synthetic set in its own folder, got the root 'there'"
        ):
            open_synthetic(path.parent)
    write_scan(picture(1), path.parent / "below" / "a.png")
    (path.parent / "cohort.yaml").write_text("roots: {there: below}")
    assert len(open_synthetic(path.parent).rows) == 1
    (path.parent / "cohort.yaml").unlink()
    path.write_text("path,label\na.png,ill\n")
    (path.parent / "a.png").symlink_to(outside / "a.png")
    with pytest.raises(DataError, match="a symbolic link that leaves it"):
        open_synthetic(path.parent)
    (path.parent / "a.png").unlink()
    for name, content in (
        ("provenance.json", "{}"),
        ("cohort.yaml", "roots: {}"),
        ("cohort.csv", "path,label\nb.png,ill"),
    ):
        (outside / name).write_text(content)
        (path.parent / name).unlink(missing_ok=True)
        (path.parent / name).symlink_to(outside / name)
        with pytest.raises(
            DataError, match=f"'{name}': need a file below its root, got a symbolic link that leaves it"
        ):
            open_synthetic(path.parent)
        (path.parent / name).unlink()
        path.write_text("path,label\na.png,ill\n")
