"""Every random draw is a function of (seed, keys), so that any part can be repeated or computed alone."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive_seed(seed: int, *keys: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on `seed` and on the keys, in order.

    Keys are hashed with their type, so `1` and `"1"` differ, and different lists of keys never give the same text.
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
    """Seed the generators that layers such as dropout use on `device` and on the CPU for `(seed, *keys)`.

    The result is that of `torch.manual_seed`, which takes a millisecond because it seeds every kind of device.
    """
    import torch

    value = derive_seed(seed, *keys)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
