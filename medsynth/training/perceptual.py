"""A perceptual distance without a download: between features of EfficientNet-Lite0, whose weights are an installed package."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from medsynth.measures.features import EfficientNetLite0
from medsynth.seeds import numpy_generator

_LEAST_SIDE = 64
# The last blocks before the picture is halved: features of a half, a quarter, an eighth and a sixteenth of its width.
_BLOCKS = (0, 2, 4, 10)


class PerceptualDistance:
    """Mean squared distance of unit feature vectors at four depths (Zhang et al. 2018, equation 1, all channels alike).

    MONAI's perceptual loss would download the weights of its networks. Of a volume one plane across each axis is compared, at
    a place that `keys` decide. Smaller pictures than 64 x 64 are enlarged.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._network = _Maps(device)

    def __call__(self, scans: Tensor, others: Tensor, *keys: int | str) -> Tensor:
        """Return the distance of two batches `(N, C, *spatial)` in [-1, 1], each scan to its like, `(N,)`."""
        both = torch.cat([scans, others]).float()
        groups = [both] if both.ndim == 4 else _planes(both, *keys)
        total = torch.zeros(len(scans), device=scans.device)
        for group in groups:
            maps = self._network.maps(_legible(group.flatten(0, 1).unsqueeze(1)))
            for each in maps:
                first, second = normalize(each.float(), dim=1).chunk(2)
                distances = (first - second).square().sum(1).mean((1, 2))
                total = total + distances.reshape(len(scans), -1).mean(1) / (len(maps) * len(groups))
        return total


class _Maps(EfficientNetLite0):
    """The features before they are pooled, with a gradient of the pictures."""

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return features `(P, D, h, w)` at the depths of `_BLOCKS` of pictures `(P, 1, height, width)` in [-1, 1]."""
        network, found = self._network, []
        features = (((pictures + 1) * 127.5 - 127) / 128).expand(-1, 3, -1, -1)
        features = network._swish(network._bn0(network._conv_stem(features)))
        for number, block in enumerate(network._blocks[: _BLOCKS[-1] + 1]):
            features = block(features)
            if number in _BLOCKS:
                found.append(features)
        return found


def _legible(pictures: Tensor) -> Tensor:
    side = min(pictures.shape[2:])
    if side >= _LEAST_SIDE:
        return pictures
    return interpolate(pictures, scale_factor=_LEAST_SIDE / side, mode="bilinear", align_corners=False)


def _planes(volumes: Tensor, *keys: int | str) -> list[Tensor]:
    """One plane across each axis of all volumes `(N, C, *spatial)`."""
    random = numpy_generator(0, "planes", *keys)
    return [volumes.select(axis, int(random.integers(volumes.shape[axis]))) for axis in (2, 3, 4)]
