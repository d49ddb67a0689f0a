from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsynth.cohorts import index, index_scans, read_cohort
from medsynth.cohorts.index import measure_quality
from medsynth.config import ColumnOptions, IndexOptions
from medsynth.errors import ConfigError, DataError
from medsynth.scans import Scan

COUNTS = {"normal": 20, "flu": 6, "rare": 4}


def run(scans: Path, **options):
    return index_scans(
        IndexOptions(**{"scans": scans, "out": scans.parent / "cohort.csv", "progress": False, **options})
    )


def write_labels(scans: Path, lines: list[str], header: str = "path,label,patient_id,split") -> Path:
    file = scans.parent / "labels.csv"
    file.write_text("\n".join([header, *lines]) + "\n")
    return file


def written(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {"scans", "labels.csv"}


def read_quality(folder: Path) -> list[dict[str, str]]:
    with (folder / "cohort_quality.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_folders_are_labels_and_the_split_is_by_patient(image_folder):
    scans = image_folder(COUNTS, scans=2)
    (scans / ".hidden").mkdir()
    (scans / ".hidden/x.png").write_bytes(b"")
    (scans / "normal/notes.txt").touch()
    result = run(scans, patient_pattern=r"/([a-z]+\d+)_")
    assert result.cohort == read_cohort(result.path)
    assert [row.path for row in result.cohort.rows] == sorted(row.path for row in result.cohort.rows)
    assert all(row.path.startswith(f"scans/{row.label}/{row.patient_id}_") for row in result.cohort.rows)
    splits = defaultdict(set)
    for row in result.cohort.rows:
        splits[row.patient_id].add(row.split)
    assert len(splits) == sum(COUNTS.values())
    assert all(len(found) == 1 for found in splits.values())
    assert result.cohort.counts() == {
        "flu": {"train": (8, 4), "val": (2, 1), "test": (2, 1)},
        "normal": {"train": (28, 14), "val": (6, 3), "test": (6, 3)},
        "rare": {"train": (4, 2), "val": (2, 1), "test": (2, 1)},
    }
    assert written(scans.parent) == {"cohort.csv", "cohort_quality.csv"}


def test_the_same_seed_gives_the_same_files(image_folder):
    scans = image_folder(COUNTS)
    first = run(scans).path.read_bytes()
    assert run(scans).path.read_bytes() == first
    assert run(scans, seed=1).path.read_bytes() != first


def test_without_patients_every_scan_counts_as_one_and_a_note_says_so(image_folder):
    result = run(image_folder(COUNTS))
    assert len({row.patient_id for row in result.cohort.rows}) == 30
    assert any("30 scans have no patient" in note for note in result.notes)
    assert not any("no patient" in note for note in run(image_folder(COUNTS), patient_pattern=r"(\w+)_0").notes)


def test_scans_elsewhere_get_a_root(image_folder, tmp_path):
    scans = image_folder(COUNTS)
    result = run(scans, out=tmp_path / "a/b/cohort.csv")
    assert {row.root for row in result.cohort.rows} == {"scans"}
    cohort = read_cohort(result.path)
    assert all(cohort.file_of(row).is_file() for row in cohort.rows)
    other = tmp_path / "other"
    scans.rename(other)
    again = run(other, out=tmp_path / "a/b/second.csv")
    assert {row.root for row in again.cohort.rows} == {"scans2"}
    assert again.cohort.file_of(again.cohort.rows[0]).is_file()


def test_labels_are_joined_with_columns_mapped(image_folder):
    scans = image_folder({"x": 6})
    mask = scans.parent / "masks/m.png"
    mask.parent.mkdir()
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(mask)
    lines = [f"scans/x/x{n}_0.png,{'ab'[n % 2]},Q{n},{9.5 + n},masks/m.png,old" for n in (4, 0, 1, 2, 3)]
    labels = write_labels(scans, lines, "file,finding,person,diameter_mm,mask,label")
    columns = ColumnOptions(path="file", label="finding", patient="person")
    result = run(scans, labels=labels, columns=columns, split=(1.0, 0.0, 0.0))
    row = result.cohort.rows[0]
    assert (row.path, row.label, row.patient_id, row.split) == ("scans/x/x4_0.png", "a", "Q4", "train")
    assert row.attributes == {"diameter_mm": "13.5", "original_label": "old"}
    assert result.cohort.mask_of(row) == mask
    assert any("1 scans below the scans folder have no row" in note for note in result.notes)
    few = ColumnOptions(path="file", label="finding", patient="person", attributes=("diameter_mm",))
    assert run(scans, labels=labels, columns=few, split=(1.0, 0.0, 0.0)).cohort.rows[0].attributes == {
        "diameter_mm": "13.5"
    }
    with pytest.raises(DataError, match=r"'klass'.*finding"):
        run(scans, labels=labels, columns=ColumnOptions(path="file", label="klass"))
    with pytest.raises(DataError, match="'who'"):
        run(scans, labels=labels, columns=ColumnOptions(path="file", label="finding", patient="who"))


def test_paths_may_be_relative_to_the_scans_folder_and_splits_given(image_folder):
    scans = image_folder({"x": 5})
    splits = ["train", "train", "val", "test", "train"]
    labels = write_labels(scans, [f"x/x{n}_0.png,a,P{n},{split}" for n, split in enumerate(splits)])
    assert [row.split for row in run(scans, labels=labels).cohort.rows] == splits


def test_keep_through_the_index(image_folder):
    scans = image_folder({"normal": 20, "rare": 20}, scans=2)
    pattern = r"/([a-z]+\d+)_"
    full = run(scans, patient_pattern=pattern).cohort.counts()
    kept = run(scans, patient_pattern=pattern, keep=["rare=5/2"]).cohort.counts()
    assert kept["normal"] == full["normal"]
    assert kept["rare"] == {"train": (10, 5), "val": (4, 2), "test": full["rare"]["test"]}


def test_merged_labels_are_one_class_and_stay_known(image_folder):
    scans = image_folder({"solid": 12, "part_solid": 6, "ground_glass": 6})
    result = run(scans, merge=["subsolid = part_solid+ground_glass"], keep=["subsolid=5/1"])
    assert set(result.cohort.counts()) == {"solid", "subsolid"}
    assert result.cohort.counts()["subsolid"]["train"][1] == 5
    sublabels = {(row.label, row.attributes.get("sublabel")) for row in result.cohort.rows}
    assert sublabels == {("solid", None), ("subsolid", "part_solid"), ("subsolid", "ground_glass")}


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ("x+y", r"need CLASS=LABEL\+LABEL, got 'x\+y'"),
        ("=x", "need CLASS=LABEL"),
        ("a=x+", "need CLASS=LABEL"),
        ("a=z", "got 'z'; try one of x, y"),
        ("a=x+x", "got 'x' twice"),
        ("a=x b=x", "got 'x' twice"),
    ],
)
def test_labels_to_merge_are_checked_before_a_scan_is_read(image_folder, monkeypatch, merge, message):
    scans = image_folder({"x": 4, "y": 4})
    monkeypatch.setattr(index, "examine_scans", None)
    with pytest.raises(ConfigError, match=message):
        run(scans, merge=merge.split(" "))


