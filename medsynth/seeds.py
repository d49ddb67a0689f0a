"""Every random draw of medsynth is a function of (seed, keys), so any part can be repeated or computed alone."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive_seed(seed: int, *keys: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on `seed` and on the keys, in order.

    Keys are hashed with their type, so `1` and `"1"` differ, and no two key lists run into each other.
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, *keys: int | str) -> np.random.Generator:
    """Return a NumPy generator for `(seed, *keys)`."""
    import numpy as np

    return np.random.default_rng(derive_seed(seed, *keys))


def torch_generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator for `(seed, *keys)` on `device`."""
    import torch

    generator = torch.Generator(device=device)
    generator.manual_seed(derive_seed(seed, *keys))
    return generator


def seed_layers(seed: int, *keys: int | str, device: torch.device) -> None:
    """Seed what layers such as dropout draw from on `device` (and the processor) for `(seed, *keys)`.

    As `torch.manual_seed`, which seeds every kind of device that there might be and takes a millisecond for it.
    """
    import torch

    value = derive_seed(seed, *keys)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
