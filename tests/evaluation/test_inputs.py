"""Cohorts on disk, opened and checked before anything is computed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from medsynth.cohorts import Cohort, Row, read_cohort, write_cohort
from medsynth.config import DownstreamOptions, FidelityOptions, NetworkOptions, PrivacyOptions, ReadingOptions
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation import evaluate_cohorts
from medsynth.evaluation.inputs import check_run, clipping_notes, open_real, open_synthetic
from medsynth.runs import Run, RunSpec
from medsynth.scans import Intensity, Scan, write_scan


@pytest.fixture
def real(tmp_path) -> Cohort:
    """Four scans of 10 x 10 pixels: a quarter are 0, a quarter 50, half 200."""
    array = np.repeat([0, 50, 200, 200], 25).reshape(1, 10, 10).astype(np.uint8)
    rows = []
    for number, label in enumerate(["ill", "ill", "well", "well"]):
        write_scan(Scan(array=array), tmp_path / "real" / f"{number}.png")
        rows.append(Row(path=f"{number}.png", label=label, patient_id=f"P{number}", split="train"))
    cohort = Cohort(folder=tmp_path / "real", rows=tuple(rows))
    write_cohort(cohort, tmp_path / "real" / "cohort.csv")
    return cohort


def synthetic_csv(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "cohort.csv"
    path.write_text(text)
    return path


def run_of(folder: Path, fingerprint: str) -> Run:
    spec = RunSpec(
        classes=("ill", "well"), class_counts=(2, 2), class_patients=(2, 2), shape=(1, 10, 10), affine=(), sigma_data=(),
        intensity=Intensity(low=(0,), high=(255,)), dtype="uint8", suffix=".png", network=NetworkOptions(),
        augmentation_parameters=0,
    )  # fmt: skip
    return Run(folder=folder, spec=spec, options={}, steps=70, fingerprint=fingerprint)


def test_a_synthetic_csv_needs_only_paths_and_labels(tmp_path, real):
    path = synthetic_csv(tmp_path / "made", "path,label\na.png,ill \nb.png,well\n")
    for given in (path, path.parent):
        cohort = open_synthetic(given, real)
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


def test_a_folder_without_a_csv_says_how_to_make_one(tmp_path, real):
    (tmp_path / "made").mkdir()
    with pytest.raises(
        DataError, match=r"made: need cohort.csv .* got none; try a CSV with the columns path and label"
    ):
        open_synthetic(tmp_path / "made", real)
    with pytest.raises(DataError, match=r"try medsynth index --scans \S+made --out \S+made/cohort.csv$"):
        open_real(tmp_path / "made")


def test_the_set_of_another_run_is_refused_with_both_folders(tmp_path, real):
    path = synthetic_csv(tmp_path / "made", "path,label\na.png,ill\n")
    run = run_of(tmp_path / "run", "a" * 64)
    made = open_synthetic(path, real)
    check_run(made, run)  # nothing says who made it
    for content in ({"run": "a" * 64, "steps_trained": 70}, {"another": "program"}, []):
        (path.parent / "provenance.json").write_text(json.dumps(content))
        check_run(made, run)
    (path.parent / "provenance.json").write_text(json.dumps({"run": "b" * 64, "steps_trained": 60}))
    with pytest.raises(
        DataError, match=r"/run: need the run that made \S+/made \(b{16} after 60 steps\), got a{16} after 70"
    ):
        check_run(made, run)
    (path.parent / "provenance.json").write_text("{")
    with pytest.raises(DataError, match=r"made/provenance.json: need the provenance of the set, got no JSON"):
        check_run(made, run)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        ((0,), (200,), []),
        ((-1000,), (400,), []),
        ((50,), (200,), ["25% of the pixels of real training scans lie below the run's intensity range (50)"]),
        ((0,), (199,), ["50% of the pixels of real training scans lie above the run's intensity range (199)"]),
        ((1,), (60,), ["25% of", "50% of"]),
    ],
)
def test_pixels_beyond_the_range_of_the_run_are_noted(real, low, high, words):
    notes = clipping_notes(real, Intensity(low=low, high=high), ReadingOptions())
    assert len(notes) == len(words)
    assert all(note.startswith(word) for note, word in zip(notes, words, strict=True))
    assert not any("real/" in note or ".png" in note for note in notes)


def test_only_training_scans_are_looked_at_for_the_range(real):
    held_out = dataclasses.replace(real, rows=tuple(dataclasses.replace(row, split="test") for row in real.rows))
    assert clipping_notes(held_out, Intensity(low=(300,), high=(400,)), ReadingOptions()) == []


def test_faults_show_before_any_scan_is_read(tmp_path, real):
    # The scans of this set do not exist, so reading one would be another error.
    path = synthetic_csv(tmp_path / "made", "path,label\na.png,ill\n")
    (path.parent / "provenance.json").write_text(json.dumps({"run": "b" * 64}))
    given = {
        "real": real.folder,
        "synthetic": path,
        "work": tmp_path / "work",
        "reading": ReadingOptions(),
        "progress": False,
    }
    with pytest.raises(ConfigError, match=r"fidelity\.repeats"):
        evaluate_cohorts(**given, fidelity=FidelityOptions(repeats=0))
    with pytest.raises(ConfigError, match=r"privacy\.min_power"):
        evaluate_cohorts(**given, privacy=PrivacyOptions(min_power=2))
    with pytest.raises(ConfigError, match=r"downstream\.shares"):
        evaluate_cohorts(**given, downstream=DownstreamOptions(shares=(0.0,)))
    with pytest.raises(ConfigError, match="drop_copies"):
        evaluate_cohorts(**given, drop_copies=True, parts=["fidelity"])
    with pytest.raises(DataError, match="need the run that made"):
        evaluate_cohorts(**given, fidelity=FidelityOptions(), run=run_of(tmp_path / "run", "a" * 64))
    assert not (real.folder / ".medsynth_cache").exists()
