"""The networks: denoiser, stems, condition embedding, autoencoder, and sampling from a denoiser in memory."""

from medsynth.networks.autoencoder import LatentCodec, build_autoencoder
from medsynth.networks.condition import Condition, ConditionEmbedding, ConditionMaker, draw_observed, observe_channels
from medsynth.networks.denoiser import (
    Denoiser,
    build_denoiser,
    build_stem,
    check_network,
    checkpoint_activations,
    hold_observed,
)
from medsynth.networks.haar import HaarTransform
from medsynth.networks.sampling import (
    PlainDenoiser,
    SamplableDenoiser,
    draw_noise,
    edit_scans,
    inpaint_scans,
    sample_scans,
)
