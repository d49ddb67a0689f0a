"""Training: the Lightning module, its batches and callbacks, and the run that comes out."""

from medsynth.training.augmentation import Augmentation
from medsynth.training.autoencoder import AutoencoderModule
from medsynth.training.autoencoder_run import AutoencoderRun
from medsynth.training.batches import StepSampler, class_shares
from medsynth.training.module import DiffusionModule
from medsynth.training.preflight import Memory, Preflight
from medsynth.training.spec import measure_bands
from medsynth.training.train import advice, preflight_run, train_run
from medsynth.training.train_autoencoder import train_autoencoder

__all__ = [
    "Augmentation",
    "AutoencoderModule",
    "AutoencoderRun",
    "DiffusionModule",
    "Memory",
    "Preflight",
    "StepSampler",
    "advice",
    "class_shares",
    "measure_bands",
    "preflight_run",
    "train_autoencoder",
    "train_run",
]
