"""From a folder of scans to a cohort: read each once, split by patient, refuse what is not to be trusted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsynth.cohorts.finding import (
    FoundScan,
    check_given_splits,
    compile_pattern,
    find_patients,
    label_by_folders,
    list_scans,
)
from medsynth.cohorts.labels import join_labels, note_like_labels
from medsynth.cohorts.manifest import (
    REQUIRED,
    Cohort,
    Row,
    check_cohort,
    declared_roots,
    list_counts,
    read_columns,
    reason_of,
    write_cohort,
)
from medsynth.cohorts.merging import SUBLABEL, check_merge_labels, parse_merges
from medsynth.cohorts.quality import (
    ScanQuality,
    check_one_kind,
    examine_scans,
    flag_duplicates,
    note_flags,
    note_mixture,
    write_quality,
)
from medsynth.cohorts.splitting import check_fractions, check_keep_labels, kept_scans, parse_keep, split_patients
from medsynth.config import ColumnOptions, ReadingOptions
from medsynth.errors import ConfigError, DataError
from medsynth.scans import scan_suffix


@dataclass(frozen=True, kw_only=True)
class IndexResult:
    """A written cohort: where it is, what its scans are like (`quality`, also beside it as CSV), and what to know about it."""

    cohort: Cohort
    path: Path
    quality: tuple[ScanQuality, ...]
    counts: Mapping[str, Mapping[str, tuple[int, int]]]
    notes: tuple[str, ...]

    @property
    def quality_path(self) -> Path:
        """The quality table beside the cohort."""
        return _quality_path(self.path)

    def summary(self) -> str:
        """Return a text table of scans (patients) by class and split, sizes, pixel types, flags, notes and where it all is."""
        shapes = Counter("x".join(map(str, quality.shape[1:])) for quality in self.quality if quality.shape)
        types = Counter(quality.dtype for quality in self.quality if quality.dtype)
        modalities = Counter(quality.modality for quality in self.quality if quality.modality)
        flags = Counter(flag for quality in self.quality for flag in quality.flags)
        lines = [self.cohort.summary()]
        lines.append(f"sizes: {list_counts(shapes, 3)}; pixel types: {list_counts(types, 3)}")
        if modalities:
            lines.append(f"modalities: {list_counts(modalities)}")
        lines.append("flags: " + (", ".join(f"{flag} ({count})" for flag, count in sorted(flags.items())) or "none"))
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"cohort: {self.path}", f"quality table: {self.quality_path}"]
        return "\n".join(lines)


def index_scans(
    *,
    scans: Path,
    out: Path,
    labels: Path | None = None,
    columns: ColumnOptions = ColumnOptions(),
    split: tuple[float, float, float] = (0.7, 0.15, 0.15),
    keep: Sequence[str] = (),
    merge: Sequence[str] = (),
    patient_pattern: str | None = None,
    seed: int = 0,
    reading: ReadingOptions = ReadingOptions(),
    skip_bad: bool = False,
    allow_tiny: bool = False,
    progress: bool = True,
) -> IndexResult:
    """Find the scans below a folder and write them as a cohort, with a quality table beside it.

    Args:
        scans: Folder of PNG, NIfTI, NPZ and DICOM files at any depth; hidden files are left out, an NPZ in MedMNIST's layout is
            taken as its items with their own labels and splits, and DICOM files, of any name, as their series. Localizers,
            and derived pictures beside volumes, are set aside.
        out: The cohort CSV to write, new or in place of another cohort; `<name>_quality.csv`, and `cohort.yaml` where the
            scans lie elsewhere, come beside it.
        labels: CSV with a row for each scan, paths relative to `scans` or to the CSV's folder; without it, the first folder
            below `scans` is the label, or the second where the first are `train`, `val`, `test`. DICOM scans may be named by
            SeriesInstanceUID, and several at once by a folder above them, StudyInstanceUID or PatientID.
        columns: Names of the columns of `labels`.
        split: Parts for train, val and test, by patient and stratified by label; not used where a split is given.
        keep: Texts like `viral_pneumonia=40/10`: keep that label's scans of 40 training and 10 validation patients only.
        merge: Texts like `subsolid=ground_glass+part_solid`: these labels count as one class; the attribute `sublabel` keeps what
            they were.
        patient_pattern: Regular expression with one group that finds the patient in a scan's path below `scans`, where no
            column names the patient; without either, the PatientID of DICOM counts, and each other scan is a patient of its own.
        seed: Seed of the split and of `keep`.
        reading: What a scan file may be.
        skip_bad: Leave out, and list, scans that are missing or unreadable, or that lie under another patient in another split.
        allow_tiny: Accept classes with no or one scan in training.
        progress: Show a progress bar.

    Raises `DataError` for scans that cannot be read, a patient in two splits, equal pixels under two patients in two splits,
    and a class with no or one training scan; `ConfigError` for options that do not fit. Nothing is written then.
    """
    keeps, merges = parse_keep(keep), parse_merges(merge)
    check_fractions(split)
    pattern = compile_pattern(patient_pattern)
    scans, out = Path(scans).absolute(), Path(out).absolute()
    labels = None if labels is None else Path(labels).absolute()
    _check_out(out, labels)
    notes: list[str] = []
    missing: Sequence[ScanQuality] = ()
    patient_columns: Sequence[str] = ()
    listed = list_scans(scans, notes, reading=reading, progress=progress)
    if labels is None:
        usable = [one for one in listed if one.aside is None]
        if not usable:
            raise DataError(
                f"{listed[0].file}: need a scan to learn from, got {listed[0].aside}; try --labels with a CSV that names it"
            )
        found = label_by_folders(usable, scans, own=(out, _quality_path(out)), reading=reading, notes=notes)
    else:
        joined = join_labels(listed, scans, labels, columns, notes, skip_bad=skip_bad)
        found, missing, patient_columns = list(joined.found), joined.missing, joined.patient_columns
    if labels is not None or all(scan_suffix(one.name) != ".npz" for one in found):  # an NPZ may know another label
        known = {one.label or "" for one in found}
        check_merge_labels(merges, known)
        check_keep_labels(keeps, {merges.get(label, label) for label in known})
    found = find_patients(found, pattern, notes, columns=patient_columns)
    check_given_splits(found)

    aside = _set_aside(listed, found, notes)
    quality = _examine(found, reading, progress=progress)
    bad = [facts for facts in quality if "unreadable" in facts.flags]
    if bad and not skip_bad:
        advice = "; `--skip_bad true` leaves them out" if len(bad) < len(found) else ""
        raise DataError(f"{bad[0].reason} ({len(bad)} of {len(found)} scans cannot be read{advice})")
    readable = [(one, facts) for one, facts in zip(found, quality, strict=True) if "unreadable" not in facts.flags]
    if not readable:
        raise DataError(f"{scans}: need at least one scan that can be read, got none; try another folder")
    if bad or missing:
        notes.append(f"{len(bad) + len(missing)} scans are missing or unreadable and left out")
    found, kept_quality = [one for one, _ in readable], [facts for _, facts in readable]
    check_one_kind(kept_quality)
    note_mixture(kept_quality, notes)

    cohort = _as_cohort(found, kept_quality, out, labels, scans, split, seed, notes, merges)
    check_cohort(cohort, source=labels or scans)
    stays = kept_scans(*_columns_of(cohort.rows), keeps, seed=seed)
    rows = [row for row, stay in zip(cohort.rows, stays, strict=True) if stay]
    flagged, across = flag_duplicates([facts for facts, stay in zip(kept_quality, stays, strict=True) if stay], rows)
    if keeps:
        notes.append(f"--keep {' '.join(keep)} left {stays.count(False)} training and validation scans out")
    dropped = _dropped_duplicates(flagged, across, rows, skip_bad=skip_bad, notes=notes)
    rows = [row for number, row in enumerate(rows) if number not in across]
    flagged = [
        replace(facts, path=row.path)
        for facts, row in zip(
            [facts for number, facts in enumerate(flagged) if number not in across], rows, strict=True
        )
    ]
    cohort = replace(cohort, rows=tuple(rows))
    _check_classes(cohort, notes, allow_tiny=allow_tiny)
    note_flags(flagged, notes)
    note_like_labels((row.label for row in cohort.rows), notes)

    table = (*flagged, *dropped, *bad, *missing, *aside)
    try:
        write_quality(table, _quality_path(out))
        write_cohort(cohort, out)
    except OSError as error:
        raise ConfigError(f"{out}: need a folder to write in, got {reason_of(error)}; try another --out") from error
    return IndexResult(cohort=cohort, path=out, quality=table, counts=cohort.counts(), notes=tuple(notes))


def _quality_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}_quality.csv")


def _check_out(out: Path, labels: Path | None) -> None:
    """Refuse (`ConfigError`) to write over the labels, and over anything that no index has written."""
    if out.is_dir() or out.suffix.lower() != ".csv":
        raise ConfigError(f"{out}: need the name of a .csv file to write, got something else; try {out / 'cohort.csv'}")
    for file, kind, columns in (
        (out, "cohort", REQUIRED),
        (_quality_path(out), "quality table", ("path", "flags", "sha256")),
    ):
        if not file.exists():
            continue
        if labels is not None and labels.exists() and file.samefile(labels):
            raise ConfigError(f"{file}: need another file for the {kind}, got the labels CSV; try another --out")
        if file.stat().st_size and not set(columns) <= set(read_columns(file)):
            raise ConfigError(
                f"{file}: need a new file or a {kind} to replace, got a file with other content; try another --out"
            )


def _examine(found: Sequence[FoundScan], reading: ReadingOptions, *, progress: bool) -> list[ScanQuality]:
    """Return the facts of every scan, in order; those with a problem are not read."""
    sound = [one for one in found if one.problem is None]
    facts = iter(
        examine_scans([one.file for one in sound], [one.name for one in sound], reading=reading, progress=progress)
    )
    return [
        _with_header(
            next(facts)
            if one.problem is None
            else ScanQuality(path=one.name, flags=("unreadable",), reason=one.problem),
            one,
        )
        for one in found
    ]


def _set_aside(listed: Sequence[FoundScan], found: Sequence[FoundScan], notes: list[str]) -> list[ScanQuality]:
    """Return, and note, the scans that are set aside and that no labels CSV named."""
    taken = {one.name for one in found}
    aside = [one for one in listed if one.aside is not None and one.name not in taken]
    if aside:
        reasons = Counter(one.aside or "" for one in aside)
        notes.append(
            f"{len(aside)} scans are set aside, since each is {list_counts(reasons)}; a labels CSV can name them"
        )
    return [_with_header(ScanQuality(path=one.name, flags=("aside",), reason=one.aside or ""), one) for one in aside]


def _with_header(facts: ScanQuality, one: FoundScan) -> ScanQuality:
    """Return facts with what the headers of DICOM files add to those of the pixels."""
    if one.dicom is None:
        return facts
    return replace(
        facts,
        modality=one.dicom.modality,
        instances=one.dicom.instances,
        shape=facts.shape or one.dicom.shape,
        spacing=facts.spacing or one.dicom.spacing,
        flags=(*facts.flags, "burned_in") if one.dicom.burned_in else facts.flags,
    )


def _as_cohort(
    found: Sequence[FoundScan],
    quality: Sequence[ScanQuality],
    out: Path,
    labels: Path | None,
    scans: Path,
    split: tuple[float, float, float],
    seed: int,
    notes: list[str],
    merges: Mapping[str, str],
) -> Cohort:
    """Return the scans as rows, with labels that only the files know, splits drawn where none is given, and a root."""
    names = [
        # The file's own label counts where no CSV gave one: a MedMNIST file may lie in any folder.
        (facts.label if labels is None and facts.label else one.label) or ""
        for one, facts in zip(found, quality, strict=True)
    ]
    if "" in names:
        raise DataError(
            f"{found[names.index('')].name}: need a label, got a scan in no folder; try --labels, or a folder for each class"
        )
    check_merge_labels(merges, names)
    sublabels = [{SUBLABEL: name} if name in merges else {} for name in names]
    names = [merges.get(name, name) for name in names]
    patients = [one.patient or one.name for one in found]
    if any(one.split for one in found):
        splits = [one.split or "" for one in found]
        notes.append("splits are as given")
    else:
        labels_of: dict[str, set[str]] = {}
        for patient, label in zip(patients, names, strict=True):
            labels_of.setdefault(patient, set()).add(label)
        split_of = split_patients(labels_of, split, seed=seed)
        splits = [split_of[patient] for patient in patients]
    files = [path for one in found for path in (one.file, one.mask, *one.sequences.values()) if path is not None]
    bases = (out.parent, scans, *(() if labels is None else (labels.parent,)))
    base = next((base for base in bases if all(path.is_relative_to(base) for path in files)), None)
    if base is None:
        raise DataError(
            f"{scans}: need scans and masks below one folder, got several; try the labels CSV's folder as --scans"
        )
    root, roots = (None, {}) if base == out.parent else _free_root(out.parent, base)
    rows = tuple(
        Row(
            path=one.file.relative_to(base).as_posix(),
            label=label,
            patient_id=patient,
            split=part,
            mask=None if one.mask is None else one.mask.relative_to(base).as_posix(),
            root=root,
            sequences={name: file.relative_to(base).as_posix() for name, file in one.sequences.items()},
            attributes={**one.attributes, **sublabel},
        )
        for one, label, patient, part, sublabel in zip(found, names, patients, splits, sublabels, strict=True)
    )
    return Cohort(folder=out.parent, rows=rows, roots=roots)


def _free_root(folder: Path, base: Path) -> tuple[str, dict[str, Path]]:
    """Return the name `scans` for `base`, numbered where another CSV in the folder already uses it for another one."""
    declared = declared_roots(folder)
    name, number = "scans", 1
    while name in declared and os.path.realpath(declared[name]) != os.path.realpath(base):
        number += 1
        name = f"scans{number}"
    return name, {name: base}


def _columns_of(rows: Sequence[Row]) -> tuple[list[str], list[str], list[str]]:
    return [row.label for row in rows], [row.patient_id for row in rows], [row.split for row in rows]


def _dropped_duplicates(
    quality: Sequence[ScanQuality], across: Sequence[int], rows: Sequence[Row], *, skip_bad: bool, notes: list[str]
) -> list[ScanQuality]:
    """Refuse equal pixels in two splits, or return the later ones as dropped."""
    if across and not skip_bad:
        row = rows[across[0]]
        raise DataError(
            f"{row.path}: need each picture in one split, got pixels equal to {quality[across[0]].duplicate_of} of another "
            f"patient and split ({len(across)} such scans); try --skip_bad true, which drops the later ones"
        )
    if across:
        notes.append(f"{len(across)} scans with the pixels of another patient in another split are dropped")
    return [
        replace(
            quality[i], path=rows[i].path, flags=(*quality[i].flags, "dropped"), reason="equal pixels in another split"
        )
        for i in across
    ]


def _check_classes(cohort: Cohort, notes: list[str], *, allow_tiny: bool) -> None:
    for label, by_split in cohort.counts().items():
        training = by_split["train"][0]
        if training <= 1:
            if not allow_tiny:
                raise DataError(
                    f"class {label!r}: need at least 2 training scans, got {training}; try more scans, another split, "
                    "or --allow_tiny true"
                )
            notes.append(
                f"class {label!r} has {training} training scan(s): too few to learn from, its samples will be copies"
            )
        for split in ("val", "test"):
            if by_split[split][0] == 0:
                notes.append(f"class {label!r} has no scans in {split}: nothing can be measured there")
