"""The scans of a folder, and their patients."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from tqdm.auto import tqdm

from medsynth.cohorts.manifest import list_counts, resolve_below
from medsynth.config import Loading
from medsynth.errors import ConfigError, DataError
from medsynth.scans import SUFFIXES, DicomScan, is_dicom, list_dicom, list_items, may_be_dicom, scan_suffix, split_item

# What may lie beside scans without a note.
_COMPANIONS = {".csv", ".tsv", ".xlsx", ".json", ".yaml", ".yml", ".txt", ".md", ".pdf", ".html", ".log"}

_SECONDS = 2.0  # for one search of the patient in a scan's path


@dataclass(frozen=True, kw_only=True)
class FoundScan:
    """A scan before it is a row; `name` is its POSIX path below the scans folder, with its `#item`.

    `problem` says why it cannot be read, or why the items of its file cannot be listed; `aside` why only a labels CSV
    that names it can include it. `dicom` is what its DICOM headers say, `sequences` are further files of the same scan.
    """

    file: Path
    name: str
    label: str | None = None
    patient: str | None = None
    split: str | None = None
    mask: Path | None = None
    problem: str | None = None
    aside: str | None = None
    dicom: DicomScan | None = None
    sequences: Mapping[str, Path] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders below the scans folder in which the scan lies; a DICOM series lies in the folder of its files."""
        parts = split_item(self.name)[0].parts
        return parts if self.dicom is not None and self.dicom.instances > 1 else parts[:-1]

    @property
    def may_know_label(self) -> bool:
        """Whether the file itself may hold a label: NPZ."""
        return scan_suffix(self.name) == ".npz"


def list_scans(scans: Path, notes: list[str], *, loading: Loading = Loading()) -> list[FoundScan]:
    """Return the scans below a folder, sorted, and note what else lies there; hidden files are left out.

    DICOM files come last, as series, from their headers only. Raises `DataError` if there are no scans.
    """
    if not scans.is_dir():
        got, hint = (
            ("a file", f"its folder, {scans.parent}") if scans.is_file() else ("nothing there", "another --scans")
        )
        raise DataError(f"{scans}: need a folder of scans, got {got}; try {hint}")
    found: list[FoundScan] = []
    others: Counter[str] = Counter()
    dicom: Counter[Path] = Counter()
    linked = 0
    for folder, below, files in os.walk(scans):
        below[:] = sorted(name for name in below if not name.startswith("."))
        linked += sum(os.path.islink(os.path.join(folder, name)) for name in below)
        for name in sorted(name for name in files if not name.startswith(".")):
            file = Path(folder, name)
            known = scan_suffix(name) is not None
            if not known and not (may_be_dicom(name) and is_dicom(file)):
                others[file.suffix.lower() or "without suffix"] += 1
                continue
            relative = file.relative_to(scans).as_posix()
            resolve_below(scans, relative, hint="a copy of the file, or --scans with the folder that it lies in")
            if known:
                found += _scans_of(file, relative)
            else:
                dicom[file.parent] += 1
    if linked:
        notes.append(f"{linked} linked folders below the scans folder are not followed; try --scans with their target")
    if dicom:
        found += _list_series(dicom, scans, loading, notes)
    if not found:
        got = list_counts(others) or ("DICOM files without images" if dicom else "none")
        hint = f" ({linked} linked folders are not followed)" if linked else ""
        need = f"files ending in {', '.join(SUFFIXES)}, or DICOM files"
        raise DataError(f"{scans}: need {need}, got {got}; try another folder, or converting them{hint}")
    foreign = Counter({suffix: count for suffix, count in others.items() if suffix not in _COMPANIONS})
    if foreign:
        notes.append(f"{foreign.total()} files in formats that medsynth does not read: {list_counts(foreign)}")
    return found


def _scans_of(file: Path, relative: str) -> list[FoundScan]:
    try:
        items = list_items(file)
    except DataError as error:  # listed as unreadable later, with the others
        return [FoundScan(file=file, name=relative, problem=str(error))]
    if not items:
        return [FoundScan(file=file, name=relative)]
    return [
        FoundScan(file=Path(f"{file}#{item}"), name=f"{relative}#{item}", split=item.split("/")[0]) for item in items
    ]