def test_medmnist_items_bring_labels_and_splits(tmp_path):
    (tmp_path / "scans").mkdir()
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, size=(count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 2
    np.savez(tmp_path / "scans/set.npz", **arrays)
    result = run(tmp_path / "scans")
    assert Counter((row.label, row.split) for row in result.cohort.rows) == {
        ("0", "train"): 3,
        ("1", "train"): 3,
        ("0", "val"): 1,
        ("1", "val"): 1,
        ("0", "test"): 2,
        ("1", "test"): 1,
    }
    row = read_cohort(result.path).rows[7]
    assert (row.path, row.label, row.split) == ("scans/set.npz#val/1", "1", "val")


def test_every_scan_is_read_once(image_folder, monkeypatch):
    scans = image_folder(COUNTS)
    read: list[str] = []
    original = index.read_scan
    monkeypatch.setattr(index, "read_scan", lambda path, **options: read.append(str(path)) or original(path, **options))
    run(scans)
    assert len(read) == len(set(read)) == 30


def test_quality_facts(image_folder):
    scans = image_folder({"a": 4})
    pixels = np.full((10, 10), 5, dtype=np.uint8)
    Image.fromarray(pixels).save(scans / "a/constant.png")
    pixels[3, 3] = 105
    Image.fromarray(pixels).save(scans / "a/dot.png")
    result = run(scans)
    by_path = {facts["path"]: facts for facts in read_quality(scans.parent)}
    dot = by_path["scans/a/dot.png"]
    assert (dot["shape"], dot["spacing"], dot["dtype"], dot["flags"]) == ("1x10x10", "1x1", "uint8", "near_empty")
    assert [float(dot[name]) for name in ("minimum", "maximum", "mean", "std")] == pytest.approx(
        [5, 105, pixels.mean(), pixels.std()], rel=1e-5
    )
    assert by_path["scans/a/constant.png"]["flags"] == "constant"
    assert [facts["flags"] for facts in by_path.values()].count("") == 4
    assert "constant (1), near_empty (1)" in result.summary()


def test_near_empty_is_99_percent_within_1_percent():
    array = np.zeros((1, 10, 100))
    array[0, 0, :10] = 1000
    array[0, 1] = 10
    assert measure_quality(Scan(array=array), name="x").flags == ("near_empty",)
    array[0, 0, 10] = 11
    assert measure_quality(Scan(array=array), name="x").flags == ()


def test_unreadable_scans_are_refused_or_left_out(image_folder):
    scans = image_folder(COUNTS)
    for name in ("normal/normal3_0.png", "normal/normal7_0.png"):
        (scans / name).write_bytes((scans / name).read_bytes()[:50])
    with pytest.raises(
        DataError, match=r"normal3_0\.png.*2 of 30 scans cannot be read; `medsynth index --skip_bad true`"
    ) as caught:
        run(scans)
    assert "\n" not in str(caught.value)
    assert written(scans.parent) == set()
    result = run(scans, skip_bad=True)
    assert len(result.cohort.rows) == 28
    bad = [facts["path"] for facts in read_quality(scans.parent) if facts["flags"] == "unreadable"]
    assert bad == ["normal/normal3_0.png", "normal/normal7_0.png"]
    assert any("2 scans are missing or unreadable" in note for note in result.notes)


def test_over_budget_scans_are_refused(image_folder):
    scans = image_folder({"a": 3}, shape=(1100, 1100))
    with pytest.raises(DataError, match=r"\(3 of 3 scans cannot be read\)$"):
        run(scans, max_mib=1)


def test_scans_that_the_labels_name_in_vain(image_folder):
    scans = image_folder({"x": 4})
    labels = write_labels(scans, [f"x/x{n}_0.png,a,P{n},train" for n in range(5)])
    with pytest.raises(DataError, match=r"x4_0\.png.*1 of 5"):
        run(scans, labels=labels)
    assert len(run(scans, labels=labels, skip_bad=True).cohort.rows) == 4


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "link/secret.png"])
def test_fault_18_labels_cannot_leave_the_scans_folder(image_folder, tmp_path, path):
    scans = image_folder({"x": 4})
    (tmp_path / "outside").mkdir()
    labels = write_labels(scans, [f"{path},a,P,train"])
    if path.startswith("link"):
        (scans / "link").symlink_to("/etc")
    with pytest.raises(DataError, match="leave"):
        run(scans, labels=labels)


