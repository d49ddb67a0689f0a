"""The labels CSV: its rows joined with the scans of a folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsynth.cohorts.finding import SPLIT_WORDS, FoundScan
from medsynth.cohorts.manifest import REQUIRED, read_table, resolve_below
from medsynth.cohorts.quality import ScanQuality
from medsynth.cohorts.sequences import sequences_in
from medsynth.config import ColumnOptions
from medsynth.errors import DataError
from medsynth.scans import SUFFIXES, scan_suffix, split_item

_LABEL_WORDS = re.compile("label|class|finding|diagnos|categor|target|disease", re.IGNORECASE)
_PATIENT_WORDS = re.compile("patient|subject|case", re.IGNORECASE)
_SHOWN_COLUMNS = 12
# By what a CSV may name DICOM scans, the most exact first.
_KEYS = {"SeriesInstanceUID": "series", "StudyInstanceUID": "study", "PatientID": "patient"}
# What must never become an attribute, which a synthetic scan may bear; folded.
_IDENTITIES = {
    *("seriesinstanceuid", "studyinstanceuid", "sopinstanceuid", "accessionnumber"),
    *("patientname", "patientbirthdate"),
}


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The scans that a labels CSV has rows for, in its order, and the scans that it names in vain.

    `patient_columns` are columns that seem to name patients, where no column was taken as that.
    """

    found: tuple[FoundScan, ...]
    missing: tuple[ScanQuality, ...]
    patient_columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What a row names: those `scans` that were listed below the scans folder, else whether a file of its name `exists`."""

    cells: Mapping[str, str]
    path: str
    exists: bool
    scans: tuple[FoundScan, ...] = ()


def join_labels(
    listed: Sequence[FoundScan],
    scans: Path,
    labels: Path,
    columns: ColumnOptions,
    notes: list[str],
    *,
    skip_bad: bool,
) -> Joined:
    """Join the listed scans with the rows of the labels CSV; what was taken otherwise than written is noted.

    Paths are relative to the scans folder or to that of the CSV, or absolute below the scans folder. Bare file names are
    found in any folder if that finds every scan, each once. DICOM scans may also be named by SeriesInstanceUID, and all that
    are not set aside by StudyInstanceUID, PatientID or a folder. Rows equal in every column count once.

    Raises `DataError` for missing columns, empty cells, unknown splits, scans listed twice with other facts, and scans in
    vain unless `skip_bad`.
    """
    names, table = read_table(labels)
    columns = _choose_key(names, columns, listed, notes)
    chosen = {key: getattr(columns, key) for key in ("path", "label", "patient", "split", "mask")}
    _check_columns(labels, names, table, chosen, columns.attributes)
    sequences = {name: column for name, column in sequences_in(names).items() if column not in chosen.values()}
    attributes = columns.attributes or _free_columns(names, (*chosen.values(), *sequences.values()), notes)
    rows = list({tuple(cells.items()): cells for cells in table}.values())
    if repeats := len(table) - len(rows):
        notes.append(f"{repeats} rows of the labels CSV repeat another one in every column and count once")
    splits = _read_splits(labels, rows, columns.split, notes)
    places = _find_places(rows, listed, scans, labels, columns.path, notes)
    missing = [place for place in places if not place.exists]
    _check_missing(labels, scans, listed, [place.path for place in missing], len(rows), skip_bad=skip_bad)

    found: list[FoundScan] = []
    seen: set[str] = set()
    for place, split in zip(places, splits, strict=True):
        for scan in place.scans:
            if scan.name in seen:
                raise DataError(
                    f"{labels}: need each scan once, got {place.path!r} twice"
                    + (f" ({scan.name})" if scan.name != place.path else "")
                    + "; try removing one of the rows"
                )
            seen.add(scan.name)
            cells = place.cells
            found.append(
                replace(
                    scan,
                    label=cells[columns.label].strip(),
                    patient=cells[columns.patient].strip() if columns.patient in cells else None,
                    split=scan.split if split is None else split,
                    mask=_companion(cells.get(columns.mask, ""), scans, labels, columns.mask),
                    sequences={
                        name: file
                        for name, column in sequences.items()
                        if (file := _companion(cells[column], scans, labels, column)) is not None
                    },
                    # A column that was not chosen may bear a name that a cohort reserves.
                    attributes={
                        f"original_{name}" if name in (*REQUIRED, "mask", "root") else name: cells[name]
                        for name in attributes
                        if cells[name] and name not in sequences.values()
                    },
                )
            )
            for key, value in (("label", found[-1].label), ("patient", found[-1].patient)):
                if value == "":
                    raise DataError(
                        f"{labels}: need a {key} in every row, got none for {place.path!r}; try filling it in"
                    )
    if not found:
        raise DataError(f"{labels}: need rows for the scans below {scans}, got none; try another --columns.path")
    if outside := sum(place.exists and not place.scans for place in places):
        notes.append(
            f"{outside} rows of the labels CSV name files that are no scans below the scans folder and are left out"
        )
    if unlisted := len(listed) - len(found):
        notes.append(f"{unlisted} scans below the scans folder have no row in the labels CSV and are left out")
    if blanks := sum(cells[columns.label] != cells[columns.label].strip() for cells in rows):
        notes.append(f"{blanks} labels have blanks around them, which are dropped")
    return Joined(
        found=tuple(found),
        missing=tuple(
            ScanQuality(path=place.path, flags=("unreadable",), reason=f"{place.path}: missing") for place in missing
        ),
        patient_columns=()
        if columns.patient in names
        else tuple(name for name in names if _PATIENT_WORDS.search(name) and name not in chosen.values()),
    )


def note_like_labels(labels: Iterable[str], notes: list[str]) -> None:
    """Note labels that differ only in case, blanks, hyphens or underscores: they are several classes."""
    counts = Counter(labels)
    alike: dict[str, list[str]] = {}
    for label in sorted(counts):
        alike.setdefault(_folded(label), []).append(label)
    for group in alike.values():
        if len(group) > 1:
            names = ", ".join(f"{label!r} ({counts[label]})" for label in group)
            notes.append(f"labels that differ only in how they are written count as several classes: {names}")


def _folded(text: str) -> str:
    return re.sub(r"[\s_-]+", "_", text.strip()).casefold()


def _check_columns(
    labels: Path,
    names: Sequence[str],
    table: Sequence[Mapping[str, str]],
    chosen: Mapping[str, str],
    attributes: Sequence[str],
) -> None:
    """Raise `DataError` that says which option names which column, if one that is needed is not there."""
    standard = ColumnOptions()
    asked = {key: name for key, name in chosen.items() if key in ("path", "label") or name != getattr(standard, key)}
    missing = {key: name for key, name in asked.items() if name not in names}
    if unknown := [name for name in attributes if name not in names]:
        missing["attributes"] = unknown[0]
    if not missing:
        return
    free = [name for name in names if name not in chosen.values()]
    advice = []
    for key, wanted in missing.items():
        alike = [name for name in names if _folded(name) == _folded(wanted)]
        likely = alike
        if not alike and key == "path":
            likely = [name for name in free if scan_suffix(table[0][name])]
        elif not alike and key == "label":
            likely = [name for name in free if _LABEL_WORDS.search(name)]
        quoted = f'"{likely[0]}"' if likely and not re.fullmatch(r"[\w.-]+", likely[0]) else "".join(likely[:1])
        meant = f" (did you mean {alike[0]!r}?)" if alike else ""
        advice.append(f"--columns.{key} {quoted or 'with one of them'}{meant}")
    shown = ", ".join(names[:_SHOWN_COLUMNS]) + (" ..." if len(names) > _SHOWN_COLUMNS else "")
    plural = "s" if len(missing) > 1 else ""
    raise DataError(
        f"{labels}: need the column{plural} {', '.join(map(repr, missing.values()))}, got {shown}; "
        f"try {' and '.join(advice)}"
    )


def _read_splits(labels: Path, rows: Sequence[Mapping[str, str]], column: str, notes: list[str]) -> list[str | None]:
    """Return each row's split (None without the column), from the usual words for it in any case."""
    if column not in rows[0]:
        return [None] * len(rows)
    words = [cells[column].strip() for cells in rows]
    unknown = [word for word in words if word and word.casefold() not in SPLIT_WORDS]
    if unknown:
        raise DataError(
            f"{labels}: need train, val or test in the column {column!r}, got {unknown[0]!r} ({len(unknown)} of {len(rows)} "
            "rows have other words); try another --columns.split, or renaming the column to split by patient"
        )
    taken = {word: SPLIT_WORDS[word.casefold()] for word in sorted(set(words)) if word}
    if changed := [f"{word!r} as {split}" for word, split in taken.items() if word != split]:
        notes.append(f"splits of the labels CSV are taken so: {', '.join(changed)}")
    return [taken.get(word) for word in words]


