"""The scans of a folder, and what files and folders say about them: classes, splits and patients."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from medsynth.cohorts.manifest import REQUIRED, SPLITS, list_counts, read_columns, resolve_below
from medsynth.config import ReadingOptions
from medsynth.errors import ConfigError, DataError
from medsynth.scans import (
    SUFFIXES,
    DicomScan,
    is_dicom,
    list_dicom,
    list_items,
    may_be_dicom,
    read_scan,
    scan_suffix,
    split_item,
)

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_IMAGE_WORDS = {"image", "images", "img", "imgs", "scan", "scans", "data"}
_MASK_WORDS = {"mask", "masks", "label", "labels", "seg", "segmentation", "segmentations", "annotation", "annotations"}
_LAYOUT_WORDS = _IMAGE_WORDS | _MASK_WORDS | SPLIT_WORDS.keys()
# What lies beside scans and is none.
_COMPANIONS = {".csv", ".tsv", ".xlsx", ".json", ".yaml", ".yml", ".txt", ".md", ".pdf", ".html", ".log"}


@dataclass(frozen=True, kw_only=True)
class FoundScan:
    """A scan before it is a row; `name` is its POSIX path below the scans folder, with its `#item`.

    `problem` says why it cannot be read, or the items of its file not be listed; `aside` why it is taken only where a labels CSV
    names it. `dicom` is what its DICOM headers say, `sequences` the further files of the same scan.
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
    attributes: Mapping[str, str]

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders below the scans folder in which the scan lies; a DICOM series lies in that of its files."""
        parts = split_item(self.name)[0].parts
        return parts if self.dicom is not None and self.dicom.instances > 1 else parts[:-1]


def list_scans(
    scans: Path, notes: list[str], *, reading: ReadingOptions = ReadingOptions(), progress: bool = False
) -> list[FoundScan]:
    """Return the scans below a folder, sorted, and note what else lies there; hidden files are left out.

    DICOM files come last, as series, from their headers alone. Raises `DataError` if there are no scans.
    """
    if scans.is_file():
        raise DataError(f"{scans}: need a folder of scans, got a file; try its folder, {scans.parent}")
    if not scans.is_dir():
        raise DataError(f"{scans}: need a folder of scans, got nothing there; try another --scans")
    found: list[FoundScan] = []
    others: Counter[str] = Counter()
    dicom: Counter[Path] = Counter()
    linked = 0
    for folder, below, files in os.walk(scans):
        below[:] = sorted(name for name in below if not name.startswith("."))
        linked += sum(os.path.islink(os.path.join(folder, name)) for name in below)
        for name in sorted(files):
            if name.startswith("."):
                continue
            file = Path(folder, name)
            of_dicom = scan_suffix(name) is None and may_be_dicom(name) and is_dicom(file)
            if scan_suffix(name) is None and not of_dicom:
                others[Path(name).suffix.lower() or "without suffix"] += 1
                continue
            relative = file.relative_to(scans).as_posix()
            resolve_below(scans, relative, hint="a copy of the file, or --scans with the folder that it lies in")
            if of_dicom:
                dicom[file.parent] += 1
            else:
                found += _scans_of(file, relative)
    if linked:
        notes.append(f"{linked} linked folders below the scans folder are not followed; try --scans with their target")
    if dicom:
        found += _list_series(dicom, scans, reading, notes, progress=progress)
    if not found:
        got = list_counts(others) or ("DICOM files without images" if dicom else "none")
        raise DataError(
            f"{scans}: need files ending in {', '.join(SUFFIXES)}, or DICOM files, got {got}; "
            "try another folder, or converting them"
            + (f" ({linked} linked folders are not followed)" if linked else "")
        )
    foreign = Counter({suffix: count for suffix, count in others.items() if suffix not in _COMPANIONS})
    if foreign:
        notes.append(f"{foreign.total()} files of no format that medsynth reads: {list_counts(foreign)}")
    return found


def _scans_of(file: Path, relative: str) -> list[FoundScan]:
    try:
        items = list_items(file)
    except DataError as error:  # reading it fails, too, and counts it with the others
        return [FoundScan(file=file, name=relative, problem=str(error), attributes={})]
    if not items:
        return [FoundScan(file=file, name=relative, attributes={})]
    return [
        FoundScan(
            file=Path(f"{file}#{item}"),
            name=f"{relative}#{item}",
            split=item.split("/")[0] if item.split("/")[0] in SPLITS else None,
            attributes={},
        )
        for item in items
    ]


# DICOM -----------------------------------------------------------------------------------------------------------------


def _list_series(
    folders: Mapping[Path, int], scans: Path, reading: ReadingOptions, notes: list[str], *, progress: bool
) -> list[FoundScan]:
    """Return the scans of folders with so many DICOM files each; those that are none to learn from are set aside."""
    listed: list[DicomScan] = []
    kinds: Counter[str] = Counter()
    with tqdm(total=sum(folders.values()), desc="reading DICOM headers", unit="file", disable=not progress) as bar:
        for folder in folders:
            found, others = list_dicom(folder, reading=reading, on_file=bar.update)
            listed += found
            kinds += others
    if kinds:
        notes.append(f"{kinds.total()} DICOM files without scans: {list_counts(kinds, 5)}")
    problems = _scattered(listed)
    volumes = {one.study for one in listed if len(one.shape) == 4 and one.study}
    result = []
    for one in listed:
        place = one.folder.relative_to(scans) / (one.file or "")
        name = place.as_posix() + (f"#{one.item}" if one.item else "")
        aside = "a localizer" if one.localizer else None
        if one.derived and one.study in volumes:
            aside = "a derived picture of a study that holds volumes"
        result.append(
            FoundScan(
                file=scans / name,
                name=name,
                problem=problems.get(one.path, one.problem),
                aside=aside,
                dicom=one,
                attributes={},
            )
        )
    return result


def _scattered(listed: Sequence[DicomScan]) -> dict[str, str]:
    """Return the problem of each series of slices of which other folders hold other parts; whole copies are none."""
    places: dict[str, list[DicomScan]] = {}
    for one in listed:
        if one.is_slices and one.series:
            places.setdefault(one.series, []).append(one)
    return {
        one.path: f"{one.path}: need a series in one folder, got parts of it in {len(parts)}; try putting them together"
        for parts in places.values()
        if len({frozenset(part.members) for part in parts}) > 1
        for one in parts
    }


# Labels by folders -----------------------------------------------------------------------------------------------------


def label_by_folders(
    listed: Sequence[FoundScan], scans: Path, *, own: Collection[Path], reading: ReadingOptions, notes: list[str]
) -> list[FoundScan]:
    """Return the scans with the first folder as label; of `train/<class>/...` the first is the split, the second the label.

    Scans in no folder stay without label where their file may know one (NPZ). CSVs in the scans folder other than `own`
    are noted. Raises `DataError` for folders that are no classes (`images` and `masks`), and for scans without label.
    """
    tables = [file for file in sorted(scans.glob("*.csv")) if file not in own and len(read_columns(file)) > 1]
    hint = f"--labels {tables[0]}" if tables else "--labels with a CSV of paths and labels"
    # Only NPZ files may know their own label; of others the folder must say it.
    silent = [scan_suffix(one.name) != ".npz" for one in listed]
    folders = [one.folders for one in listed]
    first = sorted({parts[0] for parts in folders if parts})
    depth = 1 if first and all(name.casefold() in SPLIT_WORDS for name in first) else 0
    if depth:
        notes.append(f"the folders {', '.join(first)} are taken as splits, the folders in them as classes")
    else:
        _check_layout(scans, folders, silent, first, hint, notes)
    for one, parts, alone in zip(listed, folders, silent, strict=True):
        if alone and len(parts) <= depth:
            where = f"no folder of a class in {parts[0]!r}" if parts else "a scan in no folder"
            raise DataError(f"{one.name}: need a label, got {where}; try {hint}, or a folder for each class")
    _check_items(listed, folders, reading)
    unused = [file for file in tables if not set(REQUIRED) <= set(read_columns(file))]
    if unused and any(silent):
        notes.append(
            f"{unused[0].name} lies in the scans folder and is not used, since folders are taken as classes; "
            f"try --labels {unused[0]}"
        )
    return [
        replace(
            one,
            label=parts[depth] if len(parts) > depth else None,
            split=one.split or (SPLIT_WORDS[parts[0].casefold()] if depth and parts else None),
        )
        for one, parts in zip(listed, folders, strict=True)
    ]


def _check_layout(
    scans: Path,
    folders: Sequence[tuple[str, ...]],
    silent: Sequence[bool],
    first: Sequence[str],
    hint: str,
    notes: list[str],
) -> None:
    """Refuse, or note, first folders whose names say that they are no classes."""
    told = {parts[0] for parts, alone in zip(folders, silent, strict=True) if alone and parts}
    odd = sorted(name for name in told if name.casefold() in _LAYOUT_WORDS)
    masks = any(name.casefold() in _MASK_WORDS for name in odd)
    images = [name for name in odd if name.casefold() in _IMAGE_WORDS]
    deeper = {parts[1] for parts in folders if len(parts) > 1}
    if odd and (len(odd) == len(first) or (masks and images)):
        classes_below = len(images) == 1 and {parts[1] for parts in folders if parts[:1] == (images[0],) and parts[1:]}
        try_instead = f"--scans {scans / images[0]}, or {hint}" if classes_below else hint
        raise DataError(f"{scans}: need a folder for each class, got {', '.join(map(repr, odd))}; try {try_instead}")
    if odd:
        notes.append(f"each folder counts as a class, also {', '.join(map(repr, odd))}; else try {hint}")
    if len(first) == 1 and len(deeper) > 1 and all(silent):
        notes.append(
            f"all scans are of one class, {first[0]!r}; if the folders in it are the classes, "
            f"try --scans {scans / first[0]}"
        )


def _check_items(listed: Sequence[FoundScan], folders: Sequence[tuple[str, ...]], reading: ReadingOptions) -> None:
    """Refuse files of several scans whose items have several labels each, or none and no folder, before all are read."""
    seen: set[Path] = set()
    for one, parts in zip(listed, folders, strict=True):
        file, item = split_item(one.file)
        if item is None or file in seen or one.dicom is not None:
            continue
        seen.add(file)
        try:
            label = read_scan(one.file, reading=reading).label
        except DataError:
            continue  # it counts with the others that cannot be read
        with np.load(file, allow_pickle=False) as packed:
            labelled = any(name.endswith("_labels") for name in packed.files)
        if label is None and labelled:
            raise DataError(
                f"{split_item(one.name)[0]}: need one label for each scan, got several; sets like ChestMNIST are not "
                "supported, try a set with one label, or --labels with a CSV"
            )
        if label is None and not parts:
            raise DataError(
                f"{split_item(one.name)[0]}: need a label for each scan, got no arrays like train_labels; "
                "try --labels with a CSV, or the file in a folder named by its class"
            )


# Patients and splits ---------------------------------------------------------------------------------------------------


def compile_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """Return the compiled pattern; `ConfigError` unless it is a regular expression with one group."""
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"patient_pattern: need a regular expression, got {pattern!r} ({error}); try '(IM-\\d+)'"
        ) from error
    if compiled.groups != 1:
        raise ConfigError(f"patient_pattern: need one group, got {compiled.groups} in {pattern!r}; try '(IM-\\d+)'")
    return compiled


def find_patients(
    found: Sequence[FoundScan], pattern: re.Pattern[str] | None, notes: list[str], *, columns: Sequence[str] = ()
) -> list[FoundScan]:
    """Return the scans with their patients: from the column, else by the pattern, else by PatientID, else each its own.

    `columns` are those of the labels CSV that seem to name patients; the note on scans without patient suggests them.
    """
    result: list[FoundScan] = []
    alone = 0
    for one in found:
        patient = one.patient
        stated = "" if one.dicom is None else one.dicom.patient
        if patient is None and pattern is not None:
            match = pattern.search(one.name)
            patient = match[1] if match else None
            if not patient:
                raise DataError(
                    f"{one.name}: need a patient that {pattern.pattern!r} finds, got none; try another --patient_pattern"
                )
        elif patient is None and stated:
            patient = stated
        elif patient is None:
            patient = one.name
            alone += 1
        result.append(replace(one, patient=patient))
    if alone:
        names = " or ".join(f'--columns.patient "{name}"' for name in columns)
        notes.append(
            f"{alone} scans have no patient, so each counts as one: if patients have several, splits leak; "
            + (f"try {names}" if names else "give a patient column or --patient_pattern")
        )
    studies = {one.dicom.study for one in result if one.dicom is not None and one.patient == one.dicom.patient}
    if len(studies) > 1 and len({one.patient for one in result}) == 1:
        notes.append(
            f"{len(studies)} studies have one PatientID, {result[0].patient!r}, so all count as one patient; if it stands for "
            "several, try --patient_pattern or a labels CSV with a patient column"
        )
    return result


def check_given_splits(found: Sequence[FoundScan]) -> None:
    """Refuse given splits that are incomplete or cut through a patient, before any scan is read."""
    given: dict[str, str] = {}
    missing = next((one for one in found if not one.split), None)
    for one in found:
        if one.split is None or one.patient is None:
            continue
        if missing is not None:
            raise DataError(f"{missing.name}: need a split for all scans or for none, got none here; try filling it in")
        other = given.setdefault(one.patient, one.split)
        if other != one.split:
            raise DataError(
                f"{one.name}: need each patient in one split, got patient {one.patient!r} in {other} and {one.split}; "
                "try another --columns.split, or none to split by patient"
            )
