"""A synthetic set on disk, by whatever method its scans are made: restartable, with its own cohort and provenance."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.config import GuidanceOptions, SolverOptions, changed_options
from medsynth.diffusion import karras_sigmas
from medsynth.errors import ConfigError, DataError
from medsynth.files import check_space, label_folder, remove_partial, write_json
from medsynth.generation.generate import Chunk, SyntheticScan, check_guidance_of, choose_device, plan_chunks
from medsynth.networks import Denoiser
from medsynth.runs import Run
from medsynth.scans import write_scan
from medsynth.seeds import derive_seed
from medsynth.versions import installed_versions

FORMAT = "medsynth-set/1"
PROVENANCE_FILE, COHORT_FILE = "provenance.json", "cohort.csv"
SUFFIXES = {"nifti": ".nii.gz", "png": ".png", "npz": ".npz"}
_HEAD = 4096  # bytes of a scan file beside its voxels: header, provenance, and the rest of a block on the disk


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """What a set needs by any method: run and folder, scans wanted of each class, how they are computed and written.

    `plan_set` makes one whose options have been checked.
    """

    run: Run
    out: Path
    counts: Mapping[str, int]
    seed: int
    suffix: str
    batch_size: int
    solver: SolverOptions
    guidance: GuidanceOptions
    device: torch.device
    progress: bool


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to make scans.

    `make` returns the scans of a chunk; `seed_of` the seed of a scan and `columns_of` its further columns in `cohort.csv`, by
    class and number; `facts` is what `provenance.json` says, and a restart compares, beyond what it says of every set.
    """

    name: str
    notice: str
    make: Callable[[Denoiser, Chunk], Iterable[SyntheticScan]]
    seed_of: Callable[[str, int], int]
    columns_of: Callable[[str, int], Mapping[str, str]] = lambda label, number: {}
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def plan_set(
    run: Run,
    out: Path,
    counts: Mapping[str, int],
    *,
    seed: int,
    file_format: str,
    batch_size: int,
    solver: SolverOptions,
    guidance: GuidanceOptions,
    device: str,
    progress: bool = True,
) -> SetPlan:
    """Return the plan of a set; `ConfigError` for whatever these options can get wrong, before the first file."""
    karras_sigmas(solver)
    check_guidance_of(run, guidance)
    plan_chunks(counts, batch_size)
    return SetPlan(
        run=run,
        out=out,
        counts=dict(counts),
        seed=seed,
        suffix=run.spec.suffix if file_format == "auto" else SUFFIXES[file_format],
        batch_size=batch_size,
        solver=solver,
        guidance=guidance,
        device=choose_device(device),
        progress=progress,
    )


def write_set(plan: SetPlan, method: Method) -> Cohort:
    """Write the synthetic set and return its cohort; what an interrupted call left is kept, the rest is made.

    Every scan file is whole or absent, `cohort.csv` is written last. Raises `ConfigError` if the folder holds a set of another
    run or with other settings (it names them), or if the disk has no room for what is missing.
    """
    settings = _settings(plan, method)
    sessions = _refuse_other_set(plan.out, settings)
    missing = [
        chunk
        for chunk in plan_chunks(plan.counts, plan.batch_size)
        if not all(_file(plan, chunk.label, number).is_file() for number in chunk.numbers)
    ]
    still = sum(len(chunk.numbers) for chunk in missing)
    check_space(plan.out, still * scan_bytes(plan), purpose=f"{still} scans", option="--out")
    denoiser = plan.run.load_denoiser(plan.device) if missing else None
    remove_partial(plan.out)
    if missing:
        session = {
            "device": str(plan.device),
            "threads": torch.get_num_threads(),
            "versions": installed_versions(),
        }
        sessions = sessions if session in sessions else [*sessions, session]
        write_json(plan.out / PROVENANCE_FILE, settings | {"sessions": sessions})
    total = sum(plan.counts.values())
    with tqdm(total=total, initial=total - still, unit="scan", desc=method.name, disable=not plan.progress) as bar:
        for chunk in missing:
            assert denoiser is not None
            for made in method.make(denoiser, chunk):
                write_scan(made.scan, _file(plan, made.label, made.number))
                bar.update()
    rows = [_row(plan, method, label, number) for label, count in plan.counts.items() for number in range(count)]
    cohort = Cohort(folder=plan.out, rows=tuple(rows), roots={})
    write_cohort(cohort, plan.out / COHORT_FILE)
    return cohort


def scan_bytes(plan: SetPlan) -> int:
    """Return about how many bytes a scan of the set takes on the disk, as if it were not compressed."""
    dtype = np.dtype(plan.run.spec.dtype)
    stored = dtype.itemsize if dtype.kind in "iu" else 4
    return math.prod(plan.run.spec.shape) * stored + _HEAD


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
        "batch_size": plan.batch_size,
        "solver": dataclasses.asdict(plan.solver),
        "guidance": dataclasses.asdict(plan.guidance),
        "classes": list(spec.classes),
        "training_scans": dict(zip(spec.classes, spec.class_counts, strict=True)),
        "training_patients": dict(zip(spec.classes, spec.class_patients, strict=True)),
    }


def _file(plan: SetPlan, label: str, number: int) -> Path:
    return plan.out / label_folder(label) / f"{number:06d}{plan.suffix}"


def _row(plan: SetPlan, method: Method, label: str, number: int) -> Row:
    seed, fingerprint = method.seed_of(label, number), plan.run.fingerprint
    return Row(
        path=_file(plan, label, number).relative_to(plan.out).as_posix(),
        label=label,
        patient_id=f"SYNTH-{derive_seed(seed, fingerprint):016x}",
        split="train",
        attributes={
            "synthetic": "1",
            "seed": str(seed),
            "run": fingerprint[:16],
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
    if changed := changed_options(previous, json.loads(json.dumps(settings))):
        raise ConfigError(
            f"{out}: need the settings this set was begun with, got {'; '.join(changed)}; try another --out"
        )
    return sessions