def test_fault_18_a_linked_scan_from_elsewhere_is_refused(image_folder, tmp_path):
    scans = image_folder({"x": 4})
    (scans / "x/x0_0.png").rename(tmp_path / "elsewhere.png")
    (scans / "x/x0_0.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match="symbolic link"):
        run(scans)


def test_fault_20_a_scan_listed_twice(image_folder):
    scans = image_folder({"x": 4})
    labels = write_labels(scans, ["x/x0_0.png,a,P,train", "scans/x/x0_0.png,a,P,train"])
    with pytest.raises(DataError, match="twice"):
        run(scans, labels=labels)


def test_fault_21_given_splits_that_cut_a_patient(image_folder, monkeypatch):
    scans = image_folder({"x": 4})
    labels = write_labels(scans, [f"x/x{n}_0.png,a,Jane,{split}" for n, split in enumerate(["train", "test"])])
    monkeypatch.setattr(index, "examine_scans", None)  # refused before a scan is read
    with pytest.raises(DataError, match="'Jane' in train and test"):
        run(scans, labels=labels)
    assert written(scans.parent) == set()


def duplicate_labels(scans: Path, splits: str) -> Path:
    """Give eight scans the splits t/v/e; scan 5 gets the pixels of scan 0, whose patient is another."""
    (scans / "x/x5_0.png").write_bytes((scans / "x/x0_0.png").read_bytes())
    names = {"t": "train", "v": "val", "e": "test"}
    return write_labels(scans, [f"x/x{n}_0.png,a,P{n},{names[split]}" for n, split in enumerate(splits)])


def test_fault_22_equal_pixels_under_two_patients_are_flagged(image_folder):
    scans = image_folder({"x": 8})
    result = run(scans, labels=duplicate_labels(scans, "tttttttt"))
    facts = read_quality(scans.parent)[5]
    assert (facts["flags"], facts["duplicate_of"]) == ("duplicate_patients", "scans/x/x0_0.png")
    assert any("1 scans have the pixels of another patient" in note for note in result.notes)
    assert len(result.cohort.rows) == 8


def test_fault_22_equal_pixels_in_two_splits_are_refused_or_dropped(image_folder):
    scans = image_folder({"x": 8})
    labels = duplicate_labels(scans, "tttttvve")
    with pytest.raises(DataError, match=r"x5_0\.png.*x0_0\.png"):
        run(scans, labels=labels)
    assert written(scans.parent) == set()
    result = run(scans, labels=labels, skip_bad=True)
    assert [row.patient_id for row in result.cohort.rows] == ["P0", "P1", "P2", "P3", "P4", "P6", "P7"]
    dropped = read_quality(scans.parent)[-1]
    assert (dropped["path"], dropped["flags"]) == ("scans/x/x5_0.png", "duplicate_patients dropped")


def test_duplicates_within_a_patient_are_flagged(image_folder):
    scans = image_folder({"x": 5}, scans=2)
    (scans / "x/x3_1.png").write_bytes((scans / "x/x3_0.png").read_bytes())
    run(scans, patient_pattern=r"(x\d)_")
    flags = {facts["path"]: facts["flags"] for facts in read_quality(scans.parent) if facts["flags"]}
    assert flags == {"scans/x/x3_1.png": "duplicate"}


def test_fault_23_classes_with_no_or_one_training_scan(image_folder):
    scans = image_folder({"normal": 8, "single": 1})
    with pytest.raises(DataError, match=r"'single': need at least 2 training scans, got 1.*--allow_tiny true"):
        run(scans)
    assert written(scans.parent) == set()
    result = run(scans, allow_tiny=True)
    assert any("'single' has 1 training scan" in note for note in result.notes)
    assert any("'single' has no scans in test" in note for note in result.notes)
    with pytest.raises(DataError, match="got 0"):
        run(scans, keep=["normal=0/1"])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"patient_pattern": "(a"}, "regular expression"),
        ({"patient_pattern": "a"}, "one group"),
        ({"split": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"keep": ["x"]}, "need LABEL=TRAIN/VAL"),
        ({"keep": ["y=1/1"]}, "'y'"),
        ({"out": Path("/tmp")}, "csv"),
    ],
)
def test_wrong_options(image_folder, options, word):
    with pytest.raises(ConfigError, match=word):
        run(image_folder({"x": 8}), **options)


