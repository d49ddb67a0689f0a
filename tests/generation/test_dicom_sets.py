"""Synthetic sets of DICOM: trained on series, sampled, edited, restarted, judged and handed over."""

import dataclasses
import json
import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import yaml

import medsynth
from medsynth.cohorts import Cohort, Row, hash_cohort, write_cohort
from medsynth.config import Loading, SampleOptions, SolverOptions
from medsynth.errors import ConfigError
from medsynth.evaluation.inputs import find_donors
from medsynth.generation import generate
from medsynth.generation.write import FileForm
from medsynth.runs import RunSpec
from medsynth.scans import read_scan
from tests.conftest import TINY
from tests.dicom_files import series_of, write_series
from tests.made_report import passed_report


@pytest.fixture(scope="module")
def ct_cohort(tmp_path_factory):
    """Eighteen CT series of eight slices, of two classes."""
    folder = tmp_path_factory.mktemp("ct")
    rows = []
    for number in range(18):
        random = np.random.default_rng(number)
        label = "rare" if number % 3 == 0 else "common"
        stored = random.integers(-900, 100 if label == "common" else 900, (8, 8, 8)).astype(np.int16)
        slices = series_of(stored, series=f"secret-{number}", slope=1, intercept=-24)
        write_series(slices, folder / f"scans/secret-{number}")
        split = "train" if number < 9 else "val" if number < 13 else "test"
        rows.append(Row(path=f"scans/secret-{number}", label=label, patient_id=f"patient-secret-{number}", split=split))
    write_cohort(Cohort(folder=folder, rows=tuple(rows), roots={}), folder / "cohort.csv")
    return folder / "cohort.csv"


@pytest.fixture(scope="module")
def ct_run(ct_cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ct run")
    options = TINY | {
        "max_steps": 2,
        "batch_size": 4,
        "grid": {"size": [8, 8, 8]},
        "intensity": {"method": "range", "low": -1000, "high": 1000},
        "monitor": {"validate_every": 2, "preview_every": 0},
    }
    (folder / "ct.yaml").write_text(yaml.safe_dump(options))
    config = medsynth.load_config(str(folder / "ct.yaml"))
    return medsynth.train(**config, cohort=ct_cohort, out=folder / "run", progress=False)


def sample(run, out, **options):
    return medsynth.sample(
        run=run.folder,
        out=out,
        **{"count": "rare=3,common=2", "batch_size": 2, "solver": SolverOptions(steps=2), "progress": False} | options,
    )


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_a_run_on_ct_series_writes_ct_series(ct_run, tmp_path):
    assert (ct_run.spec.suffix, ct_run.spec.modality) == (".dcm", "CT")
    cohort = sample(ct_run, tmp_path / "set")
    assert [row.path for row in cohort.rows] == [f"rare/{n:06d}" for n in range(3)] + [
        f"common/{n:06d}" for n in range(2)
    ]
    provenance = json.loads((tmp_path / "set/provenance.json").read_text())
    assert (provenance["modality"], provenance["suffix"]) == ("CT", "")
    memory = generate(ct_run, count="rare=3,common=2", batch_size=2, solver=SolverOptions(steps=2))
    for row, made in zip(cohort.rows, memory, strict=True):
        folder = tmp_path / "set" / row.path
        headers = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
        assert len(headers) == 8
        assert {(one.PatientID, one.SyntheticData, one.Modality) for one in headers} == {(row.patient_id, "YES", "CT")}
        assert all(f"seed={row.attributes['seed']}" in one.DerivationDescription for one in headers)
        # The model's slices, rows and columns are the files'.
        stored = np.stack([one.pixel_array * one.RescaleSlope + one.RescaleIntercept for one in headers])
        np.testing.assert_allclose(stored, made.scan.array[0], atol=0.02)
        again = read_scan(cohort.file_of(row))
        np.testing.assert_allclose(again.array[0].transpose(2, 1, 0)[:, ::-1], stored, atol=1e-3)
    assert all("secret" not in name and b"secret" not in data for name, data in content(tmp_path / "set").items())


def test_an_interrupted_set_is_completed_and_the_same_seed_is_the_same_set(ct_run, tmp_path):
    sample(ct_run, tmp_path / "one")
    whole = content(tmp_path / "one")
    shutil.rmtree(tmp_path / "one/rare/000001")
    (tmp_path / "one/cohort.csv").unlink()
    left = tmp_path / "one/rare/.unfinished-000001"
    left.mkdir()
    (left / "0001.dcm").write_bytes(b"half")
    sample(ct_run, tmp_path / "one")
    assert content(tmp_path / "one") == whole
    sample(ct_run, tmp_path / "two")
    assert content(tmp_path / "two") == whole
    with pytest.raises(ConfigError, match="modality 'CT' -> 'MR'"):
        sample(ct_run, tmp_path / "one", modality="MR")


def test_edits_are_written_as_dicom(ct_run, ct_cohort, tmp_path):
    cohort = medsynth.edit(
        run=ct_run.folder,
        cohort=ct_cohort,
        donor_class="common",
        target_class="rare",
        count=2,
        out=tmp_path / "edits",
        solver=SolverOptions(steps=2),
        cache_dir=tmp_path / "cache",
        progress=False,
    )
    for row in cohort.rows:
        (one, *_) = [pydicom.dcmread(file) for file in sorted((tmp_path / "edits" / row.path).iterdir())]
        assert one.PatientID == row.patient_id
        assert "method=edit" in one.DerivationDescription
    real, quiet = medsynth.read_cohort(ct_cohort), Loading(progress=False)
    donors, notes = find_donors(cohort, real, hash_cohort(real, loading=quiet), loading=quiet)
    assert (donors.tolist(), notes) == ([int(row.attributes["donor"]) for row in cohort.rows], ())


def test_a_set_of_series_is_judged_described_and_handed_over(ct_run, ct_cohort, tmp_path):
    sample(ct_run, tmp_path / "set")
    medsynth.evaluate(
        real=ct_cohort,
        synthetic=tmp_path / "set",
        run=ct_run.folder,
        out=tmp_path / "report",
        parts=["privacy"],
        progress=False,
    )
    judged = json.loads((tmp_path / "report/report.json").read_text())
    assert {one["label"] for one in judged["privacy"]["rows"]} == {"rare", "common"}
    medsynth.card(synthetic=tmp_path / "set", report=tmp_path / "report")
    described = json.loads((tmp_path / "set/croissant.json").read_text())
    assert "application/dicom" in {item.get("encodingFormat") for item in described["distribution"]}
    passed_report(tmp_path / "report", tmp_path / "passed")  # so few patients cannot tell
    medsynth.augment(
        real=ct_cohort,
        synthetic=tmp_path / "set",
        report=tmp_path / "passed",
        out=tmp_path / "augmented/cohort.csv",
        progress=False,
    )
    handed = medsynth.read_cohort(tmp_path / "augmented/cohort.csv")
    added = [row for row in handed.rows if row.attributes.get("synthetic") == "1"]
    assert len(added) == 5
    assert all(read_scan(handed.file_of(row)).array.shape == (1, 8, 8, 8) for row in added)


def test_pictures_become_one_file_each(tiny_run, tmp_path):
    cohort = sample(tiny_run, tmp_path / "cr", format="dicom", modality="CR", count="dark=2")
    assert [row.path for row in cohort.rows] == ["dark/000000.dcm", "dark/000001.dcm"]
    memory = generate(tiny_run, count="dark=2", batch_size=2, solver=SolverOptions(steps=2))
    for row, made in zip(cohort.rows, memory, strict=True):
        np.testing.assert_array_equal(read_scan(cohort.file_of(row)).array, made.scan.array)
        assert pydicom.dcmread(cohort.file_of(row)).PatientID == row.patient_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"format": "dicom"},
            "modality: need one of CT, MR, CR, OT to write, got a run whose training scans name none",
        ),
        ({"modality": "CT"}, "modality: need format dicom for a modality, got CT and auto"),
        ({"format": "png", "modality": "CR"}, "modality: need format dicom for a modality, got CR and png"),
    ],
)
def test_a_modality_must_be_known_and_of_use(tiny_run, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        sample(tiny_run, tmp_path / "set", count=1, **options)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("modality", "option", "written"),
    [
        ("CT", "auto", "CT"),
        ("DX", "auto", None),
        ("MR", "auto", "MR"),
        ("PT", "auto", None),
        ("PT", "OT", None),
        (None, "auto", None),
        (None, "MR", "MR"),
        ("CT", "CR", None),
    ],
)
def test_volumes_are_written_as_what_the_run_knows(ct_run, modality, option, written):
    spec = dataclasses.replace(ct_run.spec, modality=modality)
    options = SampleOptions(run="", out="", count=1, modality=option)
    if written:
        assert FileForm.of(spec, options) == FileForm(suffix="", modality=written, masks=False)
    else:
        with pytest.raises(ConfigError, match="modality: need"):
            FileForm.of(spec, options)


