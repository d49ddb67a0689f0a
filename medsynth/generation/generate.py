"""`generate`: scans of chosen classes in memory, one at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsynth.cohorts.sequences import PATH
from medsynth.config import GivenOptions, GuidanceOptions, SolverOptions, parse_pairs
from medsynth.diffusion import check_guidance, settle_solver
from medsynth.errors import ConfigError
from medsynth.generation.given import GivenScans, find_given
from medsynth.generation.prompt import plan_prompt
from medsynth.generation.weak import Weak, find_weak
from medsynth.generation.where import AttributeDraw, WhereFrom, plan_attributes
from medsynth.networks import Denoiser, sample_scans
from medsynth.runs import Run, load_run
from medsynth.scans import Scan
from medsynth.seeds import derive_seed, numpy_generator
from medsynth.versions import installed_versions

MOST_SCANS = 10_000_000  # of a class


@dataclass(frozen=True, kw_only=True)
class SyntheticScan:
    """A new scan with the seed that makes it and its number among the scans of its class.

    `scan.attributes` holds what the network was told of it. `sequences` are its further images by name, and `mask` its mask
    (uint8, 0 and 1), of a run that makes them.
    """

    scan: Scan
    label: str
    number: int
    seed: int
    sequences: Mapping[str, Scan] = field(default_factory=dict)
    mask: Scan | None = None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Scans that go through the network together: numbers `start` to `stop` of one class."""

    label: str
    start: int
    stop: int

    @property
    def numbers(self) -> range:
        """The numbers of its scans among those of the class."""
        return range(self.start, self.stop)


def parse_counts(
    wanted: str | int | Mapping[str, int], classes: tuple[str, ...], *, named: Sequence[str] = ()
) -> dict[str, int]:
    """Return the scans wanted of each class: from a mapping, text such as `viral=400,normal=100`, or one number for all.

    `named` are the classes that a prompt names; then a number is for these, and others are refused. Raises `ConfigError` that
    names the part it cannot read, or lists the classes when one is unknown.
    """
    text = (
        ",".join(f"{label}={number}" for label, number in wanted.items())
        if isinstance(wanted, Mapping)
        else str(wanted)
    )
    if text.strip().isdecimal():
        return dict.fromkeys((each for each in classes if not named or each in named), _positive(text, text))
    counts: dict[str, int] = {}
    for part in text.split(","):
        # Labels may hold "=": the number is what follows the last one.
        label, separator, number = part.strip().rpartition("=")
        if not separator:
            raise ConfigError(f"count: need label=number, got {part.strip()!r}; try {classes[0]}=100")
        check_class("count", label, classes)
        if named and label not in named:
            raise ConfigError(
                f"count: need classes of the prompt ({', '.join(named)}), got {label!r}; try a plain number"
            )
        if label in counts:
            raise ConfigError(f"count: need each class once, got {label!r} twice; try one number for it")
        counts[label] = _positive(number, part)
    return counts


def check_class(option: str, label: str, classes: tuple[str, ...]) -> None:
    """Raise `ConfigError` that names the option where `label` is none of the run's classes."""
    if label not in classes:
        raise ConfigError(f"{option}: need one of the run's classes {', '.join(classes)}; got {label!r}")


def plan_chunks(counts: Mapping[str, int], size: int) -> list[Chunk]:
    """Return the chunks of all classes; they depend on the counts and the size alone, never on processes."""
    if size < 1:
        raise ConfigError(f"batch_size: need at least 1, got {size}")
    return [
        Chunk(label=label, start=start, stop=min(start + size, count))
        for label, count in counts.items()
        for start in range(0, count, size)
    ]


def scan_seed(seed: int, label: str, number: int) -> int:
    """Return the seed of one scan: it depends on its class and number, not on how many others are made."""
    return derive_seed(seed, "scan", label, number)


