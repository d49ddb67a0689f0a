"""A training step asks nothing of the device: on a GPU the host would have to wait for the answer, and the GPU for the host."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from medsynth.cohorts import ScanDataset, prepare_cohort, read_cohort
from medsynth.config import AugmentationOptions, ConditionOptions, Loading
from medsynth.training import DiffusionModule, StepSampler, class_shares
from medsynth.training.batches import make_loader
from medsynth.training.module import MovingAverage, average_share

# What a GPU answers only once everything before it is done: a value, or how many there are.
_ASKING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")


class Listening(TorchDispatchMode):
    """Counts what is asked of tensors that are not on the host for good."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        chosen = args[1] if name in ("aten::index", "aten::index_put_") else ()
        if name in _ASKING or any(each is not None and each.dtype == torch.bool for each in chosen):
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


def test_the_instrument_hears_what_asks():
    with Listening() as heard:
        assert float(torch.ones(())) == 1
        assert bool(torch.ones(()) > 0)
        torch.ones(3)[torch.tensor([True, False, True])]
    assert heard.asked == ["aten::_local_scalar_dense", "aten::_local_scalar_dense", "aten::index"]


def test_a_step_asks_nothing(tiny_run, tiny_cohort, tmp_path, monkeypatch):
    """Batch, draws, augmentation, network, loss, gradient, clipping and average, all but the optimiser, which torch fuses."""
    spec = tiny_run.spec
    prepared = prepare_cohort(
        read_cohort(tiny_cohort),
        grid=tiny_run.grid,
        intensity=spec.intensity,
        loading=Loading(cache_dir=tmp_path, progress=False),
    )
    rows = prepared.indices(split="train")
    labels = prepared.labels[rows]
    shares = class_shares(torch.tensor(labels).bincount().numpy(), 0.5)
    sampler = StepSampler(labels, shares=shares, batch_size=4, total_steps=3, seed=0)
    heard = Listening()

    class Watched(DiffusionModule):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
            def refuse(*_: Any) -> None:
                raise AssertionError("a list of what is on the device")

            with monkeypatch.context() as patch, heard:
                patch.setattr(torch.Tensor, "tolist", refuse)
                return super().training_step(batch, batch_idx)

        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            with heard:
                super().configure_gradient_clipping(*args, **kwargs)

    augment = AugmentationOptions(probability=0.9, flip_axes=(0, 1), contrast=0.1)
    module = Watched(
        spec.build(),
        classes=spec.classes,
        total_steps=3,
        augment=augment,
        condition=ConditionOptions(),
        accumulate_grad_batches=2,
    )
    update = module.ema.update_parameters
    monkeypatch.setattr(module.ema, "update_parameters", lambda model: _within(heard, update, model))
    trainer = pl.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, make_loader(ScanDataset(prepared, rows), sampler, num_workers=0))
    assert trainer.global_step == 3
    # Once how often the average was updated before, which a checkpoint may have said; and the norm of the gradient of the step
    # before, twice in three steps, which is on the host by then.
    assert heard.asked == ["aten::_local_scalar_dense"] * 3


def _within(heard: Listening, update: Any, model: nn.Module) -> None:
    with heard:
        update(model)


@pytest.mark.parametrize("resumed", [False, True])
def test_the_average_is_that_of_torch(resumed):
    """Weights, buffers and what is stored, also when it is loaded half way."""
    decay = 0.9

    def update(averaged: Any, current: Any, count: Any) -> None:
        torch._foreach_lerp_(list(averaged), list(current), average_share(decay, int(count)))

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ours, theirs = MovingAverage(model, decay), AveragedModel(model, multi_avg_fn=update, use_buffers=False)
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        model[1].running_mean.fill_(step)
        if resumed and step == 15:
            kept = nn.ModuleDict({"ema": ours}).state_dict()
            ours = MovingAverage(model, decay)
            ours.update_parameters(model)
            nn.ModuleDict({"ema": ours}).load_state_dict(kept)
        ours.update_parameters(model)
        theirs.update_parameters(model)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=0)
