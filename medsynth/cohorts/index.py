"""From a folder of scans to a cohort: read each scan once, split by patient, refuse what cannot be trusted."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from medsynth.cohorts.finding import FoundScan, check_stated_splits, compile_pattern, find_patients, list_scans
from medsynth.cohorts.labels import LabelTable, label_by_folders, note_like_labels
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
    write_table,
)
from medsynth.cohorts.near import MOST_SCANS, NearPair, find_near_duplicates, link_patients, shrink_scan
from medsynth.cohorts.splitting import (
    SUBLABEL,
    check_fractions,
    check_labels,
    kept_scans,
    parse_keep,
    parse_merges,
    split_patients,
)
from medsynth.config import IndexOptions, Loading
from medsynth.errors import ConfigError, DataError
from medsynth.files import PathLike
from medsynth.scans import Scan, read_header, read_scan, scan_suffix, split_item

_SHOWN = 3  # pairs of near-duplicates named in notes
_NEAR_MEANINGS = {
    "near_duplicate_splits": "WARNING: {} of near-duplicates in two of the stated splits, so figures on test scans will look "
    "better than they are; give these patients one split",
    "near_duplicate_patients": "{} of near-duplicates of two patients (one person under two IDs?), who share a split",
    "near_duplicate": "{} of near-duplicates of one patient",
}
_FLAG_MEANINGS = {
    "constant": "are constant",
    "near_empty": "are nearly empty",
    "burned_in": "say that text is burned into their pixels: look at them, it may name the patient",
    "duplicate": "repeat another scan of the same patient",
    "duplicate_patients": "have the pixels of another patient of the same split (one person under two IDs?)",
}


@dataclass(frozen=True, kw_only=True)
class ScanQuality:
    """Facts of one scan, as the quality table lists them.

    `modality` and `instances` (files) are those of DICOM. `shape` is `(channel, *spatial)`, `spacing` in millimetres,
    `dtype` that of the file, the four statistics are in physical units. `sha256` is that of shape and pixels; `reason`
    says why a scan was left out. `flags` are `constant`; `near_empty` (99 % of the pixels lie within 1 % of the scan's own
    range around its median); `nan_zeroed`; `burned_in` (BurnedInAnnotation); `duplicate` (pixels equal to
    an earlier scan of the same patient, `duplicate_of`) and `duplicate_patients` (of another patient); `near_duplicate`,
    `near_duplicate_patients` and `near_duplicate_splits` (alike at the `distance` of `measures.alignment`, see `cohorts.near`);
    `dropped`, `unreadable` and `aside` (not a scan to learn from, such as a localizer): left out of the cohort.
    """

    path: str
    modality: str = ""
    instances: int | None = None
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    dtype: str = ""
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    std: float | None = None
    flags: tuple[str, ...] = ()
    duplicate_of: str = ""
    distance: float | None = None
    sha256: str = ""
    reason: str = ""

    def cells(self) -> list[str]:
        """Return the row of the quality table; tuples are joined by `x` (shape, spacing) or blanks (flags)."""

        def text(value: object) -> str:
            if isinstance(value, tuple):
                return (" " if value is self.flags else "x").join(map(text, value))
            return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

        return [text(getattr(self, field.name)) for field in fields(self)]


@dataclass(frozen=True, kw_only=True)
class IndexResult:
    """A written cohort: where it is, what its scans are like (`quality`, also beside it as CSV), and what to know about it."""

    cohort: Cohort
    path: Path
    quality: tuple[ScanQuality, ...]
    notes: tuple[str, ...]

    @property
    def quality_path(self) -> Path:
        """The quality table beside the cohort."""
        return _quality_path(self.path)

    def summary(self) -> str:
        """Return scans (patients) by class and split, sizes, pixel types, flags, notes, the files, and the next command."""
        shapes = Counter("x".join(map(str, quality.shape[1:])) for quality in self.quality if quality.shape)
        types = Counter(quality.dtype for quality in self.quality if quality.dtype)
        modalities = Counter(quality.modality for quality in self.quality if quality.modality)
        flags = Counter(flag for quality in self.quality for flag in quality.flags)
        lines = [self.cohort.table(), f"sizes: {list_counts(shapes, 3)}; pixel types: {list_counts(types, 3)}"]
        if modalities:
            lines.append(f"modalities: {list_counts(modalities)}")
        lines.append("flags: " + (", ".join(f"{flag} ({count})" for flag, count in sorted(flags.items())) or "none"))
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"cohort: {self.path}", f"quality table: {self.quality_path}"]
        return "\n".join([*lines, f"next: medsynth train --cohort {shlex.quote(str(self.path))} --out run"])


def index_scans(options: IndexOptions) -> IndexResult:
    """Find the scans below a folder and write them as a cohort, with a quality table beside it.

    Raises `DataError` for scans that cannot be read, a patient in two splits, equal pixels under two patients in two
    splits, and a class with fewer than two training scans; `ConfigError` for options that do not fit. Nothing is
    written then.
    """
    keeps, merges = parse_keep(options.keep), parse_merges(options.merge)
    check_fractions(options.split)
    out = Path(options.out).absolute()
    _check_out(out, options)
    notes: list[str] = []
    small: dict[str, np.ndarray] = {}
    readable, left_out = _read_scans(options, keeps, merges, notes, small)
    near = _find_near(readable, small, options, notes)
    cohort = _as_cohort([one for one, _ in readable], options, merges, notes, near)
    check_cohort(cohort, source=options.labels or options.scans)
    pairs = [(row, replace(facts, path=row.path)) for row, (_, facts) in zip(cohort.rows, readable, strict=True)]
    paths = [(cohort.rows[pair.first].path, cohort.rows[pair.second].path, pair.distance) for pair in near]
    if keeps:
        stays = kept_scans(cohort.rows, keeps, seed=options.seed)
        pairs = [pair for pair, stay in zip(pairs, stays, strict=True) if stay]
        notes.append(f"--keep {' '.join(options.keep)} left out {stays.count(False)} training and validation scans")
    pairs, dropped = _drop_duplicates(pairs, skip_bad=options.skip_bad, notes=notes)
    pairs = _flag_near(pairs, paths, notes)
    cohort = replace(cohort, rows=tuple(row for row, _ in pairs))
    _check_classes(cohort, notes, allow_tiny=options.allow_tiny)
    quality = [facts for _, facts in pairs]
    _note_quality(quality, notes)
    note_like_labels((row.label for row in cohort.rows), notes)
    result = IndexResult(cohort=cohort, path=out, quality=(*quality, *dropped, *left_out), notes=tuple(notes))
    try:
        columns = [field.name for field in fields(ScanQuality)]
        write_table(result.quality_path, columns, [facts.cells() for facts in result.quality])
        write_cohort(cohort, out)
    except OSError as error:
        raise ConfigError(f"{out}: need a folder to write in, got {reason_of(error)}; try another --out") from error
    return result


def index_folder(folder: PathLike, *, loading: Loading = Loading(), seed: int = 0) -> Cohort:
    """Return a folder with one folder for each class as a cohort, split by patient, without writing anything.

    Scans with equal pixels count as one patient, so no split holds a copy from another. Raises `DataError` for scans that
    cannot be read, and for folders that are not classes.
    """
    shared = {field.name: getattr(loading, field.name) for field in fields(Loading)}
    options = IndexOptions(scans=folder, out=Path(folder) / "cohort.csv", seed=seed, **shared)
    notes: list[str] = []
    first: dict[str, str | None] = {}
    found = [
        one if "constant" in facts.flags else replace(one, patient=first.setdefault(facts.sha256, one.patient))
        for one, facts in _read_scans(options, {}, {}, notes)[0]
    ]
    cohort = _as_cohort(found, options, {}, notes)
    check_cohort(cohort, source=folder)
    return cohort


def _read_scans(
    options: IndexOptions,
    keeps: Mapping[str, object],
    merges: Mapping[str, str],
    notes: list[str],
    small: dict[str, np.ndarray] | None = None,
) -> tuple[list[tuple[FoundScan, ScanQuality]], list[ScanQuality]]:
    """Return the scans of a folder that can be read, with class, patient and facts, and the facts of all others.

    `small` receives what `shrink_scan` leaves of each.
    """
    pattern = compile_pattern(options.patient_pattern)
    scans, out = Path(options.scans).absolute(), Path(options.out).absolute()
    listed = list_scans(scans, notes, loading=options)
    if options.labels is None:
        labelled = label_by_folders(listed, scans, notes, own=(out, _quality_path(out)), loading=options)
    else:
        table = LabelTable(listed, scans, Path(options.labels).absolute(), notes, options.columns)
        labelled = table.join(skip_bad=options.skip_bad)
    if options.labels is not None or not any(one.may_know_label for one in labelled.found):
        known = {one.label or "" for one in labelled.found}
        check_labels("merge", merges, known)
        check_labels("keep", keeps, {merges.get(label, label) for label in known})
    found = find_patients(labelled.found, pattern, notes, columns=labelled.patient_columns)
    check_stated_splits(found)
    names = {one.name for one in found}
    aside = [_facts(one, "aside", one.aside) for one in listed if one.aside is not None and one.name not in names]
    if aside:
        reasons = list_counts(Counter(facts.reason for facts in aside))
        notes.append(f"{len(aside)} scans are set aside: {reasons}; a labels CSV can include them")
    examined = examine_scans(found, options, small)
    bad = [facts for _, facts in examined if "unreadable" in facts.flags]
    if bad and not options.skip_bad:
        advice = "; `medsynth index --skip_bad true` leaves them out" if len(bad) < len(found) else ""
        raise DataError(f"{bad[0].reason} ({len(bad)} of {len(found)} scans cannot be read{advice})")
    bad += [ScanQuality(path=path, flags=("unreadable",), reason=f"{path}: missing") for path in labelled.missing]
    readable = [pair for pair in examined if "unreadable" not in pair[1].flags]
    if not readable:
        raise DataError(f"{scans}: need at least one scan that can be read, got none; try another folder")
    if bad:
        notes.append(f"{len(bad)} scans are missing or unreadable and left out")
    _check_one_kind([facts for _, facts in readable])
    return readable, [*bad, *aside]


def _quality_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}_quality.csv")


def _check_out(out: Path, options: IndexOptions) -> None:
    """Refuse (`ConfigError`) to overwrite the labels, or anything that `medsynth index` did not write."""
    labels = None if options.labels is None else Path(options.labels)
    if out.is_dir() or out.suffix.lower() != ".csv":
        raise ConfigError(f"{out}: need the name of a .csv file to write, got something else; try {out / 'cohort.csv'}")
    own = (out, "cohort", REQUIRED), (_quality_path(out), "quality table", ("path", "flags", "sha256"))
    for file, kind, columns in own:
        if not file.exists():
            continue
        if labels is not None and labels.exists() and file.samefile(labels):
            raise ConfigError(f"{file}: need another file for the {kind}, got the labels CSV; try another --out")
        if file.stat().st_size and not set(columns) <= set(read_columns(file)):
            raise ConfigError(f"{file}: need a new file or a {kind} to replace, got other content; try another --out")


# Pixels ----------------------------------------------------------------------------------------------------------------


def examine_scans(
    found: Sequence[FoundScan], options: IndexOptions, small: dict[str, np.ndarray] | None = None
) -> list[tuple[FoundScan, ScanQuality]]:
    """Read every scan once and return it with its facts, in order; one that cannot be read has the flag `unreadable`.

    Without a labels CSV, a label in the file itself (MedMNIST) wins over the name of its folder. `small` receives, by name, what
    near-duplicates are looked for in.
    """

    def examine(one: FoundScan) -> tuple[FoundScan, ScanQuality]:
        if one.problem is not None:
            return one, _facts(one, "unreadable", one.problem)
        try:
            header, scan = read_header(one.file, loading=options), read_scan(one.file, loading=options)
        except DataError as error:
            return one, _facts(one, "unreadable", str(error))
        if small is not None and len(found) <= MOST_SCANS[scan.array.ndim - 1]:
            small[one.name] = shrink_scan(scan.array)
        label = scan.label if options.labels is None and scan.label else one.label
        return replace(one, label=label), _with_header(measure_quality(scan, name=one.name, dtype=header.dtype), one)

    # Items of one NPZ share its decoded array, so a second thread gains nothing there.
    workers = 1 if any(split_item(one.file)[1] for one in found) else 2
    with ThreadPoolExecutor(max_workers=workers) as pool:
        results = pool.map(examine, found)
        return list(tqdm(results, total=len(found), desc="reading scans", unit="scan", disable=not options.progress))


def measure_quality(scan: Scan, *, name: str, dtype: str = "") -> ScanQuality:
    """Return the facts of one scan under `name`, without those that need a second scan."""
    array = np.ascontiguousarray(scan.array, dtype=np.float32)
    low, high = float(array.min()), float(array.max())
    near_empty = low < high and np.mean(np.abs(array - np.median(array)) <= 0.01 * (high - low)) >= 0.99
    flags = {
        "constant": low == high,
        "near_empty": near_empty,
        "nan_zeroed": "nan_voxels" in scan.attributes,
    }
    return ScanQuality(
        path=name,
        shape=array.shape,
        spacing=tuple(round(length, 6) for length in scan.spacing),
        dtype=dtype,
        minimum=low,
        maximum=high,
        mean=float(array.mean(dtype=np.float64)),
        std=float(array.std(dtype=np.float64)),
        flags=tuple(flag for flag, found in flags.items() if found),
        sha256=hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest(),
    )


def _facts(one: FoundScan, flag: str, reason: str) -> ScanQuality:
    return _with_header(ScanQuality(path=one.name, flags=(flag,), reason=reason), one)


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


def _check_one_kind(qualities: Sequence[ScanQuality]) -> None:
    """Refuse (`DataError`) scans with different numbers of axes or channels: no model takes both."""
    kinds = Counter((len(quality.shape) - 1, quality.shape[0]) for quality in qualities)
    if len(kinds) > 1:
        rarest = kinds.most_common()[-1][0]
        name = next(one.path for one in qualities if (len(one.shape) - 1, one.shape[0]) == rarest)
        got = " and ".join(
            f"{count} in {axes}D with {channels} channel{'s' if channels > 1 else ''}"
            for (axes, channels), count in kinds.most_common()
        )
        raise DataError(f"{name}: need scans of one kind, got {got}; try indexing them separately")


def _note_quality(qualities: Sequence[ScanQuality], notes: list[str]) -> None:
    """Note pixel types, modalities and file formats if there are several, and flags that call for a second look."""
    same = "check that their intensities mean the same"
    for what, values, meaning in (
        ("pixel types", [one.dtype for one in qualities], "one intensity range may not suit both"),
        ("modalities", [one.modality or "none" for one in qualities], same),
        ("file formats", [scan_suffix(one.path) or "DICOM" for one in qualities], same),
    ):
        if len(counts := Counter(values)) > 1:
            notes.append(f"mixed {what}: {list_counts(counts)}: {meaning}")
    for flag, meaning in _FLAG_MEANINGS.items():
        if count := sum(flag in facts.flags for facts in qualities):
            notes.append(f"{count} scans {meaning}; see the quality table")


def _drop_duplicates(
    pairs: Sequence[tuple[Row, ScanQuality]], *, skip_bad: bool, notes: list[str]
) -> tuple[list[tuple[Row, ScanQuality]], list[ScanQuality]]:
    """Flag scans whose pixels equal those of an earlier one; refuse, or drop, those in another split.

    Constant scans are left out: equal blank images do not make two people one.
    """
    first: dict[str, Row] = {}
    kept: list[tuple[Row, ScanQuality]] = []
    dropped: list[ScanQuality] = []
    for row, facts in pairs:
        earlier = row if "constant" in facts.flags else first.setdefault(facts.sha256, row)
        if earlier is row:
            kept.append((row, facts))
            continue
        flag = "duplicate" if earlier.patient_id == row.patient_id else "duplicate_patients"
        facts = replace(facts, flags=(*facts.flags, flag), duplicate_of=earlier.path)
        if earlier.split == row.split:
            kept.append((row, facts))
        else:
            reason = "equal pixels in another split"
            dropped.append(replace(facts, flags=(*facts.flags, "dropped"), reason=reason))
    if dropped and not skip_bad:
        got = f"pixels equal to {dropped[0].duplicate_of} of another patient and split ({len(dropped)} such scans)"
        hint = "--skip_bad true, which drops the later ones"
        raise DataError(f"{dropped[0].path}: need each picture in one split, got {got}; try {hint}")
    if dropped:
        notes.append(f"{len(dropped)} scans with the pixels of another patient in another split are dropped")
    return kept, dropped


def _find_near(
    readable: Sequence[tuple[FoundScan, ScanQuality]],
    small: dict[str, np.ndarray],
    options: IndexOptions,
    notes: list[str],
) -> list[NearPair]:
    """Return the near-duplicates among scans with content, by their places; what is left of the scans is given back."""
    places = [place for place, (_, facts) in enumerate(readable) if not {"constant", "near_empty"} & set(facts.flags)]
    if places and not small:
        notes.append(f"near-duplicates were not looked for: {len(readable)} scans would take too long")
    if len(places) < 2 or not small:
        return []
    scans = np.stack([small.pop(readable[place][0].name) for place in places])
    patients = [readable[place][0].patient or readable[place][0].name for place in places]
    found = find_near_duplicates(scans, patients, progress=options.progress)
    return [NearPair(places[pair.first], places[pair.second], pair.distance) for pair in found]


def _flag_near(
    pairs: list[tuple[Row, ScanQuality]], near: Sequence[tuple[str, str, float]], notes: list[str]
) -> list[tuple[Row, ScanQuality]]:
    """Flag the later scan of each pair of near-duplicates (paths, distance; the nearest first), and note pairs in two splits."""
    place_of = {row.path: place for place, (row, _) in enumerate(pairs)}
    pairs = list(pairs)
    listed: dict[str, list[str]] = {meaning: [] for meaning in _NEAR_MEANINGS.values()}
    for first, second, distance in near:
        if not {first, second} <= place_of.keys():
            continue
        (earlier, _), (row, facts) = pairs[place_of[first]], pairs[place_of[second]]
        if facts.duplicate_of == first:
            continue  # identical, which is flagged
        flag = "near_duplicate" if earlier.patient_id == row.patient_id else "near_duplicate_patients"
        flags = [flag] if earlier.split == row.split else [flag, "near_duplicate_splits"]
        where = "" if earlier.split == row.split else f", {earlier.split} and {row.split}"
        listed[_NEAR_MEANINGS[flags[-1]]].append(f"{first} and {second} ({distance:.3f}{where})")
        facts = replace(facts, flags=(*facts.flags, *(each for each in flags if each not in facts.flags)))
        if not facts.duplicate_of:
            facts = replace(facts, duplicate_of=first, distance=distance)
        pairs[place_of[second]] = row, facts
    for meaning, found in listed.items():
        if found:
            many = "1 pair" if len(found) == 1 else f"{len(found)} pairs"
            notes.append(f"{meaning.format(many)}: {'; '.join(found[:_SHOWN])}{'; ...' if found[_SHOWN:] else ''}")
    return pairs


# Rows ------------------------------------------------------------------------------------------------------------------


def _as_cohort(
    found: Sequence[FoundScan],
    options: IndexOptions,
    merges: Mapping[str, str],
    notes: list[str],
    near: Sequence[NearPair] = (),
) -> Cohort:
    """Return the scans as rows, with merged labels, splits (drawn unless stated), and a root.

    Splits that are drawn keep the patients together whom pairs of near-duplicates link.
    """
    labels = [one.label or "" for one in found]
    if "" in labels:
        name = found[labels.index("")].name
        raise DataError(f"{name}: need a label, got a scan in no folder; try --labels, or a folder for each class")
    check_labels("merge", merges, labels)
    classes = [merges.get(label, label) for label in labels]
    patients = [one.patient or one.name for one in found]
    if any(one.split for one in found):
        splits = [one.split or "" for one in found]
        notes.append(
            "splits are taken from the folders" if options.labels is None else "splits are taken from the labels CSV"
        )
    else:
        splits = split_patients(classes, link_patients(patients, near), options.split, seed=options.seed)
    folder, scans = Path(options.out).absolute().parent, Path(options.scans).absolute()
    files = [path for one in found for path in (one.file, one.mask, *one.sequences.values()) if path is not None]
    bases = [folder, scans, *([] if options.labels is None else [Path(options.labels).absolute().parent])]
    base = next((base for base in bases if all(path.is_relative_to(base) for path in files)), None)
    if base is None:
        hint = "the labels CSV's folder as --scans"
        raise DataError(f"{scans}: need scans and masks below one folder, got several; try {hint}")
    root, roots = (None, {}) if base == folder else _free_root(folder, base)
    rows = tuple(
        Row(
            path=one.file.relative_to(base).as_posix(),
            label=merged,
            patient_id=patient,
            split=split,
            mask=None if one.mask is None else one.mask.relative_to(base).as_posix(),
            root=root,
            sequences={name: file.relative_to(base).as_posix() for name, file in one.sequences.items()},
            attributes={**one.attributes, **({SUBLABEL: label} if label in merges else {})},
        )
        for one, label, merged, patient, split in zip(found, labels, classes, patients, splits, strict=True)
    )
    return Cohort(folder=folder, rows=rows, roots=roots)


def _free_root(folder: Path, base: Path) -> tuple[str, dict[str, Path]]:
    """Return the name `scans` for `base`, numbered if another CSV in the folder already uses it for another folder."""
    declared, real = declared_roots(folder), os.path.realpath(base)
    names = ("scans", *(f"scans{number}" for number in range(2, len(declared) + 2)))
    name = next(name for name in names if name not in declared or os.path.realpath(declared[name]) == real)
    return name, {name: base}


def _check_classes(cohort: Cohort, notes: list[str], *, allow_tiny: bool) -> None:
    for label, by_split in cohort.counts().items():
        training = by_split["train"][0]
        if training <= 1 and not allow_tiny:
            hint = "more scans, another split, or --allow_tiny true"
            raise DataError(f"class {label!r}: need at least 2 training scans, got {training}; try {hint}")
        if training <= 1:
            notes.append(
                f"class {label!r} has {training} training scan(s): too few to learn from, samples will be copies"
            )
        for split in ("val", "test"):
            if by_split[split][0] == 0:
                notes.append(f"class {label!r} has no scans in {split}: nothing can be measured there")
