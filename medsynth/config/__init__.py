"""Options of every verb as frozen dataclasses, and the lookup of the files that ship with the package.

Every option is declared once, here, with its default and its help. Nothing in this room imports torch, so `--help` is quick.
"""

from medsynth.config.changes import changed_options
from medsynth.config.declared import build_options, did_you_mean, options_of
from medsynth.config.evaluation import DownstreamOptions, FeatureOptions
from medsynth.config.generation import GuidanceOptions, InpaintOptions, ObservedOptions, SolverOptions
from medsynth.config.model import (
    AugmentationOptions,
    AutoencoderOptions,
    ConditionOptions,
    GridOptions,
    IntensityOptions,
    MonitorOptions,
    NetworkOptions,
    NoiseOptions,
    OptimiserOptions,
)
from medsynth.config.shared import Compute, Devices, Loading, TrainingCompute
from medsynth.config.shipped import CONFIGS, PIPELINES, Shipped
from medsynth.config.verbs import (
    OPTIONS,
    SCANS,
    AugmentOptions,
    CardOptions,
    ColumnOptions,
    DemoOptions,
    DistillOptions,
    DoctorOptions,
    EditOptions,
    EvaluateOptions,
    GenerationOptions,
    IndexOptions,
    SampleOptions,
    TrainOptions,
)
