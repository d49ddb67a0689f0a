"""Training: the Lightning module, its batches and callbacks, and the run that comes out."""

from medsynth.training.augmentation import Augmentation
from medsynth.training.batches import StepSampler, class_shares
from medsynth.training.module import DiffusionModule
from medsynth.training.spec import measure_sigma_data
from medsynth.training.train import advice, train_run

__all__ = [
    "Augmentation",
    "DiffusionModule",
    "StepSampler",
    "advice",
    "class_shares",
    "measure_sigma_data",
    "train_run",
]
