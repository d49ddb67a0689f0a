"""What makes the scans of a set: the protocol of a generator, its job, and scans in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medsynth.cohorts.manifest import PATH
from medsynth.config import SCANS, GenerationOptions
from medsynth.diffusion import Solver, resolve_solver
from medsynth.errors import ConfigError
from medsynth.generation.guidance import Weak, check_guidance_of, rival_labels
from medsynth.networks import Denoiser
from medsynth.processes import is_first_process
from medsynth.runs import Run
from medsynth.scans import Scan
from medsynth.versions import installed_versions


@dataclass(frozen=True, kw_only=True)
class SyntheticScan:
    """A new scan with its seed and its number among the scans of its class.

    `scan.attributes` are those it was conditioned on. If the run generates them, `sequences` are further images by name, and
    `mask` is its mask (uint8, 0 and 1).
    """

    scan: Scan
    label: str
    number: int
    seed: int
    sequences: Mapping[str, Scan] = field(default_factory=dict)
    mask: Scan | None = None

    def _repr_png_(self) -> bytes:
        """Return the picture of its scan, for notebooks."""
        return self.scan._repr_png_()


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Scans that go through the network together: numbers `start` to `stop` of one class."""

    label: str
    start: int
    stop: int

    @property
    def numbers(self) -> range:
        return range(self.start, self.stop)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the options of `sample` or `edit` come to for one run: scans wanted of each class, solver, weaker model, device."""

    run: Run
    options: GenerationOptions
    counts: Mapping[str, int]
    solver: Solver
    weak: Weak | None
    device: torch.device

    def steering(self, denoiser: Denoiser, labels: Tensor) -> dict[str, Any]:
        """Return solver and guidance for scans of the classes `labels` `(N,)`, as `medsynth.networks` takes them."""
        return {
            "solver": self.solver,
            "guidance": self.options.guidance,
            "rivals": rival_labels(self.options.guidance, self.run.spec.classes, labels),
            "weak": None if self.weak is None or self.options.guidance.scale == 1 else self.weak.load(denoiser.device),
        }

    def labels(self, chunk: Chunk) -> Tensor:
        """Return the class indices `(N,)` of a chunk."""
        return torch.full((len(chunk.numbers),), self.run.spec.label_index(chunk.label))

    def describe(self, method: str, **facts: str) -> dict[str, str]:
        """Return the provenance that each scan file carries."""
        solver, guidance = self.solver, self.options.guidance
        steered = f"{guidance.scale:g} in ({guidance.sigma_low:g}, {guidance.sigma_high:g}] {guidance.against}".strip()
        return {
            "synthetic": "YES",
            "generator": f"medsynth {installed_versions()['medsynth-diffusion']}",
            "method": method,
            "run": self.run.fingerprint[:16],
            "steps_trained": str(self.run.steps),
            "solver": f"{solver.name}, {solver.steps} steps, sigma {solver.sigma_max:g} to {solver.sigma_min:g}, "
            f"rho {solver.rho:g}, {solver.precision}",
            "guidance": steered if self.weak is None else f"{steered} weak {self.weak.fingerprint[:16]}",
            **facts,
        }


class Generator(Protocol):
    """One way to make the scans of a set. It is picklable until `prepare`, so that every process can prepare for itself.

    `name` is the method in cohort and provenance, `notice` what to know first about the set, `split` that of its rows. With
    `masks` every scan comes with a mask, also if the run generates none.
    """

    name: str
    masks: bool
    job: Job

    @property
    def notice(self) -> str: ...

    @property
    def split(self) -> str: ...

    def prepare(self, *, progress: bool) -> None:
        """Read the real scans that it needs; every process calls this once, before anything below."""

    def facts(self) -> dict[str, Any]:
        """Return what provenance says, and a restart compares, beyond what it says of every set."""

    def seed_of(self, label: str, number: int) -> int:
        """Return the seed of a scan; it does not depend on how many others are made."""

    def columns_of(self, label: str, number: int) -> dict[str, str]:
        """Return the further columns of a scan in `cohort.csv`."""

    def make(self, denoiser: Denoiser, chunk: Chunk) -> list[SyntheticScan]:
        """Return the scans of a chunk."""


def plan_job(run: Run, options: GenerationOptions, counts: Mapping[str, int]) -> Job:
    """Return the job of a run; raises `ConfigError` for options that do not fit it or this machine."""
    solver = resolve_solver(options.solver, own=run.solver, voxels=run.spec.voxels, precision=options.precision)
    weak, device = check_guidance_of(run, options.guidance), choose_device(options.accelerator)
    return Job(run=run, options=options, counts=dict(counts), solver=solver, weak=weak, device=device)


def plan_chunks(counts: Mapping[str, int], size: int) -> list[Chunk]:
    """Return the chunks of all classes; they depend on the counts and the size only, never on processes."""
    return [
        Chunk(label=label, start=start, stop=min(start + size, count))
        for label, count in counts.items()
        for start in range(0, count, size)
    ]


def parse_counts(wanted: str | int | Mapping[str, int], classes: Sequence[str]) -> dict[str, int]:
    """Return the scans wanted of each class: from a mapping, text such as `viral=400,normal=100`, or one number for all.

    Raises `ConfigError` for an unknown class, one that is named twice, and a number that is none or too large.
    """
    pairs = [f"{label}={number}" for label, number in wanted.items()] if isinstance(wanted, Mapping) else [str(wanted)]
    text = ",".join(pairs)
    if text.strip().isdecimal():
        return dict.fromkeys(classes, check_count(text, text))
    counts: dict[str, int] = {}
    for part in text.split(","):
        # Labels may contain "=": the number follows the last one.
        label, separator, number = part.strip().rpartition("=")
        if not separator:
            raise ConfigError(f"count: need label=number, got {part.strip()!r}; try {classes[0]}=100")
        check_class("count", label, classes)
        if label in counts:
            raise ConfigError(f"count: need each class once, got {label!r} twice; try one number for it")
        counts[label] = check_count(number, part)
    return counts


def check_count(text: str | int, part: str | int) -> int:
    """Return a number of scans; `ConfigError` that names `part` of the options if it is none or too large."""
    text, shown = str(text).strip(), part if isinstance(part, int) else part.strip()[:100]
    # Python refuses to read numbers of thousands of digits.
    number = int(text[:20]) if text.isdecimal() else 0
    if not SCANS.low <= number <= SCANS.high:
        raise ConfigError(f"count: need a whole number {SCANS} of each class, got {shown!r}; try 100")
    return number


def check_class(option: str, label: str, classes: Sequence[str]) -> None:
    """Raise `ConfigError` that names the option if `label` is not among the classes."""
    if label not in classes:
        raise ConfigError(f"{option}: need one of the run's classes {', '.join(classes)}; got {label!r}")


def show_notes(notes: Sequence[str], options: GenerationOptions) -> None:
    """Write what a user should know to standard error, once for all processes."""
    if notes and options.progress and is_first_process():
        print("\n".join(notes), file=sys.stderr, flush=True)


def choose_device(accelerator: str) -> torch.device:
    """Return the device; `auto` takes a GPU if there is one. `ConfigError` for `gpu` without one."""
    if accelerator not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"accelerator: need auto, cpu or gpu, got {accelerator!r}")
    there = torch.cuda.is_available()
    if accelerator == "gpu" and not there:
        raise ConfigError("accelerator: need a GPU that torch can use, got none; try --accelerator cpu")
    return torch.device("cuda" if there and accelerator != "cpu" else "cpu")


def wrap_scans(
    job: Job,
    scans: Tensor,
    chunk: Chunk,
    seeds: Sequence[int],
    provenance: Mapping[str, str],
    attributes: Sequence[Mapping[str, str]],
) -> list[SyntheticScan]:
    """Return the network's scans of a chunk, `(N, C, *spatial)` in [-1, 1], in physical units, with origin and `attributes`.

    Raises `ConfigError` as `check_content` does.
    """
    run, label, made = job.run, chunk.label, []
    for array, number, seed, known in zip(scans.cpu().numpy(), chunk.numbers, seeds, attributes, strict=True):
        check_content([array], label, number, seed)
        images, affine, facts = to_stored(array, run), np.array(run.spec.affine), {**provenance, "seed": str(seed)}
        check_content(images.values(), label, number, seed)
        first = images.pop(PATH)
        scan = Scan(array=first, affine=affine, label=label, attributes=known, provenance=facts)
        sequences = {name: replace(scan, array=image) for name, image in images.items()}
        mask = replace(scan, array=(array[-1:] > 0).astype(np.uint8)) if run.spec.mask else None
        made.append(SyntheticScan(scan=scan, label=label, number=number, seed=seed, sequences=sequences, mask=mask))
    return made


def check_content(images: Iterable[np.ndarray], label: str, number: int, seed: int) -> None:
    """Raise `ConfigError` with the seed of a scan if one of its images is not finite, or has the same value everywhere."""
    for image in images:
        finite = bool(np.isfinite(image).all())
        if not finite or image.min() == image.max():
            got = "the same value everywhere" if finite else "NaN or infinite values"
            raise ConfigError(
                f"{label} {number}, seed {seed}: need a scan, got {got}; nothing of it is written: try --guidance.scale 1, "
                "more --solver.steps, --precision 32-true, or a run that was trained longer"
            )


def to_stored(array: np.ndarray, run: Run) -> dict[str, np.ndarray]:
    """Return the images of a scan of the model by name, in physical units and in the dtype of the training scans."""
    images = array[:-1] if run.spec.mask else array
    physical = run.spec.image_intensity.to_physical(images)
    stored = {}
    for name, (channels, dtype) in run.spec.files.items():
        values, whole = physical[channels], np.dtype(dtype).kind in "iu"
        if whole:
            values = np.rint(values).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
        stored[name] = values.astype(dtype if whole else np.float32)
    return stored
