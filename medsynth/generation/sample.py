"""New scans of chosen classes: as a set (`medsynth sample`), or in memory (`generate`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medsynth.cohorts import Cohort
from medsynth.config import GuidanceOptions, ObservedOptions, SampleOptions, SolverOptions, build_options
from medsynth.diffusion import resolve_solver
from medsynth.errors import ConfigError
from medsynth.generation.generator import (
    Chunk,
    Generator,
    SyntheticScan,
    check_content,
    choose_device,
    parse_counts,
    plan_chunks,
    plan_job,
    show_notes,
    wrap_scans,
)
from medsynth.generation.guidance import rival_labels
from medsynth.generation.observed import ObservedScans, check_observed, find_observed
from medsynth.generation.where import WhereFrom, encode_text, plan_attributes
from medsynth.generation.write import write_set
from medsynth.networks import Denoiser, PlainDenoiser, SamplableDenoiser, sample_scans
from medsynth.runs import Run, load_run
from medsynth.scans import Scan
from medsynth.seeds import derive_seed, numpy_generator

_NOTICE = "Every scan in this folder is synthetic. It shows no patient and must not be used for diagnosis."
_NOTICE_OF_MASKS = (
    "Every scan in this folder is synthetic and must not be used for diagnosis. The masks are those of real scans, or changed "
    "versions of them; no pixel of an image is real."
)
_NOTICE_OF_IMAGES = (
    "Every scan in this folder combines real images with images generated to fit them, and must not be used for diagnosis. The "
    "real images show a patient: this set must stay within your institution."
)


class NewScans(Generator):
    """Generates scans from noise, conditioned on class, attributes, text and observed channels."""

    name = "sample"
    masks = False

    def __init__(self, run: Run, options: SampleOptions) -> None:
        """Check the options; `ConfigError` for what does not fit the run, before anything is read or written."""
        self.job = plan_job(run, options, parse_counts(options.count, run.spec.classes))
        self.options = options
        self.attributes = plan_attributes(run, options.where, options.where_from)
        self.text = encode_text(run, options.text)
        self.text_column = {} if self.text is None else {"text": options.text.strip()}
        self.observed: ObservedScans | None = None
        check_observed(run, options.observed)

    def prepare(self, *, progress: bool) -> None:
        run, options = self.job.run, replace(self.options, progress=progress)
        self.observed = find_observed(run, options.observed, list(self.job.counts), seed=options.seed, loading=options)

    @property
    def notice(self) -> str:
        if self.observed is None:
            return _NOTICE
        return _NOTICE_OF_IMAGES if self.observed.real_pixels else _NOTICE_OF_MASKS

    @property
    def split(self) -> str:
        # Nothing of a held-out patient may be trained on.
        return "train" if self.observed is None else self.options.observed.split

    def facts(self) -> dict[str, Any]:
        observed = {} if self.observed is None else self.observed.facts()
        return {**self.attributes.facts(), **self.text_column, **observed}

    def seed_of(self, label: str, number: int) -> int:
        return derive_seed(self.options.seed, "scan", label, number)

    def columns_of(self, label: str, number: int) -> dict[str, str]:
        origin = {} if self.observed is None else self.observed.columns(label, number)
        return {**origin, **self.text_column, **self.attributes.columns(self.attributes_of(label, number))}

    def attributes_of(self, label: str, number: int) -> tuple[str, ...]:
        """Return the attributes of a scan: drawn; if none are wanted, unknown with a text, or close to the observed scan's."""
        own = self.seed_of(label, number)
        if self.text_column and not self.attributes.wanted:
            # Those of another training scan would contradict the sentence.
            return ("",) * len(self.job.run.spec.attributes)
        if self.observed is not None and not self.attributes.wanted:
            seen = self.observed.attributes[self.observed.source(label, number)]
            return self.attributes.move(seen, numpy_generator(own, "attributes"))
        return self.attributes.draw(label, own)

    def make(self, denoiser: Denoiser, chunk: Chunk) -> list[SyntheticScan]:
        job, labels = self.job, self.job.labels(chunk)
        seeds = [self.seed_of(chunk.label, number) for number in chunk.numbers]
        drawn = [self.attributes_of(chunk.label, number) for number in chunk.numbers]
        wanted = denoiser.embedding.make(
            labels,
            attributes=self.attributes.encode(drawn),
            observed=None if self.observed is None else self.observed.condition(chunk.label, chunk.numbers, seeds),
            text=None if self.text is None else self.text.expand(len(seeds), -1),
        )
        scans = sample_scans(denoiser, wanted, seeds, shape=job.run.spec.shape, **job.steering(denoiser, labels))
        attributes = [self.attributes.columns(values) for values in drawn]
        return wrap_scans(job, scans, chunk, seeds, job.describe("sample"), attributes)


