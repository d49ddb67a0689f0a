"""The cohort: a CSV of scans, each with its class, patient and split, whose paths cannot leave their roots."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from medsynth.cohorts.sequences import PATH, is_sequence_name, sequence_column, sequences_in, sequences_of
from medsynth.errors import ConfigError, DataError
from medsynth.files import write_text
from medsynth.scans import split_item

SPLITS = ("train", "val", "test")
REQUIRED = ("path", "label", "patient_id", "split")
_OPTIONAL = ("mask", "root")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scan of a cohort.

    `path` and `mask` are POSIX paths relative to the cohort's folder, or to the folder that `root` names; a path may end in
    `#item` for one scan of an NPZ of several. A DICOM scan in one file is that file, a series of several files their folder,
    or `folder#series/SeriesInstanceUID` where the folder holds several scans. `sequences` are further scans of the same
    patient on the same grid, by name, whose channels follow those of `path`. `attributes` holds every further column as text,
    without empty cells.
    """

    path: str
    label: str
    patient_id: str
    split: str
    mask: str | None = None
    root: str | None = None
    sequences: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Scans with their classes, patients and splits; `folder` is that of the CSV, `roots` what `cohort.yaml` declares."""

    folder: Path
    rows: tuple[Row, ...]
    roots: Mapping[str, Path] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that occur, sorted."""
        return tuple(sorted({row.label for row in self.rows}))

    @property
    def sequences(self) -> tuple[str, ...]:
        """The names of the sequences beside `path` that some row has, in the order of their channels."""
        return sequences_of(row.sequences for row in self.rows)

    def file_of(self, row: Row) -> Path:
        """Return the scan's path, ending in `#item` if the row's does.

        Raises `DataError` if the file or folder is missing or lies outside its root (also through a symbolic link, of a
        DICOM folder any in it).
        """
        return self._existing(row, row.path)

    def files_of(self, row: Row) -> dict[str, Path]:
        """Return the files of the scan by name: that of `path`, then those of its sequences; `DataError` as `file_of`."""
        return {PATH: self.file_of(row)} | {name: self._existing(row, each) for name, each in row.sequences.items()}

    def mask_of(self, row: Row) -> Path | None:
        """Return the path of the scan's mask, or None; `DataError` as for `file_of`."""
        return None if row.mask is None else self._existing(row, row.mask)

    def select(self, *, split: str | Sequence[str] | None = None, label: str | None = None) -> Cohort:
        """Return the rows of one or several splits, of one label, or both; their order stays."""
        splits = SPLITS if split is None else (split,) if isinstance(split, str) else tuple(split)
        if unknown := sorted(set(splits) - set(SPLITS)):
            raise ConfigError(f"split: need train, val or test, got {unknown[0]!r}; try one of the three")
        kept = tuple(row for row in self.rows if row.split in splits and label in (None, row.label))
        return replace(self, rows=kept)

    def counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Return, for each label and each of the three splits, the number of scans and of patients."""
        scans = {label: dict.fromkeys(SPLITS, 0) for label in self.classes}
        patients: dict[str, dict[str, set[str]]] = {label: {split: set() for split in SPLITS} for label in self.classes}
        for row in self.rows:
            scans[row.label][row.split] += 1
            patients[row.label][row.split].add(row.patient_id)
        return {
            label: {split: (scans[label][split], len(patients[label][split])) for split in SPLITS}
            for label in self.classes
        }

    def summary(self) -> str:
        """Return a text table of scans (patients) by class and split."""
        counts = self.counts()
        width = max(len("class"), *(len(label) for label in counts)) if counts else len("class")
        lines = [f"{'class':<{width}}" + "".join(f"{split:>16}" for split in SPLITS)]
        for label, by_split in counts.items():
            cells = (f"{scans} ({patients})" for scans, patients in by_split.values())
            lines.append(f"{label:<{width}}" + "".join(f"{cell:>16}" for cell in cells))
        return "\n".join([*lines, "scans (patients) in each split"])

    def base_of(self, row: Row) -> Path:
        """Return the folder that the row's paths are relative to; `DataError` if its root is not declared."""
        if row.root is None:
            return self.folder
        if row.root not in self.roots:
            known = ", ".join(sorted(self.roots)) or "none"
            raise DataError(
                f"{row.path!r}: need a root that cohort.yaml declares, got {row.root!r}; "
                f"try declaring it beside the CSV (declared: {known})"
            )
        return self.roots[row.root]

    def _existing(self, row: Row, relative: str) -> Path:
        base = self.base_of(row)
        file, _ = split_item(resolve_below(base, relative))
        path = base / relative
        if os.path.isdir(file):
            with os.scandir(file) as entries:
                for link in (entry.name for entry in entries if entry.is_symlink()):
                    resolve_below(base, f"{split_item(relative)[0].as_posix()}/{link}")
        elif not os.path.isfile(file):
            raise DataError(f"{path}: need an existing file, got none; try correcting the cohort CSV or its roots")
        return path


