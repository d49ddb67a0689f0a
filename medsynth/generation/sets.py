"""A synthetic set on disk, by whatever method its scans are made: restartable, with its own cohort and provenance."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from medsynth.cohorts import Cohort, Row, read_cohort, write_cohort
from medsynth.cohorts.sequences import MASK, PATH
from medsynth.config import GuidanceOptions, SolverOptions, changed_options
from medsynth.diffusion import noise_levels, settle_solver
from medsynth.errors import ConfigError, DataError
from medsynth.files import check_space, label_folder, remove_partial, write_json
from medsynth.generation.forms import choose_form, scan_bytes
from medsynth.generation.generate import (
    Chunk,
    SyntheticScan,
    check_guidance_of,
    choose_device,
    describe_guidance,
    plan_chunks,
)
from medsynth.generation.weak import Weak
from medsynth.networks import Denoiser
from medsynth.processes import Ranks, check_world, run_ranks
from medsynth.runs import Run
from medsynth.scans import write_dicom, write_scan, write_segmentation
from medsynth.seeds import derive_seed
from medsynth.versions import installed_versions

FORMAT = "medsynth-set/1"
# What sets from before these were options have.
_ADDED = {"solver": {"precision": "32-true"}, "guidance": {"against": "", "weak": ""}}
PROVENANCE_FILE, COHORT_FILE = "provenance.json", "cohort.csv"


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """What a set needs by any method: run and folder, scans wanted of each class, how they are computed and written.

    `plan_set` makes one whose options have been checked; `weak` is the model that `guidance.weak` names; with `masks` each
    scan has a mask also where the run makes none. Scans are made in `devices` processes on each of `num_nodes` nodes.
    """

    run: Run
    out: Path
    counts: Mapping[str, int]
    seed: int
    suffix: str
    modality: str | None
    batch_size: int
    solver: SolverOptions
    guidance: GuidanceOptions
    device: torch.device
    progress: bool
    devices: int = 1
    num_nodes: int = 1
    weak: Weak | None = None
    masks: bool = False


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to make scans.

    `make` returns the scans of a chunk; `seed_of` the seed of a scan and `columns_of` its further columns in `cohort.csv`, by
    class and number; `facts` is what `provenance.json` says, and a restart compares, beyond what it says of every set; `split` is
    that of its scans.
    """

    name: str
    notice: str
    make: Callable[[Denoiser, Chunk], Iterable[SyntheticScan]]
    seed_of: Callable[[str, int], int]
    columns_of: Callable[[str, int], Mapping[str, str]] = lambda label, number: {}
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    split: str = "train"


def plan_set(
    run: Run,
    out: Path,
    counts: Mapping[str, int],
    *,
    seed: int,
    file_format: str,
    modality: str = "auto",
    batch_size: int,
    solver: SolverOptions,
    guidance: GuidanceOptions,
    device: str,
    progress: bool = True,
    devices: int = 1,
    num_nodes: int = 1,
) -> SetPlan:
    """Return the plan of a set; `ConfigError` for whatever these options can get wrong, before the first file."""
    check_world(devices=devices, num_nodes=num_nodes)
    solver = settle_solver(solver, own=run.solver, voxels=run.spec.voxels)
    noise_levels(solver)
    weak = check_guidance_of(run, guidance)
    plan_chunks(counts, batch_size)
    suffix, modality_written = choose_form(run.spec, file_format, modality)
    return SetPlan(
        run=run,
        out=out,
        counts=dict(counts),
        seed=seed,
        suffix=suffix,
        modality=modality_written,
        batch_size=batch_size,
        solver=solver,
        guidance=guidance,
        device=choose_device(device),
        progress=progress,
        devices=devices,
        num_nodes=num_nodes,
        weak=weak,
    )


