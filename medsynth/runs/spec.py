"""What a run says of its model: everything needed to rebuild the denoiser and to turn its output into files."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medsynth.cohorts.attributes import Attribute
from medsynth.cohorts.channels import only_images
from medsynth.cohorts.sequences import MASK, PATH, are_channels
from medsynth.config import AutoencoderOptions, NetworkOptions
from medsynth.errors import ConfigError
from medsynth.networks import Denoiser, build_denoiser
from medsynth.networks.autoencoder import least_bytes, read_autoencoder_options
from medsynth.runs.values import MOST, as_tuples, is_name, is_positive, is_whole
from medsynth.scans import Intensity

_SUFFIX = re.compile(r"(\.[a-z0-9]{1,8}){1,2}")
_MODALITY = re.compile(r"[A-Z]{2}")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run needs to rebuild its denoiser and to turn its output into files.

    `shape` is `(channel, *spatial)` on the model grid, `affine` 4x4 in RAS millimetres, `sigma_data` one value for each band
    of the stem, and so `band_means`, empty where they are not taken away, `dtype` and `suffix` those of the training scans,
    `class_counts` the training scans of each class, `parents`
    and `gate_sigma` those of `ConditionEmbedding`. `autoencoder` is that of the stem `latent`, its `run` the beginning of the
    fingerprint of its weights; these are among those of the denoiser. DICOM of any form has the suffix `.dcm`; `modality` is
    what its first scan says it is, None for other formats. `attributes` are what it is told of a scan besides the class;
    `given` says whether channels can be given to it. `channels` names each channel by its file: `path`, a sequence, and `mask` at
    the end where masks are generated, too; `dtypes` are those of the image files in this order. Both are empty where all channels
    are those of one file.
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
    parents: tuple[int, ...] = ()
    gate_sigma: float = 0.0
    autoencoder: AutoencoderOptions | None = None
    modality: str | None = None
    attributes: tuple[Attribute, ...] = ()
    given: bool = False
    channels: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    band_means: tuple[float, ...] = ()

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
            parents=self.parents,
            gate_sigma=self.gate_sigma,
            categories=[len(attribute.categories) for attribute in self.attributes],
            given=self.given,
            autoencoder=self.autoencoder,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self) | {"intensity": self.intensity.as_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunSpec:
        """Return the spec that `as_dict` described."""
        groups_of = ("intensity", "network", "autoencoder", "attributes")
        values = {key: as_tuples(value) for key, value in content.items() if key not in groups_of}
        # Runs from before this was an option.
        groups = {"norm_groups": math.gcd(32, *content["network"]["channels"])}
        network = NetworkOptions(**groups | {key: as_tuples(value) for key, value in content["network"].items()})
        latent = content.get("autoencoder")
        spec = cls(
            **values,
            network=network,
            intensity=Intensity.from_dict(content["intensity"]),
            autoencoder=None if latent is None else read_autoencoder_options(latent),
            attributes=tuple(
                Attribute(**{key: as_tuples(value) for key, value in each.items()})
                for each in content.get("attributes", ())
            ),
        )
        spec.check()
        return spec

    def check(self) -> None:
        """Raise `ValueError` that names what no run says of itself; a run folder may come from anywhere."""
        count, axes = len(self.classes), len(self.shape) - 1
        affine = np.array(self.affine, dtype=np.float64)
        named = len(self.channels) in (0, self.shape[0]) and (not self.channels or are_channels(self.channels))
        images = len(set(self.channel_names) - {MASK})
        facts = {
            "classes": count > 0 and len(set(self.classes)) == count and all(map(is_name, self.classes)),
            "class_counts": len(self.class_counts) == count and all(map(is_whole, self.class_counts)),
            "class_patients": len(self.class_patients) == count and all(map(is_whole, self.class_patients)),
            "shape": axes in (2, 3) and all(is_whole(length, 1, MOST) for length in self.shape),
            "affine": affine.shape == (4, 4) and bool(np.isfinite(affine).all()),
            "dtype": _is_dtype(self.dtype),
            "channels": named,
            "dtypes": len(self.dtypes) in (0, images) and all(map(_is_dtype, self.dtypes)),
            # It becomes part of file names.
            "suffix": _SUFFIX.fullmatch(self.suffix) is not None,
            "network": _is_network(self.network),
            "autoencoder": (self.network.stem == "latent") == (self.autoencoder is not None),
            "augmentation_parameters": is_whole(self.augmentation_parameters, 0, MOST),
            "sigma_data": 0 < len(self.sigma_data) <= MOST and all(map(is_positive, self.sigma_data)),
            "band_means": len(self.band_means) in (0, len(self.sigma_data))
            and all(type(value) is float and math.isfinite(value) for value in self.band_means),
            "parents": len(self.parents) in (0, count) and all(is_whole(each, 0, count - 1) for each in self.parents),
            "gate_sigma": self.gate_sigma == 0 or is_positive(self.gate_sigma),
            "attributes": len(self.attributes) <= MOST and all(map(_is_attribute, self.attributes)),
            "given": type(self.given) is bool and not (self.given and self.autoencoder is not None),
            "modality": self.modality is None or _MODALITY.fullmatch(self.modality) is not None,
        }
        if wrong := [name for name, holds in facts.items() if not holds]:
            raise ValueError(f"spec.{wrong[0]}")

    def least_bytes(self) -> int:
        """Return a size that the weights have at the least: that of one convolution in each residual block going down."""
        one_level = sum(width * width for width in self.network.channels) * 3 ** (len(self.shape) - 1)
        latent = 0 if self.autoencoder is None else least_bytes(self.autoencoder, len(self.shape) - 1)
        return 4 * self.network.residual_blocks * one_level + latent

    def label_index(self, label: str) -> int:
        """Return the index of a class; `ConfigError` lists the classes when it is unknown."""
        if label not in self.classes:
            raise ConfigError(f"{label}: need one of the run's classes {', '.join(self.classes)}; got an unknown class")
        return self.classes.index(label)


def _is_dtype(name: Any) -> bool:
    dtype = np.dtype(name)
    return isinstance(name, str) and dtype.kind in "buif" and dtype.itemsize <= 8


def _is_attribute(attribute: Attribute) -> bool:
    numbers = (attribute.mean, attribute.low, attribute.high)
    return (
        is_name(attribute.name)
        and type(attribute.categories) is tuple
        and len(attribute.categories) != 1
        and all(map(is_name, attribute.categories))
        and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
        and is_positive(attribute.std)
        and type(attribute.whole) is bool
    )


def _is_network(options: NetworkOptions) -> bool:
    """Whether every option has the type of its default and every count can be meant."""
    counts = (options.levels, options.residual_blocks, options.head_channels, options.norm_groups, *options.channels)
    switches = (*options.attention, options.band_scaling, options.centring, options.shrinkage)
    return (
        options.stem in ("haar", "pixel", "latent")
        and all(is_whole(count, 1, MOST) for count in counts)
        and 0 < len(options.channels) <= 16
        and all(type(switch) is bool for switch in switches)
        and type(options.dropout) in (int, float)
        and 0 <= options.dropout <= 1
    )
