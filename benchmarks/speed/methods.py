"""What is compared: every method trains on the same scans with the same budget and draws scans of given classes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch

import medsynth
from medsynth.api.parser import parse_values
from medsynth.cohorts import PreparedCohort, prepare_cohort
from medsynth.config import TrainOptions
from medsynth.training import train_run


class Solver(NamedTuple):
    """A way to draw scans: the name under which its library knows it, and how often it takes a step."""

    name: str
    steps: int

    def __str__(self) -> str:
        return f"{self.name}, {self.steps} steps"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for all methods: scans, grid, scans of a step, precision, network, optimiser.

    `config` names the configuration of medsynth of which all take network and optimiser; `rank` is 2 or 3; `folder` holds what
    a method writes.
    """

    config: str
    cohort: Path
    size: int
    rank: int
    batch_size: int
    device: str
    folder: Path
    seed: int = 0

    def options(self) -> TrainOptions:
        """Return the options of a training on this grid with this batch."""
        values = medsynth.load_config(self.config)
        changed = {
            "grid": values["grid"] | {"size": self.size},
            "batch_size": self.batch_size,
            "cohort": str(self.cohort),
            "out": str(self.folder / "run"),
            "cache_dir": str(self.folder.parent / "cache"),
            "seed": self.seed,
            "accelerator": "gpu" if self.device == "cuda" else "cpu",
            "progress": False,
        }
        options: TrainOptions = parse_values("train", values | changed)
        return options

    def prepare(self) -> PreparedCohort:
        """Return all scans on the grid, from a cache where there is one."""
        options = self.options()
        return prepare_cohort(
            medsynth.read_cohort(self.cohort), grid=options.grid, intensity=options.intensity, loading=options
        )


class Method(Protocol):
    """A generator of scans; the first of `solvers` is what its curve over training time is drawn with."""

    @property
    def solvers(self) -> tuple[Solver, ...]: ...

    @property
    def slow_solvers(self) -> tuple[Solver, ...]:
        """Solvers that take minutes a batch: drawn from after the longest training alone, and fewer scans."""
        ...

    @property
    def parameters(self) -> int:
        """Weights of the network."""
        ...

    def train(self, steps: int) -> None:
        """Train for so many steps; a method that is used for its scans is trained once."""
        ...

    def draw(self, labels: np.ndarray, solver: Solver, batch: int) -> np.ndarray:
        """Return scans `(N, C, *spatial)` in [-1, 1] of the classes `labels` `(N,)`, ascending, `batch` at a time."""
        ...


class Medsynth:
    """medsynth as its verbs use it, with start-up, checkpoint and loading."""

    stem = "haar"
    solvers: tuple[Solver, ...] = tuple(Solver("dpmpp_2m", steps) for steps in (7, 20, 10, 5, 4))
    slow_solvers: tuple[Solver, ...] = ()
    # Mean of ln(sigma) in training by the side of slices: the configuration's is for 64, and smaller pictures lose their detail
    # under less noise. Chosen on another phantom, of -0.8, -1.2 and -1.6.
    noise_means: ClassVar[Mapping[int, float]] = MappingProxyType({32: -1.6})

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._out = setting.folder / "run"
        options = setting.options()
        noise = options.noise
        if setting.rank == 2:
            noise = replace(noise, mean=self.noise_means.get(setting.size, noise.mean))
        self._options = replace(
            options,
            preflight="off",
            monitor=replace(options.monitor, validate_every=0, preview_every=0),
            network=replace(options.network, stem=self.stem),
            noise=noise,
        )

    @property
    def parameters(self) -> int:
        """Weights of the network; known once it is trained."""
        denoiser = medsynth.load_denoiser(self._out)
        return sum(parameter.numel() for parameter in denoiser.parameters())

    def train(self, steps: int) -> None:
        """Train with nothing to look at on the way and one checkpoint, at the end."""
        shutil.rmtree(self._out, ignore_errors=True)
        monitor = replace(self._options.monitor, log_every=steps, checkpoint_every=steps)
        options = replace(self._options, max_steps=steps, monitor=monitor)
        train_run(medsynth.read_cohort(options.cohort), options)

    def draw(self, labels: np.ndarray, solver: Solver, batch: int) -> np.ndarray:
        """Draw scans and bring them from physical units back to [-1, 1]."""
        run = medsynth.load_run(self._out)
        numbers, counts = np.unique(labels, return_counts=True)
        made = medsynth.generate(
            run,
            count={run.spec.classes[number]: int(count) for number, count in zip(numbers, counts, strict=True)},
            solver=solver._asdict(),
            batch_size=batch,
            accelerator=self._options.accelerator,
        )
        return np.stack([run.spec.intensity.to_model(each.scan.array) for each in made]).astype(np.float32)


class MedsynthPixel(Medsynth):
    """medsynth without its Haar stem: the network sees pixels, as those of the peers do."""

    stem = "pixel"
    noise_means = MappingProxyType({})
    solvers = tuple(Solver("dpmpp_2m", steps) for steps in (20, 10, 7, 5))


class Clock:
    """Processor seconds on one core, so that other jobs on the machine do not count; else seconds of the wall clock."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self.kind = "processor" if not self._cuda and torch.get_num_threads() == 1 else "wall"

    def now(self) -> float:
        """Return the time; a GPU finishes first."""
        if self._cuda:
            torch.cuda.synchronize()
        return time.process_time() if self.kind == "processor" else time.perf_counter()

    def seconds(self, job: Callable[..., object], *inputs: Any) -> float:
        """Return the seconds that a call takes."""
        began = self.now()
        job(*inputs)
        return self.now() - began