def resolve_below(base: Path, relative: str, *, hint: str = "a root in cohort.yaml") -> str:
    """Return the real path of `relative` below `base` (`.` is `base` itself), with its `#item`; it need not exist.

    Raises `DataError`, with `hint` as what to try, for an absolute path, for `..`, and for a symbolic link that leaves `base`.
    """
    named, item = split_item(relative)
    file = str(named)
    parts = PurePosixPath(file.replace("\\", "/")).parts
    drive = re.match(r"[A-Za-z]:", file)
    if not relative or "\0" in file or parts[:1] == ("/",) or drive or ".." in parts:
        raise DataError(
            f"{relative!r}: need a relative path without '..', got one that could leave its root; try {hint}"
        )
    root = os.path.realpath(base)
    real = os.path.realpath(os.path.join(root, file))
    if os.path.commonpath([root, real]) != root:
        raise DataError(f"{relative!r}: need a file below its root, got a symbolic link that leaves it; try {hint}")
    return real if item is None else f"{real}#{item}"


def read_cohort(path: Path | str) -> Cohort:
    """Read a cohort CSV and the `cohort.yaml` beside it; scan files are not opened.

    Columns `path,label,patient_id,split`, optional `mask`, `root` and, for further sequences of the same scan, `path_<name>`;
    every further column becomes an attribute. Cells are text, taken literally: a cell that a spreadsheet would run as a formula
    is only text here. Blanks around labels, patients and splits are dropped, so that "P1" and "P1 " are one patient.

    Raises `DataError` for a missing file or column, an empty label or patient, an unknown split or root, a scan listed
    twice, a patient in two splits, and a path that leaves its root.
    """
    path = Path(path)
    columns, table = read_table(path)
    require_columns(columns, REQUIRED, source=path)
    folder = path.absolute().parent
    rows = tuple(_row(cells) for cells in table)
    cohort = Cohort(folder=folder, rows=rows, roots=declared_roots(folder))
    check_cohort(cohort, source=path)
    return cohort


def write_cohort(cohort: Cohort, path: Path | str) -> None:
    """Write a cohort as CSV, atomically, and its roots into `cohort.yaml` beside it if it has any.

    Text is written literally (no apostrophe before `=` or `+`), so that reading gives it back; open the file as text, not
    by double click, where labels come from others. Roots of other CSVs in the same `cohort.yaml` stay.

    Raises `DataError` as `read_cohort` does, and `ConfigError` if rows without a root would change their folder, or a root's
    name is taken by another folder.
    """
    path = Path(path)
    folder = path.absolute().parent
    if any(row.root is None for row in cohort.rows) and os.path.realpath(folder) != os.path.realpath(cohort.folder):
        raise ConfigError(f"{path}: need a file in {cohort.folder}, got another folder; try giving the rows a root")
    check_cohort(cohort, source=path)
    optional = [name for name in _OPTIONAL if any(getattr(row, name) for row in cohort.rows)]
    attributes = list(dict.fromkeys(name for row in cohort.rows for name in row.attributes))
    if clash := sorted(
        {name for name in attributes if name.strip() != name or not name}
        | {*REQUIRED, *_OPTIONAL}.intersection(attributes)
        | {*sequences_in(attributes).values()}
    ):
        raise DataError(
            f"{path}: need attribute names that are no column of a cohort, got {clash[0]!r}; try another name"
        )
    sequences = cohort.sequences  # looks at every row
    lines = (
        [row.path, row.label, row.patient_id, row.split]
        + [getattr(row, name) or "" for name in optional]
        + [row.sequences.get(name, "") for name in sequences]
        + [row.attributes.get(name, "") for name in attributes]
        for row in cohort.rows
    )
    # The YAML first: a CSV that is there can be read.
    if cohort.roots:
        _write_roots(cohort.roots, folder)
    write_table(path, [*REQUIRED, *optional, *map(sequence_column, sequences), *attributes], lines)


def check_cohort(cohort: Cohort, *, source: Path | str) -> None:
    """Refuse (`DataError`) what `read_cohort` refuses; `source` is named in the message."""
    split_of: dict[str, str] = {}
    seen: set[str] = set()
    for row in cohort.rows:
        for name in ("path", "label", "patient_id"):
            if not getattr(row, name).strip():
                raise DataError(f"{source}: need a {name} in every row, got none for {row.path!r}; try filling it in")
        if row.split not in SPLITS:
            raise DataError(
                f"{source}: need the split train, val or test, got {row.split!r} for {row.path!r}; try `medsynth index`"
            )
        if row.mask is not None:
            resolve_below(cohort.base_of(row), row.mask)
        if wrong := [name for name in row.sequences if not is_sequence_name(name)]:
            raise DataError(f"{source}: need sequences named by letters and digits, got {wrong[0]!r}; try another name")
        for relative in (row.path, *row.sequences.values()):
            real = resolve_below(cohort.base_of(row), relative)
            if real in seen:
                raise DataError(f"{source}: need each scan once, got {relative!r} twice; try removing one of the rows")
            seen.add(real)
        known = split_of.setdefault(row.patient_id, row.split)
        if known != row.split:
            raise DataError(
                f"{source}: need each patient in one split, got patient {row.patient_id!r} in {known} and {row.split}; "
                "try splitting by patient (`medsynth index`)"
            )