def _find_places(
    rows: Sequence[Mapping[str, str]],
    listed: Sequence[FoundScan],
    scans: Path,
    labels: Path,
    column: str,
    notes: list[str],
) -> list[_Place]:
    if (key := _key_of(column)) and (keyed := _by_key(rows, column, listed, [key])):
        return keyed
    by_path = {resolve_below(scans, one.name): one for one in listed}
    series = [
        (os.path.realpath(one.dicom.folder), one) for one in listed if one.dicom is not None and one.aside is None
    ]
    places: list[_Place] = []
    for cells in rows:
        found: tuple[FoundScan, ...] = ()
        for base in (scans, labels.parent):
            real = resolve_below(base, _relative(cells[column], scans), hint="paths relative to --scans")
            if real in by_path:
                found = (by_path[real],)
            elif os.path.isdir(real):
                found = tuple(one for folder, one in series if Path(folder).is_relative_to(real))
            exists = bool(found) or os.path.exists(split_item(real)[0])
            if exists:
                break
        places.append(_Place(cells=cells, path=cells[column], exists=exists, scans=found))
    lost = [place.path for place in places if not place.exists]
    if len(lost) == len(places) and (keyed := _by_key(rows, column, listed, list(_KEYS.values()))):
        return keyed
    by_name = _by_bare_name(listed)
    if not lost or any(len(by_name.get(path, ())) != 1 for path in lost):
        return places
    notes.append(f"{len(lost)} rows of the labels CSV hold bare file names, found in folders below the scans folder")
    return [place if place.exists else replace(place, scans=(by_name[place.path][0],), exists=True) for place in places]


