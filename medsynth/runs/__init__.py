"""The run folder: one trained model and everything needed to use or continue it; see `medsynth.runs.folder` for its files."""

from medsynth.runs.folder import (
    ATTRIBUTES_FILE,
    EARLY_FILE,
    METRICS_FILE,
    RUN_FILE,
    TEXT_FILE,
    WEIGHTS_FILE,
    DivergedError,
    Run,
    first_not_finite,
    load_denoiser,
    load_run,
    read_weights,
    save_early,
    save_run,
    write_attributes,
    write_text_encoding,
)
from medsynth.runs.patients import PATIENTS_FILE, write_patients
from medsynth.runs.spec import RunSpec
