"""medsynth: class-conditional diffusion models that augment rare conditions in medical imaging.

Everything here loads on first use; `import medsynth` itself loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "demo": "medsynth.api",
    "index": "medsynth.api",
    "train": "medsynth.api",
    "distill": "medsynth.api",
    "sample": "medsynth.api",
    "edit": "medsynth.api",
    "select": "medsynth.api",
    "evaluate": "medsynth.api",
    "augment": "medsynth.api",
    "card": "medsynth.api",
    "doctor": "medsynth.api",
    "fetch": "medsynth.api",
    "run_recipe": "medsynth.pipeline",
    "load_config": "medsynth.pipeline",
    "generate": "medsynth.generation",
    "load_run": "medsynth.runs",
    "load_denoiser": "medsynth.runs",
    "read_scan": "medsynth.scans",
    "write_scan": "medsynth.scans",
    "write_dicom": "medsynth.scans",
    "write_segmentation": "medsynth.scans",
    "Scan": "medsynth.scans",
    "read_cohort": "medsynth.cohorts",
    "prepare_cohort": "medsynth.cohorts",
    "ScanDataset": "medsynth.cohorts",
    "DiffusionModule": "medsynth.training",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medsynth' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
