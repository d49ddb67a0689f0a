import csv
import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import medsynth
from medsynth.cohorts import write_cohort
from medsynth.config import AugmentationOptions, GridOptions, NetworkOptions
from medsynth.errors import ConfigError, DataError
from medsynth.networks import build_denoiser, build_stem
from medsynth.runs import Run, load_run
from medsynth.training import Augmentation, DiffusionModule
from medsynth.training.checkpoints import MetricsLog
from medsynth.training.spec import measure_bands
from tests.launching import kill_when_there


def train(config, cohort, out, **options):
    return medsynth.train(**medsynth.load_config(str(config)) | options, cohort=cohort, out=out, progress=False)


def command(config, cohort, out, *options):
    verb = [
        sys.executable,
        "-m",
        "medsynth",
        "train",
        "--config",
        str(config),
        "--cohort",
        str(cohort),
        "--out",
        str(out),
    ]
    return [*verb, "--progress", "false", *options]


def metrics(run):
    with (run / "metrics.csv").open() as stream:
        return {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(stream)}


def test_run_folder_holds_what_it_promises(tiny_run):
    folder = tiny_run.folder
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "model.safetensors", "early.safetensors", "config.yaml", "patients.json", "metrics.csv", "previews",
        "checkpoints",
    }  # fmt: skip
    assert tiny_run.steps == 12
    assert tiny_run.spec.classes == ("bright", "dark")
    assert tiny_run.spec.class_counts == (8, 32)
    assert {path.name for path in (folder / "previews").iterdir()} == {"step_0000006.png", "step_0000012.png"}
    with Image.open(folder / "previews" / "step_0000012.png") as picture:
        assert np.asarray(picture).std() > 1, "a preview shows something"
    names = {name for _, name in metrics(folder)}
    assert {"train_loss", "val_loss", "scans_per_s", "data_wait_share", "gradient_norm"} <= names
    assert "val_loss/bright/sigma_0.1" in names
    assert {f"memorisation/bright/{kind}" for kind in ("sample_median", "sample_p5", "held_out_median")} <= names


def test_training_lowers_the_validation_loss(tiny_cohort, tiny_config, tmp_path):
    """From the best linear denoiser to a learnt one: 60 steps take a fifth off the loss."""
    run = train(tiny_config, tiny_cohort, tmp_path / "run", max_steps=60)
    values = metrics(run.folder)
    assert values[(60, "val_loss")] < 0.8 * values[(4, "val_loss")]


def test_nothing_of_a_patient_in_the_run_folder(tiny_run, tiny_cohort):
    for path in tiny_run.folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"secret" not in content, path
        assert str(tiny_cohort.parent).encode() not in content, path


def test_no_path_of_the_run_folder_either(tiny_run):
    """A run under a folder that names a patient stays clean, its checkpoint too."""
    for path in tiny_run.folder.rglob("*"):
        assert str(tiny_run.folder.parent).encode() not in (path.read_bytes() if path.is_file() else b""), path


def test_same_seed_same_weights_and_finished_runs_are_left_alone(tiny_cohort, tiny_config, tiny_run, tmp_path):
    again = train(tiny_config, tiny_cohort, tmp_path / "run")
    assert again.fingerprint == tiny_run.fingerprint
    before = (again.folder / "model.safetensors").stat().st_mtime_ns
    assert train(tiny_config, tiny_cohort, tmp_path / "run").fingerprint == tiny_run.fingerprint
    assert (again.folder / "model.safetensors").stat().st_mtime_ns == before
    other = train(tiny_config, tiny_cohort, tmp_path / "other", seed=1)
    assert other.fingerprint != tiny_run.fingerprint


