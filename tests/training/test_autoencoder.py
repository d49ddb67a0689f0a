"""The autoencoder of the stem `latent`: it learns, it is checked, and a training on its latents needs only its run."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import medsynth
from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.config import (
    AugmentationOptions,
    AutoencoderOptions,
    GridOptions,
    IntensityOptions,
    Loading,
    MonitorOptions,
    NetworkOptions,
    OptimiserOptions,
)
from medsynth.errors import ConfigError, DataError, GateError
from medsynth.networks import build_autoencoder
from medsynth.runs import load_run
from medsynth.scans import Scan, write_scan
from medsynth.seeds import numpy_generator
from medsynth.training import AutoencoderRun, checkpoints, reconstruction
from medsynth.training.reconstruction import Limits, Reconstruction, ReconstructionRow, lesion_error, peak_ratio

SMALL = AutoencoderOptions(channels=(8, 16), latent_channels=3)
LOW = Limits(psnr=5.0, ssim=-1.0, lesion_error=1.0)
STEPS = 24
QUIET = Loading(progress=False)
LATENT = NetworkOptions(stem="latent", channels=(32,), attention=(False,))
COMMON = {
    "batch_size": 4,
    "grid": GridOptions(size=16),
    "intensity": IntensityOptions(method="range", low=0, high=255),
    "optimiser": OptimiserOptions(warmup_steps=1, ema_decay=0.5, learning_rate=3e-3),
    "monitor": MonitorOptions(log_every=1, validate_every=2, preview_every=4, checkpoint_every=2),
    "progress": False,
}


def train(cohort, out, **options):
    return medsynth.train(cohort=cohort, out=out, **COMMON | options)


def train_encoder(cohort, out, **options):
    given = {"stage": "autoencoder", "max_steps": 4, "autoencoder": SMALL}
    return train(cohort, out, **given | options)


def latent(encoder, **options):
    given = {"max_steps": 4, "network": LATENT, "autoencoder": AutoencoderOptions(run=str(encoder.folder))}
    return given | options


def weights(run):
    return load_file(run.folder / "model.safetensors")


def equal_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module", autouse=True)
def limits():
    """Limits that an autoencoder of a few steps meets."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reconstruction, "LIMITS", LOW)
        yield


def open_encoder(folder):
    return AutoencoderRun.of(load_run(folder))


@pytest.fixture(scope="module")
def encoder(tiny_cohort, tmp_path_factory):
    return train_encoder(tiny_cohort, tmp_path_factory.mktemp("encoder") / "run", max_steps=STEPS)


@pytest.fixture(scope="module")
def run(encoder, tiny_cohort, tmp_path_factory):
    return train(tiny_cohort, tmp_path_factory.mktemp("latent") / "run", **latent(encoder))


def made_scans(run):
    return np.stack([each.scan.array for each in medsynth.generate(run, count="bright=1,dark=2", seed=3)])


# The autoencoder ---------------------------------------------------------------------------------------------------------


def test_it_reconstructs_better_than_at_the_start(encoder):
    values = dict(zip(*(part.tolist() for part in metrics(encoder)["val_psnr"]), strict=True))
    assert values[STEPS] > values[2] + 3, "dB"


def metrics(run):
    from medsynth.runs import Run

    return Run(folder=run.folder, spec=None, options={}, steps=0, fingerprint="").read_metrics()


def test_its_folder_is_a_run_like_any_other(encoder):
    content = json.loads((encoder.folder / "run.json").read_text())
    assert content["options"]["stage"] == "autoencoder"
    assert {path.name for path in encoder.folder.iterdir()} == {
        "run.json", "model.safetensors", "reconstruction.json", "config.yaml", "patients.json", "metrics.csv", "previews",
        "checkpoints",
    }  # fmt: skip
    run = load_run(encoder.folder)
    assert (run.fingerprint, run.spec.classes, run.spec.network.stem) == (
        encoder.fingerprint,
        ("bright", "dark"),
        "latent",
    )
    with pytest.raises((DataError, ConfigError), match="got an autoencoder"):
        run.load_denoiser()
    for path in encoder.folder.rglob("*"):
        written = path.read_bytes() if path.is_file() else b""
        assert b"secret" not in written, path
        assert str(encoder.folder.parent).encode() not in written, path


