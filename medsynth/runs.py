"""The run folder: one trained model and everything needed to use or continue it.

```
run.json            format version, classes, geometry, intensity, options, versions, fingerprint
model.safetensors   averaged weights (EMA) of the denoiser
config.yaml         the options of `medsynth train`, without paths
patients.json       salted fingerprints of the patients it was trained and validated on
metrics.csv         step,name,value
previews/           pictures of every class while training
checkpoints/        for resuming only
```
Weights are safetensors; nothing in a run folder is ever unpickled. No path, file name or ID of a patient is in it.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medsynth.config import NetworkOptions
from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path, hash_file, write_json
from medsynth.networks import Denoiser, build_denoiser
from medsynth.scans import Intensity
from medsynth.versions import installed_versions

FORMAT = "medsynth-run/1"
RUN_FILE, WEIGHTS_FILE, PATIENTS_FILE, METRICS_FILE = "run.json", "model.safetensors", "patients.json", "metrics.csv"


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run needs to rebuild its denoiser and to turn its output into files.

    `shape` is `(channel, *spatial)` on the model grid, `affine` 4x4 in RAS millimetres, `sigma_data` one value for each band
    of the stem, `dtype` and `suffix` those of the training scans, `class_counts` the training scans of each class, `parents`
    and `gate_sigma` those of `ConditionEmbedding`.
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
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self) | {"intensity": self.intensity.as_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunSpec:
        """Return the spec that `as_dict` described."""
        values = {key: _tuples(value) for key, value in content.items() if key not in ("intensity", "network")}
        # Runs from before this was an option.
        groups = {"norm_groups": math.gcd(32, *content["network"]["channels"])}
        network = NetworkOptions(**groups | {key: _tuples(value) for key, value in content["network"].items()})
        return cls(**values, network=network, intensity=Intensity.from_dict(content["intensity"]))

    def label_index(self, label: str) -> int:
        """Return the index of a class; `ConfigError` lists the classes when it is unknown."""
        if label not in self.classes:
            raise ConfigError(f"{label}: need one of the run's classes {', '.join(self.classes)}; got an unknown class")
        return self.classes.index(label)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder that has been read: `fingerprint` names the weights, `steps` how far they were trained."""

    folder: Path
    spec: RunSpec
    options: Mapping[str, Any]
    steps: int
    fingerprint: str

    def load_denoiser(self, device: torch.device | str = "cpu") -> Denoiser:
        """Return the trained denoiser on `device`, in evaluation mode; `DataError` if the weights do not fit or changed."""
        path = self.folder / WEIGHTS_FILE
        if not path.is_file():
            raise DataError(f"{path}: need the trained weights, got no file; try training until the first checkpoint")
        if hash_file(path) != self.fingerprint:
            raise DataError(f"{path}: need the weights that run.json names, got other bytes; try training again")
        denoiser = self.spec.build()
        try:
            denoiser.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path}: need the weights of this run's network, got {reason}; try training again"
            ) from error
        return denoiser.to(device).eval().requires_grad_(False)

    def read_metrics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return `(steps, values)`, both `(N,)`, of every metric in metrics.csv; nothing if there is no such file."""
        path = self.folder / METRICS_FILE
        if not path.is_file():
            return {}
        series: dict[str, list[tuple[int, float]]] = {}
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.reader(stream):
                if len(row) == 3 and row[0].isdecimal():  # a kill may have torn the last one
                    series.setdefault(row[1], []).append((int(row[0]), float(row[2])))
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
        """Return the salt of `patients.json` and the fingerprints of each split; `DataError` if there are none."""
        path = self.folder / PATIENTS_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return str(content["salt"]), {split: set(content[split]) for split in ("train", "val")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: need the fingerprints of the run's patients, got none; try training again"
            ) from error

    def summary(self) -> str:
        """Return what a user should know when training is done."""
        classes = ", ".join(
            f"{label} ({count})" for label, count in zip(self.spec.classes, self.spec.class_counts, strict=True)
        )
        return f"{self.folder}: trained {self.steps} steps on {classes}\nfingerprint {self.fingerprint[:16]}"


def save_run(folder: Path, spec: RunSpec, denoiser: Denoiser, *, options: Mapping[str, Any], steps: int) -> Run:
    """Write weights, then `run.json`, each atomically, and return the run."""
    path = folder / WEIGHTS_FILE
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT})
        fingerprint = hash_file(temporary)
    content = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "steps": steps,
        "spec": spec.as_dict(),
        "options": dict(options),
        "versions": installed_versions(),
    }
    write_json(folder / RUN_FILE, content)
    return Run(folder=folder, spec=spec, options=dict(options), steps=steps, fingerprint=fingerprint)


def load_run(folder: Run | Path | str) -> Run:
    """Read a run folder (a `Run` is returned as it is); `DataError` if it is none or damaged, `ConfigError` for a URL."""
    if isinstance(folder, Run):
        return folder
    if "://" in str(folder):
        raise ConfigError(f"{folder}: need a local run folder, got a URL; try copying the run to this machine first")
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise DataError(f"{folder}: need a run folder with {RUN_FILE}, got none; try the --out of `medsynth train`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"{path}: need format {FORMAT}, got {content['format']}; try the medsynth that trained it")
        spec = RunSpec.from_dict(content["spec"])
        return Run(
            folder=Path(folder),
            spec=spec,
            options=content["options"],
            steps=int(content["steps"]),
            fingerprint=str(content["fingerprint"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: need a run description, got damaged content ({error}); try training again") from error


def load_denoiser(run: Path | str, device: torch.device | str = "cpu") -> Denoiser:
    """Return the trained denoiser of a run folder: `denoiser(noisy, sigma, condition) -> denoised`, scans in [-1, 1]."""
    return load_run(run).load_denoiser(device)


def write_patients(folder: Path, splits: Mapping[str, Iterable[str]], *, start: Run | None = None) -> None:
    """Write `patients.json`: salted fingerprints of the patient IDs of each split (`train` and `val`), sorted.

    The patients of `start`, the run whose weights the training begins from, are among them.

    They hide IDs from a glance, not from an attacker: whoever has the salt can try every short number. Keep
    `patients.json` with the run, do not publish it.
    """
    salt, seen = (secrets.token_hex(16), {}) if start is None else start.patient_fingerprints()
    digests = {
        split: sorted({_patient_fingerprint(name, salt) for name in set(patients)} | seen.get(split, set()))
        for split, patients in splits.items()
    }
    write_json(folder / PATIENTS_FILE, {"salt": salt} | digests)


def _patient_fingerprint(name: str, salt: str) -> str:
    return hashlib.scrypt(name.encode(), salt=salt.encode(), n=2**10, r=8, p=1, dklen=16).hex()


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | np.ndarray) else value
