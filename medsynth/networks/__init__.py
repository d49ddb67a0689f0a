"""The networks: denoiser, stems, condition embedding, and sampling from a denoiser in memory."""

from medsynth.networks.autoencoder import LatentCodec, build_autoencoder
from medsynth.networks.checkpointing import checkpoint_activations
from medsynth.networks.condition import Condition, ConditionEmbedding, draw_given, give_channels
from medsynth.networks.denoiser import Denoiser, build_denoiser, build_stem, check_network, hold_given
from medsynth.networks.haar import HaarTransform, PixelStem
from medsynth.networks.sampling import draw_noise, sample_scans

__all__ = [
    "Condition",
    "ConditionEmbedding",
    "Denoiser",
    "HaarTransform",
    "LatentCodec",
    "PixelStem",
    "build_autoencoder",
    "build_denoiser",
    "build_stem",
    "check_network",
    "checkpoint_activations",
    "draw_given",
    "draw_noise",
    "give_channels",
    "hold_given",
    "sample_scans",
]
