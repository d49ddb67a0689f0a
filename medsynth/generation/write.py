"""A generator's scans as a set on disk: shared out to processes, restartable, with cohort and provenance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from medsynth.cohorts import Cohort, read_cohort, write_cohort
from medsynth.cohorts.manifest import MASK, PATH
from medsynth.config import GenerationOptions
from medsynth.errors import ConfigError
from medsynth.files import check_space, remove_partial, write_json
from medsynth.generation.generator import Chunk, Generator, SyntheticScan, plan_chunks
from medsynth.networks import Denoiser
from medsynth.processes import Ranks, check_world, run_ranks
from medsynth.runs import RunSpec
from medsynth.scans import DICOM_MODALITIES, check_dicom, write_dicom, write_scan, write_segmentation
from medsynth.seeds import derive_seed
from medsynth.sets import COHORT_FILE, PROVENANCE_FILE, SET_FORMAT, resume_set, scan_stem, set_row
from medsynth.versions import installed_versions

_SUFFIXES = {"nifti": ".nii.gz", "png": ".png", "npz": ".npz"}
_PICTURE = ".dcm"  # a DICOM volume is a folder, whose name has no suffix
_HEAD = 4096  # bytes of a file beside its voxels: header, provenance, and the rest of a block on the disk
_SEGMENTED = ("CT", "MR")  # modalities of which medsynth writes masks as DICOM SEG
# Radiographs are written as CR whatever detector took the real ones: DX says too much about the detector.
_WRITTEN_AS = {"CT": "CT", "MR": "MR", "CR": "CR", "DX": "CR", "OT": "OT"}


@dataclass(frozen=True, kw_only=True)
class FileForm:
    """How the scans of a set are written: file suffix, DICOM modality (None for other formats), and whether masks are."""

    suffix: str
    modality: str | None
    masks: bool

    @classmethod
    def of(cls, spec: RunSpec, options: GenerationOptions, *, masks: bool = False) -> FileForm:
        """Return the form that the options choose; `auto` is that of the training scans. `masks` asks for masks of any run.

        Raises `ConfigError` for a modality that is unknown or has no use, and for scans that DICOM cannot hold.
        """
        if options.format != "dicom" and not (options.format == "auto" and spec.suffix == _PICTURE):
            if options.modality != "auto":
                raise ConfigError(
                    f"modality: need format dicom for a modality, got {options.modality} and {options.format}"
                )
            suffix = spec.suffix if options.format == "auto" else _SUFFIXES[options.format]
            return cls(suffix=suffix, modality=None, masks=spec.mask or masks)
        modality = _WRITTEN_AS.get(spec.modality or "") if options.modality == "auto" else options.modality
        if modality is None:
            was = f"{spec.modality} training scans" if spec.modality else "a run whose training scans name none"
            raise ConfigError(
                f"modality: need one of {', '.join(DICOM_MODALITIES)} to write, got {was}; "
                "try --modality CT if values are HU, or --format nifti"
            )
        if len(spec.files) > 1:
            raise ConfigError(
                f"format: need nifti, png or npz for {len(spec.files)} sequences of a scan, got DICOM; try nifti"
            )
        check_dicom((spec.shape[0] - spec.mask, *spec.shape[1:]), modality, "modality")
        if spec.mask and modality not in _SEGMENTED:
            raise ConfigError(
                f"modality: need CT or MR for scans with masks (DICOM SEG), got {modality}; try --format nifti"
            )
        suffix = _PICTURE if len(spec.shape) == 3 else ""
        return cls(suffix=suffix, modality=modality, masks=spec.mask or (masks and modality in _SEGMENTED))

    def scan_bytes(self, spec: RunSpec) -> int:
        """Return about how many bytes a scan of a run takes on the disk without compression."""
        if self.modality is not None:
            return math.prod(spec.shape) * 2 + (max(spec.shape[1:]) if len(spec.shape) == 4 else 1) * _HEAD
        voxel = max(np.dtype(dtype).itemsize for _, dtype in spec.files.values())
        return math.prod(spec.shape) * voxel + len(set(spec.channel_names)) * _HEAD


def write_set(generator: Generator) -> Cohort:
    """Write the generator's synthetic set and return its cohort; what an interrupted call left is kept, the rest is made.

    Every process prepares a copy of the generator for itself, the first one before the others. A chunk goes to one process and
    comes out the same from any. Every scan file is whole or absent; `provenance.json` is written first, `cohort.csv` last.
    Raises `ConfigError` if the folder holds a set of another run or with other settings (it names them), if the disk has no room
    for what is missing, or if a process dies.
    """
    options = generator.job.options
    check_world(devices=options.devices, num_nodes=options.num_nodes)
    form = FileForm.of(generator.job.run.spec, options, masks=generator.masks)
    writer = SetWriter(generator=generator, form=form, out=Path(options.out))
    run_ranks(_write_share, writer, devices=options.devices, num_nodes=options.num_nodes)
    return replace(read_cohort(writer.out / COHORT_FILE), folder=writer.out)


@dataclass(frozen=True, kw_only=True)
class SetWriter:
    """Writes the scans of a generator as files of one form in the folder `out`."""

    generator: Generator
    form: FileForm
    out: Path

    def begin(self, device: torch.device) -> tuple[list[Chunk], Denoiser | None]:
        """Refuse what cannot be done, write the provenance, and return the missing chunks with the denoiser that makes them."""
        job, settings = self.generator.job, self.settings()
        sessions = resume_set(self.out, settings)
        missing = plan_chunks(job.counts, job.options.batch_size)
        if sessions:
            missing = [chunk for chunk in missing if not self.has(chunk)]
        still = _count(missing)
        check_space(self.out, still * self.form.scan_bytes(job.run.spec), purpose=f"{still} scans", option="--out")
        denoiser = job.run.load_denoiser(device) if missing else None
        remove_partial(self.out)
        if missing:
            # The number of processes is left out: the scans do not depend on it.
            session = {"device": str(job.device), "threads": torch.get_num_threads(), "versions": installed_versions()}
            sessions = sessions if session in sessions else [*sessions, session]
            write_json(self.out / PROVENANCE_FILE, settings | {"sessions": sessions})
        return missing, denoiser

    def has(self, chunk: Chunk) -> bool:
        """Return whether all files of a chunk exist."""
        return all(file.exists() for number in chunk.numbers for file in self.files(chunk.label, number).values())

    def make(self, denoiser: Denoiser, missing: Sequence[Chunk], ranks: Ranks, *, progress: bool) -> None:
        """Write the scans of every `world`th missing chunk; while they are written, the next chunk is computed."""
        total, name = sum(self.generator.job.counts.values()), self.generator.name
        bar = tqdm(total=total, initial=total - _count(missing), unit="scan", desc=name, disable=not progress)
        writing: list[Future[None]] = []
        with bar, ThreadPoolExecutor(max_workers=1, thread_name_prefix="medsynth-write") as worker:
            try:
                for turn, chunk in enumerate(ranks.share(missing)):
                    made = self.generator.make(denoiser, chunk)
                    for each in writing:
                        each.result()  # raises what writing raised
                    writing = [worker.submit(self.write, scan) for scan in made]
                    # The other processes keep about the same pace.
                    bar.update(_count(missing[turn * ranks.world : (turn + 1) * ranks.world]))
                for each in writing:
                    each.result()
            finally:
                worker.shutdown(cancel_futures=True)

    def write(self, made: SyntheticScan) -> None:
        files = self.files(made.label, made.number)
        if self.form.modality is None:
            scans = {PATH: made.scan, **made.sequences} | ({} if made.mask is None else {MASK: made.mask})
            for name, file in files.items():
                write_scan(scans[name], file)
            return
        if not files[PATH].exists():  # of an interrupted chunk: a series never replaces another
            write_dicom(made.scan, files[PATH], modality=self.form.modality, patient_id=self.patient_id(made.seed))
        if made.mask is not None and MASK in files:
            write_segmentation(made.mask, files[MASK], images=files[PATH])

    def write_rows(self) -> None:
        generator, rows = self.generator, []
        run = generator.job.run.fingerprint[:16]
        for label, number in ((label, n) for label, count in generator.job.counts.items() for n in range(count)):
            seed, files = generator.seed_of(label, number), self.files(label, number)
            own = {"synthetic": "1", "seed": str(seed), "run": run, "method": generator.name}
            own |= generator.columns_of(label, number)
            patient, split = self.patient_id(seed), generator.split
            rows.append(set_row(self.out, files, label=label, patient_id=patient, split=split, attributes=own))
        write_cohort(Cohort(folder=self.out, rows=tuple(rows)), self.out / COHORT_FILE)

    def files(self, label: str, number: int) -> dict[str, Path]:
        """Return the files of a scan by the name of their channels; the scan is complete when all of them exist."""
        stem, suffix = scan_stem(self.out, label, number), self.form.suffix
        names = self.generator.job.run.spec.files
        files = {name: Path(f"{stem}{'' if name == PATH else f'_{name}'}{suffix}") for name in names}
        if self.form.masks:
            files[MASK] = Path(f"{stem}_{MASK}{suffix or '.dcm'}")
        return files

    def patient_id(self, seed: int) -> str:
        """Return the made-up patient of a scan; sets of two runs share none."""
        return f"SYNTH-{derive_seed(seed, self.generator.job.run.fingerprint):016x}"

    def settings(self) -> dict[str, Any]:
        """Return what provenance says of the set, and a restart compares."""
        job, spec = self.generator.job, self.generator.job.run.spec
        # The weaker model by its weights, not its path.
        guidance = asdict(job.options.guidance) | {"weak": "" if job.weak is None else job.weak.fingerprint[:16]}
        return {
            "format": SET_FORMAT,
            "synthetic": True,
            "notice": self.generator.notice,
            "method": self.generator.name,
            **self.generator.facts(),
            "run": job.run.fingerprint,
            "steps_trained": job.run.steps,
            "seed": job.options.seed,
            "counts": dict(job.counts),
            "suffix": self.form.suffix,
            **({} if self.form.modality is None else {"modality": self.form.modality}),
            "batch_size": job.options.batch_size,
            "solver": asdict(job.solver),
            "guidance": guidance,
            "classes": list(spec.classes),
            "training_scans": dict(zip(spec.classes, spec.class_counts, strict=True)),
            "training_patients": dict(zip(spec.classes, spec.class_patients, strict=True)),
        }


def _write_share(ranks: Ranks, writer: SetWriter) -> None:
    """Write the chunks of this process; the first one also writes what belongs to all."""
    generator, job = writer.generator, writer.generator.job
    progress, device = job.options.progress and ranks.first, ranks.place(job.device)
    missing: list[Chunk] = []
    denoiser: Denoiser | None = None
    with ranks.together():
        if ranks.first:
            generator.prepare(progress=progress)
            missing, denoiser = writer.begin(device)
    missing = ranks.tell(missing)
    with ranks.together():
        if not ranks.first:
            generator.prepare(progress=progress)
            denoiser = job.run.load_denoiser(device) if missing else None
        if denoiser is not None:
            writer.make(denoiser, missing, ranks, progress=progress)
    with ranks.together():
        if ranks.first:
            writer.write_rows()


def _count(chunks: Iterable[Chunk]) -> int:
    return sum(len(chunk.numbers) for chunk in chunks)
