"""Guidance of a run: the classes it steers away from, and the weaker model of autoguidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medsynth.config import GuidanceOptions
from medsynth.diffusion import check_guidance
from medsynth.errors import ConfigError
from medsynth.networks import Denoiser
from medsynth.runs import TEXT_FILE, Run, load_run

EARLY = "early"


class Weak:
    """A weaker model that fits the run it guides: the run itself with its early weights, or another run."""

    def __init__(self, run: Run, *, early: bool = False) -> None:
        self.run, self.early = run, early
        self._denoiser: Denoiser | None = None

    @property
    def fingerprint(self) -> str:
        """The sha256 of its weights."""
        return self.run.early or "" if self.early else self.run.fingerprint

    def load(self, device: torch.device) -> Denoiser:
        """Return its denoiser, read once."""
        if self._denoiser is None:
            self._denoiser = self.run.load_early(device) if self.early else self.run.load_denoiser(device)
        return self._denoiser


def check_guidance_of(run: Run, guidance: GuidanceOptions) -> Weak | None:
    """Return the weaker model of autoguidance, None without one.

    Raises `ConfigError` for guidance that cannot work with this run, or whose weaker model does not fit it; `DataError` for a
    folder that is no run.
    """
    check_guidance(guidance)
    parse_pairs(guidance.against, run.spec.classes)
    if guidance.scale != 1 and not guidance.weak and not run.options.get("label_dropout"):
        raise ConfigError(
            "guidance.scale: need a run trained with label_dropout above 0, or guidance.weak, got neither; try scale 1"
        )
    if not guidance.weak:
        return None
    if run.distilled:
        raise ConfigError(
            "guidance.weak: need a run of medsynth train, got a distilled one; try the run that it came from"
        )
    if guidance.weak == EARLY:
        if run.early is None:
            raise ConfigError(
                "guidance.weak: need a run that kept its early weights (monitor.early_share), got none; try the run folder of a "
                "smaller or less trained model"
            )
        return Weak(run, early=True)
    other = load_run(guidance.weak)
    # What keeps it from taking the conditions or the noisy scans; the options of an autoencoder hold its fingerprint.
    names = ("classes", "shape", "channel_names", "autoencoder", "attributes", "observed")
    further = {
        "text": run.checksums.get(TEXT_FILE) != other.checksums.get(TEXT_FILE),
        "intensity": run.spec.intensity.as_dict() != other.spec.intensity.as_dict(),
        "stem": run.spec.network.stem != other.spec.network.stem,
        "distilled": other.distilled,
    }
    differs = [name for name in names if getattr(run.spec, name) != getattr(other.spec, name)]
    if differs := differs + [name for name, differ in further.items() if differ]:
        raise ConfigError(
            f"guidance.weak: need a run like the one it guides, got another in {', '.join(differs)}; try a smaller network, "
            "or fewer steps, with the config.yaml of this run"
        )
    return Weak(other)


def rival_labels(guidance: GuidanceOptions, classes: Sequence[str], labels: Tensor) -> Tensor:
    """Return the class `(N,)` that guidance steers each scan away from: no class unless one is named."""
    pairs = parse_pairs(guidance.against, classes)
    return torch.tensor([pairs.get(label, len(classes)) for label in labels.tolist()])


def parse_pairs(text: str, classes: Sequence[str]) -> dict[int, int]:
    """Return the pairs of class indices in `guidance.against`, such as `viral=bacterial,rare=common`; nothing for no text.

    A label may contain "=": the split that names two classes counts. Raises `ConfigError` for a part that is no pair of two
    different classes, or a class that occurs twice on the left.
    """
    pairs: dict[int, int] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        splits = [(part[:place].strip(), part[place + 1 :].strip()) for place in range(len(part)) if part[place] == "="]
        known = [pair for pair in splits if pair[0] in classes and pair[1] in classes]
        if not known:
            raise ConfigError(
                f"guidance.against: need class=class with classes of {', '.join(classes)}; got {part!r}; "
                f"try {classes[-1]}={classes[0]}"
            )
        first, second = (classes.index(name) for name in known[0])
        if first == second or first in pairs:
            raise ConfigError(f"guidance.against: need each class once and with another one, got {part!r}")
        pairs[first] = second
    return pairs