def test_the_check_measures_what_the_weights_do(encoder, tiny_cohort):
    """PSNR of the report, from the stored weights and the cohort by hand."""
    cohort = medsynth.read_cohort(tiny_cohort)
    prepared = medsynth.prepare_cohort(
        cohort, grid=COMMON["grid"], intensity=COMMON["intensity"], classes=("bright", "dark"), loading=QUIET
    )
    rows = prepared.indices(split="val", label=1)
    scans = torch.from_numpy(prepared.scans[rows].astype(np.float32))
    network = build_autoencoder(SMALL, channels=1, size=(16, 16))
    own = {name.removeprefix("autoencoder."): value for name, value in weights(encoder).items()}
    network.load_state_dict({name: value for name, value in own.items() if name not in ("mean", "scale")})
    with torch.no_grad():
        rebuilt = network.reconstruct(scans).clamp(-1, 1)
    expected = [10 * np.log10(4 / float((a - b).square().mean())) for a, b in zip(scans, rebuilt, strict=True)]
    content = json.loads((encoder.folder / "reconstruction.json").read_text())
    (found,) = (row for row in content["rows"] if row["label"] == "dark")
    assert found["scans"] == len(rows) == 8
    assert found["psnr"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert found["psnr_lowest"] == pytest.approx(np.min(expected), abs=1e-3)
    assert found["lesion_error"] is None, "no masks in this cohort"


def test_a_failed_check_ends_in_code_4_and_nothing_is_built_on_it(encoder, tiny_cohort, tmp_path, capsys, monkeypatch):
    from medsynth.cli import run_command

    shutil.copytree(encoder.folder, tmp_path / "run")
    arguments = ["train", "--stage", "autoencoder", "--config", str(encoder.folder / "config.yaml")]
    arguments += ["--cohort", str(tiny_cohort), "--out", str(tmp_path / "run")]
    assert run_command([*arguments, "--progress", "false"]) == 0
    assert "reconstruction check: passed" in capsys.readouterr().out
    (tmp_path / "run" / "reconstruction.json").unlink()  # as if killed before the check
    monkeypatch.setattr(reconstruction, "LIMITS", Limits(psnr=90.0, ssim=-1.0))
    assert run_command(arguments) == 4
    errors = capsys.readouterr().err
    assert "the autoencoder loses too much of the scans (bright: PSNR" in errors
    failed = open_encoder(tmp_path / "run")
    assert failed.fingerprint == encoder.fingerprint, "the run is kept"
    assert json.loads((tmp_path / "run" / "reconstruction.json").read_text())["passed"] is False
    assert "reconstruction check: failed" in failed.summary()
    with pytest.raises(GateError, match=r"bright: PSNR .* dB, need 90; dark: "):
        train(tiny_cohort, tmp_path / "latent", **latent(failed))
    assert not (tmp_path / "latent").exists()


def test_known_errors():
    first = torch.zeros(2, 1, 4, 4)
    second = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 2.0)])
    torch.testing.assert_close(peak_ratio(first, second), torch.tensor([20.0, 0.0]), rtol=0, atol=1e-4)
    scan, other, mask = np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), np.zeros((1, 4, 4), dtype=np.uint8)
    other[0, 1, 1:3] = 0.3, 0.4
    mask[0, 1, 1:3] = 1
    assert lesion_error(scan, other, mask) == pytest.approx(np.sqrt((0.09 + 0.16) / 2) / 2)
    assert np.isnan(lesion_error(scan, other, np.zeros_like(mask)))


def test_each_limit_can_fail_alone(monkeypatch):
    row = ReconstructionRow(
        label="a", split="val", scans=3, psnr=30.0, psnr_lowest=20.0, ssim=0.9, masks=2, lesion_error=0.04
    )
    limits = Limits(psnr=30.0, ssim=0.9, lesion_error=0.04)
    monkeypatch.setattr(reconstruction, "LIMITS", limits)
    assert Reconstruction(rows=(row,)).failures() == []
    blank = dataclasses.replace(row, lesion_error=None, masks=0)
    for name, value, word in (("psnr", 31.0, "PSNR"), ("ssim", 0.95, "SSIM"), ("lesion_error", 0.03, "lesion error")):
        monkeypatch.setattr(reconstruction, "LIMITS", dataclasses.replace(limits, **{name: value}))
        (failure,) = Reconstruction(rows=(row,)).failures()
        assert word in failure
    assert Reconstruction(rows=(blank,)).failures() == []
    whole = Reconstruction(rows=(row, blank))
    assert Reconstruction.from_dict(json.loads(json.dumps(whole.as_dict()))) == whole


def stop_at(step, monkeypatch):
    """Training ends as by a power cut when the weights of this step are to be written."""
    save = checkpoints.save_run

    def save_or_stop(*arguments, steps, **options):
        if steps == step:
            raise RuntimeError("the power fails")
        return save(*arguments, steps=steps, **options)

    monkeypatch.setattr(checkpoints, "save_run", save_or_stop)