def generate(
    run: Run | Path | str,
    *,
    count: str | int | Mapping[str, int],
    seed: int = 0,
    batch_size: int = 16,
    solver: SolverOptions = SolverOptions(),
    guidance: GuidanceOptions = GuidanceOptions(),
    where: str = "",
    where_from: WhereFrom = "scans",
    prompt: str = "",
    prompt_words: str = "",
    given: GivenOptions = GivenOptions(),
    device: str = "auto",
) -> Iterator[SyntheticScan]:
    """Yield new scans in physical units, class by class; `count` is a mapping, text such as `viral=400,normal=100`, or a number.

    `where`, `where_from`, `prompt`, `prompt_words` and `given` are those of `medsynth sample`. The same run, seed and chunk size
    (`batch_size`) give the same scans. Raises `ConfigError` for an unknown class or attribute and
    `DataError` for a folder that is no run.
    """
    run = load_run(run)
    where, asked = plan_prompt(run, prompt, prompt_words, where)
    counts = parse_counts(count, run.spec.classes, named=asked.classes if asked else ())
    solver = settle_solver(solver, own=run.solver, voxels=run.spec.voxels)
    weak = check_guidance_of(run, guidance)
    attributes = plan_attributes(run, where, where_from)
    found = find_given(run, given, list(counts), seed=seed, progress=False)
    denoiser = run.load_denoiser(choose_device(device))
    for chunk in plan_chunks(counts, batch_size):
        yield from generate_chunk(
            run,
            denoiser,
            chunk,
            seed=seed,
            solver=solver,
            guidance=guidance,
            weak=weak,
            attributes=attributes,
            given=found,
        )


def check_guidance_of(run: Run, guidance: GuidanceOptions) -> Weak | None:
    """Return the weaker model of autoguidance, None without one; errors as `find_weak` says.

    Raises `ConfigError` for guidance that cannot work, or that this run never learnt.
    """
    check_guidance(guidance)
    parse_pairs(guidance.against, run.spec.classes, option="guidance.against")
    if guidance.scale != 1 and not guidance.weak and not run.options.get("label_dropout"):
        raise ConfigError(
            "guidance.scale: need a run trained with label_dropout above 0, or guidance.weak, got neither; try scale 1"
        )
    return find_weak(run, guidance)


def generate_chunk(
    run: Run,
    denoiser: Denoiser,
    chunk: Chunk,
    *,
    seed: int,
    solver: SolverOptions,
    guidance: GuidanceOptions,
    weak: Weak | None = None,
    attributes: AttributeDraw | None = None,
    given: GivenScans | None = None,
) -> list[SyntheticScan]:
    """Return the scans of one chunk, with attributes as `told_attributes` says; `weak` as `check_guidance_of` found it."""
    seeds = [scan_seed(seed, chunk.label, number) for number in chunk.numbers]
    labels = torch.full((len(seeds),), run.spec.label_index(chunk.label))
    drawn = (
        None
        if attributes is None
        else [told_attributes(attributes, given, chunk.label, number, seed) for number in chunk.numbers]
    )
    told = None if attributes is None or drawn is None else torch.tensor([attributes.encode(each) for each in drawn])
    scans = sample_scans(
        denoiser,
        denoiser.embedding.make(
            labels, told, None if given is None else given.condition(chunk.label, chunk.numbers, seeds)
        ),
        seeds,
        shape=run.spec.shape,
        solver=solver,
        guidance=guidance,
        rivals=rival_labels(run, guidance, labels),
        weak=None if weak is None else weak.load(denoiser),
    )
    provenance = describe_provenance(run, solver, guidance, weak, method="sample")
    return wrap_scans(run, scans, chunk, seeds, provenance, attributes=drawn)


def told_attributes(
    attributes: AttributeDraw, given: GivenScans | None, label: str, number: int, seed: int
) -> tuple[str, ...]:
    """Return what the network is told of a scan: what is drawn, or, where nothing is wanted, what its given channels show."""
    own = scan_seed(seed, label, number)
    if given is not None and not attributes.where:
        return attributes.move(given.attributes[given.source(label, number)], numpy_generator(own, "attributes"))
    return attributes.draw(label, own)


def rival_labels(run: Run, guidance: GuidanceOptions, labels: Tensor) -> Tensor:
    """Return the class `(N,)` that guidance steers each scan away from; withheld where none is named."""
    pairs = parse_pairs(guidance.against, run.spec.classes, option="guidance.against")
    return torch.tensor([pairs.get(label, len(run.spec.classes)) for label in labels.tolist()])