def test_the_modality_of_an_untrusted_run_is_checked(ct_run):
    for wrong in ("Doe", "ct", 7):
        with pytest.raises((ValueError, TypeError)):
            RunSpec.from_dict(ct_run.spec.as_dict() | {"modality": wrong})


def test_the_room_on_the_disk_is_foreseen(ct_run, tiny_run, tmp_path):
    sample(ct_run, tmp_path / "ct", count="rare=2")
    sample(tiny_run, tmp_path / "cr", count="dark=2", format="dicom", modality="CR")
    for folder, foreseen in (
        (tmp_path / "ct/rare", FileForm(suffix="", modality="CT", masks=False).scan_bytes(ct_run.spec)),
        (tmp_path / "cr/dark", FileForm(suffix=".dcm", modality="CR", masks=False).scan_bytes(tiny_run.spec)),
    ):
        files = list(folder.rglob("*.dcm"))
        used = sum(-(-path.stat().st_size // 4096) * 4096 for path in files) / 2
        assert 0.8 * used <= foreseen <= 1.5 * used


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools are not installed")
def test_sets_pass_the_validators(ct_run, tiny_run, tmp_path):
    sample(ct_run, tmp_path / "ct", count="rare=2")
    sample(tiny_run, tmp_path / "cr", count="dark=2", format="dicom", modality="CR")
    sample(tiny_run, tmp_path / "ot", count="dark=2", format="dicom", modality="OT")
    files = sorted(tmp_path.rglob("*.dcm"))
    assert len(files) == 16 + 2 + 2
    for file in files:
        judged = subprocess.run(["dciodvfy", "-new", file], capture_output=True, text=True, check=True)
        errors = [line for line in (judged.stdout + judged.stderr).splitlines() if line.startswith("Error")]
        assert [line.split(" - ")[1] for line in errors] == ["</(0008,001c)>"]
    checked = subprocess.run(["dcentvfy", *files], capture_output=True, text=True, check=True)
    assert (checked.stdout + checked.stderr).strip() == ""
