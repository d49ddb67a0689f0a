"""Which class each scan of a folder has: from a labels CSV, or from the names of folders."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medsynth.cohorts.finding import FoundScan
from medsynth.cohorts.manifest import REQUIRED, read_columns, read_table, resolve_below, sequences_in
from medsynth.config import ColumnOptions, Loading
from medsynth.errors import DataError
from medsynth.scans import SUFFIXES, read_scan, scan_suffix, split_item

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_IMAGE_WORDS = {"image", "images", "img", "imgs", "scan", "scans", "data"}
_MASK_WORDS = {"mask", "masks", "label", "labels", "seg", "segmentation", "segmentations", "annotation", "annotations"}
_LABEL_WORDS = re.compile("label|class|finding|diagnos|categor|target|disease", re.IGNORECASE)
_PATIENT_WORDS = re.compile("patient|subject|case", re.IGNORECASE)
_SHOWN_COLUMNS = 12
# How a CSV may name DICOM scans, the most exact first.
_KEYS = {"SeriesInstanceUID": "series", "StudyInstanceUID": "study", "PatientID": "patient"}
# What must never become an attribute, since synthetic scans carry attributes; squeezed.
_IDENTITIES = {
    *("seriesinstanceuid", "studyinstanceuid", "sopinstanceuid", "accessionnumber"),
    *("patientname", "patientbirthdate"),
}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Scans with classes, the missing scans of a labels CSV, and unused columns of it that seem to name patients."""

    found: tuple[FoundScan, ...]
    missing: tuple[str, ...] = ()
    patient_columns: tuple[str, ...] = ()


def note_like_labels(labels: Iterable[str], notes: list[str]) -> None:
    """Note labels that differ only in case, blanks, hyphens or underscores: they are several classes."""
    counts = Counter(labels)
    alike: dict[str, list[str]] = {}
    for label in sorted(counts):
        alike.setdefault(_folded(label), []).append(label)
    for group in alike.values():
        if len(group) > 1:
            names = ", ".join(f"{label!r} ({counts[label]})" for label in group)
            notes.append(f"labels that differ only in spelling count as several classes: {names}")


def _folded(text: str) -> str:
    return re.sub(r"[\s_-]+", "_", text.strip()).casefold()


