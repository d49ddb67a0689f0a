"""Labels CSVs as people have them: other separators, columns, paths, words for splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsynth.cohorts import index, index_scans
from medsynth.config import ColumnOptions, IndexOptions
from medsynth.errors import DataError
from tests.cohorts.conftest import noise_image, write_png


def run(folder: Path, table: str, **options):
    (folder / "labels.csv").write_text(table)
    known = {
        "scans": folder / "scans",
        "labels": folder / "labels.csv",
        "out": folder / "cohort.csv",
        "progress": False,
    }
    return index_scans(IndexOptions(**{**known, "allow_tiny": True, **options}))


@pytest.fixture
def folder(tmp_path):
    """Four scans, two in each of the folders `p` and `q`."""
    for number in range(4):
        write_png(tmp_path / "scans" / "pq"[number // 2] / f"{number}.png", noise_image(number))
    return tmp_path


PATHS = ["p/0.png", "p/1.png", "q/2.png", "q/3.png"]


def rows_of(paths: list[str], cells: str = "a,P{}", header: str = "path,label,patient_id") -> str:
    return "\n".join([header, *(f"{path},{cells.format(n)}" for n, path in enumerate(paths))]) + "\n"


def names(result) -> list[str]:
    return [row.path.removeprefix("scans/") for row in result.cohort.rows]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators(folder, separator):
    assert names(run(folder, rows_of(PATHS).replace(",", separator))) == PATHS


def test_absolute_paths_below_the_scans_folder(folder):
    (folder / "link").symlink_to(folder / "scans")
    table = rows_of([str(folder / "scans" / PATHS[0]), str(folder / "link" / PATHS[1])])
    assert names(run(folder, table)) == PATHS[:2]
    linked = run(folder, table, scans=folder / "link")
    assert [row.path for row in linked.cohort.rows] == [f"link/{path}" for path in PATHS[:2]]
    for path in (folder / "labels.csv", folder / "scans/../labels.csv"):
        with pytest.raises(DataError, match="could leave its root; try paths relative to --scans"):
            run(folder, rows_of([str(path)]))


def test_bare_names_that_find_each_scan_once(folder):
    bare = [path.split("/")[1] for path in PATHS]
    result = run(folder, rows_of(bare))
    assert names(result) == PATHS
    assert any("4 rows of the labels CSV hold only file names" in note for note in result.notes)
    assert names(run(folder, rows_of([PATHS[0], *bare[1:]]))) == PATHS
    with pytest.raises(DataError, match=r"'0\.png' twice"):
        run(folder, rows_of([PATHS[0], *bare]))


def test_bare_names_that_find_no_or_several_scans_are_refused(folder):
    bare = [path.split("/")[1] for path in PATHS]
    with pytest.raises(DataError, match=r"got '9\.png', the name of none \(1 of 5 rows\); try paths relative"):
        run(folder, rows_of([*bare, "9.png"]), skip_bad=True)
    write_png(folder / "scans/q/0.png", noise_image(9))
    with pytest.raises(DataError, match=r"the name of 2 scans, '0\.png' \(1 of 4 rows\); try paths relative"):
        run(folder, rows_of(bare))


def test_skip_bad_is_advised_only_where_it_helps(folder):
    with pytest.raises(DataError, match=r"1 of 3 are missing\).*--skip_bad true"):
        run(folder, rows_of([*PATHS[:2], "p/9.png"]))
    with pytest.raises(DataError, match=r"none for all 2 rows, such as 'p/8\.png'; try another --scans") as caught:
        run(folder, rows_of(["p/8.png", "p/9.png"]))
    assert "--skip_bad" not in str(caught.value)
    with pytest.raises(
        DataError, match=r"such as '17'; try another --scans or --columns\.path: a column of .* in \.png"
    ):
        run(folder, rows_of(["17", "18"]))


def test_a_missing_column_is_answered_with_the_option(folder):
    table = rows_of(PATHS, "a,P{}", "Image Index,Finding Labels,Patient ID")
    with pytest.raises(DataError) as caught:
        run(folder, table)
    assert str(caught.value).endswith(
        "need the columns 'path', 'label', got Image Index, Finding Labels, Patient ID; "
        'try --columns.path "Image Index" and --columns.label "Finding Labels"'
    )
    columns = ColumnOptions(path="Image Index", label="Finding Labels")
    result = run(folder, table, columns=columns)
    assert any("4 scans have no patient" in note and '--columns.patient "Patient ID"' in note for note in result.notes)
    named = run(folder, table, columns=ColumnOptions(path="Image Index", label="Finding Labels", patient="Patient ID"))
    assert [row.patient_id for row in named.cohort.rows] == ["P0", "P1", "P2", "P3"]
    assert not any("no patient" in note for note in named.notes)


def test_a_column_that_differs_in_case_is_suggested(folder):
    with pytest.raises(DataError, match=r"need the column 'path'.*try --columns\.path Path \(did you mean 'Path'\?\)$"):
        run(folder, rows_of(PATHS, header="Path,label,patient_id"))
    with pytest.raises(DataError, match=r"--columns\.attributes with one of them"):
        run(folder, rows_of(PATHS), columns=ColumnOptions(attributes=("age",)))


def test_equal_rows_count_once_and_others_are_refused(folder):
    result = run(folder, rows_of(PATHS) + f"{PATHS[0]},a,P0\n")
    assert names(result) == PATHS
    assert any(note.startswith("1 rows of the labels CSV repeat") for note in result.notes)
    with pytest.raises(DataError, match="twice"):
        run(folder, rows_of(PATHS) + f"{PATHS[0]},b,P0\n")


def test_the_usual_words_for_splits(folder):
    header = "path,split,label\n"
    words = ["TRAINING", "Train", "valid", "testing"]
    result = run(folder, header + "".join(f"{path},{word},a\n" for path, word in zip(PATHS, words, strict=True)))
    assert [row.split for row in result.cohort.rows] == ["train", "train", "val", "test"]
    assert any("'TRAINING' as train, 'Train' as train, 'testing' as test, 'valid' as val" in n for n in result.notes)
    words = ["train", "fold1", "fold2", "test"]
    with pytest.raises(DataError, match=r"labels\.csv: need train, val or test.*got 'fold1' \(2 of 4 rows"):
        run(folder, header + "".join(f"{path},{word},a\n" for path, word in zip(PATHS, words, strict=True)))


def test_a_blank_split_column_is_none(folder):
    result = run(folder, "path,split,label\n" + "".join(f"{path}, ,a\n" for path in PATHS))
    assert {row.split for row in result.cohort.rows} == {"train", "val", "test"}


def test_labels_that_look_alike_are_noted(folder):
    labels = ["Normal", "normal", "normal ", "flu"]
    result = run(folder, "path,label\n" + "".join(f"{p},{label}\n" for p, label in zip(PATHS, labels, strict=True)))
    assert result.cohort.classes == ("Normal", "flu", "normal")
    assert any(note.endswith("several classes: 'Normal' (1), 'normal' (2)") for note in result.notes)
    assert any(note.startswith("1 labels have blanks around them") for note in result.notes)


@pytest.mark.parametrize(("table", "words"), [("", "an empty file"), ("path,label\n", "a header only")])
def test_a_table_without_rows(folder, monkeypatch, table, words):
    monkeypatch.setattr(index, "examine_scans", None)
    with pytest.raises(DataError, match=rf"labels\.csv: need a header and at least one row, got {words}"):
        run(folder, table)
