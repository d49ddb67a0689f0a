"""What a benchmark ran on, for the head of its result."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from medsynth.versions import installed_versions


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, GPU, thread count, versions and the command line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    module = sys.modules["__main__"].__spec__
    return {
        "processor": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "versions": installed_versions(),
        "command": shlex.join(["python", "-m", module.name if module else sys.argv[0], *sys.argv[1:]]),
    }