def write_set(plan: SetPlan, make_method: Callable[[SetPlan], Method]) -> Cohort:
    """Write the synthetic set and return its cohort; what an interrupted call left is kept, the rest is made.

    `make_method` returns how the scans of a plan are made; each process calls it for itself, the first one before the others, so
    it must be picklable, but what it returns need not be. A chunk goes to one process, and comes out the same from any. Every
    scan file is whole or absent, `provenance.json` is written first, `cohort.csv` last. Raises `ConfigError` if the folder holds
    a set of another run or with other settings (it names them), if the disk has no room for what is missing, or if a process
    dies.
    """
    run_ranks(_write_share, plan, make_method, devices=plan.devices, num_nodes=plan.num_nodes)
    return replace(read_cohort(plan.out / COHORT_FILE), folder=plan.out)


def _write_share(ranks: Ranks, plan: SetPlan, make_method: Callable[[SetPlan], Method]) -> None:
    """Write the chunks of this process; the first one also writes what belongs to all."""
    plan = replace(plan, progress=plan.progress and ranks.first)
    missing: Sequence[Chunk] = ()
    denoiser = None
    with ranks.together():
        if ranks.first:
            method = make_method(plan)
            missing, denoiser = _begin(plan, method, ranks)
    missing = ranks.tell(missing)
    with ranks.together():
        if not ranks.first:
            method = make_method(plan)
            denoiser = plan.run.load_denoiser(ranks.place(plan.device)) if missing else None
        if denoiser is not None:
            _make(plan, method, denoiser, missing, ranks)
    with ranks.together():
        if ranks.first:
            rows = [
                _row(plan, method, label, number) for label, count in plan.counts.items() for number in range(count)
            ]
            write_cohort(Cohort(folder=plan.out, rows=tuple(rows), roots={}), plan.out / COHORT_FILE)


def _begin(plan: SetPlan, method: Method, ranks: Ranks) -> tuple[list[Chunk], Denoiser | None]:
    """Refuse what cannot be done, note how the set is made, and return the chunks that are missing with what makes them."""
    settings = _settings(plan, method)
    sessions = _refuse_other_set(plan.out, settings)
    missing = [
        chunk
        for chunk in plan_chunks(plan.counts, plan.batch_size)
        if not all(file.exists() for number in chunk.numbers for file in _files(plan, chunk.label, number).values())
    ]
    still = _count(missing)
    check_space(plan.out, still * scan_bytes(plan.run.spec, plan.modality), purpose=f"{still} scans", option="--out")
    denoiser = plan.run.load_denoiser(ranks.place(plan.device)) if missing else None
    remove_partial(plan.out)
    if missing:
        # Not how many processes there are: the scans are the same.
        session = {
            "device": str(plan.device),
            "threads": torch.get_num_threads(),
            "versions": installed_versions(),
        }
        sessions = sessions if session in sessions else [*sessions, session]
        write_json(plan.out / PROVENANCE_FILE, settings | {"sessions": sessions})
    return missing, denoiser


def _make(plan: SetPlan, method: Method, denoiser: Denoiser, missing: Sequence[Chunk], ranks: Ranks) -> None:
    """Write the scans of every `world`th missing chunk; while they are written, the next chunk is computed."""
    total = sum(plan.counts.values())
    done = total - _count(missing)
    with (
        tqdm(total=total, initial=done, unit="scan", desc=method.name, disable=not plan.progress) as bar,
        _in_background(most=plan.batch_size) as put,
    ):
        for turn, chunk in enumerate(ranks.share(missing)):
            for made in method.make(denoiser, chunk):
                put(partial(_write, plan, made))
                bar.update()
            # The others keep about the same pace.
            first = turn * ranks.world
            bar.update(_count(missing[first : first + ranks.world]) - len(chunk.numbers))


