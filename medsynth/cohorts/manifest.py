"""The cohort: a CSV of scans, each with its class, patient and split, whose paths cannot leave their roots."""

from __future__ import annotations

import base64
import csv
import html
import io
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from medsynth.errors import ConfigError, DataError
from medsynth.files import open_file, read_bytes, read_yaml, write_text
from medsynth.scans import read_scan, split_item

SPLITS = ("train", "val", "test")
REQUIRED = ("path", "label", "patient_id", "split")
PATH, MASK = "path", "mask"  # names of a scan's files and channels, beside those of its sequences
_OPTIONAL = (MASK, "root")
_SEQUENCE_COLUMN = "path_"
_SEQUENCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")  # it becomes part of file names
_MOST_PICTURES = 8


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scan of a cohort.

    `path` and `mask` are POSIX paths relative to the cohort's folder, or to the folder that `root` names; a path may
    end in `#item` for one scan of an NPZ of several. A DICOM scan in one file is that file, a series of several files
    their folder, or `folder#series/SeriesInstanceUID` if the folder holds several scans. `sequences` are further scans
    of the same patient on the same grid, by name; their channels follow those of `path`. `attributes` holds every other
    column as text, without empty cells.
    """

    path: str
    label: str
    patient_id: str
    split: str
    mask: str | None = None
    root: str | None = None
    sequences: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_synthetic(self) -> bool:
        """Whether the scan was generated (attribute `synthetic`)."""
        return self.attributes.get("synthetic") == "1"


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Scans with their classes, patients and splits.

    `folder` is that of the CSV, `roots` are the folders that `cohort.yaml` declares, and `source` is the CSV that was
    read, if any.
    """

    folder: Path
    rows: tuple[Row, ...]
    roots: Mapping[str, Path] = field(default_factory=dict)
    source: Path | None = field(default=None, compare=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that occur, sorted."""
        return tuple(sorted({row.label for row in self.rows}))

    @property
    def sequences(self) -> tuple[str, ...]:
        """The names of all sequences beside `path` that some row has, sorted: the order of their channels."""
        return tuple(sorted({name for row in self.rows for name in row.sequences}))

    def file_of(self, row: Row) -> Path:
        """Return the scan's path, ending in `#item` if the row's does.

        Raises `DataError` if the file or folder is missing, or lies outside its root (also through a symbolic link, or
        one in a DICOM folder).
        """
        return self._existing(row, row.path)

    def files_of(self, row: Row) -> dict[str, Path]:
        """Return the files of the scan by name: that of `path`, then those of its sequences; `DataError` as `file_of`."""
        return {PATH: self.file_of(row)} | {name: self._existing(row, each) for name, each in row.sequences.items()}

    def mask_of(self, row: Row) -> Path | None:
        """Return the path of the scan's mask, or None; `DataError` as for `file_of`."""
        return None if row.mask is None else self._existing(row, row.mask)

    def select(self, *, split: str | Sequence[str] | None = None, label: str | None = None) -> Cohort:
        """Return the rows of one or several splits, of one label, or both, in the same order."""
        splits = SPLITS if split is None else (split,) if isinstance(split, str) else tuple(split)
        if unknown := sorted(set(splits) - set(SPLITS)):
            raise ConfigError(f"split: need train, val or test, got {unknown[0]!r}; try one of the three")
        return replace(self, rows=tuple(r for r in self.rows if r.split in splits and label in (None, r.label)))

    def counts(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Return the number of scans and of patients of each label in each of the three splits."""
        patients: dict[str, dict[str, list[str]]] = {name: {split: [] for split in SPLITS} for name in self.classes}
        for row in self.rows:
            patients[row.label][row.split].append(row.patient_id)
        return {
            label: {split: (len(found), len(set(found))) for split, found in by_split.items()}
            for label, by_split in patients.items()
        }

    def table(self) -> str:
        """Return scans (patients) by class and split as text."""
        counts = self.counts()
        width = max(len("class"), *map(len, counts)) if counts else len("class")
        lines = [f"{'class':<{width}}" + "".join(f"{split:>16}" for split in SPLITS)]
        for label, by_split in counts.items():
            cells = (f"{scans} ({patients})" for scans, patients in by_split.values())
            lines.append(f"{label:<{width}}" + "".join(f"{cell:>16}" for cell in cells))
        return "\n".join([*lines, "scans (patients) in each split"])

    def summary(self) -> str:
        """Return the table, and the next command if the cohort was read from a CSV."""
        if self.source is None:
            return self.table()
        file = shlex.quote(str(self.source))
        if any(row.is_synthetic for row in self.rows):
            return f"{self.table()}\nnext: medsynth evaluate --real cohort.csv --synthetic {file} --out report"
        return f"{self.table()}\nnext: medsynth train --cohort {file} --out run"

    def _repr_html_(self) -> str:
        """Return for notebooks a table of scans (patients) by class and split, and up to eight scans as pictures."""
        lines = [["class", *SPLITS]]
        lines += [[label, *(f"{n} ({p})" for n, p in splits.values())] for label, splits in self.counts().items()]
        table = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
        made = sum(row.is_synthetic for row in self.rows)
        kind = f"<b>{'Synthetic' if made == len(self.rows) else f'{made} synthetic'} scans</b>, " if made else ""
        by_label = [self.select(label=label).rows for label in self.classes]
        mixed = [row for rows in zip_longest(*by_label) for row in rows if row is not None]
        pictures = "".join(map(self._picture, mixed[:_MOST_PICTURES]))
        return f"<p>{kind}scans (patients) in each split</p><table>{table}</table><div>{pictures}</div>"

    def _picture(self, row: Row) -> str:
        try:
            content = base64.b64encode(read_scan(self.file_of(row))._repr_png_()).decode()
        except DataError:  # a notebook shows the others
            return ""
        image = f'<img height="128" src="data:image/png;base64,{content}">'
        caption = row.label + (" (synthetic)" if row.is_synthetic else "")
        return f'<figure style="display: inline-block">{image}<figcaption>{html.escape(caption)}</figcaption></figure>'

    def base_of(self, row: Row) -> Path:
        """Return the folder that the row's paths are relative to; `DataError` if its root is not declared."""
        if row.root is None:
            return self.folder
        if row.root not in self.roots:
            known = ", ".join(sorted(self.roots)) or "none"
            raise DataError(
                f"{row.path!r}: need a root that cohort.yaml declares ({known}), got {row.root!r}; try adding it"
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

    Raises `DataError`, with `hint` as what to try, for an absolute path, for `..`, and for a symbolic link that leaves
    `base`.
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

    Columns are `path,label,patient_id,split`, optionally `mask`, `root` and, for further sequences of the same scan,
    `path_<name>`; every other column becomes an attribute. Cells are text, taken literally: what a spreadsheet would
    run as a formula is only text here. Blanks around labels, patients and splits are dropped, so that "P1" and "P1 "
    are one patient.

    Raises `DataError` for a missing file or column, an empty label or patient, an unknown split or root, a scan listed
    twice, a patient in two splits, and a path that leaves its root.
    """
    path = Path(path)
    columns, table = read_table(path)
    require_columns(columns, REQUIRED, source=path)
    folder = path.absolute().parent
    cohort = Cohort(folder=folder, rows=tuple(map(_row, table)), roots=declared_roots(folder), source=path)
    check_cohort(cohort, source=path)
    return cohort


def _row(cells: Mapping[str, str]) -> Row:
    sequences = sequences_in(cells)
    own = {*REQUIRED, *_OPTIONAL, *sequences.values()}
    return Row(
        path=cells[PATH],
        label=cells["label"].strip(),
        patient_id=cells["patient_id"].strip(),
        split=cells["split"].strip(),
        mask=cells.get(MASK) or None,
        root=cells.get("root") or None,
        sequences={name: cells[column] for name, column in sequences.items() if cells[column]},
        attributes={name: cell for name, cell in cells.items() if name not in own and cell},
    )


def is_sequence_name(name: object) -> bool:
    """Return whether a further file of a scan can have this name."""
    return isinstance(name, str) and _SEQUENCE_NAME.fullmatch(name) is not None and name not in (PATH, MASK)


def sequences_in(columns: Iterable[str]) -> dict[str, str]:
    """Return the columns that hold sequences, by the name of the sequence."""
    names = {column.removeprefix(_SEQUENCE_COLUMN): column for column in columns if column.startswith(_SEQUENCE_COLUMN)}
    return {name: column for name, column in names.items() if is_sequence_name(name)}


def write_cohort(cohort: Cohort, path: Path | str) -> None:
    """Write a cohort as CSV, atomically, and its roots, if any, into `cohort.yaml` beside it, where those of other CSVs stay.

    Text is written literally (no apostrophe before `=` or `+`), so that it is read back unchanged; if labels come from
    others, open the CSV as text, not in a spreadsheet.

    Raises `DataError` as `read_cohort` does, and `ConfigError` if rows without a root would change their folder, or
    another folder already has the name of a root.
    """
    path = Path(path)
    folder = path.absolute().parent
    if any(row.root is None for row in cohort.rows) and os.path.realpath(folder) != os.path.realpath(cohort.folder):
        raise ConfigError(f"{path}: need a file in {cohort.folder}, got another folder; try giving the rows a root")
    check_cohort(cohort, source=path)
    optional = [name for name in _OPTIONAL if any(getattr(row, name) for row in cohort.rows)]
    attributes = list(dict.fromkeys(name for row in cohort.rows for name in row.attributes))
    reserved = {*REQUIRED, *_OPTIONAL, *sequences_in(attributes).values()}
    if clash := sorted(name for name in attributes if name in reserved or name.strip() != name or not name):
        raise DataError(f"{path}: need attributes that are no column of a cohort, got {clash[0]!r}; try another name")
    sequences = cohort.sequences  # goes through every row
    lines = (
        [row.path, row.label, row.patient_id, row.split]
        + [getattr(row, name) or "" for name in optional]
        + [row.sequences.get(name, "") for name in sequences]
        + [row.attributes.get(name, "") for name in attributes]
        for row in cohort.rows
    )
    if cohort.roots:  # before the CSV, which can be read as soon as it is there
        _write_roots(cohort.roots, folder)
    columns = [*REQUIRED, *optional, *(_SEQUENCE_COLUMN + name for name in sequences), *attributes]
    write_table(path, columns, lines)


def check_cohort(cohort: Cohort, *, source: Path | str) -> None:
    """Refuse (`DataError`) what `read_cohort` refuses; `source` is named in the message."""
    split_of: dict[str, str] = {}
    seen: set[str] = set()
    for row in cohort.rows:
        for name in ("path", "label", "patient_id"):
            if not getattr(row, name).strip():
                raise DataError(f"{source}: need a {name} in every row, got none for {row.path!r}; try filling it in")
        if row.split not in SPLITS:
            got = f"{row.split!r} for {row.path!r}"
            raise DataError(f"{source}: need the split train, val or test, got {got}; try `medsynth index`")
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
            got = f"patient {row.patient_id!r} in {known} and {row.split}"
            raise DataError(f"{source}: need each patient in one split, got {got}; try `medsynth index`")


# CSV and YAML ----------------------------------------------------------------------------------------------------------


def read_table(path: Path | str) -> tuple[list[str], list[dict[str, str]]]:
    """Read a UTF-8 CSV (with or without BOM): its columns, and each row as a dictionary of text.

    Cells are separated by commas, or by semicolons or tabs if the header has these and no comma. Columns without a name
    (spreadsheets and data frames write them for row numbers) and blank lines are left out.

    Raises `DataError` for a file that is missing, not UTF-8, without rows, or with rows of another length than the
    header.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
        separator = _separator(text)
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except OSError as error:
        raise DataError(f"{path}: need a CSV file, got {reason_of(error)}; try another path") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: need a CSV in UTF-8, got {error}; try saving it as 'CSV UTF-8'") from error
    if len(lines) < 2:
        got = "a header only" if lines else "an empty file"
        raise DataError(f"{path}: need a header and at least one row, got {got}; try another file")
    header = [name.strip() for name in lines[0][1]]
    columns = [name for name in header if name]
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise DataError(f"{path}: need each column once, got {twice[0]!r} twice; try renaming one")
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            hint = f"quotes around cells that hold {separator!r}"
            raise DataError(f"{path}: need {len(header)} cells in line {number}, got {len(cells)}; try {hint}")
    return columns, [{name: cell for name, cell in zip(header, cells, strict=True) if name} for _, cells in lines[1:]]


def read_columns(path: Path | str) -> list[str]:
    """Return the columns of a CSV from its first line, none if that is not text."""
    try:
        with open_file(path) as file:
            line = file.readline(1 << 16).decode("utf-8-sig")
        return [name.strip() for name in next(csv.reader([line], delimiter=_separator(line)), [])]
    except (OSError, ValueError, csv.Error):
        return []


def _separator(text: str) -> str:
    header = next((line for line in text.splitlines() if line.strip()), "")
    return "," if "," in header else next((mark for mark in ";\t" if mark in header), ",")


def require_columns(columns: Sequence[str], needed: Sequence[str], *, source: Path | str) -> None:
    """Raise `DataError` that lists the columns there are, if one of `needed` is missing."""
    if missing := [name for name in needed if name not in columns]:
        got = ", ".join(columns)
        raise DataError(f"{source}: need the column {missing[0]!r}, got {got}; try renaming one, or `medsynth index`")


def write_table(path: Path | str, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a CSV in UTF-8, atomically."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([columns, *lines])
    write_text(path, text.getvalue())


def list_counts(counts: Counter[str], most: int | None = None) -> str:
    """Return `name (count), ...` from the most frequent, at most so many."""
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


def declared_roots(folder: Path) -> dict[str, Path]:
    """Return the folders that the `cohort.yaml` in `folder` declares, by name; empty without one."""
    return {name: folder / target for name, target in _load_roots(folder / "cohort.yaml").items()}


def _load_roots(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else error
        raise DataError(f"{file}: need a YAML file, got {reason}; try `roots: {{name: folder}}`") from error
    content = {} if content is None else content
    roots = content.get("roots", {}) if isinstance(content, dict) and set(content) <= {"roots"} else None
    if isinstance(roots, dict) and all(isinstance(text, str) and text for pair in roots.items() for text in pair):
        return roots
    raise DataError(f"{file}: need only `roots` with a folder for each name; try `roots: {{name: folder}}`")


def _write_roots(roots: Mapping[str, Path], folder: Path) -> None:
    file = folder / "cohort.yaml"
    declared = _load_roots(file)
    for name, target in roots.items():
        target = folder / target
        if name in declared and os.path.realpath(folder / declared[name]) != os.path.realpath(target):
            got = declared[name]
            raise ConfigError(f"{file}: need {target} as the root {name!r}, got {got}; try another folder for the CSV")
        relative = Path(os.path.relpath(target, folder))
        # Neighbours are moved together, so their path is relative; distant folders stay where they are.
        distant = relative.parts[:2] == ("..", "..")
        declared.setdefault(name, str(target) if distant else relative.as_posix())
    write_text(file, yaml.safe_dump({"roots": declared}, sort_keys=True, allow_unicode=True))
