"""Answers that come back as CSV are read with care."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsynth.errors import DataError
from medsynth.evaluation.reader.answers import Answer, read_answers
from tests.evaluation.reader.made import study_key

KEY = study_key("rsrs", "iwwi")
HEADER = "study,case,reader,answer,class,confidence,seconds"
STUDY = KEY.study


def csv(folder: Path, *rows: str, name: str = "a.csv", header: str = HEADER) -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_answers_are_read_with_what_was_left_open(tmp_path):
    path = csv(tmp_path, f"{STUDY},2,AB,real,ill,4,12", f"{STUDY},1,Ä.b-1_x,synthetic,,,")
    assert read_answers([path], KEY) == [
        Answer(reader="AB", case=2, answer="real", label="ill", confidence=4, seconds=12.0),
        Answer(reader="Ä.b-1_x", case=1, answer="synthetic", label=None, confidence=None, seconds=None),
    ]


def test_what_spreadsheets_do_to_a_file_is_borne(tmp_path):
    path = tmp_path / "excel.csv"
    text = "\r\n".join([HEADER.replace(",", ";"), f"{STUDY};1;AB;real;ill;5;7,5".replace("7,5", "7"), ";;;;;;"])
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [answer.case for answer in read_answers([path], KEY)] == [1]
    reordered = csv(
        tmp_path, f"1,real,{STUDY},AB,,,,note", header="case,answer,study,reader,class,confidence,seconds,x"
    )
    assert read_answers([reordered], KEY)[0].answer == "real"


def test_labels_with_commas_and_quotes_survive(tmp_path):
    key = study_key("rs", "aa", classes=('a, "b"\nc', "well"))
    path = csv(tmp_path, f'{STUDY},1,AB,real,"a, ""b""\nc",,')
    assert read_answers([path], key)[0].label == 'a, "b"\nc'


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("fedcba9876543210,1,AB,real,ill,1,1", f"need answers to the study {STUDY}, got 'fedcba9876543210'"),
        (f"{STUDY},0,AB,real,ill,1,1", "need a case from 1 to 4, got '0'"),
        (f"{STUDY},5,AB,real,ill,1,1", "need a case from 1 to 4, got '5'"),
        (f"{STUDY},1.0,AB,real,ill,1,1", "need a case from 1 to 4, got '1.0'"),
        (f"{STUDY},²,AB,real,ill,1,1", "need a case from 1 to 4, got '²'"),
        (f"{STUDY},{'9' * 5000},AB,real,ill,1,1", "need a case from 1 to 4, got '9{39}…'"),
        (f"{STUDY},1,,real,ill,1,1", "need a reader's pseudonym of up to 20"),
        (f"{STUDY},1,Jane Doe,real,ill,1,1", "need a reader's pseudonym .* got 'Jane Doe'"),
        (f"{STUDY},1,=cmd(),real,ill,1,1", "need a reader's pseudonym"),
        (f"{STUDY},1,{'x' * 21},real,ill,1,1", "need a reader's pseudonym"),
        (f"{STUDY},1,AB,Real,ill,1,1", "need the answer real or synthetic, got 'Real'"),
        (f"{STUDY},1,AB,,ill,1,1", "need the answer real or synthetic, got ''"),
        (f"{STUDY},1,AB,real,sick,1,1", r"need a class \(ill, well\) or none, got 'sick'"),
        (f"{STUDY},1,AB,real,ill,6,1", "need a confidence from 1 to 5 or none, got '6'"),
        (f"{STUDY},1,AB,real,ill,1,-3", "need seconds as a number or nothing, got '-3'"),
        (f"{STUDY},1,AB,real,ill,1,nan", "need seconds as a number"),
        (f"{STUDY},1,AB,real,ill,1,1e99", "need seconds as a number"),
        (f"{STUDY},1,AB,real,ill,1", "need 7 cells in line 3"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, words):
    path = csv(tmp_path, f"{STUDY},2,AB,real,ill,4,12", row)
    with pytest.raises(DataError, match=words) as raised:
        read_answers([path], KEY)
    if "cells" not in words:
        assert str(raised.value).startswith(f"{path}: row 3: need")
    assert len(str(raised.value)) < 400


def test_a_second_answer_to_a_case_is_refused_also_in_another_file(tmp_path):
    one = csv(tmp_path, f"{STUDY},1,AB,real,ill,1,1", f"{STUDY},2,AB,real,ill,1,1")
    two = csv(tmp_path, f"{STUDY},1,CD,real,ill,1,1", f"{STUDY},2,AB,synthetic,ill,1,1", name="b.csv")
    with pytest.raises(DataError, match=r"b.csv: row 3: need one answer .* 'AB' on case 2 again \(\S+a.csv: row 3\)"):
        read_answers([one, two], KEY)
    with pytest.raises(DataError, match=r"a.csv: row 2: need one answer"):
        read_answers([one, one], KEY)


def test_what_is_no_such_table_is_refused(tmp_path):
    for column in HEADER.split(","):
        header = HEADER.replace(column, "other")
        with pytest.raises(DataError, match=f"a.csv: need the column '{column}'"):
            read_answers([csv(tmp_path, "1,2,3,4,5,6,7", header=header)], KEY)
    with pytest.raises(DataError, match=r"none.csv: need a CSV file, got nothing there"):
        read_answers([tmp_path / "none.csv"], KEY)
    with pytest.raises(DataError, match="a header only"):
        read_answers([csv(tmp_path)], KEY)
    large = tmp_path / "large.csv"
    large.write_text(HEADER + "\n" + "x" * 2**22)
    with pytest.raises(DataError, match="need answers of at most 4194304 bytes"):
        read_answers([large], KEY)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="need a CSV in UTF-8"):
        read_answers([binary], KEY)
