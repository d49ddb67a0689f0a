import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import medsynth
from medsynth.cohorts import read_cohort, write_cohort
from medsynth.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def common_run(tiny_cohort, tiny_config, tmp_path_factory):
    """A run on the class `dark` alone."""
    folder = tmp_path_factory.mktemp("common")
    cohort = read_cohort(tiny_cohort)
    rows = tuple(replace(row, root="scans") for row in cohort.rows if row.label == "dark")
    write_cohort(replace(cohort, folder=folder, rows=rows, roots={"scans": cohort.folder}), folder / "cohort.csv")
    options = medsynth.load_config(str(tiny_config)) | {"max_steps": 4}
    return medsynth.train(**options, cohort=folder / "cohort.csv", out=folder / "run", progress=False)


def test_training_begins_from_another_run(common_run, tiny_cohort, tiny_config, tmp_path, monkeypatch):
    """Its weights, with a row of the class embedding for each class: known by name, or the mean of those that it knows."""
    home, first = sys.modules["medsynth.training.train"], []
    fit = home.Training.fit

    def fit_and_note(self, module, *rest, **options):
        first.append({name: value.clone() for name, value in module.network.state_dict().items()})
        return fit(self, module, *rest, **options)

    monkeypatch.setattr(home.Training, "fit", fit_and_note)
    options = medsynth.load_config(str(tiny_config)) | {"max_steps": 2, "start": common_run.folder}
    run = medsynth.train(**options, cohort=tiny_cohort, out=tmp_path / "run", progress=False)
    before, after = (load_file(each.folder / "model.safetensors") for each in (common_run, run))
    labels = "unet.class_embedding.label.weight"
    assert all(torch.equal(before[name], first[0][name]) for name in before if name != labels)
    dark, withheld = before[labels]
    assert torch.equal(first[0][labels], torch.stack([dark, dark, withheld])), "bright is new, so begins as the mean"
    assert any(not torch.equal(after[name], first[0][name]) for name in after), "nothing was trained"
    assert run.spec.sigma_data == common_run.spec.sigma_data
    # Patients of both trainings are known, and no path is written.
    assert run.shared_patients(["secret-patient-1", "secret-patient-0", "nobody"]) == [
        "secret-patient-0",
        "secret-patient-1",
    ]
    text = (run.folder / "run.json").read_text() + (run.folder / "config.yaml").read_text()
    assert str(common_run.folder) not in text
    assert common_run.fingerprint[:16] in text
    again = medsynth.train(**options, cohort=tiny_cohort, out=tmp_path / "run", progress=False)
    assert again.fingerprint == run.fingerprint


def test_the_patients_of_a_start_need_its_key(common_run, tiny_cohort, tiny_config, tmp_path, monkeypatch, capfd):
    """With another key their fingerprints could not be told together; that is said before any scan is prepared."""
    monkeypatch.setenv("MEDSYNTH_PATIENTS_KEY", str(tmp_path / "mine.key"))
    options = medsynth.load_config(str(tiny_config)) | {"max_steps": 1, "cohort": tiny_cohort}
    with pytest.raises(DataError, match=r"patients\.json: need the patients' key"):
        medsynth.train(**options, start=common_run.folder, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "mine.key").exists()
    run = medsynth.train(**options, out=tmp_path / "alone")
    told = [line for line in capfd.readouterr().err.splitlines() if "never publish" in line]
    assert len(told) == 1
    assert str(tmp_path / "mine.key") in told[0]
    assert (tmp_path / "mine.key").read_text().strip() not in "".join(
        path.read_bytes().decode(errors="replace") for path in run.folder.rglob("*") if path.is_file()
    )
    assert run.shared_patients(["secret-patient-0", "nobody"]) == ["secret-patient-0"]


def test_classes_can_be_left_out(tiny_cohort, tiny_config, tmp_path):
    options = medsynth.load_config(str(tiny_config)) | {"max_steps": 2}
    run = medsynth.train(**options, leave_out=["bright"], cohort=tiny_cohort, out=tmp_path / "run", progress=False)
    assert run.spec.classes == ("dark",)
    assert run.shared_patients(["secret-patient-1", "secret-patient-0"]) == ["secret-patient-1"]
    for left_out, named in ((["brigth"], "brigth"), (["bright", "dark"], "no class would be left")):
        with pytest.raises(ConfigError, match=named):
            medsynth.train(**options, leave_out=left_out, cohort=tiny_cohort, out=tmp_path / "no", progress=False)


def test_a_start_that_does_not_fit_is_refused(common_run, tiny_cohort, tiny_config, tmp_path):
    options = medsynth.load_config(str(tiny_config)) | {"start": common_run.folder}
    other = options["network"] | {"dropout": 0.5}
    with pytest.raises(ConfigError, match=r"start: need a run with the same grid.*network"):
        medsynth.train(**options | {"network": other}, cohort=tiny_cohort, out=tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match=r"condition\.mask: need False as in start"):
        medsynth.train(**options, condition={"mask": True}, cohort=tiny_cohort, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
