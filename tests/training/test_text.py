"""Training on sentences: `condition.text` names a column, and the run keeps how its sentences become numbers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import medsynth
from medsynth.cohorts import read_cohort, write_cohort
from medsynth.config import AugmentationOptions, ConditionOptions, NetworkOptions
from medsynth.errors import ConfigError, MedsynthError
from medsynth.networks import build_denoiser
from medsynth.runs import load_run
from medsynth.training import DiffusionModule, checkpoints

PLACES = ("left lung", "right lung", "mediastinum")


def sentence(number):
    """Every sixth scan has none."""
    return "" if number % 6 == 5 else f"Small nodule of {number % 4 + 2} mm in the {PLACES[number % 3]}, no effusion."


@pytest.fixture(scope="module")
def cohort_with(tiny_cohort, tmp_path_factory):
    """A function that writes the tiny cohort with other sentences."""

    def write(of):
        folder, cohort = tmp_path_factory.mktemp("texts"), read_cohort(tiny_cohort)
        rows = tuple(
            replace(row, root="scans", attributes={"impression": of(number)}) for number, row in enumerate(cohort.rows)
        )
        write_cohort(replace(cohort, folder=folder, rows=rows, roots={"scans": cohort.folder}), folder / "cohort.csv")
        return folder / "cohort.csv"

    return write


@pytest.fixture(scope="module")
def cohort(cohort_with):
    return cohort_with(sentence)


def train(config, cohort, out, **options):
    given = {"condition": {"text": "impression"}, "max_steps": 8}
    return medsynth.train(**medsynth.load_config(str(config)) | given | options, cohort=cohort, out=out, progress=False)


@pytest.fixture(scope="module")
def run(tiny_config, cohort, tmp_path_factory):
    return train(tiny_config, cohort, tmp_path_factory.mktemp("text") / "run")


def test_the_run_keeps_the_encoding_and_no_sentence(run, cohort):
    encoding = run.text_encoding()
    assert encoding.dimensions == run.spec.text > 0
    assert (run.folder / "text.npz").is_file()
    vectors = encoding.encode([sentence(0), ""])
    assert np.isfinite(vectors[0]).all()
    assert np.isnan(vectors[1]).all()
    for path in run.folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"Small nodule of" not in content, path
        assert b"secret" not in content, path


def test_the_network_learns_from_the_text(run):
    """Its weights for the text have moved from their initial values."""
    torch.manual_seed(0)
    before, after = run.spec.build().state_dict(), load_file(run.folder / "model.safetensors")
    names = [name for name in after if "class_embedding.text" in name]
    assert names
    assert all(not torch.equal(before[name], after[name]) for name in names)


def test_an_interrupted_training_ends_in_the_same_weights(run, tiny_config, cohort, tmp_path, monkeypatch):
    save = checkpoints.save_run

    def save_or_stop(*arguments, steps, **options):
        if steps == 8:
            raise RuntimeError("the power fails")
        return save(*arguments, steps=steps, **options)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_run", save_or_stop)
        with pytest.raises(RuntimeError, match="the power fails"):
            train(tiny_config, cohort, tmp_path / "cut")
    assert load_run(tmp_path / "cut").steps == 4
    assert train(tiny_config, cohort, tmp_path / "cut").fingerprint == run.fingerprint


def test_a_run_is_not_continued_with_other_sentences(run, tiny_config, cohort_with):
    other = cohort_with(lambda number: sentence(number).replace("no effusion", "small effusion"))
    with pytest.raises(ConfigError, match=r"holds a run with other options or data \(text "):
        train(tiny_config, other, run.folder)


@pytest.mark.parametrize(
    ("column", "words", "message"),
    [
        ("findings", sentence, r"condition\.text: need a column of the cohort \(impression\), got 'findings'"),
        ("impression", lambda number: "" if number < 40 else "nodule", r"condition\.text: "),
    ],
)
def test_columns_that_teach_nothing_are_refused(tiny_config, cohort_with, tmp_path, column, words, message):
    with pytest.raises(MedsynthError, match=message):
        train(tiny_config, cohort_with(words), tmp_path / "run", condition={"text": column})
    assert not (tmp_path / "run").exists()


def test_a_student_keeps_the_encoding_of_its_teacher(run, cohort, tmp_path):
    student = medsynth.distill(
        run=run.folder, cohort=cohort, out=tmp_path / "student", trajectories=16, teacher_steps=4, max_steps=2,
        batch_size=8, progress=False,
    )  # fmt: skip
    assert student.spec == run.spec
    assert (student.folder / "text.npz").read_bytes() == (run.folder / "text.npz").read_bytes()


def test_a_second_stage_keeps_the_encoding_of_the_first(run, tiny_config, cohort_with, tmp_path):
    """Fitted anew, its dimensions would mean something else than those that the weights know."""
    other = cohort_with(lambda number: sentence(number).replace("no effusion", "small effusion"))
    second = train(tiny_config, other, tmp_path / "run", start=run.folder, max_steps=1)
    assert (second.folder / "text.npz").read_bytes() == (run.folder / "text.npz").read_bytes()
    with pytest.raises(ConfigError, match=r"start: need a run with the same.*text \d+ -> 0"):
        train(tiny_config, other, tmp_path / "no", start=run.folder, condition={})


def test_texts_are_hidden_as_often_as_attributes(monkeypatch):
    """With `condition.dropout` alone, a text is hidden as a whole."""
    network = NetworkOptions(channels=(32,), attention=(False,))
    denoiser = build_denoiser(network, channels=1, size=(8, 8), classes=1, text=5)
    module = DiffusionModule(
        denoiser, classes=("a",), total_steps=1, condition=ConditionOptions(dropout=0.25), label_dropout=0.0,
        augment=AugmentationOptions(probability=0.0),
    )  # fmt: skip
    seen = []
    losses = module._losses

    def note(denoiser, clean, noise, sigma, condition):
        seen.append(condition.text)
        return losses(denoiser, clean, noise, sigma, condition)

    monkeypatch.setattr(module, "_losses", note)
    scans = {"scan": torch.zeros(400, 1, 8, 8), "label": torch.zeros(400, dtype=torch.long), "text": torch.ones(400, 5)}
    import lightning.pytorch as pl

    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([scans], batch_size=None))
    hidden = seen[0].isnan()
    assert torch.equal(hidden.all(1), hidden.any(1))
    assert float(hidden.float().mean()) == pytest.approx(0.25, abs=0.06)


def test_without_a_text_column_nothing_changes(tiny_run):
    assert tiny_run.spec.text == 0
    assert not (tiny_run.folder / "text.npz").exists()
    assert "text" not in json.loads((tiny_run.folder / "run.json").read_text())["options"]
