"""`medsynth sample`: a synthetic set on disk, restartable, with its own cohort and provenance."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.config import GuidanceOptions, SolverOptions, changed_options
from medsynth.diffusion import karras_sigmas
from medsynth.errors import ConfigError, DataError
from medsynth.files import label_folder, remove_partial, write_json
from medsynth.generation.generate import Chunk, check_guidance_of, choose_device, generate_chunk, plan_chunks, scan_seed
from medsynth.runs import Run
from medsynth.scans import write_scan
from medsynth.seeds import derive_seed
from medsynth.versions import installed_versions

FORMAT = "medsynth-set/1"
PROVENANCE_FILE, COHORT_FILE = "provenance.json", "cohort.csv"
SUFFIXES = {"nifti": ".nii.gz", "png": ".png", "npz": ".npz"}


def sample_set(
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
) -> Cohort:
    """Write the synthetic set and return its cohort; what an interrupted call left is kept, the rest is made.

    Every scan file is whole or absent, `cohort.csv` is written last. Raises `ConfigError` if `out` holds a set of another
    run or with other settings (it names them).
    """
    suffix = run.spec.suffix if file_format == "auto" else SUFFIXES[file_format]
    settings = {
        "format": FORMAT,
        "synthetic": True,
        "notice": "Every scan in this folder is synthetic. It shows no patient and must not be used for diagnosis.",
        "method": "sample",
        "run": run.fingerprint,
        "steps_trained": run.steps,
        "seed": seed,
        "counts": dict(counts),
        "suffix": suffix,
        "batch_size": batch_size,
        "solver": dataclasses.asdict(solver),
        "guidance": dataclasses.asdict(guidance),
        "classes": list(run.spec.classes),
        "training_scans": dict(zip(run.spec.classes, run.spec.class_counts, strict=True)),
        "training_patients": dict(zip(run.spec.classes, run.spec.class_patients, strict=True)),
    }
    # Whatever an option can get wrong is known before the first file.
    karras_sigmas(solver)
    check_guidance_of(run, guidance)
    chunks = plan_chunks(counts, batch_size)
    chosen_device = choose_device(device)
    sessions = _refuse_other_set(out, settings)
    remove_partial(out)
    missing = [
        chunk for chunk in chunks if not all(_file(out, chunk.label, n, suffix).is_file() for n in _numbers(chunk))
    ]
    if missing:
        session = {
            "device": str(chosen_device),
            "threads": torch.get_num_threads(),
            "versions": installed_versions(),
        }
        sessions = sessions if session in sessions else [*sessions, session]
        write_json(out / PROVENANCE_FILE, settings | {"sessions": sessions})
    total = sum(counts.values())
    done = total - sum(chunk.stop - chunk.start for chunk in missing)
    denoiser = run.load_denoiser(chosen_device) if missing else None
    with tqdm(total=total, initial=done, unit="scan", desc="sample", disable=not progress) as bar:
        for chunk in missing:
            assert denoiser is not None
            for made in generate_chunk(run, denoiser, chunk, seed=seed, solver=solver, guidance=guidance):
                write_scan(made.scan, _file(out, made.label, made.number, suffix))
                bar.update()
    rows = [_row(run, out, label, number, seed, suffix) for label, count in counts.items() for number in range(count)]
    cohort = Cohort(folder=out, rows=tuple(rows), roots={})
    write_cohort(cohort, out / COHORT_FILE)
    return cohort


def _numbers(chunk: Chunk) -> range:
    return range(chunk.start, chunk.stop)


def _file(out: Path, label: str, number: int, suffix: str) -> Path:
    return out / label_folder(label) / f"{number:06d}{suffix}"


def _row(run: Run, out: Path, label: str, number: int, seed: int, suffix: str) -> Row:
    own_seed = scan_seed(seed, label, number)
    return Row(
        path=_file(out, label, number, suffix).relative_to(out).as_posix(),
        label=label,
        patient_id=f"SYNTH-{derive_seed(own_seed, run.fingerprint):016x}",
        split="train",
        attributes={"synthetic": "1", "seed": str(own_seed), "run": run.fingerprint[:16], "method": "sample"},
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