def test_a_folder_that_cannot_be_written(image_folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out"):
        run(image_folder({"x": 8}), out=tmp_path / "file/cohort.csv")


def test_what_cannot_be_indexed(image_folder, tmp_path):
    with pytest.raises(DataError, match="need a folder"):
        run(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"\.png"):
        run(tmp_path / "empty")
    scans = image_folder({"x": 3})
    with pytest.raises(DataError, match=r"x0_0\.png: need a patient"):
        run(scans, patient_pattern=r"(IM-\d+)")
    with pytest.raises(DataError, match="need a split for all"):
        run(scans, labels=write_labels(scans, ["x/x0_0.png,a,P,train", "x/x1_0.png,a,Q,"]))
    (scans / "x/x0_0.png").rename(scans / "x0_0.png")
    with pytest.raises(DataError, match="need a label"):
        run(scans)


def test_summary_shows_scans_and_patients(image_folder):
    text = run(image_folder({"a": 6, "b": 4}, scans=2), patient_pattern=r"(\w+)_\d").summary()
    assert [line.split() for line in text.splitlines()[:3]] == [
        ["class", "train", "val", "test"],
        ["a", "8", "(4)", "2", "(1)", "2", "(1)"],
        ["b", "4", "(2)", "2", "(1)", "2", "(1)"],
    ]
    assert "sizes: 16x16 (20); pixel types: uint8 (20)" in text


def test_summary_ends_with_what_was_written(image_folder):
    scans = image_folder({"a": 6})
    result = run(scans, out=scans.parent / "mine.csv")
    assert result.quality_path.is_file()
    folder = result.path.parent
    assert result.summary().splitlines()[-3:] == [
        f"cohort: {folder / 'mine.csv'}",
        f"quality table: {folder / 'mine_quality.csv'}",
        f"next: medsynth train --cohort {folder / 'mine.csv'} --out run",
    ]


@pytest.mark.parametrize("name", ["labels.csv", "labels_quality.csv"])
def test_the_labels_are_not_written_over(image_folder, name):
    scans = image_folder({"x": 8})
    labels = write_labels(scans, [f"x/x{n}_0.png,a,P{n},train" for n in range(8)])
    labels = labels.rename(labels.with_name(name))
    content = labels.read_bytes()
    with pytest.raises(ConfigError, match=f"{name}: need another file .*--out"):
        run(scans, labels=labels, out=scans.parent / "labels.csv")
    assert labels.read_bytes() == content


@pytest.mark.parametrize("name", ["cohort.csv", "cohort_quality.csv"])
def test_only_a_cohort_is_written_over(image_folder, name):
    scans = image_folder({"x": 8})
    (scans.parent / name).write_text("patient,budget\n1,2\n")
    with pytest.raises(ConfigError, match=f"{name}: need a new file .*--out"):
        run(scans)
    (scans.parent / name).write_text("")  # nothing to lose
    run(scans)
    run(scans, seed=1)  # a cohort takes the place of a cohort


def test_mixed_pixel_types_and_formats_are_noted(image_folder):
    scans = image_folder({"a": 6})
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 4000, size=(16, 16), dtype=np.uint16)
        Image.fromarray(pixels).save(scans / f"a/deep{number}.png")
    np.savez(scans / "a/plain.npz", image=np.random.default_rng(9).integers(0, 255, (16, 16), dtype=np.uint8))
    result = run(scans)
    assert "mixed pixel types: uint8 (7), uint16 (4): one intensity range may not suit both" in result.notes
    assert any(note.startswith("mixed file formats: .png (10), .npz (1)") for note in result.notes)
    assert "pixel types: uint8 (7), uint16 (4)" in result.summary()


@pytest.mark.parametrize(
    ("shape", "words"), [((4, 16, 16), "3D with 1 channel;"), ((3, 16, 16), "2D with 3 channels;")]
)
def test_mixed_axes_or_channels_are_refused(image_folder, shape, words):
    scans = image_folder({"a": 6})
    array = np.random.default_rng(0).integers(0, 255, size=shape, dtype=np.uint8)
    np.savez(scans / "a/other.npz", image=array, **({"channels": 3} if len(array) == 3 else {}))
    for skip_bad in (False, True):
        with pytest.raises(
            DataError, match=rf"a/other.*6 in 2D with 1 channel and 1 in {words} try indexing them separately"
        ):
            run(scans, skip_bad=skip_bad)
    assert written(scans.parent) == set()


def test_a_label_to_keep_is_checked_before_a_scan_is_read(image_folder, monkeypatch):
    scans = image_folder({"x": 4})
    monkeypatch.setattr(index, "examine_scans", None)
    with pytest.raises(ConfigError, match=r"got 'rare'; try one of x"):
        run(scans, keep=[" rare = 2/1 "])
