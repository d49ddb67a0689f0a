from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsynth.cohorts import Cohort, Row, read_cohort, write_cohort
from medsynth.cohorts.manifest import read_columns
from medsynth.errors import ConfigError, DataError

HEADER = "path,label,patient_id,split\n"


def write_csv(folder: Path, body: str, *, header: str = HEADER, encoding: str = "utf-8") -> Path:
    file = folder / "cohort.csv"
    file.write_bytes((header + body).encode(encoding))
    return file


cells = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(
    lambda text: text == text.strip()
)
names = st.from_regex(r"[a-z][a-z_]{2,8}x", fullmatch=True)


@given(
    labels=st.lists(cells, min_size=1, max_size=5),
    attributes=st.dictionaries(names, cells, max_size=3),
    split=st.sampled_from(["train", "val", "test"]),
)
def test_a_written_cohort_is_read_back(tmp_path_factory, labels, attributes, split):
    folder = tmp_path_factory.mktemp("cohort")
    rows = tuple(
        Row(path=f"{number}.png", label=label, patient_id=label, split=split, attributes=attributes)
        for number, label in enumerate(labels)
    )
    cohort = Cohort(folder=folder, rows=rows)
    write_cohort(cohort, folder / "cohort.csv")
    assert read_cohort(folder / "cohort.csv") == cohort


def test_writing_does_not_look_at_every_row_for_every_row(tmp_path, monkeypatch):
    """A hundred thousand scans would take hours."""
    looks = []
    found = Cohort.sequences.fget
    monkeypatch.setattr(Cohort, "sequences", property(lambda cohort: looks.append(1) or found(cohort)))
    rows = tuple(Row(path=f"{number}.png", label="a", patient_id=f"p{number}", split="train") for number in range(50))
    write_cohort(Cohort(folder=tmp_path, rows=rows), tmp_path / "cohort.csv")
    assert 1 <= len(looks) <= 2


def test_counts_classes_and_selection():
    rows = tuple(
        Row(path=f"{number}.png", label=label, patient_id=patient, split=split)
        for number, (label, patient, split) in enumerate(
            [("b", "P1", "train"), ("b", "P1", "train"), ("a", "P1", "train"), ("b", "P2", "test")]
        )
    )
    cohort = Cohort(folder=Path("/nowhere"), rows=rows)
    assert cohort.classes == ("a", "b")
    assert cohort.counts() == {
        "a": {"train": (1, 1), "val": (0, 0), "test": (0, 0)},
        "b": {"train": (2, 1), "val": (0, 0), "test": (1, 1)},
    }
    assert cohort.select(split="train", label="b").rows == rows[:2]
    assert cohort.select(split=("val", "test")).rows == rows[3:]
    with pytest.raises(ConfigError, match="'validation'"):
        cohort.select(split="validation")


