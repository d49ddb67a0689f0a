"""Installed packages against what medsynth needs and against releases that are known to be bad."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, distributions

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from medsynth.installation.findings import Findings

DISTRIBUTION = "medsynth-diffusion"
NAMESAKE = "medsynth"


@dataclass(frozen=True, kw_only=True)
class KnownBad:
    """Releases of a package that must not be used, why, and what to do."""

    package: str
    versions: SpecifierSet
    reason: str
    remedy: str


KNOWN_BAD = (
    KnownBad(
        package="torch",
        versions=SpecifierSet("<2.10"),
        reason="CVE-2026-24747",
        remedy="pip install 'torch>=2.10'",
    ),
    KnownBad(
        package="lightning",
        versions=SpecifierSet(">=2.6.2,<2.6.4"),
        reason="2.6.2 and 2.6.3 were malware",
        remedy="pip install 'lightning>=2.6.4,<3', and treat every key and password on this machine as known to others",
    ),
    KnownBad(
        package="monai",
        versions=SpecifierSet("<1.6"),
        reason="two published security advisories (GHSA)",
        remedy="pip install 'monai>=1.6,<2'",
    ),
    KnownBad(
        package="pydicom",
        versions=SpecifierSet("<3.0.2"),
        reason="CVE-2026-32711",
        remedy="pip install 'pydicom>=3.0.2'",
    ),
    KnownBad(
        package="jsonargparse",
        versions=SpecifierSet(">=5"),
        reason="the command line is made for release 4",
        remedy="pip install 'jsonargparse[signatures]<5'",
    ),
)


def installed_packages() -> dict[str, str]:
    """Return the version of every installed distribution by its normalised name."""
    return {_normal(each.metadata["Name"]): each.version for each in distributions() if each.metadata["Name"]}


def required_packages() -> list[Requirement]:
    """Return what medsynth declares that it needs, extras included; nothing where it is not installed as a package."""
    try:
        return [Requirement(text) for text in distribution(DISTRIBUTION).requires or ()]
    except PackageNotFoundError:
        return []


def check_packages(installed: Mapping[str, str], required: list[Requirement]) -> Findings:
    """Compare installed versions with `required` and with what is known to be bad."""
    facts = [(DISTRIBUTION, installed.get(DISTRIBUTION, "not installed as a package"))]
    problems, notes = [], []
    for need in sorted(required, key=lambda each: each.name):
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        name = _normal(need.name)
        found = installed.get(name)
        bad = known_bad(name, found)
        if found is None:
            facts.append((name, "missing"))
            problems.append(f"{name}: need {need.specifier or 'any version'}, got none; try pip install '{need}'")
        elif bad is not None:
            facts.append((name, f"{found}  BAD: {bad.reason}"))
            problems.append(f"{name}: need another release, got {found} ({bad.reason}); try {bad.remedy}")
        elif not need.specifier.contains(found, prereleases=True):
            facts.append((name, f"{found}  outside {need.specifier}"))
            problems.append(f"{name}: need {need.specifier}, got {found}; try pip install '{need}'")
        else:
            facts.append((name, found))
    if not required:
        notes.append(
            f"{DISTRIBUTION} is not installed as a package, so its requirements are not known; try pip install -e ."
        )
    if NAMESAKE in installed:
        problems.append(
            f"{NAMESAKE}: need {DISTRIBUTION} alone, got the unrelated package {NAMESAKE} {installed[NAMESAKE]} as well, which "
            f"installs the same import name and command; try pip uninstall {NAMESAKE}, then {DISTRIBUTION} again"
        )
    return Findings(title="packages", facts=tuple(facts), problems=tuple(problems), notes=tuple(notes))


def check_extras(installed: Mapping[str, str], required: list[Requirement]) -> Findings:
    """Say of each optional extra whether its packages are there; none of them is needed."""
    lacking: dict[str, list[str]] = {}
    for need in required:
        for extra in re.findall(r"extra == ['\"]([\w-]+)['\"]", str(need.marker or "")):
            found = installed.get(_normal(need.name))
            fits = found is not None and need.specifier.contains(found, prereleases=True)
            lacking.setdefault(extra, []).extend([] if fits else [_normal(need.name)])
    facts = tuple(
        (extra, f"without {', '.join(sorted(names))}" if names else "present")
        for extra, names in sorted(lacking.items())
    )
    return Findings(title="extras", facts=facts or (("none", "declared"),))


def check_python() -> Findings:
    """Say which Python runs, and whether medsynth is made for it."""
    version = platform.python_version()
    try:
        wanted = SpecifierSet(distribution(DISTRIBUTION).metadata["Requires-Python"] or "")
    except PackageNotFoundError:
        wanted = SpecifierSet()
    problems = () if wanted.contains(version) else (f"python: need {wanted}, got {version}; try another Python",)
    system = f"{platform.system()} on {platform.machine()}"
    return Findings(title="system", facts=(("python", version), ("system", system)), problems=problems)


def known_bad(package: str, version: str | None) -> KnownBad | None:
    """Return why a release must not be used; None where nothing is known against it."""
    return next(
        (
            each
            for each in KNOWN_BAD
            if version is not None and each.package == package and each.versions.contains(version, prereleases=True)
        ),
        None,
    )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
