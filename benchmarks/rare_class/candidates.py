"""The candidates: ways of training a generator on few rare scans, and of sampling from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import medsynth
from medsynth.config import BalanceOptions, GuidanceOptions, MonitorOptions, RareOptions, SolverOptions, StartOptions

# What the common stage is trained with; the grid and the intensities are those of every comparison, too.
OPTIONS = medsynth.load_config("rare_class_2d")
# The last noise level that was the default when the tables were begun.
SOLVER = SolverOptions(sigma_min=0.002)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The rare class, the class that it resembles, steps of the two stages, and synthetic scans of a class."""

    rare: str = "viral_pneumonia"
    parent: str = "bacterial_pneumonia"
    common_steps: int = 3000
    rare_steps: int = 600
    rare_scans: int = 300
    common_scans: int = 200


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way; candidates with the same `training` share a generator.

    `training` changes options of the rare stage, `guidance` is that of sampling; with `strength` the rare scans are edits of real
    training scans of the parent class, noised to that level. `solver` draws them.
    """

    name: str
    about: str
    training: Mapping[str, Any] = field(default_factory=dict)
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    strength: float | None = None
    solver: SolverOptions = SOLVER


def common_stage(setting: Setting, seed: int) -> dict[str, Any]:
    """Return the options of `medsynth.train` on the common classes."""
    return OPTIONS | {"max_steps": setting.common_steps, "seed": seed, "leave_out": setting.rare}


def rare_stage(setting: Setting, start: str, seed: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `medsynth.train` on all classes, from the weights of the common stage."""
    base = common_stage(setting, seed)
    options = base | {
        "leave_out": "",
        "max_steps": setting.rare_steps,
        "balance": BalanceOptions(exponent=0.25),
        "start": StartOptions(run=start),
        "optimiser": replace(base["optimiser"], learning_rate=3e-4, warmup_steps=50),
        "monitor": MonitorOptions(validate_every=0, preview_every=setting.rare_steps, checkpoint_every=200),
    }
    for name, value in changes.items():
        options[name] = replace(options[name], **value) if isinstance(value, Mapping) and name in options else value
    return options


def candidates(setting: Setting) -> list[Candidate]:
    """Return all candidates.

    Those from `against` on were built on "share .33" after the first five had been seen on development scans; `against 4` was
    added after `against 2.5`, and `against 2.5 to .05` when the last noise level was found to decide about likeness. The last
    five and the scales of 1.5 have not been measured.
    """
    parents = f"{setting.rare}={setting.parent}"
    borrowing = {"rare": RareOptions(parents=parents)}
    third: dict[str, Any] = {"balance": {"exponent": 0.0}}
    against = f"{setting.rare}={setting.parent},{setting.parent}={setting.rare}"
    return [
        Candidate(
            name="memoriser",
            about="a third of the draws, no augmentation, class never withheld",
            training={
                "balance": {"exponent": 0.0},
                "augment": {"probability": 0.0},
                "label_dropout": 0.0,
            },
        ),
        Candidate(name="share .09", about="exponent .5", training={"balance": {"exponent": 0.5}}),
        Candidate(name="share .18", about="exponent .25"),
        Candidate(name="share .33", about="exponent 0", training=third),
        Candidate(name="parent", about="share .18, embedded as parent plus difference", training=borrowing),
        *(
            Candidate(
                name=f"against {scale:g}",
                about=f"share .33, guidance {scale:g} against the other kind for sigma in (0.5, 20]",
                training=third,
                guidance=GuidanceOptions(scale=scale, sigma_low=0.5, sigma_high=20.0, against=against),
            )
            for scale in (1.5, 2.5, 4.0)
        ),
        Candidate(
            name="against 2.5 to .05",
            about="as against 2.5, the last noise level .05 instead of .002",
            training=third,
            guidance=GuidanceOptions(scale=2.5, sigma_low=0.5, sigma_high=20.0, against=against),
            solver=SolverOptions(sigma_min=0.05),
        ),
        *(
            Candidate(
                name=f"guidance {scale:g}",
                about=f"share .33, guidance {scale:g} for sigma in (0.5, 20]",
                training=third,
                guidance=GuidanceOptions(scale=scale, sigma_low=0.5, sigma_high=20.0),
            )
            for scale in (1.5, 2.5)
        ),
        *(
            Candidate(
                name=f"edit {strength:g}",
                about=f"share .33, edits of {setting.parent} noised to sigma {strength:g}",
                training=third,
                strength=strength,
            )
            for strength in (1.0, 2.5)
        ),
        Candidate(
            name="layout",
            about="share .33, trained at higher noise levels (mean of ln sigma .4)",
            training=third | {"noise": {"mean": 0.4}},
        ),
        Candidate(
            name="gate 1",
            about="share .33, parent above sigma 1",
            training=third | {"rare": RareOptions(parents=parents, gate_sigma=1.0)},
        ),
        Candidate(
            name="modulation",
            about="share .33, only embeddings, scales and shifts trained",
            training=third | {"start": {"trainable": "modulation"}},
        ),
    ]
