"""From folders of DICOM files to a cohort: series, their patients and labels, and what is refused or set aside."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from medsynth.cohorts import hash_cohort, index_scans, prepare_cohort, read_cohort
from medsynth.config import ColumnOptions, GridOptions, IndexOptions, IntensityOptions, Loading
from medsynth.errors import DataError
from medsynth.scans import read_scan
from tests.dicom_files import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    dataset,
    enhanced_of,
    new_uid,
    oblique,
    picture,
    series_of,
    write,
    write_series,
)

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "dicom"


def run(scans: Path, **options):
    return index_scans(
        IndexOptions(**{"scans": scans, "out": scans.parent / "cohort.csv", "progress": False, **options})
    )


def quality_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "cohort_quality.csv").open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def noise(number: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 1000, size=shape or (4, 6, 8)).astype(np.int16)


def ct(name: str, number: int = 0, **elements: object) -> list:
    """Return a CT series of a patient called `name`."""
    return series_of(noise(number), series=name, **elements)


@pytest.fixture
def four_patients(tmp_path: Path) -> Path:
    """Two classes of two patients, each with one CT series in a folder of its own."""
    for number, (label, name) in enumerate((("ill", "A"), ("ill", "B"), ("well", "C"), ("well", "D"))):
        write_series(ct(name, number), tmp_path / f"scans/{label}/{name}/ct")
    return tmp_path / "scans"


def test_series_become_rows_with_folder_label_and_patient(four_patients):
    result = run(four_patients, split=(1, 0, 0))
    rows = {(row.path, row.label, row.patient_id) for row in result.cohort.rows}
    assert rows == {
        (f"scans/{label}/{name}/ct", label, f"patient-{name}")
        for label, name in (("ill", "A"), ("ill", "B"), ("well", "C"), ("well", "D"))
    }
    assert all(row.attributes == {} for row in result.cohort.rows)
    table = quality_of(four_patients.parent)
    assert table["scans/ill/A/ct"]["modality"] == "CT"
    assert table["scans/ill/A/ct"]["instances"] == "4"
    assert table["scans/ill/A/ct"]["shape"] == "1x8x6x4"
    assert table["scans/ill/A/ct"]["spacing"] == "0.7x0.8x2.5"
    assert "modalities: CT (4)" in result.summary()
    cohort = read_cohort(result.path)
    np.testing.assert_array_equal(
        read_scan(cohort.file_of(cohort.rows[0])).array[0], noise(0).transpose(2, 1, 0)[:, ::-1]
    )


def test_a_folder_of_mixed_series_gives_items(tmp_path):
    folder = tmp_path / "scans/ill/day"
    for number, name in enumerate("AB"):
        for place, made in enumerate(ct(name, number)):
            write(made, folder / f"{name}{place}")
    write(picture(SeriesInstanceUID="1.2.3", PatientID="C"), folder / "single.dcm")
    (folder / "notes.txt").write_text("not an image")
    report = dataset(noise(9, 4, 4), series="report")
    del report.Rows, report.Columns, report.PixelData
    report.SOPClassUID = uid.BasicTextSRStorage
    write(report, folder / "report")
    with pytest.raises(DataError, match=r"need scans of one kind, got 2 in 3D .* and 1 in 2D"):
        run(tmp_path / "scans")
    (folder / "single.dcm").unlink()
    result = run(tmp_path / "scans", split=(1, 0, 0))
    paths = [f"scans/ill/day#series/{new_uid('series', name)}" for name in "AB"]
    assert [row.path for row in result.cohort.rows] == paths
    assert "1 DICOM files without scans: Basic Text SR Storage (1)" in result.notes
    cohort = read_cohort(result.path)
    for number, row in enumerate(cohort.rows):
        array = read_scan(cohort.file_of(row)).array[0]
        np.testing.assert_array_equal(array, noise(number).transpose(2, 1, 0)[:, ::-1])


@pytest.mark.parametrize("mixed", [False, True])
def test_series_right_in_the_scans_folder(tmp_path, mixed):
    write_series(ct("A"), tmp_path / "scans")
    if mixed:
        for place, made in enumerate(ct("B", 1)):
            write(made, tmp_path / f"scans/B{place}")
    (tmp_path / "labels.csv").write_text(f"SeriesInstanceUID,label\n{new_uid('series', 'A')},ill\n")
    with pytest.raises(DataError, match="need a label, got a scan in no folder"):
        run(tmp_path / "scans")
    for out in (tmp_path / "cohort.csv", tmp_path / "scans/cohort.csv", tmp_path / "far/away/cohort.csv"):
        result = run(tmp_path / "scans", out=out, labels=tmp_path / "labels.csv", allow_tiny=True)
        cohort = read_cohort(result.path)
        assert read_scan(cohort.file_of(cohort.rows[0])).array.shape == (1, 8, 6, 4)
        assert hash_cohort(cohort) == hash_cohort(cohort)


def test_pictures_are_rows_of_their_own(tmp_path):
    for number in range(6):
        made = dataset(noise(number, 6, 8), modality="CR", number=number)
        made.PatientID = f"P{number // 2}"
        write(made, tmp_path / f"scans/ill/IM{number}")
    result = run(tmp_path / "scans", split=(1, 0, 0))
    assert [row.path for row in result.cohort.rows] == [f"scans/ill/IM{number}" for number in range(6)]
    assert [row.patient_id for row in result.cohort.rows] == ["P0", "P0", "P1", "P1", "P2", "P2"]
    assert {facts.shape for facts in result.quality} == {(1, 6, 8)}


# What is refused -------------------------------------------------------------------------------------------------------


def test_series_that_cannot_be_trusted_are_listed_with_their_reasons(four_patients):
    slices = ct("A")
    shutil.rmtree(four_patients / "ill/A/ct")
    write_series([*slices[:1], *slices[2:]], four_patients / "ill/A/ct")
    step = np.array([0, 0, 3 / np.cos(np.radians(20))])
    shutil.rmtree(four_patients / "well/D")
    write_series(ct("D", 4, orientation=oblique(20, 0, 0), step=step), four_patients / "well/D")
    write_series(ct("E", 5), four_patients / "well/E")
    write_series(ct("F", 6), four_patients / "ill/F")
    (four_patients / "ill/F/IM3").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(
        DataError,
        match=r"even distances.*\(4 of 7 scans cannot be read; `medsynth index --skip_bad true` leaves them out\)",
    ):
        run(four_patients)
    assert not (four_patients.parent / "cohort.csv").exists()
    result = run(four_patients, skip_bad=True, allow_tiny=True)
    assert {row.patient_id for row in result.cohort.rows} == {"patient-B", "patient-C", "patient-E"}
    table = quality_of(four_patients.parent)
    series = new_uid("series", "F")
    reasons = {
        "ill/A/ct": "a missing slice?",
        "well/D": "a gantry tilt of 20.0 degrees",
        f"ill/F#series/{series}": "even distances",
        "ill/F/IM3": "one that does not say what it is",
    }
    bad = {path: facts["reason"] for path, facts in table.items() if facts["flags"] == "unreadable"}
    assert bad.keys() == reasons.keys()
    assert {path: reason for path, reason in bad.items() if reasons[path] not in reason} == {}
    assert (table["ill/A/ct"]["modality"], table["ill/A/ct"]["shape"]) == ("CT", "1x8x6x3")
    assert table["ill/A/ct"]["spacing"] == "", "unknown of an incomplete series"


def test_parts_of_a_series_in_two_folders_are_refused_and_copies_are_not(tmp_path):
    slices = ct("A")
    for number, made in enumerate(slices):
        write(made, tmp_path / f"scans/ill/part{number // 2}/IM{number}")
    write_series(ct("B", 1), tmp_path / "scans/ill/B")
    with pytest.raises(DataError, match="need a series in one folder, got parts of it in 2"):
        run(tmp_path / "scans")
    shutil.rmtree(tmp_path / "scans/ill/part0")
    shutil.rmtree(tmp_path / "scans/ill/part1")
    write_series(slices, tmp_path / "scans/ill/one")
    write_series(slices, tmp_path / "scans/ill/two")
    result = run(tmp_path / "scans", split=(1, 0, 0))
    assert len(result.cohort.rows) == 3
    assert sum("duplicate" in facts.flags for facts in result.quality) == 1


def test_localizers_and_derived_pictures_are_set_aside(four_patients):
    study = new_uid("study", "A")
    for number, plane in enumerate((AXIAL, SAGITTAL, CORONAL)):
        scout = series_of(noise(8, 1, 6, 8), series="scout", orientation=plane, StudyInstanceUID=study)[0]
        scout.ImageType, scout.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], f"1.2.{number}"
        write(scout, four_patients / f"ill/A/scout/IM{number}")
    capture = dataset(noise(9, 6, 8), modality="OT", series="capture")
    capture.StudyInstanceUID, capture.ImageType = study, ["DERIVED", "SECONDARY"]
    capture.PhotometricInterpretation, capture.SamplesPerPixel = "RGB", 3
    write(capture, four_patients / "ill/A/capture.dcm")
    result = run(four_patients, split=(1, 0, 0))
    assert len(result.cohort.rows) == 4
    table = quality_of(four_patients.parent)
    assert {path: facts["reason"] for path, facts in table.items() if facts["flags"] == "aside"} == {
        "ill/A/scout": "a localizer",
        "ill/A/capture.dcm": "a derived picture of a study that holds volumes",
    }
    assert any(note.startswith("2 scans are set aside: a ") for note in result.notes)
    shutil.rmtree(four_patients / "well")
    for name in "AB":
        shutil.rmtree(four_patients / f"ill/{name}/ct")
    (four_patients / "ill/A/capture.dcm").unlink()
    with pytest.raises(DataError, match="need a scan to learn from, got a localizer"):
        run(four_patients)


def test_fault_30_burned_in_text_is_flagged(four_patients):
    slices = ct("E", 5)
    slices[2].BurnedInAnnotation = "YES"
    write_series(slices, four_patients / "well/E")
    result = run(four_patients, split=(1, 0, 0))
    assert [facts.path for facts in result.quality if "burned_in" in facts.flags] == ["scans/well/E"]
    assert any("text is burned into their pixels" in note for note in result.notes)


def test_fault_30_names_and_uids_reach_only_paths_and_patients(four_patients):
    run(four_patients, patient_pattern=r"/([A-D])/", split=(1, 0, 0))
    for file in ("cohort.csv", "cohort_quality.csv"):
        content = (four_patients.parent / file).read_text()
        assert "Secret" not in content
        assert "patient-" not in content
        assert "1.2.826" not in content


def test_one_patient_for_all_is_noted(four_patients):
    for folder, name in (("ill/A", "A"), ("ill/B", "B"), ("well/C", "C"), ("well/D", "D")):
        shutil.rmtree(four_patients / folder)
        write_series(ct(name, ord(name), PatientID="anon"), four_patients / folder)
    result = run(four_patients, split=(1, 0, 0))
    assert any(note.startswith("4 studies have one PatientID, 'anon'") for note in result.notes)


# Labels ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("path", lambda name: f"{'ill' if name in 'AB' else 'well'}/{name}/ct"),
        ("path", lambda name: f"{'ill' if name in 'AB' else 'well'}/{name}"),
        ("path", lambda name: new_uid("study", name)),
        ("SeriesInstanceUID", lambda name: new_uid("series", name)),
        ("StudyInstanceUID", lambda name: new_uid("study", name)),
        ("study_instance_uid", lambda name: new_uid("study", name)),
        ("PatientID", lambda name: f"patient-{name}"),
    ],
    ids=["path", "folder above", "study as path", "series", "study", "spelled otherwise", "patient"],
)
def test_labels_are_joined_by(four_patients, tmp_path, column, value):
    labels = tmp_path / "labels.csv"
    labels.write_text(f"{column},label,age\n" + "".join(f"{value(name)},{name.lower()},4{name}\n" for name in "DCBA"))
    result = run(four_patients, labels=labels, allow_tiny=True)
    assert {(row.path.split("/")[2], row.label) for row in result.cohort.rows} == {
        (name, name.lower()) for name in "ABCD"
    }
    assert {row.patient_id for row in result.cohort.rows} == {f"patient-{name}" for name in "ABCD"}
    assert {row.attributes["age"] for row in result.cohort.rows} == {"4A", "4B", "4C", "4D"}


def test_identities_become_no_attributes(four_patients, tmp_path):
    labels = tmp_path / "labels.csv"
    header = "StudyInstanceUID,SeriesInstanceUID,PatientName,label,age"
    labels.write_text(
        f"{header}\n" + "".join(f"{new_uid('study', n)},{new_uid('series', n)},Secret^{n},ill,4\n" for n in "ABCD")
    )
    result = run(four_patients, labels=labels, split=(1, 0, 0))
    assert all(dict(row.attributes) == {"age": "4"} for row in result.cohort.rows)
    assert "columns that identify are left out: StudyInstanceUID, PatientName" in result.notes
    columns = ColumnOptions(path="StudyInstanceUID", attributes=("PatientName",))
    kept = run(four_patients, labels=labels, columns=columns, split=(1, 0, 0))
    assert all("PatientName" in row.attributes for row in kept.cohort.rows)


def test_a_study_of_several_series_is_labelled_as_a_whole(four_patients, tmp_path):
    write_series(
        ct("A2", 7, StudyInstanceUID=new_uid("study", "A"), PatientID="patient-A"), four_patients / "ill/A/more"
    )
    labels = tmp_path / "labels.csv"
    labels.write_text("StudyInstanceUID,label\n" + "".join(f"{new_uid('study', name)},x\n" for name in "ABC"))
    result = run(four_patients, labels=labels, split=(1, 0, 0))
    assert len(result.cohort.rows) == 4
    assert "1 scans below the scans folder have no row in the labels CSV and are left out" in result.notes
    labels.write_text(labels.read_text() + f"{new_uid('study', 'Z')},x\n")
    with pytest.raises(DataError, match=r"need a scan for every row, got none for '1\.2\.826.*\(1 of 4 are missing\)"):
        run(four_patients, labels=labels)
    labels.write_text(f"StudyInstanceUID,label\n{new_uid('study', 'A')},x\n{new_uid('study', 'A')},y\n")
    with pytest.raises(DataError, match="need each scan once"):
        run(four_patients, labels=labels)


def test_labels_that_name_nothing(four_patients, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("PatientID,label\nnobody,x\n")
    with pytest.raises(
        DataError, match=r"--columns\.path: a column of paths ending in .*, or SeriesInstanceUID, StudyInstanceUID"
    ):
        run(four_patients, labels=labels)


def test_a_labels_csv_can_name_what_is_set_aside(four_patients, tmp_path):
    slices = ct("E", 5, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], StudyInstanceUID=new_uid("study", "A"))
    write_series(slices, four_patients / "ill/E")
    labels = tmp_path / "labels.csv"
    labels.write_text("StudyInstanceUID,label\n" + "".join(f"{new_uid('study', name)},x\n" for name in "AB"))
    assert len(run(four_patients, labels=labels, split=(1, 0, 0)).cohort.rows) == 2
    labels.write_text("SeriesInstanceUID,label\n" + "".join(f"{new_uid('series', name)},x\n" for name in "AE"))
    assert len(run(four_patients, labels=labels, split=(1, 0, 0)).cohort.rows) == 2


# What comes after ------------------------------------------------------------------------------------------------------


def test_fault_10_mixed_geometry_becomes_one(tmp_path):
    """A bright corner of the patient lies in the same corner of every prepared scan, however the slices were cut."""
    size = 12
    field = np.zeros((size, size, size), dtype=np.int16)  # (x, y, z) in LPS, 2 mm: right, front and feet first
    field[: size // 2, : size // 2, : size // 2] = 1000
    cuts = {
        "axial": (AXIAL, field.transpose(2, 1, 0)),
        "sagittal": (SAGITTAL, field.transpose(0, 2, 1)[:, ::-1]),
        "coronal": (CORONAL, field.transpose(1, 2, 0)[:, ::-1]),
    }
    origins = {"axial": (0, 0, 0), "sagittal": (0, 0, 22), "coronal": (0, 0, 22)}
    steps = {"axial": (0, 0, 2), "sagittal": (2, 0, 0), "coronal": (0, 2, 0)}
    for name, (orientation, stored) in cuts.items():
        slices = series_of(
            stored, series=name, orientation=orientation, origin=origins[name], step=steps[name], spacing=(2, 2)
        )
        write_series(slices, tmp_path / f"scans/ill/{name}")
    coarse = series_of(
        cuts["axial"][1][:, ::2, ::3], series="coarse", spacing=(4, 6), step=(0, 0, 2), origin=(2.0, 1.0, 0.0)
    )
    write(enhanced_of(coarse), tmp_path / "scans/ill/enhanced.dcm")
    result = run(tmp_path / "scans", split=(1, 0, 0))
    prepared = prepare_cohort(
        result.cohort,
        grid=GridOptions(size=12),
        intensity=IntensityOptions(method="range", low=0, high=1000),
        loading=Loading(progress=False),
    )
    expected = np.zeros((12, 12, 12))
    expected[:6, :6, :6] = 1
    for scan in np.asarray(prepared.scans, dtype=np.float64)[:, 0]:
        np.testing.assert_allclose((scan + 1) / 2 > 0.4, expected == 1)


def test_the_cache_follows_the_files_of_a_series(four_patients):
    cohort = run(four_patients, split=(1, 0, 0)).cohort
    options = {
        "grid": GridOptions(size=8),
        "intensity": IntensityOptions(method="range", low=0, high=1000),
        "loading": Loading(progress=False),
    }
    first, fingerprint = prepare_cohort(cohort, **options), hash_cohort(cohort)
    folder = cohort.file_of(cohort.rows[0])
    (folder / "IM1").rename(folder / "renamed")
    (folder / "notes.txt").write_text("nothing that a scan depends on")
    assert prepare_cohort(cohort, **options).key == first.key
    assert hash_cohort(cohort) == fingerprint
    slices = ct("A", 99)
    for file in folder.iterdir():
        file.unlink()
    write_series(slices, folder)
    assert prepare_cohort(cohort, **options).key != first.key
    assert hash_cohort(cohort) != fingerprint


def test_fault_18_a_link_in_a_folder_of_slices_that_leaves_it(four_patients, tmp_path):
    cohort = run(four_patients, split=(1, 0, 0)).cohort
    folder = cohort.file_of(cohort.rows[0])
    (tmp_path.parent / f"{tmp_path.name}-outside").write_bytes((folder / "IM1").read_bytes())
    (folder / "IM1").unlink()
    (folder / "IM1").symlink_to(tmp_path.parent / f"{tmp_path.name}-outside")
    with pytest.raises(DataError, match="got a symbolic link that leaves it"):
        cohort.file_of(cohort.rows[0])
    with pytest.raises(DataError, match="symbolic link that leaves it"):
        run(four_patients)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real DICOM series are not beside the repository")
def test_the_real_series_are_listed(tmp_path):
    result = run(REAL, out=tmp_path / "cohort.csv", allow_tiny=True)
    assert {(facts.path, facts.modality, facts.instances, facts.shape) for facts in result.quality} == {
        ("ct_phantom", "CT", 28, (1, 512, 512, 28)),
        ("mr_t1_sagittal", "MR", 192, (1, 192, 256, 256)),
    }
    assert "1 DICOM files without scans: Media Storage Directory Storage (1)" in result.notes
