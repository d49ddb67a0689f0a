"""Files that are whole or absent, and folder names that any label survives."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from medsynth.errors import ConfigError

PathLike = str | Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_PARTIAL = ".partial-"
_SEGMENT = 100  # characters of one folder name; file systems allow 255 bytes
# How torch, safetensors and NumPy report a disk that is full while they write.
_FULL_DISK = re.compile(r"unexpected pos \d+ vs|\(os error (28|122)\)|\d+ requested and \d+ written")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and takes the place of `path`.

    The target folder is created. When the block raises, the temporary file goes and `path` stays as it was. The
    temporary name keeps the suffixes of `path`, since writers choose their format by them. A full disk, in whatever words a
    library reports it, is an `OSError` with `errno.ENOSPC` and the name of `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_PARTIAL, suffix="-" + path.name[-80:], dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except Exception as error:
        if getattr(error, "errno", None) in NO_SPACE or _FULL_DISK.search(str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path | str) -> None:
    """Remove what `atomic_path` left below `folder` when a process was killed; for the only writer of the folder."""
    for leftover in Path(folder).rglob(f"{_PARTIAL}*"):
        leftover.unlink(missing_ok=True)


def check_space(folder: Path | str, needed: int, *, purpose: str, option: str) -> None:
    """Raise `ConfigError` where fewer than `needed` bytes are free on the disk of `folder`, which need not exist yet.

    `purpose` says in the message what they are for, `option` which option names another place.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ConfigError(
            f"{folder}: need about {-(-needed // (1 << 20))} MiB free for {purpose}, got {free >> 20} MiB; "
            f"try freeing some, or {option} on another disk"
        )


def hash_file(path: Path | str) -> str:
    """Return the sha256 of a file's bytes as hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stamp_file(path: Path | str) -> list[int]:
    """Return size and time of change of a file (ns): while both stay, its content is taken to stay."""
    facts = Path(path).stat()
    return [facts.st_size, facts.st_mtime_ns]


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write `content` to `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, content: str) -> None:
    """Write `content` to `path` as UTF-8, atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` to `path` as indented JSON, atomically; NaN and infinities are refused (`ValueError`)."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def label_folder(label: str) -> str:
    """Return a relative folder name for a label: safe on every file system, and `folder_label` gives the label back.

    Letters, digits, `_` and `-` stay; everything else is percent-encoded, as is the first letter of names that Windows
    reserves. Names longer than 100 characters become nested folders, each but the last ending in `+`.
    """
    text = quote(label, safe="").replace(".", "%2E").replace("~", "%7E")
    segments = [text[start : start + _SEGMENT] for start in range(0, len(text), _SEGMENT)] or ["%"]
    # A reserved name is one only as a whole segment; all but the last end in "+", which no reserved name does.
    if _RESERVED.fullmatch(segments[-1]):
        segments[-1] = f"%{ord(segments[-1][0]):02X}{segments[-1][1:]}"
    return "+/".join(segments)


def folder_label(folder: str) -> str:
    """Return the label whose `label_folder` is `folder`."""
    return "" if folder == "%" else unquote(folder.replace("+/", ""))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