def _by_key(
    rows: Sequence[Mapping[str, str]], column: str, listed: Sequence[FoundScan], keys: Sequence[str]
) -> list[_Place] | None:
    """Return rows with the DICOM scans that they name by the first of `keys` by which any does; None where none does."""
    for key in keys:
        by_key: dict[str, list[FoundScan]] = {}
        for one in listed:
            if one.dicom is not None and (one.aside is None or key == "series") and getattr(one.dicom, key):
                by_key.setdefault(getattr(one.dicom, key), []).append(one)
        named = [tuple(by_key.get(cells[column].strip(), ())) for cells in rows]
        if any(named):
            return [
                _Place(cells=cells, path=cells[column], exists=bool(found), scans=found)
                for cells, found in zip(rows, named, strict=True)
            ]
    return None


def _choose_key(
    names: Sequence[str], columns: ColumnOptions, listed: Sequence[FoundScan], notes: list[str]
) -> ColumnOptions:
    """Return the columns with one that identifies DICOM scans in the place of that of paths, where there is none of these."""
    if columns.path in names or columns.path != ColumnOptions().path or all(one.dicom is None for one in listed):
        return columns
    found = {_key_of(name): name for name in reversed(names)}
    for key in _KEYS.values():
        if key in found:
            notes.append(f"the labels CSV has no column {columns.path!r}, so {found[key]!r} names the scans")
            return replace(columns, path=found[key])
    return columns


def _key_of(column: str) -> str | None:
    """Return what a column of this name identifies: `series`, `study`, `patient` or nothing of these."""
    return {_squeezed(name): key for name, key in _KEYS.items()}.get(_squeezed(column))


def _free_columns(names: Sequence[str], chosen: Collection[str], notes: list[str]) -> tuple[str, ...]:
    """Return the columns that have no meaning yet; those that say whose scan it is become no attributes."""
    free = [name for name in names if name not in chosen]
    telling = [name for name in free if _squeezed(name) in _IDENTITIES]
    if telling:
        notes.append(f"columns that identify are left out: {', '.join(telling)}")
    return tuple(name for name in free if name not in telling)


def _squeezed(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def _by_bare_name(listed: Sequence[FoundScan]) -> dict[str, list[FoundScan]]:
    by_name: dict[str, list[FoundScan]] = {}
    for one in listed:
        by_name.setdefault(one.file.name if split_item(one.file)[1] is None else one.name, []).append(one)
    return by_name


def _relative(cell: str, scans: Path) -> str:
    """Return an absolute path below the scans folder as relative to it, and any other text as it is."""
    if os.path.isabs(cell):
        for path in (cell, os.path.realpath(cell)):
            for base in (scans, os.path.realpath(scans)):
                if Path(path).is_relative_to(base):
                    return Path(path).relative_to(base).as_posix()
    return cell


def _check_missing(
    labels: Path, scans: Path, listed: Sequence[FoundScan], paths: Sequence[str], rows: int, *, skip_bad: bool
) -> None:
    if not paths:
        return
    by_name = _by_bare_name(listed)
    matches = [len(by_name.get(path, ())) for path in paths]
    if any(matches) and (len(paths) == rows or not skip_bad):
        lost, count = next((path, count) for path, count in zip(paths, matches, strict=True) if count != 1)
        got = f"the name of {count} scans, {lost!r}" if count else f"{lost!r}, the name of none"
        raise DataError(
            f"{labels}: need file names that each name one scan below {scans}, got {got} "
            f"({sum(count != 1 for count in matches)} of {rows} rows); try paths relative to --scans"
        )
    if len(paths) == rows:
        if scan_suffix(paths[0]) is None:
            got, advice = f"{paths[0]!r}", f"--columns.path with the column of paths ending in {', '.join(SUFFIXES)}"
            if any(one.dicom for one in listed):
                advice = f"--columns.path with a column of paths, {', '.join(_KEYS)}"
        else:
            got, advice = f"none for all {rows} rows, such as {paths[0]!r}", "another --scans or --columns.path"
        raise DataError(f"{labels}: need rows that name scans below {scans}, got {got}; try {advice}")
    if skip_bad:
        return
    raise DataError(
        f"{labels}: need a scan for every row, got none for {paths[0]!r} "
        f"({len(paths)} of {rows} are missing); try another --scans, or --skip_bad true"
    )


def _companion(cell: str, scans: Path, labels: Path, column: str) -> Path | None:
    """Return the file (or DICOM folder) that lies beside a scan by this cell, None for an empty one."""
    if not cell:
        return None
    relative = _relative(cell, scans)
    for base in (scans, labels.parent):
        resolve_below(base, relative, hint="paths relative to --scans")
        if (base / split_item(relative)[0]).exists():
            return base / relative
    raise DataError(f"{labels}: need an existing file in the column {column!r}, got none at {cell!r}; try another path")
