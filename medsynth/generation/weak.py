"""The weaker model of autoguidance: which one `guidance.weak` names, whether it fits the run, and its denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from medsynth.config import GuidanceOptions
from medsynth.errors import ConfigError, DataError
from medsynth.networks import Denoiser
from medsynth.runs import Run, RunSpec, load_run

EARLY = "early"


@dataclass(frozen=True, kw_only=True)
class Weak:
    """A weaker model that fits the run it guides: that of the run folder `folder`, or what this one was early in its training.

    `fingerprint` (sha256) names its weights, `scale` is that of the guidance.
    """

    folder: Path
    early: bool
    fingerprint: str
    scale: float

    def load(self, denoiser: Denoiser) -> Denoiser | None:
        """Return its denoiser on the device of the one it guides, read once in a process; None where guidance is off."""
        if self.scale == 1:
            return None
        return _load(self.folder, self.early, self.fingerprint, str(denoiser.sigma_data.device))


def find_weak(run: Run, guidance: GuidanceOptions) -> Weak | None:
    """Return the weaker model that the options name, None without one.

    Raises `ConfigError` for one that does not fit the run (it names what differs), a URL, or `early` of a run that kept no early
    weights; `DataError` for a folder that is no run.
    """
    if not guidance.weak:
        return None
    if run.distilled:
        raise ConfigError(
            "guidance.weak: need a run of medsynth train, got a distilled one; try the run that it came from"
        )
    if guidance.weak == EARLY:
        if run.early is None:
            raise ConfigError(
                "guidance.weak: need a run that kept the weights it had early on (monitor.early_share), got none; try the run "
                "folder of a smaller or less trained model"
            )
        return Weak(folder=run.folder, early=True, fingerprint=run.early, scale=guidance.scale)
    other = load_run(guidance.weak)
    if differs := _differences(run.spec, other.spec) + (["distilled"] if other.distilled else []):
        raise ConfigError(
            "guidance.weak: need a run with the classes, grid, intensities, attributes and stem of the one that it guides, got "
            f"another in {', '.join(differs)}; try a smaller network, or fewer steps, with its config.yaml"
        )
    return Weak(folder=other.folder, early=False, fingerprint=other.fingerprint, scale=guidance.scale)


def _differences(strong: RunSpec, weak: RunSpec) -> list[str]:
    """Return in what a weaker model cannot take the conditions, or the noisy scans, of the one it guides."""
    # Autoencoders are compared by the fingerprint of their weights, which the options of one hold.
    names = ("classes", "shape", "channel_names", "autoencoder", "attributes", "given")
    differs = [name for name in names if getattr(strong, name) != getattr(weak, name)]
    if strong.intensity.as_dict() != weak.intensity.as_dict():
        differs.append("intensity")
    if strong.network.stem != weak.network.stem:
        differs.append("stem")
    return differs


@lru_cache(maxsize=1)
def _load(folder: Path, early: bool, fingerprint: str, device: str) -> Denoiser:
    run = load_run(folder)
    if (run.early if early else run.fingerprint) != fingerprint:
        raise DataError(
            f"{folder}: need the weights of guidance.weak that this began with, got others; try again when it is trained"
        )
    return run.load_early(device) if early else run.load_denoiser(device)
