"""`medsynth doctor`: packages, machine and disk space, as text for a bug report that names no user, machine or folder."""

from __future__ import annotations

import getpass
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from medsynth.files import user_folder

DISTRIBUTION = "medsynth-diffusion"
NAMESAKE = "medsynth"  # an unrelated package with the same import name
# Releases that must not be used: package, versions, why, and what to do.
KNOWN_BAD = (
    ("torch", "<2.10", "CVE-2026-24747", "pip install 'torch>=2.10'"),
    ("lightning", ">=2.6.2,<2.6.4", "malware: replace your keys and passwords", "pip install 'lightning>=2.6.4,<3'"),
    ("monai", "<1.6", "two published security advisories (GHSA)", "pip install 'monai>=1.6,<2'"),
    ("pydicom", "<3.0.2", "CVE-2026-32711", "pip install 'pydicom>=3.0.2'"),
    ("jsonargparse", ">=5", "the command line needs release 4", "pip install 'jsonargparse[signatures]<5'"),
)
_GIB = 1 << 30
_LITTLE = 2 * _GIB  # free space below which a training may fill the disk
# A path in quotes may hold blanks; one without quotes ends at the next blank.
_PATHS = re.compile(r"""(['"])[^'"]*[/\\][^'"]*\1|[^\s'":;,]*(?:[A-Za-z]:)?[/\\][^\s'":;,]*""")
_LIBRARY = re.compile(r"[\w.+-]+\.(?:so[\d.]*|dll|dylib|pyd?)")


@dataclass(kw_only=True)
class Diagnosis:
    """What was found: `facts` as pairs of name and text, `problems` that stop medsynth, `notes` that do not."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return everything as text."""
        width = max(len(name) for name, _ in self.facts)
        lines = [f"{name:<{width}}  {text}" for name, text in self.facts]
        verdict = [f"problem: {text}" for text in self.problems] + [f"note: {text}" for text in self.notes]
        return "\n".join([*lines, "", *(verdict or ["this installation is sound"])])


def examine_installation(*, out: Path, quick: bool = False, progress: bool = True) -> Diagnosis:
    """Examine packages, machine and the disk of `out`, then run the self-test unless `quick`.

    If a package has a problem, none is imported: a known-bad release may do harm.
    """
    found = Diagnosis()
    check_packages(found, installed_packages(), required_packages())
    if quick or found.problems:
        found.facts.append(("self-test", "skipped"))
    if found.problems:
        return found
    try:
        check_machine(found)
        check_disk(found, out)
        if not quick:
            from medsynth.installation.selftest import run_self_test

            run_self_test(found, progress=progress)
    except (ImportError, OSError, RuntimeError) as error:  # a library or driver that does not load
        found.problems.append(f"does not run here: {without_names(error)}; try installing torch again")
    return found


def installed_packages() -> dict[str, str]:
    """Return the version of every installed distribution by its normalised name."""
    return {canonicalize_name(each.metadata["Name"]): each.version for each in distributions() if each.metadata["Name"]}


def required_packages() -> list[Requirement]:
    """Return what medsynth requires, including extras; nothing if it is not installed as a package."""
    try:
        return [Requirement(text) for text in distribution(DISTRIBUTION).requires or ()]
    except PackageNotFoundError:
        return []


