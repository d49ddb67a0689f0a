"""The scans of a folder, with what file names, folders and a labels CSV say about them; no pixels are read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsynth.cohorts.manifest import REQUIRED, SPLITS, read_table, require_columns, resolve_below
from medsynth.cohorts.quality import ScanQuality
from medsynth.config import ColumnOptions
from medsynth.errors import ConfigError, DataError
from medsynth.scans import SUFFIXES, list_items, scan_suffix, split_item


@dataclass(frozen=True, kw_only=True)
class FoundScan:
    """A scan before it is a row; `name` is its POSIX path below the scans folder, with its `#item`."""

    file: Path
    name: str
    label: str | None = None
    patient: str | None = None
    split: str | None = None
    mask: Path | None = None
    attributes: Mapping[str, str]


def list_scans(scans: Path) -> list[FoundScan]:
    """Return the scans below a folder, sorted; hidden files are left out. `DataError` if there are none."""
    if not scans.is_dir():
        raise DataError(f"{scans}: need a folder of scans, got none; try another path")
    found: list[FoundScan] = []
    for folder, below, files in os.walk(scans):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(files):
            if name.startswith(".") or scan_suffix(name) is None:
                continue
            file = Path(folder, name)
            relative = file.relative_to(scans).as_posix()
            resolve_below(scans, relative)
            label = relative.split("/")[0] if "/" in relative else None
            items = _items(file)
            for item in items:
                split = item.split("/")[0]
                found.append(
                    FoundScan(
                        file=Path(f"{file}#{item}"),
                        name=f"{relative}#{item}",
                        label=label,
                        split=split if split in SPLITS else None,
                        attributes={},
                    )
                )
            if not items:
                found.append(FoundScan(file=file, name=relative, label=label, attributes={}))
    if not found:
        raise DataError(f"{scans}: need files ending in {', '.join(SUFFIXES)}, got none; try another folder")
    return found


def _items(file: Path) -> list[str]:
    try:
        return list_items(file)
    except DataError:
        return []  # reading it will say why, and count it with the others


def join_labels(
    listed: Sequence[FoundScan],
    scans: Path,
    labels: Path,
    columns: ColumnOptions,
    notes: list[str],
    *,
    skip_bad: bool,
) -> tuple[list[FoundScan], list[ScanQuality]]:
    """Return the listed scans that the labels CSV has a row for, in its order, and the scans that it names in vain.

    Raises `DataError` for missing columns, empty cells, scans listed twice, and scans in vain unless `skip_bad`.
    """
    names, table = read_table(labels)
    standard = ColumnOptions()
    chosen = {key: getattr(columns, key) for key in ("path", "label", "patient", "split", "mask")}
    asked = [name for key, name in chosen.items() if key in ("path", "label") or name != getattr(standard, key)]
    require_columns(names, [*asked, *columns.attributes], source=labels)
    attributes = columns.attributes or tuple(name for name in names if name not in chosen.values())
    by_path = {resolve_below(scans, one.name): one for one in listed}
    found: list[FoundScan] = []
    missing: list[ScanQuality] = []
    seen: set[str] = set()
    outside = 0
    for cells in table:
        relative = cells[columns.path]
        one = None
        real = ""
        for base in (scans, labels.parent):
            real = resolve_below(base, relative)
            one = by_path.get(real)
            if one is not None or os.path.exists(split_item(real)[0]):
                break
        if one is None:
            if os.path.exists(split_item(real)[0]):
                outside += 1
            else:
                missing.append(ScanQuality(path=relative, flags=("unreadable",), reason=f"{relative}: missing"))
            continue
        if real in seen:
            raise DataError(f"{labels}: need each scan once, got {relative!r} twice; try removing one of the rows")
        seen.add(real)
        found.append(
            replace(
                one,
                label=cells[columns.label].strip(),
                patient=cells[columns.patient].strip() if columns.patient in cells else None,
                split=cells[columns.split].strip() if columns.split in cells else one.split,
                mask=_mask(cells.get(columns.mask, ""), scans, labels),
                # A column that was not chosen may bear a name that a cohort reserves.
                attributes={
                    f"original_{name}" if name in (*REQUIRED, "mask", "root") else name: cells[name]
                    for name in attributes
                    if cells[name]
                },
            )
        )
        for key, value in (("label", found[-1].label), ("patient", found[-1].patient)):
            if value == "":
                raise DataError(f"{labels}: need a {key} in every row, got none for {relative!r}; try filling it in")
    if missing and not skip_bad:
        raise DataError(
            f"{labels}: need a scan for every row, got none for {missing[0].path!r} "
            f"({len(missing)} of {len(table)} are missing); try another --scans, or --skip_bad"
        )
    if not found:
        raise DataError(f"{labels}: need rows for the scans below {scans}, got none; try another --columns.path")
    if outside:
        notes.append(
            f"{outside} rows of the labels CSV name files that are no scans below the scans folder and are left out"
        )
    if unlisted := len(listed) - len(found):
        notes.append(f"{unlisted} scans below the scans folder have no row in the labels CSV and are left out")
    return found, missing


def _mask(cell: str, scans: Path, labels: Path) -> Path | None:
    if not cell:
        return None
    for base in (scans, labels.parent):
        resolve_below(base, cell)
        if (base / split_item(cell)[0]).is_file():
            return base / cell
    raise DataError(f"{labels}: need an existing mask, got none at {cell!r}; try --columns.mask with another column")


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


def find_patients(found: Sequence[FoundScan], pattern: re.Pattern[str] | None, notes: list[str]) -> list[FoundScan]:
    """Return the scans with their patients: from the column, else by the pattern, else each its own."""
    result: list[FoundScan] = []
    alone = 0
    for one in found:
        patient = one.patient
        if patient is None and pattern is not None:
            match = pattern.search(one.name)
            patient = match[1] if match else None
            if not patient:
                raise DataError(
                    f"{one.name}: need a patient that {pattern.pattern!r} finds, got none; try another --patient_pattern"
                )
        elif patient is None:
            patient = one.name
            alone += 1
        result.append(replace(one, patient=patient))
    if alone:
        notes.append(
            f"{alone} scans have no patient, so each counts as one: if patients have several, splits leak; "
            "give a patient column or --patient_pattern"
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
        if one.split not in SPLITS:
            raise DataError(f"{one.name}: need the split train, val or test, got {one.split!r}; try --columns.split")
        other = given.setdefault(one.patient, one.split)
        if other != one.split:
            raise DataError(
                f"{one.name}: need each patient in one split, got patient {one.patient!r} in {other} and {one.split}; "
                "try another --columns.split, or none to split by patient"
            )
