"""The verbs as functions. Their options are declared in `medsynth.config.verbs`; bodies import lazily, so help loads no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsynth.api.parser import parse_values
from medsynth.config import (
    OPTIONS,
    AugmentOptions,
    CardOptions,
    DemoOptions,
    DistillOptions,
    DoctorOptions,
    EditOptions,
    EvaluateOptions,
    IndexOptions,
    SampleOptions,
    TrainOptions,
)
from medsynth.config.declared import options_of
from medsynth.errors import ConfigError
from medsynth.files import one_writer
from medsynth.processes import is_first_process, settle_environment

if TYPE_CHECKING:
    from medsynth.api.notebook import NotebookRun
    from medsynth.cohorts import Cohort, IndexResult
    from medsynth.evaluation import Handover
    from medsynth.installation import Diagnosis
    from medsynth.reporting import CardFiles, CheckedCard, ReportFiles
    from medsynth.scans import Scan
    from medsynth.training import AutoencoderRun, Preflight

VERBS: dict[str, Callable[..., Any]] = {}
_BODIES: dict[str, Callable[..., Any]] = {}


def _verb(body: Callable[..., Any]) -> Callable[..., Any]:
    """Make a verb of a function of its options: every option becomes a keyword, groups take a dictionary or their dataclass.

    What the function has besides its options stays a keyword of its own, which the command line does not have. Two calls never
    write to the same `out` at once (`ConfigError`); of several processes that share a call, the first one takes the place.
    """
    name = body.__name__
    cls = OPTIONS[name]
    further = [each for each in inspect.signature(body).parameters.values() if each.kind is each.KEYWORD_ONLY]

    @wraps(body)
    def alone(options: Any, **own: Any) -> Any:
        settle_environment()
        out = getattr(options, "out", None)
        reads = name == "doctor" or getattr(options, "preflight", None) == "only"
        if out is None or reads or not is_first_process():
            return body(options, **own)
        with one_writer(out):
            return body(options, **own)

    @wraps(body)
    def call(**values: Any) -> Any:
        own = {each.name: values.pop(each.name) for each in further if each.name in values}
        return alone(parse_values(name, values), **own)

    required = {option.name for option in options_of(cls).values() if option.required}
    keywords = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.name in required else field.default,
            annotation=field.type,
        )
        for field in fields(cls)
    ]
    call.__signature__ = inspect.Signature([*keywords, *further])  # type: ignore[attr-defined]
    call.__doc__ = cls.__doc__
    VERBS[name], _BODIES[name] = call, alone
    return call


def run_verb(verb: str, options: Any) -> Any:
    """Run a verb with the options that the parser made, and return its result."""
    return _BODIES[verb](options)


@_verb
def demo(options: DemoOptions) -> Cohort:
    from medsynth.cohorts import read_cohort, write_phantom

    return read_cohort(write_phantom(options))


@_verb
def index(options: IndexOptions) -> IndexResult:
    from medsynth.cohorts import index_scans

    return index_scans(options)


@_verb
def train(options: TrainOptions) -> NotebookRun | AutoencoderRun | Preflight:
    from medsynth.api.notebook import NotebookRun
    from medsynth.cohorts import read_cohort
    from medsynth.training import preflight_run, train_autoencoder, train_run

    options = replace(options, progress=options.progress and is_first_process())
    cohort = read_cohort(options.cohort)
    if options.preflight == "only" and options.stage == "autoencoder":
        raise ConfigError("preflight: only the stage diffusion can be estimated; try a training of a few steps")
    if options.preflight == "only":
        return preflight_run(cohort, options)
    if options.stage == "autoencoder":
        return train_autoencoder(cohort, options)
    return NotebookRun.of(train_run(cohort, options))


@_verb
def distill(options: DistillOptions) -> NotebookRun:
    from medsynth.api.notebook import NotebookRun
    from medsynth.cohorts import read_cohort
    from medsynth.runs import load_run as open_run
    from medsynth.training import distill_run

    options = replace(options, progress=options.progress and is_first_process())
    return NotebookRun.of(distill_run(open_run(options.run), read_cohort(options.cohort), options))


@_verb
def sample(options: SampleOptions) -> Cohort:
    from medsynth.generation import sample_set
    from medsynth.runs import load_run as open_run

    return sample_set(open_run(options.run), options)


@_verb
def edit(options: EditOptions) -> Cohort:
    from medsynth.cohorts import read_cohort
    from medsynth.generation import edit_set
    from medsynth.runs import load_run as open_run

    return edit_set(open_run(options.run), read_cohort(options.cohort), options)


@_verb
def evaluate(options: EvaluateOptions, *, scans: Sequence[Scan] | None = None) -> ReportFiles:
    from medsynth.evaluation import evaluate_cohorts
    from medsynth.reporting import check_report_folder, write_report
    from medsynth.runs import load_run as open_run

    check_report_folder(options.out)
    evaluation = evaluate_cohorts(options, synthetic_scans=scans)
    run = open_run(options.run) if options.run is not None else None
    return write_report(Path(options.out), evaluation, run=run, real_pictures=options.real_pictures, options=options)


@_verb
def augment(options: AugmentOptions) -> Handover:
    from medsynth.evaluation import augment_cohort

    return augment_cohort(options)


@_verb
def card(options: CardOptions) -> CardFiles | CheckedCard:
    from medsynth.reporting import check_card, write_card

    if options.check is None:
        if options.synthetic is None:
            raise ConfigError("synthetic: need a synthetic set, or a card to --check; try --synthetic FOLDER")
        return write_card(options)
    for name in ("synthetic", "report", "source", "real", "out"):
        if getattr(options, name) is not None:
            raise ConfigError(f"check: checks a card and takes no other file; leave out --{name}")
    return check_card(Path(options.check))


@_verb
def doctor(options: DoctorOptions) -> Diagnosis:
    from medsynth.installation import examine_installation

    return examine_installation(out=Path(options.out), quick=options.quick, progress=options.progress)


def load_run(folder: Path | str) -> NotebookRun:
    """Return the run in a folder: `.classes`, `.sample(4)`, its denoiser, and a picture of it in a notebook."""
    from medsynth.api.notebook import NotebookRun
    from medsynth.runs import load_run as open_run

    return NotebookRun.of(open_run(folder))
