"""How much memory a training step takes, counted without computing it, and how much there is."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")


class PeakBytes(TorchDispatchMode):
    """Follows the bytes of the tensors that operations make and that are still alive; `peak` is the most there were at once.

    Tensors from before do not count. On a processor, convolutions work on copies in an order of their own (oneDNN), which
    count while they run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._alive = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it makes."""
        results = func(*args, **(kwargs or {}))
        made = [each for each in (results if isinstance(results, tuple | list) else [results]) if _is_tensor(each)]
        for each in made:
            self._follow(each.untyped_storage())
        copies = 0
        if func._schema.name in _CONVOLUTIONS and made[0].device.type == "cpu":
            copies = sum(each.nbytes for each in (*args[: len(made)], *made) if _is_tensor(each))
        self.peak = max(self.peak, self._alive + copies)
        return results

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._alive += storage.nbytes()
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._alive -= self._sizes.pop(key)


def without_computing() -> AbstractContextManager[Any]:
    """A block in which operations make tensors without content or memory; of modules, `to_empty` makes such ones."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def free_memory(device: torch.device, *, root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take on a device; None where the system does not say.

    For a processor, the least of what the machine has and what control groups allow (containers, SLURM). `root` is
    that of the file system.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = [_available(root / "proc" / "meminfo"), *_left_by_groups(root)]
    known = [each for each in found if each is not None]
    return max(0, min(known)) if known else None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _available(path: Path) -> int | None:
    return _read_table(path).get("MemAvailable:", 0) * 1024 or None


def _left_by_groups(root: Path) -> Iterator[int | None]:
    """What the control groups of this process, and those above them, leave; files in the cache give way."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            top, limit, used, caches = "", "memory.max", "memory.current", ("inactive_file", "active_file")
        elif "memory" in controllers.split(","):
            top, limit, used = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            caches = ("total_inactive_file", "total_active_file")
        else:
            continue
        base = root / "sys" / "fs" / "cgroup" / top
        # Within a container the group is named as the host sees it, and may not be there; the top one always is.
        for folder in (base / group.strip("/"), *(base / group.strip("/")).parents):
            most, taken = _read_number(folder / limit), _read_number(folder / used)
            if most is not None and taken is not None:
                table = _read_table(folder / "memory.stat")
                yield most - taken + sum(table.get(name, 0) for name in caches)
            if folder == base:
                break


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" stands for no limit
        return None


def _read_table(path: Path) -> dict[str, int]:
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) > 1}
    except (OSError, ValueError):
        return {}
