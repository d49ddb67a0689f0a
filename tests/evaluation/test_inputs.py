"""Cohorts on disk, opened and checked before anything is computed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from medsynth.cohorts import Cohort, Row, prepare_cohort, write_cohort
from medsynth.config import EvaluateOptions, GridOptions, IntensityOptions, NetworkOptions
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation import evaluate_cohorts, inputs
from medsynth.evaluation.evaluate import infer_membership
from medsynth.evaluation.inputs import Inputs, Side, check_run, clipping_notes
from medsynth.runs import Run, RunSpec
from medsynth.scans import Intensity, Scan, write_scan
from medsynth.sets import open_synthetic
from tests.evaluation.made import Pixels


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
    notes = clipping_notes(real, Intensity(low=low, high=high))
    assert len(notes) == len(words)
    assert all(note.startswith(word) for note, word in zip(notes, words, strict=True))
    assert not any("real/" in note or ".png" in note for note in notes)


def test_only_training_scans_are_looked_at_for_the_range(real):
    held_out = dataclasses.replace(real, rows=tuple(dataclasses.replace(row, split="test") for row in real.rows))
    assert clipping_notes(held_out, Intensity(low=(300,), high=(400,))) == []


def test_faults_show_before_any_scan_is_read(tmp_path, real, monkeypatch):
    # The scans of this set do not exist, so reading one would be another error.
    path = synthetic_csv(tmp_path / "made", "path,label,patient_id,split,donor\na.png,ill,S1,train,7\n")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refused(error, words, **options):
        with pytest.raises(error, match=words):
            evaluate_cohorts(EvaluateOptions(
                real=real.folder, synthetic=path, out=tmp_path / "report", progress=False, **options
            ))  # fmt: skip
        assert list((tmp_path / "medsynth").glob("*.npy")) == []

    refused(ConfigError, "drop_copies", drop_copies=True, parts=("fidelity",))
    refused(ConfigError, "parts: need at least one", parts=())
    (path.parent / "provenance.json").write_text(json.dumps({"run": "b" * 64}))
    monkeypatch.setattr(inputs, "load_run", lambda folder: run_of(folder, "a" * 64))
    refused(DataError, "need the run that made", run=tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(ConfigError, "WORLD_SIZE: need one process that starts the others, got 2", devices=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"distilled": True}, "a distilled run is no denoiser; evaluate a set of the run that it came from"),
        ({"shape": (1, 20, 20)}, "the scans were compared on a grid of 1 x 10 x 10, the run uses 1 x 20 x 20"),
        ({"classes": ("sick", "healthy")}, "the run knows none of the classes"),
    ],
)
def test_runs_whose_membership_cannot_be_inferred_say_why(tmp_path, real, change, words):
    run = run_of(tmp_path / "run", "a" * 64)
    options = {"distilled": {"solver": {}}} if change.pop("distilled", False) else {}
    run = dataclasses.replace(run, options=options, spec=dataclasses.replace(run.spec, **change))
    prepared = prepare_cohort(real, grid=GridOptions(size=10), intensity=IntensityOptions())
    side = Side.of(real, prepared, np.zeros((4, 2)))
    known = Inputs(
        options=EvaluateOptions(real="real", synthetic="set", out="report"), run=run, extractor=Pixels(),
        grid=GridOptions(size=10), real=side, synthetic=side, further=None, hashes={},
    )  # fmt: skip
    found = infer_membership(known, run)
    assert (found.rows, found.reason, found.fails) == ((), words, False)
