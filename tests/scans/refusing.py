"""Reading files that must be refused, and how much memory that takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medsynth.config import Loading
from medsynth.errors import DataError
from medsynth.scans import read_header, read_scan

_PEAK = """
import sys
from medsynth.config import Loading
from medsynth.errors import DataError
from medsynth.scans import read_header, read_scan
def peak():  # of this process image alone; ru_maxrss would begin with that of the process that started it
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
before = peak()
try:
    (read_header if sys.argv[2] == "header" else read_scan)(sys.argv[1], loading=Loading(max_mib=int(sys.argv[3])))
except DataError as error:
    print(error)
else:
    print("read")
print((peak() - before) // 1024)
"""


def refused(path: Path | str, *, loading: Loading = Loading(), header: bool = False) -> str:
    """Return the message of the refusal, after checking its form and that the folder holds nothing new."""
    folder = Path(str(path).split("#")[0])
    folder = folder if folder.is_dir() else folder.parent
    before = {each: each.stat().st_mtime_ns for each in folder.iterdir()}
    with pytest.raises(DataError) as caught:
        (read_header if header else read_scan)(path, loading=loading)
    message = str(caught.value)
    assert message.startswith((f"{path}: ", f"{path} [", f"{folder}/")), message
    assert "need" in message
    assert "\n" not in message
    assert {each: each.stat().st_mtime_ns for each in folder.iterdir()} == before
    return message


def peak_of(path: Path | str, *, max_mib: int = 512, header: bool = False) -> tuple[str, int]:
    """Read in a process of its own; return what it said and by how many MiB its peak memory rose."""
    command = [sys.executable, "-c", _PEAK, str(path), "header" if header else "scan", str(max_mib)]
    said, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split("\n")
    return said, int(peak)