def test_an_interrupted_training_ends_in_the_same_weights(tiny_cohort, tmp_path, monkeypatch):
    """The network, its average and the optimiser continue from the checkpoint bit for bit."""
    whole = train_encoder(tiny_cohort, tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_at(4, patched)
        with pytest.raises(RuntimeError, match="the power fails"):
            train_encoder(tiny_cohort, tmp_path / "cut")
    assert open_encoder(tmp_path / "cut").steps == 2
    with pytest.raises(ConfigError, match=r"not finished \(2 steps\)"):
        train(tiny_cohort, tmp_path / "latent", **latent(open_encoder(tmp_path / "cut")))
    again = train_encoder(tiny_cohort, tmp_path / "cut")
    assert again.fingerprint == whole.fingerprint
    assert again.reconstruction == whole.reconstruction


def test_parts_of_a_batch_change_nothing_but_rounding(tiny_cohort, tmp_path):
    """Losses and gradients; weights would show what Adam makes of the rounding of gradients near 0."""
    options = {"autoencoder": SMALL, "max_steps": 2}
    one = metrics(train_encoder(tiny_cohort, tmp_path / "one", **options))
    parts = {"accumulate_grad_batches": 2, "activation_checkpointing": True}
    two = metrics(train_encoder(tiny_cohort, tmp_path / "two", **options, **parts))
    for name in ("train_loss", "train_error", "train_divergence", "gradient_norm"):
        assert two[name][1].tolist() == pytest.approx(one[name][1].tolist(), rel=1e-3), name


# Diffusion on its latents ------------------------------------------------------------------------------------------------


def test_scans_from_latents_have_the_shape_and_range_of_scans(run):
    made = made_scans(run)
    assert made.shape == (3, 1, 16, 16)
    assert made.dtype == np.uint8
    assert made.std() > 1
    assert run.spec.sigma_data == (1.0, 1.0, 1.0)
    assert {path.name for path in (run.folder / "previews").iterdir()} == {"step_0000004.png"}
    assert {"memorisation/bright/sample_median", "val_loss"} <= run.read_metrics().keys()


def test_latents_of_the_training_scans_are_scaled_in_the_run(run, encoder, tiny_cohort):
    prepared = medsynth.prepare_cohort(
        medsynth.read_cohort(tiny_cohort), grid=COMMON["grid"], intensity=run.spec.intensity, loading=QUIET
    )
    denoiser = run.load_denoiser()
    scans = torch.from_numpy(prepared.scans[prepared.indices(split="train")].astype(np.float32))
    latents = denoiser.encode(scans).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.square().mean(1), torch.ones(3), rtol=0, atol=1e-3)
    stored, own = (
        {name.removeprefix(prefix): value for name, value in weights(each).items() if name.startswith(prefix)}
        for each, prefix in ((run, "codec.autoencoder."), (encoder, "autoencoder."))
    )
    assert equal_weights(stored, own), "training left the autoencoder as it was"


def test_the_run_needs_no_autoencoder_and_no_place(encoder, run, tiny_cohort, tmp_path):
    shutil.copytree(run.folder, tmp_path / "elsewhere")
    shutil.copytree(encoder.folder, tmp_path / "encoder")
    moved = load_run(tmp_path / "elsewhere")
    assert moved.spec.autoencoder.run == encoder.fingerprint[:16]
    assert str(encoder.folder).encode() not in (tmp_path / "elsewhere" / "run.json").read_bytes()
    assert np.array_equal(made_scans(moved), made_scans(run))
    # Nor does the command that trained it mind where the autoencoder lies.
    again = train(tiny_cohort, tmp_path / "elsewhere", **latent(open_encoder(tmp_path / "encoder")))
    assert again.fingerprint == run.fingerprint


def test_the_patients_of_the_autoencoder_are_those_of_the_run(encoder, tiny_cohort, tmp_path):
    """A diffusion trained on fewer patients still knows whom its autoencoder saw."""
    cohort = medsynth.read_cohort(tiny_cohort)
    fewer = tuple(row for row in cohort.rows if row.patient_id != "secret-patient-0")
    path = tiny_cohort.parent / "fewer.csv"
    write_cohort(dataclasses.replace(cohort, rows=fewer), path)
    run = train(path, tmp_path / "run", **latent(encoder, max_steps=1))
    assert run.shared_patients(["secret-patient-0", "secret-patient-59"]) == ["secret-patient-0"]


