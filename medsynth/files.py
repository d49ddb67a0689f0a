"""Files that are complete or absent, and safe folder names for any label."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
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
_HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
_DYING_SECONDS = 15.0  # a killed process holds its locks until the system has cleared it and its workers away


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


def remove_partial(folder: Path | str, *, seconds: float = 0) -> None:
    """Remove what `atomic_path` left below `folder` after a kill, if nothing was written to it for so many seconds.

    Without `seconds` only the single writer of the folder may call it.
    """
    for leftover in Path(folder).rglob(f"{_PARTIAL}*"):
        with suppress(FileNotFoundError):
            if seconds <= 0 or time.time() - leftover.stat().st_mtime > seconds:
                leftover.unlink()


@contextmanager
def one_writer(out: Path | str) -> Iterator[None]:
    """Let no other process write to the file or folder `out` within the block; what a killed one left there is removed.

    A lock file beside `out` names the holder. The system releases the lock when the process ends in whatever way, so a lock
    file that remained is taken over; only one of another machine may need to be deleted by hand. A block within the block may
    write to the same place. Raises `ConfigError` while another process writes, which it names. Where no lock can be written,
    nothing is locked.
    """
    if "\0" in str(out):
        raise ConfigError("out: need a path without NUL characters; try another --out")
    place = Path(os.path.realpath(out))
    if place in _HELD.get():
        yield
        return
    lock = place.with_name(f".{place.name}.lock") if place.name else place
    missing = [folder for folder in lock.parents if not os.path.exists(folder)]
    descriptor = _lock(lock, place)
    outer = _HELD.set(_HELD.get() | {place})
    try:
        yield
    finally:
        _HELD.reset(outer)
        if descriptor is not None:
            with suppress(OSError):
                lock.unlink()
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked process may still have it open
            os.close(descriptor)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def _lock(lock: Path, place: Path) -> int | None:
    """Return the open lock file, which says who we are; None if none can be opened."""
    began, mine = time.monotonic(), {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid()}
    while True:
        descriptor = _open_lock(lock, place)
        if descriptor is None:
            return None
        free = supported = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:  # a file system without locks
            supported = False
        holder = _read_holder(descriptor)
        elsewhere = holder and holder["boot"] != mine["boot"] and holder["host"] != mine["host"]
        # A process with our number that does not hold the lock is one of an earlier container.
        own = holder and holder["pid"] == mine["pid"] and free
        alive = holder and not elsewhere and not own and os.path.exists(f"/proc/{holder['pid']}")
        if free and not elsewhere and (supported or not alive):
            if not _still_there(lock, descriptor):
                os.close(descriptor)
                continue
            if holder:  # it was killed
                for leftover in (
                    *place.glob(f"{_PARTIAL}*"),
                    *lock.parent.glob(f"{_PARTIAL}*-{glob.escape(place.name[-80:])}"),
                ):
                    leftover.unlink(missing_ok=True)
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(mine | {"since": time.strftime("%F %T")}).encode(), 0)
            return descriptor
        os.close(descriptor)
        if alive or elsewhere or time.monotonic() - began > _DYING_SECONDS:
            who = "process {pid} on {host} since {since}".format(**holder) if holder else "another process"
            hint = f"deleting {lock} if that machine or process is gone" if elsewhere else "waiting for it"
            raise ConfigError(
                f"{place}: need a place that no other process writes to, got {who}; try another --out, or {hint}"
            )
        time.sleep(0.05)


def _open_lock(lock: Path, place: Path) -> int | None:
    """Open the lock file, or that of another user, or where the folder takes no new file, the folder that is locked."""
    safe = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with suppress(OSError):
        lock.parent.mkdir(parents=True, exist_ok=True)
    for path, flags in ((lock, os.O_RDWR | os.O_CREAT), (lock, os.O_RDONLY), (place, os.O_RDONLY | os.O_DIRECTORY)):
        with suppress(OSError):
            return os.open(path, flags | safe, 0o666)
    return None


def _read_holder(descriptor: int) -> dict[str, Any] | None:
    """Return who wrote a lock file, None if it does not say."""
    try:
        holder = json.loads(os.pread(descriptor, 1 << 12, 0))
        return {name: str(holder[name]) for name in ("host", "boot", "since")} | {"pid": int(holder["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _still_there(lock: Path, descriptor: int) -> bool:
    """Whether an open file is still the lock: its last holder may have removed it just before we locked it."""
    facts = os.fstat(descriptor)
    try:
        return stat.S_ISDIR(facts.st_mode) or os.path.samestat(facts, lock.stat())
    except FileNotFoundError:
        return False


def _boot() -> str:
    """Return what processes on one running kernel have in common, in whatever container: they share its locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


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
