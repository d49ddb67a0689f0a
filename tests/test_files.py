"""Files are whole or absent, and any label has a safe folder."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.files import atomic_path, folder_label, label_folder, user_folder, write_bytes, write_json, write_text

RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
NASTY = ["../../x", "CON", "con", "nul.txt", "LPT1", "", ".", "..", "/", "\\", "a/b", "C:\\x", "😀" * 25, "x" * 300]
NASTY += [
    "%",
    "%2F",
    "+",
    "a+/b",
    "x" * 100,
    "x" * 99 + "é",
    "-",
    "--help",
    "~",
    "a\0b",
    "trailing. ",
    "*?<>|:\"'",
    "ﬁ",
]


def check_folder(label: str) -> None:
    folder = label_folder(label)
    assert folder_label(folder) == label
    for segment in folder.split("/"):
        assert re.fullmatch(r"[A-Za-z0-9_%+-]+", segment), segment
        assert len(segment) <= 103
        assert not RESERVED.fullmatch(segment), segment


@pytest.mark.parametrize("label", NASTY)
def test_fault_19_nasty_labels_have_safe_reversible_folders(tmp_path: Path, label: str) -> None:
    check_folder(label)
    target = tmp_path / "out" / label_folder(label)
    target.mkdir(parents=True)
    assert target.resolve().is_relative_to((tmp_path / "out").resolve())
    assert folder_label(target.relative_to(tmp_path / "out").as_posix()) == label


@settings(max_examples=500, deadline=None)
@given(st.text())
def test_fault_19_any_label_has_a_safe_reversible_folder(label: str) -> None:
    check_folder(label)


def test_fault_19_no_later_segment_of_a_long_label_is_a_reserved_name() -> None:
    check_folder("x" * 100 + "con")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=8), unique=True, min_size=2))
def test_different_labels_have_different_folders(labels: list[str]) -> None:
    assert len({label_folder(label) for label in labels}) == len(labels)


def test_plain_labels_stay_readable() -> None:
    assert label_folder("viral_pneumonia") == "viral_pneumonia"
    assert label_folder("Ground-Glass2") == "Ground-Glass2"


def test_atomic_path_writes_a_whole_file_into_a_new_folder(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"content")
        assert not target.exists()
    assert target.read_bytes() == b"content"
    assert os.listdir(target.parent) == ["file.nii.gz"]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_atomic_path_after_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error("stop")

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_atomic_path_takes_long_and_foreign_names(tmp_path: Path) -> None:
    for name in ("x" * 200 + ".png", "é" * 100 + ".png", "😀" * 50):
        write_bytes(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"


def test_text_is_utf8_and_json_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"
    write_json(tmp_path / "a.json", {"ключ": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ключ": [1, 2.5, None]}
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")
    before = (tmp_path / "a.json").read_bytes()
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            write_json(tmp_path / "a.json", {"x": value})
    assert (tmp_path / "a.json").read_bytes() == before


def test_the_users_own_folder_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = user_folder("cache")
    assert (folder, folder.stat().st_mode & 0o777) == (tmp_path / "cache/medsynth", 0o700)
    folder.chmod(0o755)
    assert user_folder("cache").stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # to be ignored, says the XDG specification
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_folder("data") == tmp_path / ".local/share/medsynth"
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(OSError, match="a folder of another user"):
        user_folder("cache")