def _list_series(folders: Counter[Path], scans: Path, loading: Loading, notes: list[str]) -> list[FoundScan]:
    """Return the scans of folders with so many DICOM files each; localizers and derived pictures are set aside."""
    listed: list[DicomScan] = []
    kinds: Counter[str] = Counter()
    with tqdm(total=folders.total(), desc="reading DICOM headers", unit="file", disable=not loading.progress) as bar:
        for folder in folders:
            series, others = list_dicom(folder, loading=loading, on_file=bar.update)
            listed += series
            kinds += others
    if kinds:
        notes.append(f"{kinds.total()} DICOM files without scans: {list_counts(kinds, 5)}")
    problems = _scattered(listed)
    volumes = {one.study for one in listed if len(one.shape) == 4 and one.study}
    result = []
    for one in listed:
        name = (one.folder.relative_to(scans) / (one.file or "")).as_posix() + (f"#{one.item}" if one.item else "")
        aside = "a localizer" if one.localizer else None
        if one.derived and one.study in volumes:
            aside = "a derived picture of a study that holds volumes"
        problem = problems.get(one.path, one.problem)
        result.append(FoundScan(file=scans / name, name=name, problem=problem, aside=aside, dicom=one))
    return result


def _scattered(listed: Sequence[DicomScan]) -> dict[str, str]:
    """Return the problem of each series of slices that is split over folders; complete copies are no problem."""
    places: dict[str, list[DicomScan]] = {}
    for one in listed:
        if one.is_slices and one.series:
            places.setdefault(one.series, []).append(one)
    return {
        one.path: f"{one.path}: need a series in one folder, got parts of it in {len(parts)}; try one folder for all"
        for parts in places.values()
        if len({frozenset(part.members) for part in parts}) > 1
        for one in parts
    }


# Patients and splits ---------------------------------------------------------------------------------------------------


def compile_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """Return the compiled pattern; `ConfigError` unless it is a regular expression with one group."""
    if pattern is None:
        return None
    try:
        if (compiled := re.compile(pattern)).groups == 1:
            return compiled
    except (re.error, RecursionError, OverflowError):
        pass
    raise ConfigError(f"patient_pattern: need a regular expression with one group, got {pattern!r}; try '(IM-\\d+)'")


@contextmanager
def _time_limit(pattern: re.Pattern[str]) -> Iterator[None]:
    """Raise `ConfigError` if a search takes too long, as patterns such as `(a+)+b` can: they try out every way to divide a name.

    Only where signals can end it: in the main thread of a process under Linux or macOS.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise ConfigError(
            f"patient_pattern: need one that finds a patient within {_SECONDS:g} s, got {pattern.pattern[:100]!r}; try one "
            "without a repetition within a repetition, such as '(IM-\\d+)'"
        )

    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)  # the caller may have a limit, too


def find_patients(
    found: Sequence[FoundScan], pattern: re.Pattern[str] | None, notes: list[str], *, columns: Sequence[str] = ()
) -> list[FoundScan]:
    """Return the scans with their patients: from the labels CSV, else by the pattern, else by PatientID, else each its own.

    `columns` of the labels CSV seem to name patients; the note on scans without patient suggests them.
    """
    result: list[FoundScan] = []
    unknown = 0
    for one in found:
        patient = one.patient
        if patient is None and pattern is not None:
            with _time_limit(pattern):
                match = pattern.search(one.name)
            patient = match[1] if match else None
            if not patient:
                need = f"a patient that {pattern.pattern!r} finds"
                raise DataError(f"{one.name}: need {need}, got none; try another --patient_pattern")
        if patient is None:
            patient = "" if one.dicom is None else one.dicom.patient
            unknown += not patient
        result.append(replace(one, patient=patient or one.name))
    if unknown:
        names = " or ".join(f'--columns.patient "{name}"' for name in columns)
        hint = f"try {names}" if names else "give a patient column or --patient_pattern"
        leak = "if patients have several scans, the splits leak"
        notes.append(f"{unknown} scans have no patient, so each counts as a patient; {leak}: {hint}")
    studies = {one.dicom.study for one in result if one.dicom is not None and one.patient == one.dicom.patient}
    if len(studies) > 1 and len({one.patient for one in result}) == 1:
        notes.append(
            f"{len(studies)} studies have one PatientID, {result[0].patient!r}, so all count as one patient; if it stands for "
            "several, try --patient_pattern or a labels CSV with a patient column"
        )
    return result


def check_stated_splits(found: Sequence[FoundScan]) -> None:
    """Refuse stated splits that are incomplete or divide a patient, before any scan is read."""
    split_of: dict[str | None, str] = {}
    missing = next((one for one in found if not one.split), None)
    if missing is not None and any(one.split for one in found):
        raise DataError(f"{missing.name}: need a split for all scans or for none, got none here; try filling it in")
    for one in found if missing is None else ():
        other = split_of.setdefault(one.patient, one.split or "")
        if other != one.split:
            got = f"patient {one.patient!r} in {other} and {one.split}"
            hint = "another --columns.split, or none to split by patient"
            raise DataError(f"{one.name}: need each patient in one split, got {got}; try {hint}")
