"""Files that are complete or absent, and safe folder names for any label."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from io import BufferedReader
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
_NO_FILES = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
_DEEPEST, _MOST_VALUES = 50, 100_000  # of a JSON or YAML file
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
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


def open_file(path: Path | str) -> BufferedReader:
    """Open a file for reading; `OSError` for a folder, and before it is opened for a pipe, socket or device, which may block."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in _NO_FILES.items() if test(mode)), "a device")
        error = IsADirectoryError if stat.S_ISDIR(mode) else OSError
        raise error(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, kind, str(path))
    return Path(path).open("rb")


def read_bytes(path: Path | str, *, limit: int = 1 << 30) -> bytes:
    """Return the content of a file; `OSError` as `open_file`, `ValueError` for one of more than `limit` bytes."""
    with open_file(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than {limit >> 10} KiB")
    return content


def read_json(path: Path | str) -> Any:
    """Return the content of a JSON file in UTF-8 of at most 64 MiB; `OSError` as `open_file`, `ValueError` for anything else.

    Refused are nesting deeper than 50, keys that occur twice, NaN, and numbers beyond 64 bits.
    """
    text = read_bytes(path, limit=64 << 20).decode("utf-8-sig")
    try:
        content = json.loads(
            text, parse_constant=_finite, parse_float=_finite, parse_int=_whole, object_pairs_hook=_without_twins
        )
    except RecursionError as error:
        raise ValueError("deep nesting") from error
    return _checked(content, text)


def read_yaml(path: Path | str) -> Any:
    """Return the content of a YAML file of at most 256 KiB; `OSError` as `open_file`, `ValueError` as `parse_yaml`."""
    return parse_yaml(read_bytes(path, limit=1 << 18).decode("utf-8-sig"))


def parse_yaml(text: str) -> Any:
    """Return the only document of a YAML text; no object but texts, numbers, dates, lists and mappings is made.

    Raises `ValueError` for what cannot be read, nesting deeper than 50, keys that occur twice, and more than 100,000 values with
    all references written out.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [
                (key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"
            ]
            _without_twins(names)
            return super().construct_mapping(node, deep)

    try:
        documents = list(yaml.load_all(text, Loader))
        if any(further is not None for further in documents[1:]):
            raise ValueError("several documents")
        content = documents[0] if documents else None
        if _extent(content, {}) > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values by references")
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        reason = "deep nesting" if isinstance(error, RecursionError) else str(error)
        raise ValueError(" ".join(reason.split())) from error
    return _checked(content, text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:20]}")
    return value


def _whole(text: str) -> int:
    if abs(value := int(text)) >= 1 << 64:
        raise ValueError(f"the number {text[:20]}...")
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:100]!r} twice")
    return found


def _checked(content: Any, text: str) -> Any:
    """Return what was read; `ValueError` for deep nesting, and for texts that no file can hold (half of a surrogate pair)."""
    level = [content]
    for _ in range(_DEEPEST):
        level = [
            each
            for node in level
            if isinstance(node, dict | list)
            for each in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            break
    else:
        raise ValueError("deep nesting")
    if _SURROGATE.search(text):
        json.dumps(content, ensure_ascii=False, default=str, skipkeys=True).encode("utf-8")
    return content


def _extent(value: Any, known: dict[int, float]) -> float:
    """Return how many values a YAML document has with every reference written out; infinite where one holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")
        children = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_extent(child, known) for child in children)
    return known[id(value)]


def hash_file(path: Path | str) -> str:
    """Return the sha256 of a file's bytes as hexadecimal digits; `OSError` as `open_file`."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def name_of(path: Path | str) -> str:
    """Return a name under which something about a path is kept, 32 hexadecimal digits; it does not show the path."""
    return hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]


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


def write_facts(path: Path | str, facts: Any) -> None:
    """Write what a cache knows as JSON with a hash of it, atomically; `read_facts` returns it, `ValueError` if it was damaged."""
    text = json.dumps(facts, separators=(",", ":"), allow_nan=False)
    write_text(path, json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "facts": text}))


def read_facts(path: Path | str) -> Any:
    """Return what `write_facts` wrote; `OSError` as `open_file`, `ValueError` for anything else."""
    content = read_json(path)
    text = content.get("facts") if isinstance(content, dict) else None
    if not isinstance(text, str) or hashlib.sha256(text.encode()).hexdigest() != content.get("sha256"):
        raise ValueError("damaged facts")
    return json.loads(text)


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
