"""Near-duplicates: planted ones are found, different scans are left alone, linked patients share a split."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks.near_duplicates import KINDS, plant
from medsynth.cohorts import index_scans, near
from medsynth.cohorts.near import NearPair, find_near_duplicates, link_patients, shrink_scan
from medsynth.config import IndexOptions
from medsynth.scans import read_scan
from medsynth.seeds import numpy_generator

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def pictures(count: int, side: int = 64) -> np.ndarray:
    """Smooth random fields as 8-bit pixels `(count, side, side)`: every one another."""
    fields = gaussian_filter(np.random.default_rng(0).normal(size=(count, side, side)), (0, 3, 3), mode="wrap")
    return (fields / fields.std() * 40 + 128).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_copies_are_found_and_nothing_else(kind):
    found = plant(pictures(60, 128), np.arange(60).astype(str), 12, kind)
    assert (found["found"], found["planted"], found["others"], found["same_patient"]) == (12, 12, [], [])
    assert found["largest_distance"] < 0.08


def test_volumes_are_searched_as_pictures_are():
    fields = gaussian_filter(np.random.default_rng(0).normal(size=(20, 24, 24, 24)), (0, 2, 2, 2), mode="wrap")
    copies = [fields[3, :, ::-1], fields[5] * 1.3 + 2]
    scans = np.stack([shrink_scan(each[None]) for each in [*fields, *copies]])
    pairs = find_near_duplicates(scans, [str(place) for place in range(22)])
    assert {pair[:2] for pair in pairs} == {(3, 20), (5, 21)}


def test_repeated_scans_of_a_patient_have_a_lower_limit():
    """Slices of one patient may be that near; scans of two patients are not."""
    images = pictures(40).astype(float)
    blend = images[7] + 0.06 * images[7].std() / images[9].std() * (images[9] - images[9].mean())
    scans = np.stack([shrink_scan(each[None]) for each in [*images, blend]])
    names = [str(place) for place in range(41)]
    (pair,) = find_near_duplicates(scans, names)
    assert pair[:2] == (7, 40)
    assert 0.03 < pair.distance < 0.08
    assert find_near_duplicates(scans, [*names[:40], "7"]) == []


def test_a_cohort_of_scans_that_are_all_alike_has_no_near_duplicates():
    y, x = np.mgrid[:64, :64] / 64
    random = np.random.default_rng(0)
    centres = random.uniform(0.3, 0.7, size=(60, 2))
    blobs = [np.exp(-((y - one) ** 2 + (x - other) ** 2) / 0.05) for one, other in centres]
    scans = np.stack([shrink_scan(blob[None] + random.normal(0, 0.05, blob.shape)) for blob in blobs])
    assert find_near_duplicates(scans, [str(place) for place in range(60)]) == []


def test_links_reach_over_several_patients():
    patients = ["e", "b", "c", "d", "a", "b", "f"]
    pairs = [NearPair(0, 1, 0.01), NearPair(2, 5, 0.02), NearPair(3, 4, 0.03)]
    assert link_patients(patients, pairs) == ["b", "b", "b", "a", "a", "b", "f"]
    assert link_patients(patients, []) == patients


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty scans of forty patients, and copies of scans 0 and 1, mirrored and as JPEG, of two more."""
    random = numpy_generator(0, "test")
    images = pictures(40)
    copies = [KINDS["mirrored"](images[0], random), KINDS["JPEG 30"](images[1], random)]
    (tmp_path / "scans" / "x").mkdir(parents=True)
    for number, pixels in enumerate([*images, *copies]):
        file = tmp_path / "scans" / "x" / f"p{number:02d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
    return tmp_path


def quality(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "cohort_quality.csv").open() as stream:
        return {Path(row["path"]).stem: row for row in csv.DictReader(stream) if row["flags"]}


@pytest.mark.parametrize("seed", range(4))
def test_linked_patients_share_the_split_that_is_drawn(folder, seed):
    options = IndexOptions(scans=folder / "scans", out=folder / "cohort.csv", seed=seed, progress=False)
    result = index_scans(options)
    split = {Path(row.path).stem: row.split for row in result.cohort.rows}
    assert split["p00"] == split["p40"]
    assert split["p01"] == split["p41"]
    flagged = quality(folder)
    assert {name: row["flags"] for name, row in flagged.items()} == dict.fromkeys(
        ("p40", "p41"), "near_duplicate_patients"
    )
    assert Path(flagged["p40"]["duplicate_of"]).stem == "p00"
    assert float(flagged["p41"]["distance"]) < 0.08
    words = "2 pairs of near-duplicates of two patients (one person under two IDs?), who share a split: scans/x/p0"
    assert any(note.startswith(words) for note in result.notes)
    assert not any("WARNING" in note for note in result.notes)


def test_pairs_in_two_stated_splits_are_a_loud_note(folder):
    stated = ["train"] * 30 + ["val"] * 5 + ["test"] * 5 + ["test", "train"]
    lines = [f"x/p{number:02d}.png,a,P{number},{split}" for number, split in enumerate(stated)]
    (folder / "labels.csv").write_text("\n".join(["path,label,patient_id,split", *lines]))
    options = IndexOptions(
        scans=folder / "scans", labels=folder / "labels.csv", out=folder / "cohort.csv", progress=False
    )
    result = index_scans(options)
    assert [row.split for row in result.cohort.rows] == stated, "they are the user's"
    (warning,) = [note for note in result.notes if note.startswith("WARNING")]
    assert warning.startswith(
        "WARNING: 1 pair of near-duplicates in two of the stated splits, so figures on test scans"
    )
    assert warning.endswith("scans/x/p00.png and scans/x/p40.png (0.000, train and test)")
    flags = {name: row["flags"] for name, row in quality(folder).items()}
    assert flags == {"p40": "near_duplicate_patients near_duplicate_splits", "p41": "near_duplicate_patients"}


def test_a_cohort_too_large_to_search_says_so(folder, monkeypatch):
    monkeypatch.setattr(near, "MOST_SCANS", {2: 41, 3: 41})
    monkeypatch.setattr("medsynth.cohorts.index.MOST_SCANS", {2: 41, 3: 41})
    result = index_scans(IndexOptions(scans=folder / "scans", out=folder / "cohort.csv", progress=False))
    assert "near-duplicates were not looked for: 42 scans would take too long" in result.notes
    assert quality(folder) == {}


@pytest.mark.parametrize("name", ["chest_xray", "brain_tumours"])
def test_real_scans_of_different_patients_are_no_near_duplicates(name, tmp_path):
    """A thousand real scans, adjacent slices among them: planted copies are found, no pair of two patients is reported."""
    if not (DATA / name).is_dir():
        pytest.skip(f"the real data set {name} is not beside the repository")
    with (DATA / name / "labels.csv").open() as stream:
        rows = list(csv.DictReader(stream))[:1000]
    pixels = np.stack([read_scan(DATA / name / row["path"]).array[0] for row in rows])
    patients = np.array([row["patient_id"] for row in rows])
    found = plant(pixels, patients, 60, "mirrored, shifted 1.5 %, JPEG 50")
    assert found["others"] == []
    assert found["found"] >= 50