def _squeezed(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


# Folders ---------------------------------------------------------------------------------------------------------------


def label_by_folders(
    listed: Sequence[FoundScan], scans: Path, notes: list[str], *, own: Collection[Path], loading: Loading = Loading()
) -> Labelled:
    """Return the scans with the first folder as label; in `train/<class>/...` the first is the split, the second the label.

    Scans in no folder have no label yet if their file may hold one (NPZ). CSVs in the scans folder, other than its
    `own`, are noted. Raises `DataError` for folders that are not classes (`images` and `masks`), and for scans without
    label.
    """
    found = [one for one in listed if one.aside is None]
    if not found:
        file, aside = listed[0].file, listed[0].aside
        raise DataError(f"{file}: need a scan to learn from, got {aside}; try --labels with a CSV that names it")
    tables = {file: read_columns(file) for file in sorted(scans.glob("*.csv")) if file not in own}
    tables = {file: columns for file, columns in tables.items() if len(columns) > 1}
    hint = f"--labels {next(iter(tables))}" if tables else "--labels with a CSV of paths and labels"
    first = sorted({one.folders[0] for one in found if one.folders})
    depth = 1 if first and all(name.casefold() in _SPLIT_WORDS for name in first) else 0
    if depth:
        notes.append(f"the folders {', '.join(first)} are splits, the folders in them classes")
    else:
        _check_layout(scans, found, first, hint, notes)
    result = []
    for one in found:
        parts = one.folders
        if not one.may_know_label and len(parts) <= depth:
            where = f"no class folder in {parts[0]!r}" if parts else "a scan in no folder"
            raise DataError(f"{one.name}: need a label, got {where}; try {hint}, or a folder for each class")
        split = _SPLIT_WORDS[parts[0].casefold()] if depth and parts else None
        result.append(replace(one, label=parts[depth] if len(parts) > depth else None, split=one.split or split))
    _check_items(found, loading)
    unused = [file for file, columns in tables.items() if not set(REQUIRED) <= set(columns)]
    if unused and not all(one.may_know_label for one in found):
        notes.append(f"{unused[0].name} is not used, since the folders are the classes; try --labels {unused[0]}")
    return Labelled(found=tuple(result))


def _check_layout(scans: Path, found: Sequence[FoundScan], first: Sequence[str], hint: str, notes: list[str]) -> None:
    """Refuse, or note, first folders whose names say that they are not classes."""
    silent = {one.folders[0] for one in found if one.folders and not one.may_know_label}
    words = _IMAGE_WORDS | _MASK_WORDS | _SPLIT_WORDS.keys()
    odd = sorted(name for name in silent if name.casefold() in words)
    images = [name for name in odd if name.casefold() in _IMAGE_WORDS]
    masks = any(name.casefold() in _MASK_WORDS for name in odd)
    if odd and (len(odd) == len(first) or (masks and images)):
        if len(images) == 1 and any(one.folders[:1] == (images[0],) and one.folders[1:] for one in found):
            hint = f"--scans {scans / images[0]}, or {hint}"
        raise DataError(f"{scans}: need a folder for each class, got {', '.join(map(repr, odd))}; try {hint}")
    if odd:
        notes.append(f"each folder is a class, also {', '.join(map(repr, odd))}; if not, try {hint}")
    deeper = {one.folders[1] for one in found if len(one.folders) > 1}
    if len(first) == 1 and len(deeper) > 1 and not any(one.may_know_label for one in found):
        hint = f"if the folders in it are the classes, try --scans {scans / first[0]}"
        notes.append(f"all scans are of one class, {first[0]!r}; {hint}")


def _check_items(found: Sequence[FoundScan], loading: Loading) -> None:
    """Refuse files of several scans with several labels for each, or with no label and no folder, before all are read."""
    first_items: dict[Path, FoundScan] = {}
    for one in found:
        if one.may_know_label and split_item(one.file)[1] is not None:
            first_items.setdefault(split_item(one.file)[0], one)
    for file, one in first_items.items():
        try:
            label = read_scan(one.file, loading=loading).label
        except DataError:
            continue  # counted with the other unreadable ones
        if label is not None:
            continue
        name = split_item(one.name)[0]
        with np.load(file, allow_pickle=False) as packed:
            if any(array.endswith("_labels") for array in packed.files):
                raise DataError(f"{name}: need one label for each scan, got several; try --labels with a CSV")
        if not one.folders:
            raise DataError(
                f"{name}: need a label for each scan, got no arrays like train_labels; try --labels with a CSV, or a folder "
                "named by the class"
            )


# A labels CSV ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What a row names: `scans` below the scans folder, or else whether a file of its name `exists`."""

    cells: Mapping[str, str]
    path: str
    exists: bool
    scans: tuple[FoundScan, ...] = ()


class LabelTable:
    """The rows of a labels CSV, joined with the listed scans; whatever is not taken literally is noted.

    Paths are relative to the scans folder or to that of the CSV, or absolute below the scans folder. File names without
    folder are searched in all folders, if that finds every scan exactly once. DICOM scans may also be named by
    SeriesInstanceUID, and all that are not set aside by StudyInstanceUID, PatientID or a folder. Rows that are equal in
    every column count once. Raises `DataError` for missing columns.
    """

    def __init__(
        self, listed: Sequence[FoundScan], scans: Path, file: Path, notes: list[str], columns: ColumnOptions
    ) -> None:
        self.listed, self.scans, self.file, self.notes = listed, scans, file, notes
        self.names, table = read_table(file)
        self.columns = self._choose_key(columns)
        self.chosen = {key: getattr(self.columns, key) for key in ("path", "label", "patient", "split", "mask")}
        self._check_columns(table[0])
        self.rows = list({tuple(cells.items()): cells for cells in table}.values())
        if repeats := len(table) - len(self.rows):
            notes.append(f"{repeats} rows of the labels CSV repeat another row in every column and count once")
        self.by_name: dict[str, list[FoundScan]] = {}
        for one in listed:
            self.by_name.setdefault(one.file.name if split_item(one.file)[1] is None else one.name, []).append(one)

    def join(self, *, skip_bad: bool) -> Labelled:
        """Return the scans that have a row.

        Raises `DataError` for empty cells, unknown splits, scans listed twice, and, unless `skip_bad`, missing scans.
        """
        columns, chosen = self.columns, self.chosen.values()
        sequences = {name: column for name, column in sequences_in(self.names).items() if column not in chosen}
        attributes = columns.attributes or self._free_columns([*chosen, *sequences.values()])
        splits, places = self._read_splits(), self._find_places()
        missing = [place.path for place in places if not place.exists]
        self._check_missing(missing, skip_bad=skip_bad)
        found: dict[str, FoundScan] = {}
        for place, split in zip(places, splits, strict=True):
            cells = place.cells
            for scan in place.scans:
                if scan.name in found:
                    got = f"{place.path!r} twice" + (f" ({scan.name})" if scan.name != place.path else "")
                    raise DataError(f"{self.file}: need each scan once, got {got}; try removing one of the rows")
                companions = {name: self._companion(cells[column], column) for name, column in sequences.items()}
                found[scan.name] = labelled = replace(
                    scan,
                    label=cells[columns.label].strip(),
                    patient=cells[columns.patient].strip() if columns.patient in cells else None,
                    split=scan.split if split is None else split,
                    mask=self._companion(cells.get(columns.mask, ""), columns.mask),
                    sequences={name: file for name, file in companions.items() if file is not None},
                    # A column that was not chosen may have a name that a cohort reserves.
                    attributes={
                        f"original_{name}" if name in (*REQUIRED, "mask", "root") else name: cells[name]
                        for name in attributes
                        if cells[name] and name not in sequences.values()
                    },
                )
                for key, value in (("label", labelled.label), ("patient", labelled.patient)):
                    if value == "":
                        got = f"none for {place.path!r}"
                        raise DataError(f"{self.file}: need a {key} in every row, got {got}; try filling it in")
        if not found:
            raise DataError(f"{self.file}: need rows for scans below {self.scans}, got none; try --columns.path")
        outside = sum(place.exists and not place.scans for place in places)
        without = len(self.listed) - len(found)
        blanks = sum(cells[columns.label] != cells[columns.label].strip() for cells in self.rows)
        for count, what in (
            (outside, "rows of the labels CSV name files that are not scans below the scans folder and are left out"),
            (without, "scans below the scans folder have no row in the labels CSV and are left out"),
            (blanks, "labels have blanks around them, which are dropped"),
        ):
            if count:
                self.notes.append(f"{count} {what}")
        unused = [name for name in self.names if _PATIENT_WORDS.search(name) and name not in chosen]
        patient_columns = () if columns.patient in self.names else tuple(unused)
        return Labelled(found=tuple(found.values()), missing=tuple(missing), patient_columns=patient_columns)

    def _choose_key(self, columns: ColumnOptions) -> ColumnOptions:
        """Return the columns, with one that identifies DICOM scans as `path` if there is no column of paths."""
        standard = columns.path == ColumnOptions().path
        if columns.path in self.names or not standard or all(one.dicom is None for one in self.listed):
            return columns
        found = {_key_of(name): name for name in reversed(self.names)}
        for key in _KEYS.values():
            if key in found:
                self.notes.append(f"the labels CSV has no column {columns.path!r}, so {found[key]!r} names the scans")
                return replace(columns, path=found[key])
        return columns

    def _check_columns(self, row: Mapping[str, str]) -> None:
        """Raise `DataError` that says which option names which column, if one that is needed is missing."""
        standard = ColumnOptions()
        asked = {k: name for k, name in self.chosen.items() if k in ("path", "label") or name != getattr(standard, k)}
        missing = {key: name for key, name in asked.items() if name not in self.names}
        if unknown := [name for name in self.columns.attributes if name not in self.names]:
            missing["attributes"] = unknown[0]
        if not missing:
            return
        free = [name for name in self.names if name not in self.chosen.values()]
        guesses = {
            "path": [name for name in free if scan_suffix(row[name])],
            "label": [name for name in free if _LABEL_WORDS.search(name)],
        }
        advice = []
        for key, wanted in missing.items():
            alike = [name for name in self.names if _folded(name) == _folded(wanted)]
            likely = "".join((alike or guesses.get(key, []))[:1])
            quoted = likely if re.fullmatch(r"[\w.-]+", likely) else f'"{likely}"'
            meant = f" (did you mean {alike[0]!r}?)" if alike else ""
            advice.append(f"--columns.{key} {quoted if likely else 'with one of them'}{meant}")
        shown = ", ".join(self.names[:_SHOWN_COLUMNS]) + (" ..." if len(self.names) > _SHOWN_COLUMNS else "")
        plural = "s" if len(missing) > 1 else ""
        needed, hint = ", ".join(map(repr, missing.values())), " and ".join(advice)
        raise DataError(f"{self.file}: need the column{plural} {needed}, got {shown}; try {hint}")

    def _free_columns(self, chosen: Sequence[str]) -> tuple[str, ...]:
        """Return the columns that become attributes: those without another meaning that do not identify a patient."""
        free = [name for name in self.names if name not in chosen]
        if identifying := [name for name in free if _squeezed(name) in _IDENTITIES]:
            self.notes.append(f"columns that identify are left out: {', '.join(identifying)}")
        return tuple(name for name in free if name not in identifying)

    def _read_splits(self) -> list[str | None]:
        """Return each row's split (None without the column), from the usual words for it in any case."""
        column = self.columns.split
        if column not in self.names:
            return [None] * len(self.rows)
        words = [cells[column].strip() for cells in self.rows]
        if unknown := [word for word in words if word and word.casefold() not in _SPLIT_WORDS]:
            got = f"{unknown[0]!r} ({len(unknown)} of {len(words)} rows have other words)"
            hint = "another --columns.split, or renaming the column to split by patient"
            raise DataError(f"{self.file}: need train, val or test in the column {column!r}, got {got}; try {hint}")
        meant = {word: _SPLIT_WORDS[word.casefold()] for word in sorted(set(words)) if word}
        if changed := [f"{word!r} as {split}" for word, split in meant.items() if word != split]:
            self.notes.append(f"splits of the labels CSV are read as follows: {', '.join(changed)}")
        return [meant.get(word) for word in words]

    def _find_places(self) -> list[_Place]:
        """Return what each row names: by a DICOM key, by path, or by file name only."""
        column = self.columns.path
        if (key := _key_of(column)) and (keyed := self._find_by_key([key])):
            return keyed
        by_path = {resolve_below(self.scans, one.name): one for one in self.listed}
        series = [(os.path.realpath(one.dicom.folder), one) for one in self.listed if one.dicom and one.aside is None]
        places: list[_Place] = []
        for cells in self.rows:
            found: tuple[FoundScan, ...] = ()
            for base in (self.scans, self.file.parent):
                real = resolve_below(base, self._relative(cells[column]), hint="paths relative to --scans")
                if real in by_path:
                    found = (by_path[real],)
                elif os.path.isdir(real):
                    found = tuple(one for folder, one in series if Path(folder).is_relative_to(real))
                exists = bool(found) or os.path.exists(split_item(real)[0])
                if exists:
                    break
            places.append(_Place(cells=cells, path=cells[column], exists=exists, scans=found))
        lost = [place.path for place in places if not place.exists]
        if len(lost) == len(places) and (keyed := self._find_by_key(list(_KEYS.values()))):
            return keyed
        if not lost or any(len(self.by_name.get(path, ())) != 1 for path in lost):
            return places
        self.notes.append(f"{len(lost)} rows of the labels CSV hold only file names, found below the scans folder")
        return [
            place if place.exists else replace(place, scans=tuple(self.by_name[place.path]), exists=True)
            for place in places
        ]

    def _find_by_key(self, keys: Sequence[str]) -> list[_Place] | None:
        """Return rows with the DICOM scans that they name by the first of `keys` that finds any; None if none does."""
        for key in keys:
            by_key: dict[str, list[FoundScan]] = {}
            for one in self.listed:
                if one.dicom is not None and (one.aside is None or key == "series"):
                    by_key.setdefault(getattr(one.dicom, key), []).append(one)
            by_key.pop("", None)
            paths = [cells[self.columns.path] for cells in self.rows]
            named = [tuple(by_key.get(path.strip(), ())) for path in paths]
            if any(named):
                return [
                    _Place(cells=cells, path=path, exists=bool(found), scans=found)
                    for cells, path, found in zip(self.rows, paths, named, strict=True)
                ]
        return None

    def _relative(self, cell: str) -> str:
        """Return an absolute path below the scans folder as relative to it, and any other text unchanged."""
        if os.path.isabs(cell):
            for path in (cell, os.path.realpath(cell)):
                for base in (self.scans, os.path.realpath(self.scans)):
                    if Path(path).is_relative_to(base):
                        return Path(path).relative_to(base).as_posix()
        return cell

    def _check_missing(self, paths: Sequence[str], *, skip_bad: bool) -> None:
        """Refuse rows that name no scan; with `skip_bad` only if all do."""
        count, rows = len(paths), len(self.rows)
        if not paths or (skip_bad and count < rows):
            return
        matches = {path: len(self.by_name.get(path, ())) for path in paths}
        need, advice = f"rows that name scans below {self.scans}", "another --scans or --columns.path"
        if any(matches.values()):
            wrong = [path for path, number in matches.items() if number != 1]
            number, name = matches[wrong[0]], repr(wrong[0])
            got = f"the name of {number} scans, {name}" if number else f"{name}, the name of none"
            need, got = f"file names that each name one scan below {self.scans}", f"{got} ({len(wrong)} of {rows} rows)"
            advice = "paths relative to --scans"
        elif count < rows:
            need, got = "a scan for every row", f"none for {paths[0]!r} ({count} of {rows} are missing)"
            advice = "another --scans, or --skip_bad true"
        else:
            got = f"none for all {rows} rows, such as {paths[0]!r}"
            advice += f": a column of paths ending in {', '.join(SUFFIXES)}"
            advice += f", or {', '.join(_KEYS)}" if any(one.dicom for one in self.listed) else ""
        raise DataError(f"{self.file}: need {need}, got {got}; try {advice}")

    def _companion(self, cell: str, column: str) -> Path | None:
        """Return the file (or DICOM folder) that belongs to a scan by this cell, None for an empty one."""
        if not cell:
            return None
        relative = self._relative(cell)
        for base in (self.scans, self.file.parent):
            resolve_below(base, relative, hint="paths relative to --scans")
            if (base / split_item(relative)[0]).exists():
                return base / relative
        raise DataError(f"{self.file}: need an existing file in the column {column!r}, got none at {cell!r}")


def _key_of(column: str) -> str | None:
    """Return what a column of this name identifies: `series`, `study`, `patient`, or None."""
    return {_squeezed(name): key for name, key in _KEYS.items()}.get(_squeezed(column))
