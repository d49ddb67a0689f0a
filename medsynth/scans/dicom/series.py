"""The DICOM files of a folder, and which of them make one scan."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsynth.errors import DataError, one_line
from medsynth.scans.dicom.elements import is_dicom
from medsynth.scans.dicom.header import Instance, read_instance
from medsynth.scans.limits import check_exists

SERIES = "series/"  # begins the item of a path that names a series of a folder, as in `folder#series/1.2.3`

# Such files may lie beside DICOM files, which often have no suffix, or the end of a UID as one.
_OTHERS = re.compile(
    r".*\.(bmp|bz2|cfg|csv|docx?|gif|gz|html?|ini|jpe?g|json|log|md|mat|nii|npy|npz|pdf|png|py|rtf|tar|tiff?|toml|tsv|txt|xlsx?"
    r"|xml|ya?ml|zip)",
    re.IGNORECASE | re.DOTALL,
)
_KEPT = 20_000  # instances whose headers are remembered


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The DICOM files in a folder (not below it), sorted by name: the readable headers, and why others cannot be read."""

    instances: tuple[Instance, ...]
    problems: tuple[tuple[Path, str], ...]


_known: dict[str, tuple[list[tuple[str, int, int]], Folder]] = {}
_known_turn = threading.Lock()


def may_be_dicom(name: str) -> bool:
    """Return whether a file of this name may be DICOM: it is not hidden and has no suffix of another format."""
    return not name.startswith(".") and not _OTHERS.fullmatch(name)


def read_folder(folder: Path, *, on_file: Callable[[], object] = lambda: None) -> Folder:
    """Return the headers of the DICOM files in `folder`; they are read again only if a file has changed."""
    with os.scandir(folder) as entries:
        found = sorted(
            (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
            for entry in entries
            if may_be_dicom(entry.name) and entry.is_file()
        )
    # Messages contain the path as the caller wrote it, so both it and its meaning are part of the key.
    key = f"{folder}\n{os.path.abspath(folder)}"
    with _known_turn:
        if key in _known and _known[key][0] == found:
            return _known[key][1]
    instances: list[Instance] = []
    problems: list[tuple[Path, str]] = []
    for name, _, _ in found:
        file = folder / name
        if is_dicom(file):
            try:
                instances.append(read_instance(file))
            except DataError as error:
                problems.append((file, str(error)))
        on_file()
    result = Folder(instances=tuple(instances), problems=tuple(problems))
    with _known_turn:
        _known.pop(key, None)
        while _known and sum(len(known.instances) for _, known in _known.values()) + len(instances) > _KEPT:
            del _known[next(iter(_known))]
        _known[key] = (found, result)
    return result


def group_scans(instances: Sequence[Instance]) -> list[tuple[Instance, ...]]:
    """Return the files that make one scan each, in the order of their first files, without files that are not images.

    Slices of one SeriesInstanceUID are one scan; a picture (such as a radiograph) or a file of many frames is a scan of its own.
    """
    scans: dict[tuple[str, str], list[Instance]] = {}
    for one in instances:
        if one.is_image:
            alone = not (one.is_slice and one.series)
            scans.setdefault((one.series, one.name if alone else ""), []).append(one)
    return [tuple(scan) for scan in scans.values()]


def find_scan(path: Path, item: str | None, name: str) -> tuple[Instance, ...]:
    """Return the files of the one scan in a file, in a folder, or in a series of a folder (`series/UID` as `item`).

    Raises `DataError` if there is none or several, or if a file of the folder cannot be read.
    """
    if item is None and not os.path.isdir(path):
        check_exists(name, path)
        return (read_instance(path),)
    if not os.path.isdir(path):
        raise DataError(f"{name}: need an existing folder, got none; try another path")
    folder = read_folder(path)
    scans = group_scans(folder.instances)
    if item is not None:
        scans = [scan for scan in scans if scan[0].series == item.removeprefix(SERIES)]
    elif folder.problems:
        raise DataError(folder.problems[0][1])
    if len(scans) == 1:
        return scans[0]
    if not scans:
        kinds = ", ".join(sorted({one.kind for one in folder.instances})) or "no DICOM file"
        got = kinds if item is None else "none of this SeriesInstanceUID"
        raise DataError(f"{name}: need the files of a DICOM series, got {got}; try another folder")
    shown = ", ".join(
        scan[0].source.file.name if len(scan) == 1 else f"{scan[0].series} ({len(scan)} {scan[0].modality or 'files'})"
        for scan in scans[:3]
    ) + (f" and {len(scans) - 3} more" if len(scans) > 3 else "")
    first = scans[0][0]
    example = first.name if len(scans[0]) == 1 else f"{one_line(path)}#{SERIES}{first.series}"
    raise DataError(f"{name}: need one series, got {len(scans)}: {shown}; try {example}")
