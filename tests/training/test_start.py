import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import medsynth
from medsynth.cohorts import read_cohort, write_cohort
from medsynth.config import NetworkOptions, RareOptions, StartOptions
from medsynth.errors import ConfigError
from medsynth.networks import build_denoiser
from medsynth.training.start import parse_parents

CLASSES = ("bacterial", "normal", "viral")


def denoiser_of(parents, gate):
    """A denoiser whose last layer is not zero and whose classes all differ."""
    torch.manual_seed(0)
    built = build_denoiser(
        NetworkOptions(channels=(32,), attention=(False,)), channels=1, size=(8, 8), classes=3,
        augmentation_parameters=0, sigma_data=0.5, parents=parents, gate_sigma=gate,
    )  # fmt: skip
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return built.eval()


def test_above_the_gate_a_rare_class_is_its_parent():
    denoiser = denoiser_of((0, 1, 0), 1.0)
    noisy = torch.randn(4, 1, 8, 8)
    sigma = torch.tensor([0.3, 1.0, 1.1, 5.0])

    def denoised(label):
        return denoiser(noisy, sigma, denoiser.embedding.make(torch.full((4,), label)))

    apart = (denoised(2) - denoised(0)).abs().amax(dim=(1, 2, 3))
    assert (apart[:2] > 1e-4).all()
    assert (apart[2:] == 0).all()
    assert ((denoised(1) - denoised(0)).abs().amax(dim=(1, 2, 3)) > 1e-4).all()
    never = denoiser_of((0, 1, 0), 0.0)
    assert (
        (never(noisy, sigma, never.embedding.make(torch.full((4,), 2))) - denoised(0)).abs().amax((1, 2, 3)) > 1e-4
    ).all()


def test_a_new_class_with_a_parent_begins_as_its_parent():
    built = build_denoiser(
        NetworkOptions(channels=(32,), attention=(False,)), channels=1, size=(8, 8), classes=3,
        augmentation_parameters=0, sigma_data=0.5, parents=(0, 1, 0),
    )  # fmt: skip
    embedding = built.embedding
    told = embedding(embedding.make(torch.arange(3)))
    assert torch.equal(told[0], told[2])
    assert not torch.equal(told[0], told[1])


@pytest.mark.parametrize(
    ("parents", "gate", "named"),
    [
        ("viral=fungal", 0.0, "fungal"),
        ("viral=viral", 0.0, "viral=viral"),
        ("viral=bacterial,bacterial=normal", 0.0, "parents of their own"),
        ("", 1.0, "rare.gate_sigma"),
        ("viral=bacterial", -1.0, "rare.gate_sigma"),
    ],
)
def test_parents_that_make_no_sense_are_named(parents, gate, named):
    with pytest.raises(ConfigError, match=named):
        parse_parents(RareOptions(parents=parents, gate_sigma=gate), CLASSES)


def test_parents_are_indices():
    assert parse_parents(RareOptions(parents=" viral = bacterial "), CLASSES) == (0, 1, 0)
    assert parse_parents(RareOptions(), CLASSES) == ()
    assert parse_parents(RareOptions(parents="a=b=c"), ("a=b", "c")) == (1, 1)


@pytest.fixture(scope="module")
def common_run(tiny_cohort, tiny_config, tmp_path_factory):
    """A run on the class `dark` alone."""
    folder = tmp_path_factory.mktemp("common")
    cohort = read_cohort(tiny_cohort)
    rows = tuple(replace(row, root="scans") for row in cohort.rows if row.label == "dark")
    write_cohort(replace(cohort, folder=folder, rows=rows, roots={"scans": cohort.folder}), folder / "cohort.csv")
    options = medsynth.load_config(str(tiny_config)) | {"max_steps": 4}
    return medsynth.train(**options, cohort=folder / "cohort.csv", out=folder / "run", progress=False)


def test_training_begins_from_another_run(common_run, tiny_cohort, tiny_config, tmp_path):
    options = medsynth.load_config(str(tiny_config)) | {
        "max_steps": 2,
        "start": StartOptions(run=str(common_run.folder), trainable="modulation"),
        "rare": RareOptions(parents="bright=dark"),
    }
    run = medsynth.train(**options, cohort=tiny_cohort, out=tmp_path / "run", progress=False)
    before, after = (load_file(each.folder / "model.safetensors") for each in (common_run, run))
    changed = {
        name for name in after if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    }
    assert changed, "nothing was trained"
    # unet.out.0 is the last normalisation.
    assert {name for name in changed if not re.search("class_embedding|norm|time_emb_proj|unet.out.0", name)} == set()
    assert run.spec.sigma_data == common_run.spec.sigma_data
    assert run.spec.parents == (1, 1)
    # Patients of both trainings are known, and no path is written.
    assert run.shared_patients(["secret-patient-1", "secret-patient-0", "nobody"]) == [
        "secret-patient-0",
        "secret-patient-1",
    ]
    text = (run.folder / "run.json").read_text() + (run.folder / "config.yaml").read_text()
    assert str(common_run.folder) not in text
    assert common_run.fingerprint[:16] in text
    assert medsynth.load_denoiser(run.folder).embedding.parents.tolist() == [1, 1, 2]
    again = medsynth.train(**options, cohort=tiny_cohort, out=tmp_path / "run", progress=False)
    assert again.fingerprint == run.fingerprint


def test_classes_can_be_left_out(tiny_cohort, tiny_config, tmp_path):
    options = medsynth.load_config(str(tiny_config)) | {"max_steps": 2}
    run = medsynth.train(**options, leave_out=" bright ", cohort=tiny_cohort, out=tmp_path / "run", progress=False)
    assert run.spec.classes == ("dark",)
    assert run.shared_patients(["secret-patient-1", "secret-patient-0"]) == ["secret-patient-1"]
    for left_out, named in (("brigth", "brigth"), ("bright,dark", "a class that stays")):
        with pytest.raises(ConfigError, match=named):
            medsynth.train(**options, leave_out=left_out, cohort=tiny_cohort, out=tmp_path / "no", progress=False)


def test_a_start_that_does_not_fit_is_refused(common_run, tiny_cohort, tiny_config, tmp_path):
    options = medsynth.load_config(str(tiny_config)) | {"start": StartOptions(run=str(common_run.folder))}
    other = replace(options["network"], dropout=0.5)
    with pytest.raises(ConfigError, match="network"):
        medsynth.train(**options | {"network": other}, cohort=tiny_cohort, out=tmp_path / "run", progress=False)
    alone = options | {"start": StartOptions(trainable="modulation")}
    with pytest.raises(ConfigError, match=r"start\.run"):
        medsynth.train(**alone, cohort=tiny_cohort, out=tmp_path / "other", progress=False)
    assert json.loads((common_run.folder / "run.json").read_text())["spec"]["parents"] == []
