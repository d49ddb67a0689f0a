"""What Lightning modules share that work a batch off in parts, so that memory holds the activations of one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor


class PartwiseModule(pl.LightningModule):
    """A module whose training step adds the gradients of all parts but the last itself; that one is the trainer's.

    Rounding apart, nothing depends on the number of parts.
    """

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Keep the places of scans on the host as well: drawing noise asks for them, and a device would have to be waited for."""
        if isinstance(batch, dict):
            batch |= {f"{name} here": batch[name].tolist() for name in ("position", "index") if name in batch}
        return batch

    def places(self, batch: Mapping[str, Any], name: str, otherwise: Sequence[int]) -> tuple[Sequence[int], Tensor]:
        """Return the places that a batch has under `name`, on the host and on the device; `otherwise` where it has none."""
        there = batch.get(name)
        if there is None:
            return otherwise, torch.tensor(list(otherwise), device=self.device)
        here = batch.get(f"{name} here")
        return there.tolist() if here is None else here, there

    def on_train_start(self) -> None:
        """Drop gradients that a training left which was cut off within a step."""
        self.zero_grad()

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Leave the gradients: the trainer calls this when the training step has begun them already."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Step the optimiser, then drop the gradients; the optimiser knows its parameters, the module would look for them."""
        super().optimizer_step(epoch, batch_idx, optimizer, *args, **kwargs)
        optimizer.zero_grad()

    def add_gradient(self, loss: Tensor) -> None:
        """Add the gradient of a part of the batch; processes exchange the sum once, in the pass of the last part."""
        with torch.autocast(loss.device.type, enabled=False):  # as around the trainer's own backward pass
            (loss / self.trainer.accumulate_grad_batches).backward()
        torch.clear_autocast_cache()  # of weights whose part of the graph is used up

    def over_ranks(self, values: Tensor) -> Tensor:
        """Return the sum of every rank's values; alone, `all_gather` adds no axis."""
        gathered = self.all_gather(values)
        assert isinstance(gathered, Tensor)
        return gathered.reshape(-1, *values.shape).sum(0)


def part_slices(count: int, parts: int) -> Iterator[slice]:
    """Yield slices that divide `count` rows into about as many as `parts`, at the least one row each."""
    size = math.ceil(count / parts)
    return (slice(first, min(count, first + size)) for first in range(0, count, size))
