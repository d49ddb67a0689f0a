"""The run folder: one trained model and everything needed to use or continue it.

```
run.json            format version, classes, geometry, intensity, options, versions, fingerprint of the weights, checksums
model.safetensors   averaged weights (EMA) of the denoiser
config.yaml         the options of `medsynth train`, without paths
patients.json       salted fingerprints of the patients it was trained and validated on
metrics.csv         step,name,value
previews/           pictures of every class while training
checkpoints/        for resuming only, with checksums of their own
```
Weights are safetensors; no pickle in a run folder is ever executed. No path, file name or ID of a patient is in it.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medsynth.config import AutoencoderOptions, GridOptions, NetworkOptions
from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path, hash_file, write_json
from medsynth.networks import Denoiser, build_denoiser
from medsynth.networks.autoencoder import least_bytes, read_autoencoder_options
from medsynth.scans import Intensity
from medsynth.versions import installed_versions

FORMAT = "medsynth-run/1"
RUN_FILE, WEIGHTS_FILE, PATIENTS_FILE, METRICS_FILE = "run.json", "model.safetensors", "patients.json", "metrics.csv"
# Path("https://host") is "https:/host".
_URL = re.compile(r"[a-z][a-z0-9+.\-]+:/", re.IGNORECASE)
_SUFFIX = re.compile(r"(\.[a-z0-9]{1,8}){1,2}")
_MODALITY = re.compile(r"[A-Z]{2}")
_GRID = {"fit": ("pad", "crop", "stretch"), "centre": ("scan", "mask"), "padding": ("background", "edge")}
_MOST = 1 << 14  # of anything that a network has several of


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run needs to rebuild its denoiser and to turn its output into files.

    `shape` is `(channel, *spatial)` on the model grid, `affine` 4x4 in RAS millimetres, `sigma_data` one value for each band
    of the stem, `dtype` and `suffix` those of the training scans, `class_counts` the training scans of each class, `parents`
    and `gate_sigma` those of `ConditionEmbedding`. `autoencoder` is that of the stem `latent`, its `run` the beginning of the
    fingerprint of its weights; these are among those of the denoiser. DICOM of any form has the suffix `.dcm`; `modality` is
    what its first scan says it is, None for other formats.
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

    def build(self) -> Denoiser:
        """Return an untrained denoiser of this run's architecture."""
        return build_denoiser(
            self.network,
            channels=self.shape[0],
            size=self.shape[1:],
            classes=len(self.classes),
            augmentation_parameters=self.augmentation_parameters,
            sigma_data=torch.tensor(self.sigma_data),
            parents=self.parents,
            gate_sigma=self.gate_sigma,
            autoencoder=self.autoencoder,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self) | {"intensity": self.intensity.as_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunSpec:
        """Return the spec that `as_dict` described."""
        groups_of = ("intensity", "network", "autoencoder")
        values = {key: _tuples(value) for key, value in content.items() if key not in groups_of}
        # Runs from before this was an option.
        groups = {"norm_groups": math.gcd(32, *content["network"]["channels"])}
        network = NetworkOptions(**groups | {key: _tuples(value) for key, value in content["network"].items()})
        latent = content.get("autoencoder")
        spec = cls(
            **values,
            network=network,
            intensity=Intensity.from_dict(content["intensity"]),
            autoencoder=None if latent is None else read_autoencoder_options(latent),
        )
        spec.check()
        return spec

    def check(self) -> None:
        """Raise `ValueError` that names what no run says of itself; a run folder may come from anywhere."""
        count, axes = len(self.classes), len(self.shape) - 1
        affine = np.array(self.affine, dtype=np.float64)
        dtype = np.dtype(self.dtype)
        facts = {
            "classes": count > 0 and len(set(self.classes)) == count and all(map(_is_name, self.classes)),
            "class_counts": len(self.class_counts) == count and all(map(_is_whole, self.class_counts)),
            "class_patients": len(self.class_patients) == count and all(map(_is_whole, self.class_patients)),
            "shape": axes in (2, 3) and all(_is_whole(length, 1, _MOST) for length in self.shape),
            "affine": affine.shape == (4, 4) and bool(np.isfinite(affine).all()),
            "dtype": dtype.kind in "buif" and dtype.itemsize <= 8,
            # It becomes part of file names.
            "suffix": _SUFFIX.fullmatch(self.suffix) is not None,
            "network": _is_network(self.network),
            "autoencoder": (self.network.stem == "latent") == (self.autoencoder is not None),
            "augmentation_parameters": _is_whole(self.augmentation_parameters, 0, _MOST),
            "sigma_data": 0 < len(self.sigma_data) <= _MOST and all(map(_is_positive, self.sigma_data)),
            "parents": len(self.parents) in (0, count) and all(_is_whole(each, 0, count - 1) for each in self.parents),
            "gate_sigma": self.gate_sigma == 0 or _is_positive(self.gate_sigma),
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


class WithPatients(Protocol):
    """A run of any kind, as far as it says whom it was trained on."""

    def patient_fingerprints(self) -> tuple[str, dict[str, set[str]]]: ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder that has been read.

    `fingerprint` (sha256) names the weights, `steps` how far they were trained; `checksums` are those of other files, by name.
    """

    folder: Path
    spec: RunSpec
    options: Mapping[str, Any]
    steps: int
    fingerprint: str
    checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def load_denoiser(self, device: torch.device | str = "cpu") -> Denoiser:
        """Return the trained denoiser on `device`, in evaluation mode; `DataError` if the weights do not fit or changed."""
        path = self.folder / WEIGHTS_FILE
        if not path.is_file():
            raise DataError(f"{path}: need the trained weights, got no file; try training until the first checkpoint")
        if hash_file(path) != self.fingerprint:
            raise DataError(
                f"{path}: need the weights that run.json names, got other bytes; try again if it is being trained now, else "
                "training it again"
            )
        # Before memory is taken for the network that run.json describes.
        if path.stat().st_size < self.spec.least_bytes():
            raise DataError(f"{path}: need the weights of this run's network, got too few bytes; try training again")
        try:
            denoiser = self.spec.build()
            denoiser.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError, OSError, ConfigError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path}: need the weights of this run's network, got {reason}; try training again"
            ) from error
        return denoiser.to(device).eval().requires_grad_(False)

    @property
    def grid(self) -> GridOptions:
        """The grid that its training scans were brought to."""
        given = {name: _tuples(value) for name, value in self.options["grid"].items() if name != "size"}
        return GridOptions(size=self.spec.shape[1:], **given)

    def read_metrics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return `(steps, values)`, both `(N,)`, of every metric in metrics.csv; nothing if there is no such file.

        `DataError` for a file that holds something else.
        """
        path = self.folder / METRICS_FILE
        if not path.is_file():
            return {}
        series: dict[str, list[tuple[int, float]]] = {}
        try:
            with path.open(encoding="utf-8", newline="") as stream:
                for row in csv.reader(stream):
                    if len(row) == 3 and row[0].isdecimal() and row[2]:  # a kill may have torn the last one
                        series.setdefault(row[1], []).append((int(row[0]), float(row[2])))
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"{path}: need rows of step,name,value, got {error}; try moving the file away") from error
        return {
            name: (np.array([step for step, _ in points]), np.array([value for _, value in points]))
            for name, points in series.items()
        }

    def shared_patients(self, patients: Iterable[str]) -> list[str]:
        """Return those of the patient IDs that the run was trained or validated on, sorted.

        `DataError` if the run does not say who these were.
        """
        salt, splits = self.patient_fingerprints()
        seen = set().union(*splits.values())
        return sorted(name for name in set(patients) if _patient_fingerprint(name, salt) in seen)

    def patient_fingerprints(self) -> tuple[str, dict[str, set[str]]]:
        """Return what `read_patients` does of this run."""
        return read_patients(self.folder, self.checksums)

    def summary(self) -> str:
        """Return what a user should know when training is done."""
        classes = ", ".join(
            f"{label} ({count})" for label, count in zip(self.spec.classes, self.spec.class_counts, strict=True)
        )
        return f"{self.folder}: trained {self.steps} steps on {classes}\nfingerprint {self.fingerprint[:16]}"


def save_run(folder: Path, spec: RunSpec, denoiser: Denoiser, *, options: Mapping[str, Any], steps: int) -> Run:
    """Write weights and `run.json`, each atomically, and return the run; `patients.json` must not change afterwards.

    `run.json` comes first and also names the weights that it is about to replace: whatever a kill in between leaves can be used.
    """
    path = folder / WEIGHTS_FILE
    patients = folder / PATIENTS_FILE
    checksums = {PATIENTS_FILE: hash_file(patients)} if patients.is_file() else {}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.state_dict().items()}
    before = load_run(folder) if (folder / RUN_FILE).is_file() else None
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT})
        fingerprint = hash_file(temporary)
        replaced = None if before is None or before.fingerprint == fingerprint else before
        content = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "steps": steps,
            "previous": None if replaced is None else {"fingerprint": replaced.fingerprint, "steps": replaced.steps},
            "checksums": checksums,
            "spec": spec.as_dict(),
            "options": dict(options),
            "versions": installed_versions(),
        }
        write_json(folder / RUN_FILE, content)
    return Run(
        folder=folder, spec=spec, options=dict(options), steps=steps, fingerprint=fingerprint, checksums=checksums
    )