def test_an_interrupted_latent_training_ends_in_the_same_weights(encoder, run, tiny_cohort, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(4, patched)
        with pytest.raises(RuntimeError, match="the power fails"):
            train(tiny_cohort, tmp_path / "cut", **latent(encoder))
    assert train(tiny_cohort, tmp_path / "cut", **latent(encoder)).fingerprint == run.fingerprint


def test_a_second_stage_begins_from_latent_weights(encoder, run, tiny_cohort, tmp_path):
    second = train(tiny_cohort, tmp_path / "run", **latent(encoder, max_steps=1, start=run.folder))
    kept = {name: value for name, value in weights(second).items() if name.startswith("codec.")}
    assert equal_weights(kept, {name: value for name, value in weights(run).items() if name.startswith("codec.")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"grid": GridOptions(size=32)},
            r"autoencoder.run: need the grid and intensities.*grid.size \[16, 16\] -> \[32, 32\]",
        ),
        ({"grid": GridOptions(size=16, fit="crop")}, "grid.fit 'pad' -> 'crop'"),
        ({"intensity": IntensityOptions(method="minmax")}, "intensity.method 'range' -> 'minmax'"),
        (
            {"network": dataclasses.replace(LATENT, stem="haar")},
            "autoencoder.run: only network.stem latent uses it, got haar",
        ),
        (
            {"autoencoder": AutoencoderOptions()},
            "network.stem latent needs the run folder of an autoencoder",
        ),
        ({"stage": "autoencoder"}, "autoencoder.run: an autoencoder cannot begin from"),
    ],
)
def test_what_does_not_belong_together_is_refused(encoder, tiny_cohort, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        train(tiny_cohort, tmp_path / "run", **latent(encoder) | change)
    assert not (tmp_path / "run").exists()


def test_a_diffusion_run_is_no_autoencoder(tiny_run, tiny_cohort, tmp_path):
    with pytest.raises(DataError, match="need an autoencoder, got a diffusion run"):
        train(tiny_cohort, tmp_path / "run", **latent(tiny_run))


def test_an_autoencoder_is_no_start(encoder, tiny_cohort, tmp_path):
    with pytest.raises(ConfigError, match="start: need a diffusion run"):
        train(tiny_cohort, tmp_path / "run", network=dataclasses.replace(LATENT, stem="haar"), start=encoder.folder)


# Volumes and masks -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Volumes of 8 x 8 x 8 with a mask each."""
    folder, rows = tmp_path_factory.mktemp("volumes"), []
    for number in range(10):
        random = numpy_generator(0, "volumes", number)
        inside = np.zeros((8, 8, 8), dtype=bool)
        inside[2:5, 3:6, 2 + number % 3 : 5 + number % 3] = True
        array = (60 + 120 * inside + random.normal(0, 4, inside.shape)).clip(0, 255).astype(np.uint8)
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        write_scan(Scan(array=array[None], affine=affine), folder / f"{number}.nii.gz")
        write_scan(Scan(array=inside[None].astype(np.uint8), affine=affine), folder / f"{number}_mask.nii.gz")
        split = "train" if number < 6 else "val" if number < 9 else "test"
        row = {"path": f"{number}.nii.gz", "mask": f"{number}_mask.nii.gz", "label": "lesion"}
        rows.append(Row(**row, patient_id=str(number), split=split))
    write_cohort(Cohort(folder=folder, rows=tuple(rows), roots={}), folder / "cohort.csv")
    return folder / "cohort.csv"


def test_volumes_take_the_same_path(volumes, tmp_path):
    """With all terms of the loss, and errors inside masks, which are those of the stored weights."""
    options = {"grid": GridOptions(size=8), "augment": AugmentationOptions(probability=0.0), "max_steps": 2}
    encoder = train_encoder(volumes, tmp_path / "encoder", autoencoder=SMALL, **options)
    (row,) = encoder.reconstruction.rows
    assert (row.scans, row.masks) == (3, 3)
    codec = encoder.load_codec()
    prepared = medsynth.prepare_cohort(
        medsynth.read_cohort(volumes), grid=options["grid"], intensity=COMMON["intensity"], loading=QUIET
    )
    scans = torch.from_numpy(prepared.scans[prepared.indices(split="val")].astype(np.float32))
    rebuilt = codec.decode(codec.encode(scans)).clamp(-1, 1)
    inside = scans > -0.1  # 120 of 255 and above: what the mask covers, well apart from the rest
    errors = [float((a - b)[m].square().mean().sqrt()) / 2 for a, b, m in zip(scans, rebuilt, inside, strict=True)]
    assert row.lesion_error == pytest.approx(np.mean(errors), abs=1e-4)
    assert {"train_error", "train_divergence"} <= metrics(encoder).keys()
    run = train(volumes, tmp_path / "run", **latent(encoder, **options))
    (made,) = medsynth.generate(run, count=1)
    assert made.scan.array.shape == (1, 8, 8, 8)
    assert made.scan.array.dtype == np.uint8