@contextmanager
def _in_background(*, most: int) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Yield `put(job)`, which runs jobs in one thread, in order, `most` waiting at the most; it or the end raises their errors.

    Where anything is raised, jobs that have not begun are left out.
    """
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="medsynth-write") as worker:

        def put(job: Callable[[], None]) -> None:
            waiting.append(worker.submit(job))
            while waiting and (waiting[0].done() or len(waiting) > most):
                waiting.popleft().result()

        try:
            yield put
            while waiting:
                waiting.popleft().result()
        finally:
            for job in waiting:
                job.cancel()


def _count(chunks: Iterable[Chunk]) -> int:
    return sum(len(chunk.numbers) for chunk in chunks)


def _write(plan: SetPlan, made: SyntheticScan) -> None:
    files = _files(plan, made.label, made.number)
    if plan.modality is None:
        scans = {PATH: made.scan, **made.sequences} | ({} if made.mask is None else {MASK: made.mask})
        for name, file in files.items():
            write_scan(scans[name], file)
        return
    if not files[PATH].exists():  # of a chunk that was interrupted: a series never replaces another
        write_dicom(made.scan, files[PATH], modality=plan.modality, patient_id=_patient_id(plan, made.seed))
    if made.mask is not None:
        write_segmentation(made.mask, files[MASK], images=files[PATH])


def _settings(plan: SetPlan, method: Method) -> dict[str, Any]:
    spec = plan.run.spec
    return {
        "format": FORMAT,
        "synthetic": True,
        "notice": method.notice,
        "method": method.name,
        **method.facts,
        "run": plan.run.fingerprint,
        "steps_trained": plan.run.steps,
        "seed": plan.seed,
        "counts": dict(plan.counts),
        "suffix": plan.suffix,
        **({} if plan.modality is None else {"modality": plan.modality}),
        "batch_size": plan.batch_size,
        "solver": dataclasses.asdict(plan.solver),
        "guidance": describe_guidance(plan.guidance, plan.weak),
        "classes": list(spec.classes),
        "training_scans": dict(zip(spec.classes, spec.class_counts, strict=True)),
        "training_patients": dict(zip(spec.classes, spec.class_patients, strict=True)),
    }


def _files(plan: SetPlan, label: str, number: int) -> dict[str, Path]:
    """Return the files of a scan, by the name of their channels; the scan is there when all of them are."""
    stem = plan.out / label_folder(label) / f"{number:06d}"
    files = {name: Path(f"{stem}{'' if name == PATH else f'_{name}'}{plan.suffix}") for name in plan.run.spec.files}
    if plan.run.spec.mask or plan.masks:
        files[MASK] = Path(f"{stem}_{MASK}{plan.suffix or '.dcm'}")
    return files


def _patient_id(plan: SetPlan, seed: int) -> str:
    return f"SYNTH-{derive_seed(seed, plan.run.fingerprint):016x}"


def _row(plan: SetPlan, method: Method, label: str, number: int) -> Row:
    seed = method.seed_of(label, number)
    files = {name: file.relative_to(plan.out).as_posix() for name, file in _files(plan, label, number).items()}
    return Row(
        path=files.pop(PATH),
        label=label,
        patient_id=_patient_id(plan, seed),
        split=method.split,
        mask=files.pop(MASK, None),
        sequences=files,
        attributes={
            "synthetic": "1",
            "seed": str(seed),
            "run": plan.run.fingerprint[:16],
            "method": method.name,
            **method.columns_of(label, number),
        },
    )


def _refuse_other_set(out: Path, settings: Mapping[str, Any]) -> list[Any]:
    """Refuse a folder with anything but this set; return the circumstances under which it was made so far."""
    path = out / PROVENANCE_FILE
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise ConfigError(f"{out}: need a new folder or a set to continue, got other files; try another --out")
        return []
    try:
        previous = json.loads(path.read_text(encoding="utf-8"))
        sessions = list(previous["sessions"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: need the provenance of the set, got damaged JSON; try another --out") from error
    # json turns tuples into lists: compare what a file would hold.
    if changed := changed_options(previous, json.loads(json.dumps(settings)), added=_ADDED):
        raise ConfigError(
            f"{out}: need the settings this set was begun with, got {'; '.join(changed)}; try another --out"
        )
    return sessions