def check_packages(found: Diagnosis, installed: Mapping[str, str], required: Sequence[Requirement]) -> None:
    """Compare installed versions with `required` and with known-bad releases, and list which extras are complete."""
    found.facts += [("python", platform.python_version()), (DISTRIBUTION, installed.get(DISTRIBUTION, "not installed"))]
    extras: dict[str, list[str]] = {}
    for need in sorted(required, key=lambda each: each.name):
        name = canonicalize_name(need.name)
        version = installed.get(name)
        fits = version is not None and need.specifier.contains(version, prereleases=True)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            for extra in re.findall(r"extra == ['\"]([\w-]+)['\"]", str(need.marker)):
                extras.setdefault(extra, []).extend([] if fits else [name])
            continue
        known = [row[1:] for row in KNOWN_BAD if row[0] == name and version is not None]
        bad = [row for row in known if SpecifierSet(row[0]).contains(version or "", prereleases=True)]
        found.facts.append((name, (version or "missing") + "".join(f"  BAD: {reason}" for _, reason, _ in bad)))
        if bad:
            found.problems.append(f"{name}: {version} must not be used ({bad[0][1]}); try {bad[0][2]}")
        elif not fits:
            wanted, got = need.specifier or "any version", version or "none"
            found.problems.append(f"{name}: need {wanted}, got {got}; try pip install '{need}'")
    for extra, names in sorted(extras.items()):
        found.facts.append((f"extra {extra}", f"without {', '.join(names)}" if names else "present"))
    if not required:
        found.notes.append(f"{DISTRIBUTION} is not installed, so its requirements are unknown; try pip install -e .")
    if NAMESAKE in installed:
        found.problems.append(
            f"{NAMESAKE}: the unrelated package {NAMESAKE} {installed[NAMESAKE]} has the same import name and command; "
            f"try pip uninstall {NAMESAKE}, then install {DISTRIBUTION} again"
        )


def check_machine(found: Diagnosis) -> None:
    """Describe system, processor, memory and GPUs, from `torch.utils.collect_env`; imports torch."""
    import torch
    from torch.utils.collect_env import get_env_info

    env, gpu = get_env_info(), torch.cuda.is_available()
    model = re.search(r"^Model name: *(.+)$", str(env.cpu_info), flags=re.MULTILINE)
    abilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every release
    fast = bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    build = torch.version.cuda or torch.version.hip
    facts = {
        "system": str(env.os).replace("GNU/Linux", "Linux"),
        "processor": model[1] if model else str(env.cpu_info),
        "cores": f"{os.cpu_count()}, {torch.get_num_threads()} threads used",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / _GIB:.1f} GiB",
        "torch build": f"CUDA or ROCm {build}" if build else "processor only",
        "GPU": "none",
    }
    if gpu:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        free, total = (size / _GIB for size in torch.cuda.mem_get_info())
        facts["GPU"] = f"{env.nvidia_gpu_models or torch.cuda.get_device_name()}, driver {env.nvidia_driver_version}"
        facts["GPU memory"] = f"{total:.1f} GiB, {free:.1f} GiB free"
    facts["bfloat16"] = "in hardware" if fast else "emulated: --precision bf16-mixed is not faster"
    found.facts += [(name, without_names(text)) for name, text in facts.items()]
    if build and not gpu:
        found.notes.append("torch is built for GPUs but finds none; if there is one, check its driver")


def check_disk(found: Diagnosis, out: Path) -> None:
    """Show the free space for results and for temporary files, whether these can be written, and the size of the cache."""
    places = {"folder of --out": (out.absolute(), "--out"), "temporary files": (Path(tempfile.gettempdir()), "TMPDIR")}
    for name, (folder, option) in places.items():
        there = next(each for each in (folder, *folder.parents) if each.is_dir())
        free = shutil.disk_usage(there).free
        found.facts.append((name, f"{free / _GIB:.1f} GiB free"))
        if not os.access(there, os.W_OK):
            found.notes.append(f"{name}: cannot be written; try another {option}")
        elif free < _LITTLE:
            found.notes.append(f"{name}: too little space for most trainings; try {option} on another disk")
    try:
        size = sum(each.stat().st_size for each in user_folder("cache").rglob("*") if each.is_file())
        found.facts.append(("prepared scans", f"{size / _GIB:.1f} GiB in the cache, which may be deleted at any time"))
    except OSError as error:
        found.notes.append(f"cache: {without_names(error.strerror or error)}; try --cache_dir")


def without_names(text: object) -> str:
    """Return a message on one line of at most 200 characters without paths, user name and host name.

    Of paths, only the names of libraries and Python files remain.
    """
    line = _PATHS.sub(lambda found: _name_of(found[0]), " ".join(str(text).split()))
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without an entry
        user = ""
    for name, stand_in in ((user, "USER"), (platform.node(), "HOST")):
        if len(name) > 2:
            line = re.sub(rf"\b{re.escape(name)}\b", stand_in, line)
    return line[:200]


def _name_of(path: str) -> str:
    last = re.split(r"[/\\]", path.strip("'\""))[-1]
    return last if _LIBRARY.fullmatch(last) else "PATH"
