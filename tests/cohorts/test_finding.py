"""What folders say: classes, splits, and what lies beside the scans."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medsynth.cohorts import index, index_scans
from medsynth.cohorts.finding import FoundScan, compile_pattern, find_patients
from medsynth.config import IndexOptions
from medsynth.errors import ConfigError, DataError
from tests.cohorts.conftest import noise_image, write_png


def run(scans: Path, **options):
    return index_scans(
        IndexOptions(**{"scans": scans, "out": scans.parent / "cohort.csv", "progress": False, **options})
    )


def write_folders(scans: Path, counts: dict[str, int]) -> Path:
    """Write so many pictures into each folder below `scans`."""
    number = 0
    for folder, count in counts.items():
        for _ in range(count):
            write_png(scans / folder / f"s{number}.png", noise_image(number))
            number += 1
    return scans


@pytest.fixture
def unread(monkeypatch):
    """Fail where a scan's pixels would be read: what is refused is refused before."""
    monkeypatch.setattr(index, "examine_scans", None)


def test_split_folders_give_the_split_and_the_folders_in_them_the_class(tmp_path):
    scans = write_folders(
        tmp_path / "scans", {"Train/a": 3, "Train/b": 2, "valid/a": 1, "valid/b": 1, "TEST/a": 1, "TEST/b": 2}
    )
    result = run(scans)
    assert Counter((row.label, row.split) for row in result.cohort.rows) == {
        ("a", "train"): 3,
        ("b", "train"): 2,
        ("a", "val"): 1,
        ("b", "val"): 1,
        ("a", "test"): 1,
        ("b", "test"): 2,
    }
    assert any("the folders TEST, Train, valid are splits" in note for note in result.notes)


def test_split_folders_without_classes_are_refused(tmp_path, unread):
    scans = write_folders(tmp_path / "scans", {"train": 3, "test/a": 3})
    with pytest.raises(DataError, match=r"train/s0\.png: need a label, got no class folder in 'train'"):
        run(scans)


def test_a_split_word_beside_classes_is_a_class_with_a_note(tmp_path):
    result = run(write_folders(tmp_path / "scans", {"a": 4, "test": 4}))
    assert result.cohort.classes == ("a", "test")
    assert any("also 'test'" in note for note in result.notes)


@pytest.mark.parametrize("folders", [("images", "masks"), ("Images", "LABELS"), ("images", "train"), ("scans",)])
def test_folders_that_are_no_classes_are_refused(tmp_path, unread, folders):
    scans = write_folders(tmp_path / "set", dict.fromkeys(folders, 4))
    listed = ", ".join(map(repr, sorted(folders)))
    with pytest.raises(DataError, match=f"need a folder for each class, got {listed}; try --labels with a CSV"):
        run(scans)
    (scans / "labels.csv").write_text("path,label\n")
    with pytest.raises(DataError, match=f"try --labels {scans / 'labels.csv'}"):
        run(scans)


def test_classes_below_the_folder_of_images_are_named(tmp_path, unread):
    scans = write_folders(tmp_path / "set", {"images/a": 4, "images/b": 4, "masks/a": 4})
    with pytest.raises(DataError, match=f"try --scans {scans / 'images'}"):
        run(scans)


def test_one_folder_of_folders_is_one_class_with_a_note(tmp_path):
    scans = write_folders(tmp_path / "set", {"chest/a": 4, "chest/b": 4})
    assert any(f"try --scans {scans / 'chest'}" in note for note in run(scans).notes)
    assert not any("--scans" in note for note in run(scans / "chest").notes)


def test_a_csv_among_class_folders_is_named(tmp_path):
    scans = write_folders(tmp_path / "scans", {"a": 4, "b": 4})
    own = scans / "cohort.csv"
    assert not any("not used" in note for note in run(scans, out=own).notes + run(scans, out=own).notes)
    (scans / "findings.csv").write_text("image;finding\n")
    assert any(f"try --labels {scans / 'findings.csv'}" in note for note in run(scans, out=own).notes)


def test_scans_in_no_folder_name_the_csv_beside_them(tmp_path, unread):
    scans = write_folders(tmp_path / "scans", {"": 3})
    (scans / "meta.csv").write_text("path,label\n")
    with pytest.raises(DataError, match=r"s0\.png: need a label, got a scan in no folder; try --labels .*meta\.csv"):
        run(scans)


def test_files_of_other_formats_are_counted(tmp_path):
    scans = write_folders(tmp_path / "scans", {"a": 6})
    for name in ("x.jpg", "y.JPG", "z.tif", "IM0001", ".hidden.jpg", "notes.txt", "labels.csv"):
        (scans / "a" / name).touch()
    note = "4 files in formats that medsynth does not read: .jpg (2), without suffix (1), .tif (1)"
    assert note in run(scans).notes
    for file in scans.rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"need files ending in \.png.*got \.jpg \(2\), .*\.csv \(1\)"):
        run(scans)


def test_linked_folders_are_counted(tmp_path):
    scans = write_folders(tmp_path / "scans", {"a": 6})
    (tmp_path / "far").mkdir()
    (scans / "b").symlink_to(tmp_path / "far")
    assert any(note.startswith("1 linked folders below") for note in run(scans).notes)
    for file in scans.rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match="1 linked folders"):
        run(scans)


def test_a_file_as_scans_folder(tmp_path):
    (tmp_path / "set.npz").touch()
    with pytest.raises(DataError, match=f"got a file; try its folder, {tmp_path}"):
        run(tmp_path / "set.npz")


def write_collection(folder: Path, *, shape: tuple[int, ...] = (8, 8), labels: tuple[int, ...] | None = (1,)) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    arrays = {"train_images": random.integers(0, 256, size=(6, *shape), dtype=np.uint8)}
    if labels is not None:
        arrays["train_labels"] = random.integers(0, 2, size=(6, *labels))
    np.savez(folder / "set.npz", **arrays)
    return folder


@pytest.mark.parametrize("below", ["", "chest"])
def test_several_labels_a_scan_are_not_supported(tmp_path, unread, below):
    write_collection(tmp_path / "scans" / below, labels=(14,))
    with pytest.raises(DataError, match=r"set\.npz: need one label for each scan, got several"):
        run(tmp_path / "scans")


def test_items_without_labels_take_the_folder(tmp_path):
    write_collection(tmp_path / "scans/chest", labels=None)
    assert run(tmp_path / "scans").cohort.classes == ("chest",)
    with pytest.raises(DataError, match=r"set\.npz: need a label for each scan, got no arrays like train_labels"):
        run(tmp_path / "scans/chest")


def test_collections_in_colour_are_not_supported(tmp_path):
    write_collection(tmp_path / "scans", shape=(8, 8, 3))
    with pytest.raises(DataError, match="colour") as caught:
        run(tmp_path / "scans")
    assert "#train/0" not in str(caught.value)


def test_a_pattern_that_would_search_for_ages_is_refused():
    """It tries out the 2 ** 60 ways to divide the name; whoever started a timer of their own keeps it."""
    scan = FoundScan(file=Path("x"), name="a" * 60)
    before = signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        with pytest.raises(ConfigError, match="patient_pattern: need one that finds a patient within 2 s, got "):
            find_patients([scan], compile_pattern("((?:a+)+)!"), [])
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 400
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
    assert find_patients([scan], compile_pattern("(a+)"), [])[0].patient == "a" * 60
