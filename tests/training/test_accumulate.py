"""A batch in parts: the same training apart from rounding, with optimiser steps as the only unit."""

import csv
import json
import os
import shutil

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

import medsynth
from medsynth.config import NetworkOptions, OptimiserOptions
from medsynth.errors import ConfigError
from medsynth.networks import build_denoiser
from medsynth.training import DiffusionModule


def trained(accumulate, *, precision="64-true", dropout=0.0, scans=8, steps=6):
    """The weights and losses of a training without rounding to speak of."""
    torch.manual_seed(0)
    network = NetworkOptions(channels=(32,), attention=(False,), norm_groups=4, dropout=dropout)
    denoiser = build_denoiser(network, channels=1, size=(8, 8), classes=2, augmentation_parameters=8, sigma_data=0.5)
    module = DiffusionModule(
        denoiser, classes=("a", "b"), total_steps=steps, optimiser=OptimiserOptions(warmup_steps=0),
        accumulate_grad_batches=accumulate, label_dropout=0.3,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    dtype = torch.float64 if precision == "64-true" else torch.float32
    batches = [
        {
            "scan": torch.rand(scans, 1, 8, 8, generator=generator, dtype=dtype) * 2 - 1,
            "label": torch.randint(2, (scans,), generator=generator),
        }
        for _ in range(steps)
    ]
    losses = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            losses.append(float(trainer.callback_metrics["train_loss"]))

    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Losses()],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    assert trainer.global_step == steps
    return dict(module.ema.module.named_parameters()), losses


@pytest.mark.parametrize("accumulate", [2, 3, 8])
def test_parts_give_the_weights_of_the_whole_in_float64(accumulate):
    """Three parts of eight scans are of 3, 3 and 2: each counts by its scans."""
    whole, losses = trained(1)
    parts, others = trained(accumulate)
    assert others == pytest.approx(losses, rel=1e-9)
    for name, weights in whole.items():
        torch.testing.assert_close(parts[name], weights, rtol=1e-7, atol=1e-9, msg=name)


def test_bfloat16_parts_begin_with_the_same_loss():
    """Weights that autocast keeps in bfloat16 are those of the step, not of an earlier part."""
    _, losses = trained(1, precision="bf16-mixed")
    _, others = trained(4, precision="bf16-mixed")
    assert others == pytest.approx(losses, rel=0.02)


def test_dropout_masks_are_drawn_anew_for_each_part_and_repeat_with_the_seed():
    whole, parts, again = (trained(accumulate, dropout=0.5)[0] for accumulate in (1, 2, 2))
    assert all(torch.equal(parts[name], again[name]) for name in parts)
    assert any(not torch.allclose(parts[name], whole[name], rtol=1e-3) for name in parts)


def rows(run):
    with (run / "metrics.csv").open() as stream:
        return {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(stream)}


def test_the_verb_counts_optimiser_steps_and_resumes_exactly(tiny_config, tiny_cohort, tmp_path):
    options = medsynth.load_config(str(tiny_config))
    options["network"] = options["network"] | {"dropout": 0.0}
    runs = [
        medsynth.train(
            **options,
            cohort=tiny_cohort,
            out=tmp_path / str(accumulate),
            accumulate_grad_batches=accumulate,
            progress=False,
        )
        for accumulate in (1, 4)
    ]
    one, four = (rows(run.folder) for run in runs)
    timeless = {key for key in one if key[1] not in ("scans_per_s", "data_wait_share")}
    assert timeless == {key for key in four if key[1] not in ("scans_per_s", "data_wait_share")}
    for step in (4, 8, 12):
        assert four[(step, "val_loss")] == pytest.approx(one[(step, "val_loss")], rel=1e-4)
    folder = runs[1].folder
    assert set(json.loads((folder / "checkpoints" / "checksums.json").read_text()).values()) == {4, 8, 12}
    # As a kill between steps 8 and 12 leaves it.
    shutil.copytree(folder, tmp_path / "killed")
    os.replace(*(tmp_path / "killed" / "checkpoints" / name for name in ("previous.ckpt", "last.ckpt")))
    (tmp_path / "killed" / "model.safetensors").unlink()
    medsynth.train(**options, cohort=tiny_cohort, out=tmp_path / "killed", accumulate_grad_batches=4, progress=False)
    first, second = (load_file(run / "model.safetensors") for run in (folder, tmp_path / "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_accumulate_and_checkpointing_may_change_where_a_training_goes_on(tiny_config, tiny_cohort, tiny_run):
    options = medsynth.load_config(str(tiny_config))
    again = medsynth.train(
        **options,
        cohort=tiny_cohort,
        out=tiny_run.folder,
        accumulate_grad_batches=2,
        activation_checkpointing=True,
        progress=False,
    )
    assert again.fingerprint == tiny_run.fingerprint


def test_checkpointing_changes_no_weight(tiny_config, tiny_cohort, tiny_run, tmp_path):
    """Dropout is on: the masks are the same, too."""
    options = medsynth.load_config(str(tiny_config))
    run = medsynth.train(
        **options, cohort=tiny_cohort, out=tmp_path / "run", activation_checkpointing=True, progress=False
    )
    assert run.fingerprint == tiny_run.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 3}, r"batches: need a divisor of the 8 scans per step and process, got 3; try 2"),
        ({"accumulate_grad_batches": 0}, r"accumulate_grad_batches: need a whole number from 1 to 65,536, got 0"),
        (
            {"accumulate_grad_batches": 8, "devices": 2},
            r"need a divisor of the 4 scans per step and process, got 8; try 4",
        ),
    ],
)
def test_parts_that_do_not_divide_the_batch(tiny_config, tiny_cohort, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        medsynth.train(
            **medsynth.load_config(str(tiny_config)) | options, cohort=tiny_cohort, out=tmp_path / "run", progress=False
        )
    assert not (tmp_path / "run").exists()
