"""What a run says of its model: everything needed to rebuild the denoiser and to turn its output into files.

A run folder may come from anywhere, so every value is checked before it is used.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from medsynth.cohorts.attributes import Attribute
from medsynth.cohorts.channels import are_channels, only_images
from medsynth.cohorts.manifest import MASK, PATH
from medsynth.config import AutoencoderOptions, GridOptions, NetworkOptions
from medsynth.errors import ConfigError
from medsynth.networks import Denoiser, build_denoiser
from medsynth.networks.autoencoder import least_bytes
from medsynth.scans import Intensity

_MOST = 1 << 14  # channels, blocks, pixels along an axis, attributes
_SUFFIX = re.compile(r"(\.[a-z0-9]{1,8}){1,2}")
_MODALITY = re.compile(r"[A-Z]{2}")
_LARGEST = 1e300
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run needs to rebuild its denoiser and to turn its output into files.

    `shape` is `(channel, *spatial)` on the model grid, `affine` 4x4 in RAS millimetres. `class_counts` and `class_patients` are
    the training scans and patients of each class. `sigma_data` and `band_means` have one value for each band of the stem; latents
    have no `band_means`. `dtype` and `suffix` are those of the training scans; DICOM of any form has the suffix `.dcm`.
    `modality` is that of the first DICOM scan, None for other formats. `autoencoder` describes the codec of the stem `latent`,
    whose weights are among those of the denoiser; its `run` is the beginning of their fingerprint. Besides the class, the model
    is conditioned on `attributes`, on sentences of `text` numbers (0 for none), and, if `observed`, on observed channels.
    `channels` names the file of each channel: `path`, a sequence, or `mask` (the last one, where masks are generated); `dtypes`
    are those of the image files in this order. Both are empty where all channels come from one file.
    """

    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    class_patients: tuple[int, ...]
    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    intensity: Intensity
    dtype: str
    suffix: str
    network: NetworkOptions
    augmentation_parameters: int
    sigma_data: tuple[float, ...]
    band_means: tuple[float, ...] = ()
    autoencoder: AutoencoderOptions | None = None
    modality: str | None = None
    attributes: tuple[Attribute, ...] = ()
    text: int = 0
    observed: bool = False
    channels: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()

    @property
    def voxels(self) -> int:
        """Voxels of a scan."""
        return math.prod(self.shape[1:])

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The name of the file that each channel belongs to."""
        return self.channels or (PATH,) * self.shape[0]

    @property
    def mask(self) -> bool:
        """Whether the last channel is a mask."""
        return self.channels[-1:] == (MASK,)

    @property
    def files(self) -> dict[str, tuple[slice, str]]:
        """The channels and the dtype of each image file, by name."""
        names = [name for name in self.channel_names if name != MASK]
        order = list(dict.fromkeys(names))
        dtypes = self.dtypes or (self.dtype,) * len(order)
        return {
            name: (slice(names.index(name), names.index(name) + names.count(name)), dtype)
            for name, dtype in zip(order, dtypes, strict=True)
        }

    @property
    def image_intensity(self) -> Intensity:
        """The conversion of the channels without the mask."""
        return only_images(self.intensity, self.shape[0] - 1) if self.mask else self.intensity

    def build(self) -> Denoiser:
        """Return an untrained denoiser of this run's architecture."""
        return build_denoiser(
            self.network,
            channels=self.shape[0],
            size=self.shape[1:],
            classes=len(self.classes),
            augmentation_parameters=self.augmentation_parameters,
            sigma_data=torch.tensor(self.sigma_data),
            band_means=torch.tensor(self.band_means) if self.band_means else 0.0,
            categories=[len(attribute.categories) for attribute in self.attributes],
            observed=self.observed,
            text=self.text,
            autoencoder=self.autoencoder,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self) | {"intensity": self.intensity.as_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunSpec:
        """Return the spec that `as_dict` described; `ValueError` with the name of the first impossible value."""
        spec = read_values(cls, content)
        spec.check()
        return spec

    def check(self) -> None:
        """Raise `ValueError` with the name of the first value that has the right type, but is impossible."""
        count, axes = len(self.classes), len(self.shape) - 1
        network, latent = self.network, self.autoencoder
        images = len(set(self.channel_names) - {MASK})
        counts = [network.levels, network.residual_blocks, network.norm_groups, *network.channels]
        latent_counts = [] if latent is None else [latent.latent_channels, *latent.channels]
        facts = {
            "classes": count > 0 and len(set(self.classes)) == count and all(self.classes),
            "class_counts": len(self.class_counts) == count and min(self.class_counts) >= 0,
            "class_patients": len(self.class_patients) == count and min(self.class_patients) >= 0,
            "shape": axes in (2, 3) and _in_range(self.shape),
            "affine": [len(row) for row in self.affine] == [4] * 4,
            "dtype": _is_dtype(self.dtype),
            "channels": not self.channels or (len(self.channels) == self.shape[0] and are_channels(self.channels)),
            "dtypes": len(self.dtypes) in (0, images) and all(map(_is_dtype, self.dtypes)),
            # It becomes part of file names.
            "suffix": _SUFFIX.fullmatch(self.suffix) is not None,
            "network": 0 < len(network.channels) <= 16 and _in_range(counts) and 0 <= network.dropout <= 1,
            "autoencoder": (network.stem == "latent") == (latent is not None)
            and len(latent_counts) <= 17
            and _in_range(latent_counts),
            "augmentation_parameters": 0 <= self.augmentation_parameters <= _MOST,
            "sigma_data": 0 < len(self.sigma_data) <= _MOST and min(self.sigma_data) > 0,
            "band_means": len(self.band_means) in (0, len(self.sigma_data)),
            "attributes": len(self.attributes) <= _MOST and all(map(_is_attribute, self.attributes)),
            "text": 0 <= self.text <= _MOST,
            "observed": not (self.observed and latent is not None),
            "modality": self.modality is None or _MODALITY.fullmatch(self.modality) is not None,
        }
        if wrong := [name for name, holds in facts.items() if not holds]:
            raise ValueError(f"spec.{wrong[0]}")

    def least_bytes(self) -> int:
        """Return a lower bound on the size of the weights: one convolution in each residual block of the encoder."""
        one_level = sum(width * width for width in self.network.channels) * 3 ** (len(self.shape) - 1)
        latent = 0 if self.autoencoder is None else least_bytes(self.autoencoder, len(self.shape) - 1)
        return 4 * self.network.residual_blocks * one_level + latent

    def label_index(self, label: str) -> int:
        """Return the index of a class; `ConfigError` lists the classes when it is unknown."""
        if label not in self.classes:
            raise ConfigError(f"{label}: need one of the run's classes {', '.join(self.classes)}; got an unknown class")
        return self.classes.index(label)


def read_grid(content: Mapping[str, Any], size: tuple[int, ...]) -> GridOptions:
    """Return the grid in a run's options, of spatial shape `size`; `ValueError` for an impossible one."""
    grid = read_values(GridOptions, {**content, "size": list(size)})
    spacing = grid.spacing if isinstance(grid.spacing, tuple) else () if grid.spacing is None else (grid.spacing,)
    if any(length <= 0 for length in spacing):
        raise ValueError("grid.spacing")
    return grid


def read_values(cls: type[_T], content: Mapping[str, Any]) -> _T:
    """Return a dataclass from JSON values; `ValueError` with the name of a value that has not the declared type.

    Numbers must be finite. Missing values have their defaults; `TypeError` without one, and for unknown names.
    """
    kinds = get_type_hints(cls)
    return cls(**{name: _read(kinds.get(name), value, name) for name, value in content.items()})


def _read(kind: Any, value: Any, name: str) -> Any:
    """Return a JSON value as the type `kind`."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for part in parts:
            with suppress(ValueError):
                return _read(part, value, name)
    elif origin is tuple and isinstance(value, list):
        return tuple(_read(parts[0], each, name) for each in value)
    elif kind is Intensity:
        return Intensity.from_dict(value)
    elif dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return read_values(kind, value)  # type: ignore[arg-type]
    elif (
        (origin is Literal and value in parts)
        or (kind is float and type(value) in (int, float) and abs(value) < _LARGEST)
        or (kind in (bool, int, str, NoneType) and type(value) is kind)
    ):
        return value
    raise ValueError(name)


def _in_range(counts: Sequence[int]) -> bool:
    return all(0 < count <= _MOST for count in counts)


def _is_dtype(name: str) -> bool:
    dtype = np.dtype(name)
    return dtype.kind in "buif" and dtype.itemsize <= 8


def _is_attribute(attribute: Attribute) -> bool:
    names = (attribute.name, *attribute.categories)
    return all(names) and len(attribute.categories) != 1 and attribute.std > 0
