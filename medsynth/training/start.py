"""Rare classes that borrow: who is whose parent, and trainings that begin from the weights of another run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from medsynth.config import RareOptions, StartOptions, parse_pairs
from medsynth.errors import ConfigError
from medsynth.networks import Denoiser
from medsynth.runs import Run, RunSpec

_LABELS = "unet.class_embedding.label.weight"


def parse_parents(options: RareOptions, classes: Sequence[str]) -> tuple[int, ...]:
    """Return for each class the index of its parent, or its own; empty where no class has one.

    Raises `ConfigError` that names the part: an unknown class, a class with itself or with a rare class for a parent, or a gate
    without parents.
    """
    if options.gate_sigma < 0:
        raise ConfigError(f"rare.gate_sigma: need 0 or more, got {options.gate_sigma}")
    pairs = parse_pairs(options.parents, classes, option="rare.parents")
    if any(parent in pairs for parent in pairs.values()):
        raise ConfigError(f"rare.parents: need parents without parents of their own, got {options.parents!r}")
    if not pairs:
        if options.gate_sigma:
            raise ConfigError("rare.gate_sigma: need rare.parents to fall back on above it, got none; try rare=parent")
        return ()
    return tuple(pairs.get(number, number) for number in range(len(classes)))


def check_start(start: Run, spec: RunSpec) -> None:
    """Raise `ConfigError` if the weights of `start` do not fit a run described by `spec` (it names what differs)."""
    differs = [
        f"{name} {getattr(start.spec, name)} -> {getattr(spec, name)}"
        for name in ("shape", "channels", "given", "network", "autoencoder", "augmentation_parameters")
        if getattr(start.spec, name) != getattr(spec, name)
    ]
    if start.spec.intensity.as_dict() != spec.intensity.as_dict():
        differs.append("intensity")
    if differs:
        raise ConfigError(
            f"start.run: need a run with the same grid, intensities and network, got {'; '.join(differs)}; try its config.yaml"
        )


@torch.no_grad()
def load_start(denoiser: Denoiser, spec: RunSpec, start: Run) -> None:
    """Give a new denoiser the weights of `start`, its rows of the class embedding matched by name.

    A class that `start` does not know keeps its zeros if it has a parent, and else becomes the mean of the known classes.
    """
    weights = start.load_denoiser().state_dict()
    known = weights[_LABELS]
    rows = denoiser.embedding.label.weight.detach().clone()
    for number, label in enumerate(spec.classes):
        if label in start.spec.classes:
            row = start.spec.classes.index(label)
            own = known[row]
            # Embeddings of classes with a parent hold the difference to it: keep what the network was told in `start`.
            if start.spec.parents and start.spec.parents[row] != row:
                own = own + known[start.spec.parents[row]]
            rows[number] = own
        elif not spec.parents or spec.parents[number] == number:
            rows[number] = known[:-1].mean(dim=0)
    for number, parent in enumerate(spec.parents):
        if parent != number and spec.classes[number] in start.spec.classes:
            rows[number] -= rows[parent]
    rows[-1] = known[-1]
    denoiser.load_state_dict(weights | {_LABELS: rows})


def freeze(denoiser: Denoiser, options: StartOptions) -> None:
    """Leave only those weights trainable that the options name."""
    if options.trainable == "all":
        return
    denoiser.requires_grad_(False)
    for name, module in denoiser.unet.named_modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm) or name.endswith("time_emb_proj"):
            module.requires_grad_(True)
    denoiser.embedding.requires_grad_(True)