def read_table(path: Path | str) -> tuple[list[str], list[dict[str, str]]]:
    """Read a UTF-8 CSV (with or without BOM) as its columns and one dictionary of text a row.

    Cells are separated by commas, or by semicolons or tabs where the header has these and no comma. Columns without a name
    are left out (spreadsheets and data frames write them for row numbers), as are blank lines.

    Raises `DataError` for a file that is missing, no UTF-8, without rows, or with rows of another length than the header.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        separator = _separator(text)
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except OSError as error:
        raise DataError(f"{path}: need a CSV file, got {reason_of(error)}; try another path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: need a CSV in UTF-8, got {error}; try saving it as 'CSV UTF-8'") from error
    if len(lines) < 2:
        got = "a header only" if lines else "an empty file"
        raise DataError(f"{path}: need a header and at least one row, got {got}; try another file")
    header = [name.strip() for name in lines[0][1]]
    columns = [name for name in header if name]
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise DataError(f"{path}: need each column once, got {twice!r} twice; try renaming one")
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise DataError(
                f"{path}: need {len(header)} cells in line {number}, got {len(cells)}; "
                f"try quotes around cells that hold {separator!r}"
            )
    return columns, [{name: cell for name, cell in zip(header, cells, strict=True) if name} for _, cells in lines[1:]]


def read_columns(path: Path | str) -> list[str]:
    """Return the columns of a CSV, read from its first line only; none where that is no text."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            line = file.readline(1 << 16)
        return [name.strip() for name in next(csv.reader([line], delimiter=_separator(line)), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _separator(text: str) -> str:
    header = next((line for line in text.splitlines() if line.strip()), "")
    return "," if "," in header else next((mark for mark in ";\t" if mark in header), ",")


def list_counts(counts: Counter[str], most: int | None = None) -> str:
    """Return `name (count), ...` from the commonest, at most so many."""
    more = f" and {len(counts) - most} more" if most is not None and len(counts) > most else ""
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common(most)) + more


def reason_of(error: OSError) -> str:
    """Return in plain words why a file could not be read or written."""
    words = {
        FileNotFoundError: "nothing there",
        IsADirectoryError: "a folder",
        NotADirectoryError: "a file where a folder should be",
        PermissionError: "no permission",
    }
    return words.get(type(error)) or error.strerror or str(error)


def write_table(path: Path | str, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a CSV in UTF-8, atomically."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    write_text(path, text.getvalue())


def require_columns(columns: Sequence[str], needed: Sequence[str], *, source: Path | str) -> None:
    """Raise `DataError` that names the columns that are there, if one of `needed` is not."""
    if missing := [name for name in needed if name not in columns]:
        raise DataError(
            f"{source}: need the column {missing[0]!r}, got {', '.join(columns)}; try renaming one, or `medsynth index`"
        )


def _row(cells: Mapping[str, str]) -> Row:
    sequences = sequences_in(cells)
    own = {*REQUIRED, *_OPTIONAL, *sequences.values()}
    return Row(
        path=cells["path"],
        label=cells["label"].strip(),
        patient_id=cells["patient_id"].strip(),
        split=cells["split"].strip(),
        mask=cells.get("mask") or None,
        root=cells.get("root") or None,
        sequences={name: cells[column] for name, column in sequences.items() if cells[column]},
        attributes={name: cell for name, cell in cells.items() if name not in own and cell},
    )


def _load_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: need a YAML file, got {reason}; try `roots: {{name: folder}}`") from error
    content = {} if content is None else content
    roots = content.get("roots", {}) if isinstance(content, dict) and set(content) <= {"roots"} else None
    if not isinstance(roots, dict) or not all(
        isinstance(text, str) and text for pair in roots.items() for text in pair
    ):
        raise DataError(
            f"{file}: need only `roots` with a folder for each name, got something else; try `roots: {{name: folder}}`"
        )
    return roots


def declared_roots(folder: Path) -> dict[str, Path]:
    """Return the folders that the `cohort.yaml` in `folder` declares, by name; empty without one."""
    # An absolute path wins over `folder` in the join.
    return {name: folder / target for name, target in _load_yaml(folder / "cohort.yaml").items()}


def _write_roots(roots: Mapping[str, Path], folder: Path) -> None:
    file = folder / "cohort.yaml"
    declared = _load_yaml(file)
    for name, target in roots.items():
        target = folder / target
        if name in declared and os.path.realpath(folder / declared[name]) != os.path.realpath(target):
            raise ConfigError(
                f"{file}: need the root {name!r} to be {target}, got {declared[name]}; try another folder for the CSV"
            )
        relative = Path(os.path.relpath(target, folder))
        # Neighbours move together, so their path is relative; far folders stay where they are.
        far = relative.parts[:2] == ("..", "..")
        declared.setdefault(name, str(target) if far else relative.as_posix())
    write_text(file, yaml.safe_dump({"roots": declared}, sort_keys=True, allow_unicode=True))
