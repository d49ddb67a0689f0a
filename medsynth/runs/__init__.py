"""The run folder: one trained model and everything needed to use or continue it; `medsynth.runs.folder` says what is in it."""

from medsynth.runs.folder import (
    ATTRIBUTES_FILE,
    EARLY_FILE,
    METRICS_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    Run,
    load_denoiser,
    load_run,
    save_early,
    save_run,
    write_attributes,
)
from medsynth.runs.patients import PATIENTS_FILE, WithPatients, read_patients, write_patients
from medsynth.runs.spec import RunSpec

__all__ = [
    "ATTRIBUTES_FILE",
    "EARLY_FILE",
    "METRICS_FILE",
    "PATIENTS_FILE",
    "RUN_FILE",
    "WEIGHTS_FILE",
    "Run",
    "RunSpec",
    "WithPatients",
    "load_denoiser",
    "load_run",
    "read_patients",
    "save_early",
    "save_run",
    "write_attributes",
    "write_patients",
]
