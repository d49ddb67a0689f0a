"""Files that are complete or absent, and safe folder names for any label."""

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
from typing import Any, Literal
from urllib.parse import quote, unquote

from medsynth.errors import ConfigError

PathLike = str | Path

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_PARTIAL = ".partial-"
_SEGMENT = 100  # characters of one folder name; file systems allow 255 bytes
# How torch, safetensors and NumPy report a disk that is full while they write.
_FULL_DISK = re.compile(r"unexpected pos \d+ vs|\(os error (28|122)\)|\d+ requested and \d+ written")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and replaces `path`.

    The target folder is created. If the block raises, the temporary file is removed and `path` stays as it was. The
    temporary name keeps the suffixes of `path`, since writers choose their format by them. A full disk, however a library
    reports it, is raised as `OSError` with `errno.ENOSPC` and the name of `path`.
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
        umask = os.umask(0)  # the only way to read it is to set it
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except Exception as error:
        if getattr(error, "errno", None) in _NO_SPACE or _FULL_DISK.search(str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path | str) -> None:
    """Remove what `atomic_path` left below `folder` after a kill; only the single writer of the folder may call it."""
    for leftover in Path(folder).rglob(f"{_PARTIAL}*"):
        leftover.unlink(missing_ok=True)


def check_space(folder: Path | str, needed: int, *, purpose: str, option: str) -> None:
    """Raise `ConfigError` if fewer than `needed` bytes are free on the disk of `folder`, which need not exist yet.

    The message names the `purpose` of the space and the `option` that chooses another folder.
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
    """Return size (bytes), time of modification and of change (ns): while all stay the same, so does the content, most likely.

    Anybody can set the time of modification of their files, nobody that of change.
    """
    facts = Path(path).stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def user_folder(kind: Literal["cache", "data"]) -> Path:
    """Return medsynth's folder in the user's home, created if need be, which only the user may enter (mode 0700).

    That is `$XDG_CACHE_HOME/medsynth` or `~/.cache/medsynth`, and `$XDG_DATA_HOME/medsynth` or `~/.local/share/medsynth`.
    Raises `OSError`, with a file name, where that is not possible.
    """
    base, usual = os.environ.get(f"XDG_{kind.upper()}_HOME", ""), {"cache": "~/.cache", "data": "~/.local/share"}[kind]
    folder = Path(base if os.path.isabs(base) else os.path.expanduser(usual)) / "medsynth"
    if not folder.is_absolute():
        raise OSError(errno.ENOENT, "no home folder", str(folder))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.stat()
    if facts.st_uid != os.getuid():
        raise OSError(errno.EPERM, "a folder of another user", str(folder))
    if facts.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


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
    """Return a relative folder name for a label that is safe on every file system; `folder_label` is the inverse.

    Letters, digits, `_` and `-` stay; everything else is percent-encoded, and so is the first letter of names that Windows
    reserves. Names longer than 100 characters become nested folders; all but the last end in `+`.
    """
    text = quote(label, safe="").replace(".", "%2E").replace("~", "%7E")
    segments = [text[start : start + _SEGMENT] for start in range(0, len(text), _SEGMENT)] or ["%"]
    # Only the last segment can be a reserved name: the others end in "+".
    if _RESERVED.fullmatch(segments[-1]):
        segments[-1] = f"%{ord(segments[-1][0]):02X}{segments[-1][1:]}"
    return "+/".join(segments)


def folder_label(folder: str) -> str:
    """Return the label whose `label_folder` is `folder`."""
    return "" if folder == "%" else unquote(folder.replace("+/", ""))
