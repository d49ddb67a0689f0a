"""The candidates: ways of training a generator on few rare scans, and of sampling from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import medsynth
from medsynth.config import GuidanceOptions, SolverOptions

# The options of the common stage; every comparison takes grid and intensities from them, too.
OPTIONS = medsynth.load_config("rare_class_2d")
# The last noise level that was the default when the tables were begun.
SOLVER = SolverOptions(sigma_min=0.002)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The rare class, the class that it resembles, steps of the two stages, and synthetic scans of a class."""

    rare: str = "viral_pneumonia"
    look_alike: str = "bacterial_pneumonia"
    common_steps: int = 3000
    rare_steps: int = 600
    rare_scans: int = 300
    common_scans: int = 200


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way; candidates with the same `training` share a generator.

    `training` changes options of the rare stage, `guidance` and `solver` are those of sampling.
    """

    name: str
    about: str
    training: Mapping[str, Any] = field(default_factory=dict)
    guidance: GuidanceOptions = GuidanceOptions()
    solver: SolverOptions = SOLVER


def common_stage(setting: Setting, seed: int) -> dict[str, Any]:
    """Return the options of `medsynth.train` on the common classes."""
    return OPTIONS | {"max_steps": setting.common_steps, "seed": seed, "leave_out": setting.rare}


def rare_stage(setting: Setting, start: Path, seed: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `medsynth.train` on all classes, from the weights of the common stage."""
    options = OPTIONS | {
        "max_steps": setting.rare_steps,
        "seed": seed,
        "balance": 0.25,
        "start": start,
        "optimiser": OPTIONS["optimiser"] | {"learning_rate": 3e-4, "warmup_steps": 50},
        "monitor": {"validate_every": 0, "preview_every": setting.rare_steps, "checkpoint_every": 200},
    }
    for name, value in changes.items():
        options[name] = options[name] | value if isinstance(value, Mapping) else value
    return options


def candidates(setting: Setting) -> list[Candidate]:
    """Return all candidates.

    Those from `against` on were built on "share .33" after the first four had been seen on development scans; `against 4` was
    added after `against 2.5`, and `against 2.5 to .05` when the last noise level was found to decide about likeness.
    """
    third = {"balance": 0.0}
    against = f"{setting.rare}={setting.look_alike},{setting.look_alike}={setting.rare}"

    def guided(scale: float, against: str = "") -> GuidanceOptions:
        return GuidanceOptions(scale=scale, sigma_low=0.5, sigma_high=20.0, against=against)

    return [
        Candidate(
            name="memoriser",
            about="a third of the draws, no augmentation, class never hidden",
            training=third | {"augment": {"probability": 0.0}, "label_dropout": 0.0},
        ),
        Candidate(name="share .09", about="balance .5", training={"balance": 0.5}),
        Candidate(name="share .18", about="balance .25"),
        Candidate(name="share .33", about="balance 0", training=third),
        *(
            Candidate(
                name=f"against {scale:g}",
                about=f"share .33, guidance {scale:g} away from the look-alike for sigma in (0.5, 20]",
                training=third,
                guidance=guided(scale, against),
            )
            for scale in (2.5, 4.0)
        ),
        Candidate(
            name="against 2.5 to .05",
            about="as against 2.5, the last noise level .05 instead of .002",
            training=third,
            guidance=guided(2.5, against),
            solver=SolverOptions(sigma_min=0.05),
        ),
        Candidate(
            name="guidance 2.5",
            about="share .33, guidance 2.5 for sigma in (0.5, 20]",
            training=third,
            guidance=guided(2.5),
        ),
    ]
