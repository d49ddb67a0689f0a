"""Two further contrasts of a phantom scan: the same anatomy as two sequences of an MR scanner might show it.

They are functions of the tissue, with a brightness, tissue values, a shading and a noise of their own in every scan; so the
sequence that is taken away from a scan is known.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import gaussian_filter

from medsynth.cohorts.lesion import RARE

CONTRASTS = ("t1", "t2")
# Signal at the HU of air, lung, fat, water, muscle, spongy bone, and compact bone.
_HU = (-1000.0, -850.0, -100.0, 0.0, 52.0, 220.0, 600.0)
_SIGNALS = {"t1": (10, 45, 820, 170, 350, 620, 60), "t2": (10, 70, 520, 800, 190, 430, 40)}
# What is not told by its HU: blood that flows gives little signal, lesions hold water.
_BLOOD = {"t1": 110.0, "t2": 70.0}
_LESION = {"t1": 330.0, "t2": 560.0}
_HAZE = {"t1": 120.0, "t2": 330.0}
_NOISE, _SHADING = 14.0, 0.16
_HIGHEST = 4095


def draw_contrasts(
    tissue: np.ndarray, regions: Mapping[str, np.ndarray], mask: np.ndarray, label: str, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return `t1` and `t2`, int16 from 0, of a scan of any rank with `tissue` in HU without noise.

    `regions` are those of a `PhantomScan` and `mask` its lesion, of the class `label`.
    """
    lesion = gaussian_filter(mask.astype(np.float64), 0.5)
    vessels, heart = regions["vessels"] * (1 - lesion), regions["heart"] * np.clip(tissue / 40, 0, 1)
    return {
        name: _draw(name, tissue, np.clip(vessels + heart, 0, 1), lesion, haze=label == RARE, random=random)
        for name in CONTRASTS
    }


def _draw(
    name: str, tissue: np.ndarray, blood: np.ndarray, lesion: np.ndarray, *, haze: bool, random: np.random.Generator
) -> np.ndarray:
    values = np.array(_SIGNALS[name]) * np.exp(random.normal(0, 0.06, len(_HU)))
    signal = np.interp(tissue, _HU, values)
    signal += blood * (_BLOOD[name] * np.exp(random.normal(0, 0.15)) - signal)
    signal += lesion * ((_HAZE if haze else _LESION)[name] * np.exp(random.normal(0, 0.08)) - signal)
    signal *= np.exp(random.normal(0, 0.08) + _SHADING * _shading(tissue.shape, random))
    # The magnitude of a signal with noise in both of its parts.
    noise, other = random.normal(0, _NOISE, (2, *tissue.shape))
    return np.clip(np.rint(np.hypot(signal + noise, other)), 0, _HIGHEST).astype(np.int16)


def _shading(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Return a smooth field about 0: what the place of the coil does to brightness."""
    axes = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    field = np.zeros(shape)
    for axis in axes:
        slope, bow = random.normal(0, 0.6, 2)
        field += slope * axis + bow * (axis**2 - 1 / 3)
    return field
