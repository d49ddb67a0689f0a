"""Autoguidance of whole sets: which weaker model is taken, that it fits, and what provenance says of it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import medsynth
from medsynth.config import GuidanceOptions, IntensityOptions, NetworkOptions, SolverOptions
from medsynth.diffusion import resolve_solver
from medsynth.errors import ConfigError, DataError
from medsynth.generation.generator import to_stored
from medsynth.networks import sample_scans
from medsynth.runs import Run
from medsynth.seeds import derive_seed

OFTEN = {"sigma_low": 0.0, "sigma_high": 100.0}
COUNT = {"bright": 2}


def scans(run, **options):
    made = medsynth.generate(run, count=COUNT, guidance=GuidanceOptions(**OFTEN, **options))
    return np.stack([each.scan.array for each in made])


def alone(run, denoiser):
    """What a denoiser makes of the class without guidance, from the noise of the same seeds."""
    import torch

    seeds = [derive_seed(0, "scan", "bright", number) for number in range(2)]
    found = sample_scans(
        denoiser, torch.zeros(2, dtype=torch.long), seeds, shape=run.spec.shape,
        solver=resolve_solver(SolverOptions()), guidance=GuidanceOptions(),
    )  # fmt: skip
    return np.stack([to_stored(array, run)["path"] for array in found.numpy()])


@pytest.fixture(scope="module")
def shorter(tiny_config, tiny_cohort, tmp_path_factory):
    """A smaller model, trained for fewer steps."""
    options = medsynth.load_config(str(tiny_config)) | {
        "max_steps": 5,
        "network": NetworkOptions(channels=(32,), attention=(False,), norm_groups=4),
    }
    out = tmp_path_factory.mktemp("shorter") / "secret-patient-place"
    return medsynth.train(**options, cohort=tiny_cohort, out=out, progress=False)


def test_scale_1_is_the_stronger_model_and_scale_0_the_weaker_one(tiny_run, shorter):
    np.testing.assert_array_equal(scans(tiny_run, scale=1.0, weak="early"), alone(tiny_run, tiny_run.load_denoiser()))
    np.testing.assert_array_equal(scans(tiny_run, scale=0.0, weak="early"), alone(tiny_run, tiny_run.load_early()))
    folder = str(shorter.folder)
    np.testing.assert_array_equal(scans(tiny_run, scale=0.0, weak=folder), alone(tiny_run, shorter.load_denoiser()))
    assert not np.array_equal(scans(tiny_run, scale=2.0, weak=folder), scans(tiny_run, scale=2.0, weak="early"))


def test_it_needs_no_label_dropout_and_reads_the_weaker_model_once(tiny_run, monkeypatch):
    never = dataclasses.replace(tiny_run, options={**tiny_run.options, "label_dropout": 0.0})
    loads = []
    real = Run.load_early
    monkeypatch.setattr(Run, "load_early", lambda self, device: loads.append(device) or real(self, device))
    guidance = GuidanceOptions(scale=2.0, weak="early")
    made = medsynth.generate(never, count="bright=3,dark=3", batch_size=1, guidance=guidance)
    assert loads == [], "nothing is read before the first scan"
    assert len(list(made)) == 6
    assert len(loads) == 1
    list(medsynth.generate(never, count=COUNT, guidance=GuidanceOptions(scale=1.0, weak="early")))
    assert len(loads) == 1


def test_a_set_names_the_weaker_model_by_its_fingerprint_only(tiny_run, shorter, tmp_path):
    options = {"run": tiny_run.folder, "count": "bright=2", "out": tmp_path / "set", "progress": False}
    guidance = GuidanceOptions(scale=2.0, weak=str(shorter.folder))
    medsynth.sample(**options, guidance=guidance)
    provenance = json.loads((tmp_path / "set" / "provenance.json").read_text())
    assert provenance["guidance"]["weak"] == shorter.fingerprint[:16]
    for path in (tmp_path / "set").rglob("*"):
        assert b"secret" not in (path.read_bytes() if path.is_file() else b""), path
    # A copy elsewhere is the same model; another model is another set.
    shutil.copytree(shorter.folder, tmp_path / "copy")
    medsynth.sample(**options, guidance=dataclasses.replace(guidance, weak=str(tmp_path / "copy")))
    with pytest.raises(
        ConfigError, match=r"guidance\.weak '" + shorter.fingerprint[:16] + "' -> '" + tiny_run.early[:16]
    ):
        medsynth.sample(**options, guidance=dataclasses.replace(guidance, weak="early"))
    with pytest.raises(ConfigError, match=r"guidance\.weak '" + shorter.fingerprint[:16] + "' -> ''"):
        medsynth.sample(**options, guidance=dataclasses.replace(guidance, weak=""))


def test_an_edit_is_guided_as_well(tiny_run, tiny_cohort, tmp_path):
    def edit(name, **options):
        made = medsynth.edit(
            run=tiny_run.folder, cohort=tiny_cohort, donor_class="dark", target_class="bright", count=2, strength=2.0,
            out=tmp_path / name, guidance=GuidanceOptions(**OFTEN, **options), progress=False,
        )  # fmt: skip
        return np.stack([medsynth.read_scan(made.file_of(row)).array for row in made.rows])

    assert not np.array_equal(edit("plain"), edit("guided", scale=3.0, weak="early"))


def test_what_cannot_be_meant_is_refused(tiny_run, shorter, tiny_config, tiny_cohort, tmp_path):
    def refused(run=tiny_run, error=ConfigError, match="", **options):
        with pytest.raises(error, match=match):
            next(medsynth.generate(run, count=COUNT, guidance=GuidanceOptions(**options)))

    refused(match=r"need one of weak and against, got both", weak="early", against="bright=dark")
    refused(match="need a local run folder, got a URL", weak="https://host/run")
    refused(error=DataError, match=r"need a run folder with run\.json, got none", weak=str(tmp_path))
    without = dataclasses.replace(tiny_run, checksums={})
    refused(run=without, match=r"guidance\.weak: need a run that kept its early weights", weak="early")
    student = {"distilled": {"solver": {"steps": 2, "sigma_min": 0.05, "sigma_max": 20.0}}}
    distilled = dataclasses.replace(tiny_run, options={**tiny_run.options, **student})
    refused(run=distilled, match="need a run of medsynth train, got a distilled one", weak="early")
    options = medsynth.load_config(str(tiny_config)) | {"max_steps": 1, "intensity": IntensityOptions(method="minmax")}
    options |= {"leave_out": ["dark"], "network": NetworkOptions(channels=(32,), attention=(False,), stem="pixel")}
    other = medsynth.train(**options, cohort=tiny_cohort, out=tmp_path / "other", progress=False)
    refused(match="got another in classes, intensity, stem; try", weak=str(other.folder))