def wrap_scans(
    run: Run,
    scans: Tensor,
    chunk: Chunk,
    seeds: Sequence[int],
    provenance: Mapping[str, str],
    *,
    attributes: Sequence[Sequence[str]] | None = None,
) -> list[SyntheticScan]:
    """Return the network's scans of a chunk, `(N, C, *spatial)` in [-1, 1], in physical units and with their origin.

    `attributes` are the texts that the network was told of each.
    """
    names = [attribute.name for attribute in run.spec.attributes]
    told = [{}] * len(seeds) if attributes is None else [name_values(names, values) for values in attributes]
    made = []
    for array, number, seed, known in zip(scans.cpu().numpy(), chunk.numbers, seeds, told, strict=True):
        images = to_stored(array, run)
        scan = Scan(
            array=images.pop(PATH),
            affine=np.array(run.spec.affine),
            label=chunk.label,
            attributes=known,
            provenance={**provenance, "seed": str(seed)},
        )
        made.append(
            SyntheticScan(
                scan=scan,
                label=chunk.label,
                number=number,
                seed=seed,
                sequences={name: replace(scan, array=image) for name, image in images.items()},
                mask=replace(scan, array=(array[-1:] > 0).astype(np.uint8)) if run.spec.mask else None,
            )
        )
    return made


def name_values(names: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    """Return attributes by name, those alone that are known."""
    return {name: value for name, value in zip(names, values, strict=True) if value}


def describe_guidance(guidance: GuidanceOptions, weak: Weak | None) -> dict[str, Any]:
    """Return the options as plain values, the weaker model by the fingerprint of its weights, never by its path."""
    return dataclasses.asdict(guidance) | {"weak": "" if weak is None else weak.fingerprint[:16]}


def describe_provenance(
    run: Run, solver: SolverOptions, guidance: GuidanceOptions, weak: Weak | None = None, *, method: str
) -> dict[str, str]:
    """Return what a synthetic scan says of its origin."""
    steered = f"{guidance.scale:g} in ({guidance.sigma_low:g}, {guidance.sigma_high:g}] {guidance.against}".strip()
    return {
        "synthetic": "YES",
        "generator": f"medsynth {installed_versions()['medsynth-diffusion']}",
        "method": method,
        "run": run.fingerprint[:16],
        "steps_trained": str(run.steps),
        "solver": f"{solver.name}, {solver.steps} steps, sigma {solver.sigma_max:g} to {solver.sigma_min:g}, rho {solver.rho:g}, "
        f"{solver.precision}",
        "guidance": steered if weak is None else f"{steered} weak {weak.fingerprint[:16]}",
    }


def to_stored(array: np.ndarray, run: Run) -> dict[str, np.ndarray]:
    """Return the images of a scan of the model by name, in physical units and in the dtype of the training scans."""
    images = array[:-1] if run.spec.mask else array
    physical = run.spec.image_intensity.to_physical(images)
    return {name: _as_dtype(physical[channels], dtype) for name, (channels, dtype) in run.spec.files.items()}


def _as_dtype(physical: np.ndarray, name: str) -> np.ndarray:
    dtype = np.dtype(name)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.rint(physical).clip(limits.min, limits.max).astype(dtype)
    return physical.astype(np.float32)


def choose_device(name: str) -> torch.device:
    """Return the device: `auto` takes a GPU where there is one; `ConfigError` for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: need auto, cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"device: need a GPU that torch sees, got {name!r} and {torch.cuda.device_count()} GPUs; try cpu"
        )
    return device


def check_count(number: int, part: str | int) -> int:
    """Return a number of scans; `ConfigError` that names the part of the options where it is none or beyond all use."""
    if number < 1:
        raise ConfigError(f"count: need a whole number from 1, got {part!r}; try 100")
    if number > MOST_SCANS:
        raise ConfigError(f"count: need at most {MOST_SCANS} scans of a class, got {part!r}; try several sets")
    return number


def _positive(text: str, part: str) -> int:
    text = text.strip()
    # Python refuses to read numbers of thousands of digits.
    return check_count(int(text[:20]) if text.isdecimal() else 0, part.strip()[:100])
