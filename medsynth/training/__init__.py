"""Training: the Lightning modules, their batches and callbacks, and the run that comes out."""

from medsynth.training.augmentation import Augmentation
from medsynth.training.autoencoder import AutoencoderRun, train_autoencoder
from medsynth.training.batches import StepSampler, class_shares
from medsynth.training.distill import distill_run
from medsynth.training.module import DiffusionModule
from medsynth.training.preflight import Memory, Preflight
from medsynth.training.train import advice, preflight_run, train_run