def test_kill_and_resume_gives_the_same_weights(tiny_cohort, tiny_config, tmp_path, tiny_run):
    """Promise 1 on one process: `kill -9` somewhere between two checkpoints, the same command again."""
    out = tmp_path / "run"
    kill_when_there(command(tiny_config, tiny_cohort, out), out / "checkpoints" / "last.ckpt")
    done = subprocess.run(command(tiny_config, tiny_cohort, out), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    first, second = load_file(tiny_run.folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    # The log has each row once, as in the run that nobody killed.
    values = metrics(out)
    rows = (out / "metrics.csv").read_text().splitlines()
    assert len(rows) - 1 == len(values)
    uninterrupted = {key: value for key, value in metrics(tiny_run.folder).items() if "loss" in key[1]}
    missing = uninterrupted.keys() - values.keys()
    # Rows of the checkpoint's own step are written just after it, and may be lost with the process.
    assert {step for step, _ in missing} <= {4}
    assert all(values[key] == value for key, value in uninterrupted.items() if key not in missing)


def test_signals_belong_to_the_caller_again_after_a_training(tiny_cohort, tiny_config, tmp_path):
    """Lightning's handler for SIGTERM ends nothing: left behind, it would make the process deaf."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    train(tiny_config, tiny_cohort, tmp_path / "run", max_steps=2)
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_leaves_130(number, tiny_cohort, tiny_config, tmp_path):
    out = tmp_path / "run"
    options = ["--max_steps", "100000", "--monitor.checkpoint_every", "100000", "--monitor.preview_every", "0"]
    process = subprocess.Popen(
        command(tiny_config, tiny_cohort, out, *options),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"LANG": "C"},
    )
    deadline = time.time() + 120
    while not (out / "metrics.csv").exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    stopped = load_run(out).steps
    assert stopped > 0
    checkpoint = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == stopped


def test_fault_26_checkpoint_of_another_configuration(tiny_cohort, tiny_config, tiny_run):
    with pytest.raises(ConfigError, match=r"max_steps 12 -> 24.*seed 0 -> 5"):
        train(tiny_config, tiny_cohort, tiny_run.folder, max_steps=24, seed=5)


def test_a_run_killed_before_its_first_checkpoint_starts_again(tiny_cohort, tiny_config, tiny_run, tmp_path):
    (tmp_path / "metrics.csv").write_text("step,name,value\n2,train_loss,9\n")
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / ".partial-x-model.safetensors").write_bytes(b"half")
    assert train(tiny_config, tiny_cohort, tmp_path).fingerprint == tiny_run.fingerprint
    assert metrics(tmp_path)[(2, "train_loss")] < 9


def test_a_checkpoint_without_its_run_is_refused(tiny_cohort, tiny_config, tiny_run, tmp_path):
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"need run\.json beside the checkpoint"):
        train(tiny_config, tiny_cohort, tmp_path / "run", seed=7)


def test_a_restarted_run_names_its_own_patients(tiny_cohort, tiny_config, tmp_path):
    (tmp_path / "patients.json").write_text('{"salt": "OLD", "train": [], "val": []}')
    train(tiny_config, tiny_cohort, tmp_path, max_steps=1)
    patients = json.loads((tmp_path / "patients.json").read_text())
    assert patients["salt"] != "OLD"
    assert (len(patients["train"]), len(patients["val"])) == (40, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps: need a whole number from 1 to 100,000,000, got 0"),
        ({"batch_size": -1}, "batch_size: need a whole number from 1"),
        ({"label_dropout": 2.0}, "label_dropout: need a number from 0 to 1"),
        ({"num_workers": -1}, "num_workers: need a whole number from 0"),
        ({"accelerator": "gpu"}, "accelerator: need devices that exist"),
        ({"augment": AugmentationOptions(flip_axes=(2,))}, "augment.flip_axes: need axes from 0 to 1"),
    ],
)
def test_numbers_that_no_training_can_work_with(tiny_cohort, tiny_config, tmp_path, options, message):
    if "accelerator" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=message):
        train(tiny_config, tiny_cohort, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_labels_with_commas_and_quotes_survive_the_log(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv")
    log.log_metrics({'val_loss/Pneumonia, "viral"/sigma_1': 0.5, "epoch": 0}, 3)
    log.log_metrics({"train_loss": 0.25}, 5)
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("7,torn")
    run = Run(folder=tmp_path, spec=None, options={}, steps=6, fingerprint="")
    assert {name: (steps.tolist(), values.tolist()) for name, (steps, values) in run.read_metrics().items()} == {
        'val_loss/Pneumonia, "viral"/sigma_1': ([4], [0.5]),
        "train_loss": ([6], [0.25]),
    }
    log.rewind(4)
    assert list(run.read_metrics()) == ['val_loss/Pneumonia, "viral"/sigma_1']
    (tmp_path / "metrics.csv").write_text("")  # of a process that was killed before it wrote the first row
    log.rewind(4)
    assert (tmp_path / "metrics.csv").read_text() == "step,name,value\n"


def test_a_class_without_training_scans_is_left_out(tiny_cohort, tiny_config, tmp_path):
    cohort = medsynth.read_cohort(tiny_cohort)
    rows = tuple(row for row in cohort.rows if row.label == "dark" or row.split == "val")
    write_cohort(dataclasses.replace(cohort, rows=rows), tiny_cohort.parent / "lonely.csv")
    run = train(tiny_config, tiny_cohort.parent / "lonely.csv", tmp_path / "run", max_steps=1)
    assert run.spec.classes == ("dark",)


def test_a_grid_that_the_network_cannot_take_is_refused_before_anything_is_written(tiny_cohort, tiny_config, tmp_path):
    with pytest.raises(ConfigError, match=r"grid.size: need multiples of 2 for this network, got \[15, 15\]"):
        train(tiny_config, tiny_cohort, tmp_path / "run", grid=GridOptions(size=15))
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_files_is_refused(tiny_cohort, tiny_config, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not overwrite")
    with pytest.raises(ConfigError, match="got a folder with other files"):
        train(tiny_config, tiny_cohort, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "pickle", "remove"])
def test_fault_25_damaged_or_foreign_weights(tiny_run, tmp_path, damage):
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "truncate":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-100] ^= 1
        weights.write_bytes(content)
    elif damage == "pickle":
        weights.write_bytes(pickle.dumps(Planted(tmp_path / "executed")))
    else:
        weights.unlink()
    with pytest.raises(DataError, match=r"model\.safetensors: need"):
        load_run(tmp_path / "run").load_denoiser()
    assert not (tmp_path / "executed").exists()


class Planted:
    """Pickles to something that would create a file when loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_urls_are_no_runs():
    with pytest.raises(ConfigError, match="got a URL"):
        load_run("https://example.org/run")


def test_damaged_run_description(tiny_run, tmp_path):
    content = json.loads((tiny_run.folder / "run.json").read_text())
    del content["spec"]["classes"]
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"run\.json: need a run description"):
        load_run(tmp_path)


def test_world_size_mismatch_is_refused(tiny_cohort, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE: need a torchrun or srun that runs"):
        train(tiny_config, tiny_cohort, tmp_path / "run")


def test_sigma_data_is_that_of_all_training_scans():
    random = np.random.default_rng(0)
    scans = (random.normal(0.2, 0.4, (600, 1, 8, 8)) * np.linspace(0.5, 1.5, 600)[:, None, None, None]).astype(
        np.float16
    )
    chosen = np.arange(0, 600, 2)
    bands = build_stem(NetworkOptions())(torch.from_numpy(scans[chosen].astype(np.float64)))
    spread, means = measure_bands(scans, chosen, NetworkOptions())
    assert means == pytest.approx(bands.mean(dim=(0, 2, 3)).tolist(), rel=1e-5, abs=1e-7)
    assert spread == pytest.approx(bands.std(dim=(0, 2, 3), correction=0).tolist(), rel=1e-5)
    spread, means = measure_bands(scans, chosen, NetworkOptions(stem="pixel"))
    plain = scans[chosen].astype(np.float64)
    assert (spread, means) == (pytest.approx([plain.std()], rel=1e-5), pytest.approx([plain.mean()], rel=1e-5))
    empty, _ = measure_bands(np.zeros_like(scans), chosen, NetworkOptions())
    assert empty == (0.01,) * 4


def test_the_denoiser_is_built_once_and_begins_from_the_seed(tiny_cohort, tiny_config, tmp_path, monkeypatch):
    """Its first weights are those of `torch.manual_seed(seed)` directly before the build."""
    from medsynth.training import spec
    from medsynth.training import train as home

    built, fitted = [], []
    build, fit = spec.build_denoiser, home.Training.fit

    def build_and_note(*arguments, **options):
        built.append((arguments, options))
        return build(*arguments, **options)

    def fit_and_note(self, module, *rest, **options):
        fitted.append({name: value.clone() for name, value in module.network.state_dict().items()})
        return fit(self, module, *rest, **options)

    monkeypatch.setattr(spec, "build_denoiser", build_and_note)
    monkeypatch.setattr(home.Training, "fit", fit_and_note)
    run = train(tiny_config, tiny_cohort, tmp_path / "run", max_steps=1, seed=3)
    assert len(built) == 1
    torch.manual_seed(3)
    expected = run.spec.build().state_dict()
    assert fitted[0].keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in fitted[0].items())


@pytest.mark.parametrize("augmented", [False, True])
def test_module_under_a_trainer_of_ones_own(augmented):
    """A plain loader of scans and labels; without parameters for it in the network, scans are not augmented."""
    import lightning.pytorch as pl

    parameters = Augmentation(AugmentationOptions(), 2).parameters if augmented else 0
    network = NetworkOptions(channels=(32,), attention=(False,))
    denoiser = build_denoiser(network, channels=1, size=(16, 16), classes=2, augmentation_parameters=parameters)
    scans = [{"scan": torch.rand(1, 16, 16) * 2 - 1, "label": number % 2} for number in range(16)]
    loader = torch.utils.data.DataLoader(scans, batch_size=8)
    module = DiffusionModule(denoiser, classes=("a", "b"), total_steps=2)
    drawn = module.augmentation.draw(500, torch.Generator().manual_seed(0))
    assert bool((drawn != 0).any()) == augmented
    before = [parameter.clone() for parameter in module.averaged.parameters()]
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    assert trainer.global_step == 2
    assert 0 < float(trainer.callback_metrics["val_loss"]) < 10
    changed = [not torch.equal(a, b) for a, b in zip(before, module.averaged.parameters(), strict=True)]
    assert any(changed), "the average follows without a callback"


def test_average_follows_its_formula(tiny_run):
    """Decay rises as (1 + n) / (10 + n): by hand for two updates."""
    module = DiffusionModule(tiny_run.spec.build(), classes=tiny_run.spec.classes, total_steps=3)
    parameter = next(module.network.parameters())
    averaged = next(module.averaged.parameters())
    with torch.no_grad():
        parameter.fill_(1.0)
        module.ema.update_parameters(module.network)  # the first update copies
        parameter.fill_(2.0)
        module.ema.update_parameters(module.network)
    assert float(averaged.flatten()[0]) == pytest.approx(1 + (1 - 2 / 11))
