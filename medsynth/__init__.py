"""medsynth: class-conditional diffusion models that augment rare conditions in medical imaging.

Everything here loads on first use; `import medsynth` itself loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "medsynth.api": (
        "demo", "index", "train", "distill", "sample", "edit", "evaluate", "augment", "card", "doctor", "load_run",
    ),
    "medsynth.pipeline": ("run_recipe", "load_config"),
    "medsynth.evaluation": ("compare",),
    "medsynth.generation": ("generate",),
    "medsynth.training": ("DiffusionModule",),
    "medsynth.runs": ("load_denoiser",),
    "medsynth.networks": ("build_denoiser", "Condition"),
    "medsynth.cohorts": ("read_cohort", "prepare_cohort", "ScanDataset"),
    "medsynth.scans": ("read_scan", "write_scan", "write_dicom", "write_segmentation", "Scan"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'medsynth' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