def sample_set(run: Run, options: SampleOptions) -> Cohort:
    """Write a set of new scans and return its cohort; restarts as `write_set`.

    Raises `ConfigError` for options that do not fit the run, and `ConfigError` or `DataError` as `write_set`.
    """
    generator = NewScans(run, options)
    show_notes(generator.attributes.notes(list(generator.job.counts)), options)
    return write_set(generator)


def generate(
    run: Any,
    *,
    count: str | int | Mapping[str, int],
    seed: int = 0,
    batch_size: int = 16,
    where: str = "",
    where_from: WhereFrom = "scans",
    text: str = "",
    observed: ObservedOptions | Mapping[str, Any] = ObservedOptions(),
    solver: SolverOptions | Mapping[str, Any] = SolverOptions(),
    guidance: GuidanceOptions | Mapping[str, Any] = GuidanceOptions(),
    accelerator: str = "auto",
    precision: str = "32-true",
    classes: Sequence[str] | None = None,
    shape: Sequence[int] | None = None,
) -> Iterator[SyntheticScan]:
    """Yield new scans one by one, class by class, in memory.

    `run` is a run or its folder; its scans come in physical units. Or it is any denoiser: an object with
    `denoise(noisy, sigma, condition)`, or a function or `nn.Module` called like that. Then `shape` (channel, *spatial) is needed,
    `classes` are its classes in order (default: one, `scan`), and scans come in [-1, 1]. `count` is a number for every class,
    text such as `viral=400,normal=100`, or a mapping. The other options are those of `medsynth sample`; groups may be
    dictionaries. The same seed and `batch_size` give the same scans. Raises `ConfigError` for options that do not fit,
    `DataError` for a folder that is no run.
    """
    options: SampleOptions = build_options(
        SampleOptions,
        {
            "run": "", "out": "", "count": count, "seed": seed, "batch_size": batch_size, "where": where,
            "where_from": where_from, "text": text, "observed": observed, "solver": solver, "guidance": guidance,
            "accelerator": accelerator, "precision": precision, "progress": False,
        },
    )  # fmt: skip
    if not isinstance(run, Run | Path | str):
        yield from _generate_plain(run, options, classes or ("scan",), shape)
        return
    if classes is not None or shape is not None:
        raise ConfigError("classes, shape: a run has its own; leave them out")
    generator = NewScans(load_run(run), options)
    generator.prepare(progress=False)
    denoiser = generator.job.run.load_denoiser(generator.job.device)
    for chunk in plan_chunks(generator.job.counts, batch_size):
        yield from generator.make(denoiser, chunk)


def _generate_plain(
    model: Any, options: SampleOptions, classes: Sequence[str], shape: Sequence[int] | None
) -> Iterator[SyntheticScan]:
    """Yield scans in [-1, 1] of a denoiser that is not a run's."""
    if shape is None:
        raise ConfigError("shape: need (channel, *spatial) for a denoiser without a run, such as shape=(1, 64, 64)")
    if options.where or options.text or options.observed.cohort or options.guidance.weak:
        raise ConfigError("where, text, observed, guidance.weak: need a run of medsynth train, got another denoiser")
    facts = {"synthetic": "YES", "generator": "a denoiser without a run, sampled by medsynth", "method": "sample"}
    solver = resolve_solver(options.solver, voxels=math.prod(shape[1:]), precision=options.precision)
    denoiser: SamplableDenoiser
    if isinstance(model, Denoiser | PlainDenoiser):
        denoiser = model
    else:
        weights = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
        device = choose_device(options.accelerator) if weights is None else weights.device
        denoiser = PlainDenoiser(getattr(model, "denoise", model), classes=classes, shape=shape, device=device)
    for chunk in plan_chunks(parse_counts(options.count, classes), options.batch_size):
        labels = torch.full((len(chunk.numbers),), list(classes).index(chunk.label))
        seeds = [derive_seed(options.seed, "scan", chunk.label, number) for number in chunk.numbers]
        rivals, guidance = rival_labels(options.guidance, classes, labels), options.guidance
        scans = sample_scans(denoiser, labels, seeds, shape=shape, solver=solver, guidance=guidance, rivals=rivals)
        for array, number, seed in zip(scans.cpu().numpy(), chunk.numbers, seeds, strict=True):
            check_content([array], chunk.label, number, seed)
            scan = Scan(array=array, label=chunk.label, provenance={**facts, "seed": str(seed)})
            yield SyntheticScan(scan=scan, label=chunk.label, number=number, seed=seed)
