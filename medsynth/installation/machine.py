"""Processor, memory, GPU, and the folders that medsynth writes in; without a name of machine, user or folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from medsynth.installation.findings import Findings, without_names

_GIB = 1 << 30
_LITTLE = 2 * _GIB


def check_processor() -> Findings:
    """Describe processor, threads and memory."""
    abilities = _abilities()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    fast = bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    facts = [
        ("processor", _processor_name()),
        ("cores", f"{os.cpu_count()}, of which {cores} may be used"),
        ("threads of torch", f"{torch.get_num_threads()}" + (f" (OMP_NUM_THREADS={threads})" if threads else "")),
        ("bfloat16", "in hardware" if fast else "emulated: --precision bf16-mixed will not be faster"),
    ]
    if memory := _memory():
        facts.append(("memory", f"{memory[0] / _GIB:.1f} GiB, {memory[1] / _GIB:.1f} GiB of it available"))
    return Findings(title="processor", facts=tuple(facts))


def check_gpu() -> Findings:
    """Describe every GPU that torch sees, and why it may see none."""
    build = torch.version.cuda or torch.version.hip
    facts, notes = [("torch", f"{torch.__version__}, built for {f'CUDA {build}' if build else 'processors only'}")], []
    if not torch.cuda.is_available():
        facts.append(("GPU", "none"))
        if build:
            notes.append("torch is built for GPUs and sees none: if there is one, look at its driver (nvidia-smi)")
        return Findings(title="GPU", facts=tuple(facts), notes=tuple(notes))
    problems = []
    for number in range(torch.cuda.device_count()):
        try:
            facts += _describe_gpu(number)
        except RuntimeError as error:
            problems.append(
                f"GPU {number}: need one that computes, got {without_names(error)}; try its driver, or --device cpu"
            )
    return Findings(title="GPU", facts=tuple(facts), notes=tuple(notes), problems=tuple(problems))


def check_folders(out: Path, cache: Path) -> Findings:
    """Say how much room there is for results, for the cache and for temporary files, and whether they can be written."""
    facts, notes = [], []
    places = (
        ("folder of --out", out, "--out on another disk"),
        ("cache of prepared scans", cache, "--cache_dir"),
        ("temporary files", Path(tempfile.gettempdir()), "TMPDIR on another disk"),
    )
    for name, folder, remedy in places:
        there = _existing(folder)
        free = shutil.disk_usage(there).free
        if problem := _cannot_write(there):
            facts.append((name, f"{free / _GIB:.1f} GiB free, cannot be written"))
            notes.append(f"{name}: need a folder that can be written, got {problem}; try {remedy}")
            continue
        facts.append((name, f"{free / _GIB:.1f} GiB free, can be written"))
        if free < _LITTLE:
            notes.append(f"{name}: {free / _GIB:.1f} GiB free is little for a training; try {remedy}")
    return Findings(title="folders", facts=tuple(facts), notes=tuple(notes))


def _describe_gpu(number: int) -> list[tuple[str, str]]:
    facts = torch.cuda.get_device_properties(number)
    with torch.cuda.device(number):
        free, total = torch.cuda.mem_get_info()
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return [
        (f"GPU {number}", f"{facts.name}, compute capability {facts.major}.{facts.minor}"),
        ("  memory", f"{total / _GIB:.1f} GiB, {free / _GIB:.1f} GiB of it free"),
        ("  bfloat16", "in hardware" if bfloat16 else "not in hardware: use --precision 32-true"),
    ]


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else str(_abilities().get("cpu_name", "unknown"))


def _abilities() -> dict[str, Any]:
    """Return what torch knows of the processor; nothing with a torch that does not say."""
    return dict(getattr(torch.cpu, "get_capabilities", dict)())


def _memory() -> tuple[int, int] | None:
    """Return total and available bytes; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        return sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _cannot_write(folder: Path) -> str:
    """Return why no file can be made in a folder; empty where one can, of which nothing stays."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"medsynth")
    except OSError as error:
        return without_names(error.strerror or error)
    return ""
