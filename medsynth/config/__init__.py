"""Options of every verb as frozen dataclasses, and the lookup of the files that ship with the package.

Defaults live here and nowhere else. Nothing in this room imports torch, so `--help` is quick.
"""

from medsynth.config.autoencoder import AutoencoderOptions, ReconstructionOptions
from medsynth.config.changes import changed_options
from medsynth.config.distillation import ConsistencyOptions, TrajectoryOptions
from medsynth.config.editing import InpaintOptions, TrialOptions
from medsynth.config.evaluation import (
    ClassicalOptions,
    ClassifierOptions,
    DownstreamOptions,
    FeatureOptions,
    FidelityOptions,
    PrivacyOptions,
    ProbeOptions,
)
from medsynth.config.given import GivenOptions
from medsynth.config.labels import parse_pairs
from medsynth.config.model import (
    AugmentOptions,
    BalanceOptions,
    ColumnOptions,
    ConditionOptions,
    GridOptions,
    GuidanceOptions,
    IntensityOptions,
    MonitorOptions,
    NetworkOptions,
    NoiseOptions,
    OptimiserOptions,
    RareOptions,
    ReadingOptions,
    SolverOptions,
    StartOptions,
    TrainingPlan,
)
from medsynth.config.shipped import CONFIGS, PIPELINES, Shipped

__all__ = [
    "CONFIGS",
    "PIPELINES",
    "AugmentOptions",
    "AutoencoderOptions",
    "BalanceOptions",
    "ClassicalOptions",
    "ClassifierOptions",
    "ColumnOptions",
    "ConditionOptions",
    "ConsistencyOptions",
    "DownstreamOptions",
    "FeatureOptions",
    "FidelityOptions",
    "GivenOptions",
    "GridOptions",
    "GuidanceOptions",
    "InpaintOptions",
    "IntensityOptions",
    "MonitorOptions",
    "NetworkOptions",
    "NoiseOptions",
    "OptimiserOptions",
    "PrivacyOptions",
    "ProbeOptions",
    "RareOptions",
    "ReadingOptions",
    "ReconstructionOptions",
    "Shipped",
    "SolverOptions",
    "StartOptions",
    "TrainingPlan",
    "TrajectoryOptions",
    "TrialOptions",
    "changed_options",
    "parse_pairs",
]
