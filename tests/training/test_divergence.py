"""A training that diverges ends with one line that says where, and nothing that is not finite is written or loaded."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import medsynth
from medsynth.config import AutoencoderOptions, GridOptions, IntensityOptions, MonitorOptions, OptimiserOptions
from medsynth.diffusion import SOLVERS
from medsynth.errors import ConfigError, DataError
from medsynth.files import hash_file
from medsynth.networks import sampling
from medsynth.runs import load_run
from medsynth.training import AutoencoderRun, DiffusionModule
from medsynth.training.checkpoints import CHECKPOINT, CHECKSUMS, AtomicCheckpointIO
from tests.launching import finish, start

HUGE = OptimiserOptions(learning_rate=1000, warmup_steps=0)
MONITOR = MonitorOptions(log_every=1, validate_every=4, preview_every=2, checkpoint_every=4)


def train(config, cohort, out, **options):
    return medsynth.train(**medsynth.load_config(str(config)) | options, cohort=cohort, out=out, progress=False)


def all_finite(folder):
    """Whether everything that a run folder holds is finite."""
    tensors = [each for path in folder.rglob("*.safetensors") for each in load_file(path).values()]
    for path in folder.rglob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        tensors += checkpoint["state_dict"].values()
        for state in checkpoint["optimizer_states"][0]["state"].values():
            tensors += [each for each in state.values() if isinstance(each, torch.Tensor)]
    rows = (folder / "metrics.csv").read_text() if (folder / "metrics.csv").is_file() else ""
    return all(bool(each.isfinite().all()) for each in tensors) and "nan" not in rows and "inf" not in rows


def diffusion(run, cohort, config, out):
    train(config, cohort, out, optimiser=HUGE, monitor=MONITOR)


def autoencoder(run, cohort, config, out):
    medsynth.train(
        cohort=cohort, out=out, stage="autoencoder", max_steps=12, batch_size=8, grid=GridOptions(size=16),
        intensity=IntensityOptions(method="range", low=0, high=255), optimiser=HUGE, monitor=MONITOR, progress=False,
        autoencoder=AutoencoderOptions(channels=(8, 16), latent_channels=3),
    )  # fmt: skip


def distillation(run, cohort, config, out):
    medsynth.distill(
        run=run.folder, cohort=cohort, out=out, max_steps=12, batch_size=8, trajectories=64, teacher_steps=3,
        optimiser=HUGE, monitor=MONITOR, progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("stage", [diffusion, autoencoder, distillation])
def test_every_stage_ends_when_it_diverges(stage, tiny_run, tiny_cohort, tiny_config, tmp_path):
    """With the largest learning rate the weights leave what float32 can hold within a few steps."""
    with pytest.raises(
        ConfigError, match=r"diverged at step \d+: .*(no checkpoint yet|last good checkpoint); try .*learning_rate"
    ):
        stage(tiny_run, tiny_cohort, tiny_config, tmp_path / "run")
    assert all_finite(tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def spoil_loss(monkeypatch, step):
    """Let the loss of one step be NaN."""
    plain = DiffusionModule.training_step

    def spoilt(module, batch, batch_idx):
        loss = plain(module, batch, batch_idx)
        return loss * torch.nan if module.global_step + 1 == step else loss

    monkeypatch.setattr(DiffusionModule, "training_step", spoilt)


# The last step of a training, a step with a preview, with a checkpoint, and one with nothing due.
@pytest.mark.parametrize(("step", "kept"), [(12, 8), (6, 4), (8, 4), (5, 4)])
def test_one_nan_ends_the_training_and_a_smaller_rate_continues_it(
    step, kept, tiny_cohort, tiny_config, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        spoil_loss(patched, step)
        with pytest.raises(ConfigError, match=f"at step {step}: .*last good checkpoint is of step {kept}; .*continues"):
            train(tiny_config, tiny_cohort, out)
    assert all_finite(out)
    assert load_run(out).steps == kept
    with pytest.raises(ConfigError, match=r"other options or data .seed"):
        train(tiny_config, tiny_cohort, out, seed=1)
    used = []
    plain = DiffusionModule.optimizer_step

    def note(module, epoch, batch_idx, optimizer, *args, **kwargs):
        used.append((module.global_step, optimizer.param_groups[0]["lr"]))
        plain(module, epoch, batch_idx, optimizer, *args, **kwargs)

    monkeypatch.setattr(DiffusionModule, "optimizer_step", note)
    run = train(tiny_config, tiny_cohort, out, optimiser={"warmup_steps": 2, "learning_rate": 1e-4})
    assert run.steps == 12
    cosine = [(step, 1e-4 * 0.5 * (1 + np.cos(np.pi * step / 12))) for step in range(kept, 12)]
    assert used == [(step, pytest.approx(rate)) for step, rate in cosine], "the new rate, from the checkpoint on"
    with pytest.raises(ConfigError, match=r"other options or data .optimiser.learning_rate"):
        train(tiny_config, tiny_cohort, out), "a finished run is what it says"


def test_weights_beyond_float32_are_seen_before_they_are_written(tiny_cohort, tiny_config, tmp_path, monkeypatch):
    """The gradient is finite, but the step that it makes is not."""
    plain = DiffusionModule.optimizer_step

    def spoilt(module, *args, **kwargs):
        plain(module, *args, **kwargs)
        if module.global_step == 7:  # it counts the step when this returns
            next(module.network.parameters()).data.view(-1)[0] = torch.inf

    monkeypatch.setattr(DiffusionModule, "optimizer_step", spoilt)
    with pytest.raises(ConfigError, match=r"at step 8: network\.\S+ is no longer finite.*checkpoint is of step 4"):
        train(tiny_config, tiny_cohort, tmp_path / "run")
    assert all_finite(tmp_path / "run")


@pytest.mark.timeout(300)
def test_all_processes_stop(tiny_cohort, tiny_config, tmp_path):
    words = ["-m", "medsynth", "train", "--config", tiny_config, "--cohort", tiny_cohort, "--out", tmp_path / "run"]
    words += [
        "--devices",
        2,
        "--accelerator",
        "cpu",
        "--optimiser.learning_rate",
        "1000",
        "--optimiser.warmup_steps",
        "0",
        "--progress",
        "false",
    ]
    ((code, _, said),) = finish([start(words)])
    assert code == 2, said
    assert "diverged at step" in said
    assert "Traceback" not in said
    assert all_finite(tmp_path / "run")


def plant(run, tmp_path, name="model.safetensors"):
    """A copy of a run with one NaN in its weights, and checksums that fit."""
    folder = tmp_path / "planted"
    shutil.copytree(run.folder, folder)
    weights = load_file(folder / name)
    victim = sorted(key for key, tensor in weights.items() if tensor.is_floating_point())[0]
    weights[victim].view(-1)[0] = torch.nan
    save_file(weights, folder / name)
    content = json.loads((folder / "run.json").read_text())
    content |= {"fingerprint": hash_file(folder / "model.safetensors")}
    content["checksums"]["early.safetensors"] = hash_file(folder / "early.safetensors")
    (folder / "run.json").write_text(json.dumps(content))
    return load_run(folder), victim


def test_weights_with_a_nan_are_refused(tiny_run, tmp_path):
    run, victim = plant(tiny_run, tmp_path)
    with pytest.raises(DataError, match=f"finite weights, got NaN or infinity in {victim}"):
        run.load_denoiser()
    with pytest.raises(DataError, match="finite weights"):
        medsynth.sample(run=run.folder, count=1, out=tmp_path / "set", progress=False)
    assert not (tmp_path / "set").exists()


def test_early_weights_with_a_nan_are_refused(tiny_run, tmp_path):
    run, victim = plant(tiny_run, tmp_path, "early.safetensors")
    with pytest.raises(DataError, match=f"early.safetensors: need finite weights, got NaN or infinity in {victim}"):
        run.load_early()


def test_an_autoencoder_with_a_nan_is_refused(tiny_run, tmp_path):
    codec = medsynth.training.autoencoder.build_codec(AutoencoderOptions(channels=(8, 16)), (1, 16, 16))
    weights = codec.state_dict()
    weights[sorted(weights)[0]].view(-1)[0] = torch.inf
    save_file(weights, tmp_path / "model.safetensors")
    spec = replace(tiny_run.spec, autoencoder=AutoencoderOptions(channels=(8, 16)))
    known = vars(tiny_run) | {
        "folder": tmp_path,
        "spec": spec,
        "fingerprint": hash_file(tmp_path / "model.safetensors"),
    }
    with pytest.raises(DataError, match="finite weights, got NaN or infinity in"):
        AutoencoderRun(**known).load_codec()


def test_a_checkpoint_with_a_nan_is_neither_read_nor_written(tiny_run, tmp_path):
    folder = tmp_path / "run" / CHECKPOINT.parent
    shutil.copytree(tiny_run.folder / CHECKPOINT.parent, folder)
    path = folder / CHECKPOINT.name
    content = torch.load(path, weights_only=True)
    content["optimizer_states"][0]["state"][0]["exp_avg"].view(-1)[0] = torch.nan
    with pytest.raises(ConfigError, match=r"NaN or infinity in optimizer_states\.0\.state\.0\.exp_avg"):
        AtomicCheckpointIO(folder).save_checkpoint(content, path)
    assert hash_file(path) == hash_file(tiny_run.folder / CHECKPOINT), "the one before is intact"
    torch.save(content, path)
    (folder / CHECKSUMS).write_text(json.dumps({hash_file(path): 12}))
    with pytest.raises(
        DataError, match=r"finite numbers, got NaN or infinity in optimizer_states\.0\.state\.0\.exp_avg"
    ):
        AtomicCheckpointIO(folder).load_checkpoint(path)


@pytest.mark.parametrize(("value", "said"), [(torch.nan, "NaN or infinite values"), (0.25, "same value everywhere")])
def test_a_scan_without_content_is_not_written(value, said, tiny_run, tiny_cohort, tmp_path, monkeypatch):
    """New scans, edits and scans in memory; the third of the class is the one."""
    monkeypatch.setattr(sampling, "SOLVERS", {name: spoilt(solve, value) for name, solve in SOLVERS.items()})
    edit = {"cohort": tiny_cohort, "donor_class": "dark", "target_class": "bright", "count": 3}
    makers = {
        "set": lambda out: medsynth.sample(run=tiny_run.folder, count="dark=3", out=out, progress=False, batch_size=2),
        "edits": lambda out: medsynth.edit(run=tiny_run.folder, out=out, progress=False, batch_size=2, **edit),
        "memory": lambda out: list(medsynth.generate(tiny_run, count=3, batch_size=2)),
    }
    for name, make in makers.items():
        with pytest.raises(ConfigError, match=rf"(bright|dark) 2, seed \d+: need a scan, got .*{said}"):
            make(tmp_path / name)
        assert len(list((tmp_path / name).rglob("*.png"))) in (0, 2), "those before it may stay for a restart"
        assert not (tmp_path / name / "cohort.csv").exists()


def test_an_inpainted_scan_with_a_nan_is_not_written(tiny_run, tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "SOLVERS", {name: spoilt(solve, torch.nan) for name, solve in SOLVERS.items()})
    from PIL import Image

    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 5:10] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with pytest.raises(ConfigError, match=r"bright 2, seed \d+: need a scan, got NaN"):
        medsynth.edit(
            run=tiny_run.folder, cohort=tiny_cohort, donor_class="dark", target_class="bright", count=3, batch_size=2,
            method="inpaint", inpaint={"region": str(tmp_path / "mask.png"), "margin_mm": 0}, out=tmp_path / "set",
            progress=False,
        )  # fmt: skip


def spoilt(solve, value):
    """A solver that gives every scan that is alone in its batch the same value everywhere."""

    def spoil(denoise, noise, sigmas, **others):
        solved = solve(denoise, noise, sigmas, **others)
        return torch.full_like(solved, value) if len(solved) == 1 else solved

    return spoil
