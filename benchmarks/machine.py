"""What a benchmark ran on, for the head of its result."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from medsynth.versions import installed_versions


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, GPU, thread count, versions, commit and the command line."""
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
        "commit": _commit(),
        "command": shlex.join(["python", "-m", module.name if module else sys.argv[0], *sys.argv[1:]]),
    }


def _commit() -> str:
    """Return the commit whose code runs, with `+` where files differ from it; empty outside of a repository."""
    top = Path(__file__).parents[1]
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=top, capture_output=True, text=True).stdout
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "medsynth", "configs"], cwd=top, capture_output=True, text=True
        ).stdout
    except OSError:
        return ""
    return commit.strip() + ("+" if changed.strip() else "")