def load_run(folder: Run | Path | str) -> Run:
    """Read a run folder (a `Run` is returned as it is); `DataError` if it is none or damaged, `ConfigError` for a URL."""
    if isinstance(folder, Run):
        return folder
    if _URL.match(str(folder)):
        raise ConfigError(f"{folder}: need a local run folder, got a URL; try copying the run to this machine first")
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise DataError(f"{folder}: need a run folder with {RUN_FILE}, got none; try the --out of `medsynth train`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"{path}: need format {FORMAT}, got {content['format']}; try the medsynth that trained it")
        if not _is_grid(content["options"]["grid"]):
            raise ValueError("options.grid")
        fingerprint, steps = _weights_there(Path(folder), content)
        return Run(
            folder=Path(folder),
            spec=RunSpec.from_dict(content["spec"]),
            options=content["options"],
            steps=steps,
            fingerprint=fingerprint,
            checksums=dict(content.get("checksums", {})),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: need a run description, got damaged content ({reason}); try training again"
        ) from error


def load_denoiser(run: Path | str, device: torch.device | str = "cpu") -> Denoiser:
    """Return the trained denoiser of a run folder: `denoiser(noisy, sigma, condition) -> denoised`, scans in [-1, 1]."""
    return load_run(run).load_denoiser(device)


def read_patients(folder: Path, checksums: Mapping[str, str]) -> tuple[str, dict[str, set[str]]]:
    """Return the salt of `patients.json` and the fingerprints of each split; `DataError` if there are none, or others."""
    path = folder / PATIENTS_FILE
    known = checksums.get(PATIENTS_FILE)
    try:
        if known is not None and hash_file(path) != known:
            raise DataError(f"{path}: need the patients that run.json names, got other bytes; try training again")
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["salt"]), {split: set(content[split]) for split in ("train", "val")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: need the fingerprints of the run's patients, got none; try training again") from error


def write_patients(folder: Path, splits: Mapping[str, Iterable[str]], *, start: WithPatients | None = None) -> None:
    """Write `patients.json`: salted fingerprints of the patient IDs of each split (`train` and `val`), sorted.

    The patients of `start`, the run whose weights the training begins from or builds on, are among them.

    They hide IDs from a glance, not from an attacker: whoever has the salt can try every short number. Keep
    `patients.json` with the run, do not publish it.
    """
    salt, seen = (secrets.token_hex(16), {}) if start is None else start.patient_fingerprints()
    digests = {
        split: sorted({_patient_fingerprint(name, salt) for name in set(patients)} | seen.get(split, set()))
        for split, patients in splits.items()
    }
    write_json(folder / PATIENTS_FILE, {"salt": salt} | digests)


def _weights_there(folder: Path, content: Mapping[str, Any]) -> tuple[str, int]:
    """Return fingerprint and steps of the weights that a run folder holds: those that `run.json` names, or those before.

    Without weights the steps are 0; other weights than these are refused when they are loaded.
    """
    named = [content, *([content["previous"]] if content.get("previous") else [])]
    if not all(isinstance(each["fingerprint"], str) and _is_whole(each["steps"]) for each in named):
        raise ValueError("fingerprint or steps")
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        return content["fingerprint"], 0
    found = hash_file(path)
    return next(
        ((each["fingerprint"], each["steps"]) for each in named if each["fingerprint"] == found),
        (content["fingerprint"], content["steps"]),
    )


def _patient_fingerprint(name: str, salt: str) -> str:
    return hashlib.scrypt(name.encode(), salt=salt.encode(), n=2**10, r=8, p=1, dklen=16).hex()


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_whole(value: Any, low: int = 0, high: int | None = None) -> bool:
    return type(value) is int and low <= value and (high is None or value <= high)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _is_grid(given: Mapping[str, Any]) -> bool:
    """Whether options of the grid are such; runs from before some were options have their defaults."""
    spacing = given.get("spacing")
    lengths = spacing if isinstance(spacing, list) else [] if spacing is None else [spacing]
    return (
        given.keys() <= {field.name for field in dataclasses.fields(GridOptions)}
        and all(given.get(name, known[0]) in known for name, known in _GRID.items())
        and all(map(_is_positive, lengths))
    )


def _is_network(options: NetworkOptions) -> bool:
    """Whether every option has the type of its default and every count can be meant."""
    counts = (options.levels, options.residual_blocks, options.head_channels, options.norm_groups, *options.channels)
    return (
        options.stem in ("haar", "pixel", "latent")
        and all(_is_whole(count, 1, _MOST) for count in counts)
        and 0 < len(options.channels) <= 16
        and all(type(attends) is bool for attends in (*options.attention, options.band_scaling))
        and type(options.dropout) in (int, float)
        and 0 <= options.dropout <= 1
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | np.ndarray) else value
