"""The weights that a training keeps of an early step, for autoguidance."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

import medsynth
from medsynth.config import MonitorOptions
from medsynth.errors import ConfigError, DataError
from medsynth.files import hash_file
from medsynth.runs import EARLY_FILE, load_run
from medsynth.training import checkpoints


def train(config, cohort, out, **options):
    return medsynth.train(**medsynth.load_config(str(config)) | options, cohort=cohort, out=out, progress=False)


def monitor(share):
    return MonitorOptions(preview_every=0, validate_every=0, checkpoint_every=4, early_share=share)


@pytest.fixture(scope="module")
def halfway(tiny_config, tiny_cohort, tmp_path_factory):
    """A training of twelve steps that kept the weights of its sixth."""
    out = tmp_path_factory.mktemp("halfway") / "run"
    return train(tiny_config, tiny_cohort, out, monitor=monitor(0.5))


def same(first, second):
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_file_holds_the_averaged_weights_of_that_step(halfway, tiny_config, tiny_cohort, tmp_path, monkeypatch):
    """Those that the run folder itself has at that step of the same training."""
    save, kept = checkpoints.save_run, {}

    def save_and_keep(folder, *arguments, steps, **options):
        run = save(folder, *arguments, steps=steps, **options)
        kept[steps] = load_file(folder / "model.safetensors")
        return run

    monkeypatch.setattr(checkpoints, "save_run", save_and_keep)
    often = dataclasses.replace(monitor(0.5), checkpoint_every=3)
    assert train(tiny_config, tiny_cohort, tmp_path / "often", monitor=often).fingerprint == halfway.fingerprint
    early = load_file(halfway.folder / EARLY_FILE)
    assert all(torch.equal(early[name], kept[6][name]) for name in early)
    assert any(not torch.equal(early[name], kept[12][name]) for name in early)
    assert halfway.early == hash_file(halfway.folder / EARLY_FILE)
    assert json.loads((halfway.folder / "run.json").read_text())["checksums"][EARLY_FILE] == halfway.early
    loaded = halfway.load_early().state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in kept[6].items())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_training_that_was_cut_off_ends_with_the_same_file(
    when, halfway, tiny_config, tiny_cohort, tmp_path, monkeypatch
):
    """Like `kill -9` near the step: the last checkpoint is of step 4, and the file of step 6 is missing, or torn."""
    out, real = tmp_path / "run", checkpoints.save_early

    def die(folder, denoiser):
        if when == "after":
            real(folder, denoiser)
            (folder / EARLY_FILE).write_bytes(b"of another training")
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_early", die)
        with pytest.raises(RuntimeError, match="killed"):
            train(tiny_config, tiny_cohort, out, monitor=monitor(0.5))
    assert load_run(out).steps == 4
    resumed = train(tiny_config, tiny_cohort, out, monitor=monitor(0.5))
    assert same(out / EARLY_FILE, halfway.folder / EARLY_FILE)
    assert resumed.early == halfway.early == hash_file(out / EARLY_FILE)


def test_a_training_that_goes_on_after_the_step_leaves_the_file_alone(halfway, tiny_config, tiny_cohort, tmp_path):
    out, real = tmp_path / "run", checkpoints.RunKeeper.on_train_batch_end

    def die(self, trainer, *rest):
        real(self, trainer, *rest)
        if trainer.global_step == 10:
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints.RunKeeper, "on_train_batch_end", die)
        with pytest.raises(RuntimeError, match="killed"):
            train(tiny_config, tiny_cohort, out, monitor=monitor(0.5))
    written = (out / EARLY_FILE).stat().st_mtime_ns
    assert train(tiny_config, tiny_cohort, out, monitor=monitor(0.5)).early == halfway.early
    assert (out / EARLY_FILE).stat().st_mtime_ns == written


def test_none_is_kept_where_none_is_wanted(tiny_config, tiny_cohort, tmp_path):
    """Nor does a file stay that a killed training with other options left."""
    (tmp_path / EARLY_FILE).write_bytes(b"of another training")
    run = train(tiny_config, tiny_cohort, tmp_path, max_steps=2, monitor=monitor(0.0))
    assert run.early is None
    assert not (tmp_path / EARLY_FILE).exists()
    with pytest.raises(ConfigError, match=r"early_share"):
        run.load_early()
    with pytest.raises(ConfigError, match=r"monitor\.early_share: need a number from 0 to 1, got 2"):
        train(tiny_config, tiny_cohort, tmp_path / "other", monitor=monitor(2))


def test_other_bytes_are_refused(tiny_config, tiny_cohort, tmp_path):
    run = train(tiny_config, tiny_cohort, tmp_path, max_steps=2, monitor=monitor(0.5))
    content = (tmp_path / EARLY_FILE).read_bytes()
    (tmp_path / EARLY_FILE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"early\.safetensors: need the weights that run\.json names"):
        run.load_early()