def test_rows_of_two_roots_and_of_the_own_folder(tmp_path):
    (tmp_path / "out").mkdir()
    for file in ("out/own.png", "real/a.png", "synthetic/set.npz"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    facts = {"label": "x", "split": "train"}
    cohort = Cohort(
        folder=tmp_path / "out",
        rows=(
            Row(path="own.png", patient_id="P1", **facts),
            Row(path="a.png", patient_id="P2", root="real", mask="a.png", **facts),
            Row(path="set.npz#train/3", patient_id="P3", root="synthetic", **facts),
        ),
        roots={"real": tmp_path / "real", "synthetic": tmp_path / "synthetic"},
    )
    write_cohort(cohort, tmp_path / "out/cohort.csv")
    assert "real: ../real" in (tmp_path / "out/cohort.yaml").read_text()
    again = read_cohort(tmp_path / "out/cohort.csv")
    assert [os.path.normpath(again.file_of(row)) for row in again.rows] == [
        str(tmp_path / file) for file in ("out/own.png", "real/a.png", "synthetic/set.npz#train/3")
    ]
    assert [again.mask_of(row) is None for row in again.rows] == [True, False, True]


def test_cohorts_share_a_yaml_unless_their_roots_clash(tmp_path):
    def cohort(name: str, root: str) -> Cohort:
        row = Row(path="a.png", label="x", patient_id="P", split="train", root=name)
        return Cohort(folder=tmp_path, rows=(row,), roots={name: tmp_path / root})

    write_cohort(cohort("first", "one"), tmp_path / "a.csv")
    write_cohort(cohort("second", "two"), tmp_path / "b.csv")
    assert set(read_cohort(tmp_path / "a.csv").roots) == {"first", "second"}
    with pytest.raises(ConfigError, match="'first'"):
        write_cohort(cohort("first", "elsewhere"), tmp_path / "c.csv")
    assert not (tmp_path / "c.csv").exists()


def test_a_cohort_without_roots_cannot_move(tmp_path):
    row = Row(path="a.png", label="x", patient_id="P", split="train")
    with pytest.raises(ConfigError, match="root"):
        write_cohort(Cohort(folder=tmp_path, rows=(row,)), tmp_path / "elsewhere/cohort.csv")


@pytest.mark.parametrize(
    "path", ["../a.png", "x/../../a.png", "/etc/hostname", "..\\a.png", "C:/a.png", "../s.npz#train/0"]
)
def test_fault_18_path_that_leaves_its_folder(tmp_path, path):
    file = write_csv(tmp_path, f"{path},x,P,train\n")
    with pytest.raises(DataError, match=r"could leave its root") as caught:
        read_cohort(file)
    assert "\n" not in str(caught.value)


def test_fault_18_symbolic_link_that_leaves_its_folder(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/a.png").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/folder").symlink_to(tmp_path / "secret")
    (tmp_path / "data/b.png").symlink_to(tmp_path / "secret/a.png")
    for path in ("folder/a.png", "b.png"):
        with pytest.raises(DataError, match="symbolic link"):
            read_cohort(write_csv(tmp_path / "data", f"{path},x,P,train\n"))
    mask = write_csv(tmp_path / "data", "c.png,x,P,train,b.png\n", header="path,label,patient_id,split,mask\n")
    with pytest.raises(DataError, match="symbolic link"):
        read_cohort(mask)


def test_a_symbolic_link_within_its_folder_is_fine_but_no_second_scan(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    cohort = read_cohort(write_csv(tmp_path, "b.png,x,P,train\n"))
    assert cohort.file_of(cohort.rows[0]) == tmp_path / "b.png"
    with pytest.raises(DataError, match="twice"):
        read_cohort(write_csv(tmp_path, "a.png,x,P,train\nb.png,x,P,train\n"))


def test_fault_20_formula_cells_are_text(tmp_path):
    label = "=cmd|' /C calc'!A0"
    file = write_csv(tmp_path, f'a.png,"{label}",+1,train,@SUM(1)\n', header="path,label,patient_id,split,note\n")
    cohort = read_cohort(file)
    assert (cohort.rows[0].label, cohort.rows[0].patient_id) == (label, "+1")
    assert cohort.rows[0].attributes == {"note": "@SUM(1)"}
    write_cohort(cohort, file)
    assert f"a.png,{label},+1,train,@SUM(1)" in file.read_text()


def test_fault_20_byte_order_mark(tmp_path):
    file = write_csv(tmp_path, "a.png,x,P,train\n", encoding="utf-8-sig")
    assert read_cohort(file).rows == (Row(path="a.png", label="x", patient_id="P", split="train"),)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_semicolons_and_tabs_separate_where_the_header_has_no_comma(tmp_path, separator):
    file = write_csv(tmp_path, "a.png|x, y|P|train\n".replace("|", separator), header=HEADER.replace(",", separator))
    assert read_cohort(file).rows == (Row(path="a.png", label="x, y", patient_id="P", split="train"),)
    assert read_columns(file) == ["path", "label", "patient_id", "split"]


@pytest.mark.parametrize("again", ["a.png", "./a.png", "b//../a.png"])
def test_fault_20_duplicate_rows(tmp_path, again):
    with pytest.raises(DataError, match=r"twice|'\.\.'"):
        read_cohort(write_csv(tmp_path, f"a.png,x,P,train\n{again},x,P,train\n"))


def test_fault_21_patient_in_two_splits_is_named(tmp_path):
    file = write_csv(tmp_path, 'a.png,x,Jane,train\nb.png,y,"Jane ",test\n')
    with pytest.raises(DataError, match=r"patient 'Jane' in train and test"):
        read_cohort(file)
    rows = tuple(Row(path=f"{split}.png", label="x", patient_id="Jane", split=split) for split in ("val", "test"))
    with pytest.raises(DataError, match="Jane"):
        write_cohort(Cohort(folder=tmp_path, rows=rows), tmp_path / "new.csv")
    assert not (tmp_path / "new.csv").exists()


@pytest.mark.parametrize(
    ("header", "body", "words"),
    [
        ("path,label,split\n", "a.png,x,train\n", ["patient_id", "path, label, split"]),
        (HEADER, "a.png,,P,train\n", ["label"]),
        (HEADER, "a.png,x, ,train\n", ["patient_id"]),
        (HEADER, ",x,P,train\n", ["path"]),
        (HEADER, "a.png,x,P,training\n", ["'training'"]),
        (HEADER, "a.png,x,P\n", ["line 2", "4 cells", "got 3"]),
        (HEADER, "", ["at least one row", "a header only"]),
        ("", "", ["at least one row", "an empty file"]),
        ("path,label,patient_id,split,root\n", "a.png,x,P,train,lost\n", ["'lost'", "cohort.yaml"]),
        ("path,label,patient_id,split,label\n", "a.png,x,P,train,y\n", ["'label' twice"]),
    ],
)
def test_what_is_refused(tmp_path, header, body, words):
    with pytest.raises(DataError) as caught:
        read_cohort(write_csv(tmp_path, body, header=header))
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["roots: [a]", "root: {a: b}", "roots: {a: 1}", "{", "!!python/object/apply:os.system [ls]"]
)
def test_a_bad_yaml_is_refused(tmp_path, text):
    (tmp_path / "cohort.yaml").write_text(text)
    with pytest.raises(DataError, match=r"cohort\.yaml"):
        read_cohort(write_csv(tmp_path, "a.png,x,P,train\n"))


def test_files_that_are_no_cohort(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: need a CSV file, got nothing there"):
        read_cohort(tmp_path / "none.csv")
    with pytest.raises(DataError, match="UTF-8"):
        read_cohort(write_csv(tmp_path, "ä.png,x,P,train\n", encoding="latin-1"))


def test_a_missing_scan_is_refused_when_its_file_is_asked_for(tmp_path):
    cohort = read_cohort(write_csv(tmp_path, "a.png,x,P,train\n"))
    with pytest.raises(DataError, match=r"a\.png.*existing file"):
        cohort.file_of(cohort.rows[0])
