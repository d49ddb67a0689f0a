"""The run folder: one trained model and everything needed to use or continue it.

```
run.json            format version, classes, geometry, intensity, options, versions, fingerprint of the weights, checksums
model.safetensors   averaged weights (EMA) of the denoiser
early.safetensors   its weights from early in the training, for autoguidance
config.yaml         the options of `medsynth train`, without paths
patients.json       fingerprints of the patients it was trained and validated on, under a key that is not in the folder
attributes.json     which attribute values occur together in training scans, sorted, without a link to the scans
text.npz            how sentences become numbers: terms of at least three patients and their weights, no sentences
metrics.csv         step,name,value
previews/           pictures of every class while training
checkpoints/        for resuming only, with checksums of their own
```
Weights are safetensors; no pickle in a run folder is ever executed. No path, file name or ID of a patient is in it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from medsynth.cohorts.attributes import AttributeTable
from medsynth.cohorts.text import TextEncoding
from medsynth.config import GridOptions
from medsynth.diffusion import Solver
from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path, hash_file, read_bytes, read_json, write_json
from medsynth.networks import Denoiser
from medsynth.runs.patients import KEY_VARIABLE, PATIENTS_FILE, Patients, own_key, read_patients
from medsynth.runs.spec import RunSpec, read_grid, read_values
from medsynth.versions import installed_versions

FORMAT = "medsynth-run/3"
_READ = (FORMAT, "medsynth-run/2")  # medsynth 0.2; its patients.json has no key
RUN_FILE, WEIGHTS_FILE, EARLY_FILE, METRICS_FILE = "run.json", "model.safetensors", "early.safetensors", "metrics.csv"
ATTRIBUTES_FILE, TEXT_FILE = "attributes.json", "text.npz"
# Path("https://host") is "https:/host".
_URL = re.compile(r"[a-z][a-z0-9+.\-]+:/", re.IGNORECASE)


class DivergedError(ConfigError):
    """A training whose loss, gradient or weights are no longer finite; nothing of it is written."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder that has been read.

    `fingerprint` is the sha256 of the weights, `steps` how long they were trained; `checksums` are the sha256 of other files, by
    name. `grid` is the grid of its training scans.
    """

    folder: Path
    spec: RunSpec
    options: Mapping[str, Any]
    steps: int
    fingerprint: str
    checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def load_denoiser(self, device: torch.device | str = "cpu") -> Denoiser:
        """Return the trained denoiser on `device`, in evaluation mode; `DataError` if the weights do not fit or changed."""
        return self._load(WEIGHTS_FILE, self.fingerprint, device)

    def load_early(self, device: torch.device | str = "cpu") -> Denoiser:
        """Return the denoiser from early in the training, as `load_denoiser` does; `ConfigError` if it was not kept."""
        if self.early is None:
            raise ConfigError(
                f"{self.folder}: need a run that kept the weights it had early on (monitor.early_share), got none; try the run "
                "folder of a smaller or less trained model"
            )
        return self._load(EARLY_FILE, self.early, device)

    @property
    def early(self) -> str | None:
        """Fingerprint (sha256) of the weights from early in the training; None if they were not kept."""
        return self.checksums.get(EARLY_FILE)

    def _load(self, name: str, fingerprint: str, device: torch.device | str) -> Denoiser:
        path = self.folder / name
        if self.options.get("stage") == "autoencoder":
            raise DataError(
                f"{self.folder}: need a run of medsynth train, got an autoencoder; try a run that was trained on it"
            )
        if not path.is_file():
            raise DataError(f"{path}: need the trained weights, got no file; try training until the first checkpoint")
        if hash_file(path) != fingerprint:
            raise DataError(
                f"{path}: need the weights that run.json names, got other bytes; if the run is being trained right now, try "
                "again, else train it again"
            )
        # Before memory is taken for the network that run.json describes.
        if path.stat().st_size < self.spec.least_bytes():
            raise DataError(f"{path}: need the weights of this run's network, got too few bytes; try training again")
        try:
            denoiser = self.spec.build()
            denoiser.load_state_dict(read_weights(path))
        except (SafetensorError, RuntimeError, OSError, ConfigError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path}: need the weights of this run's network, got {reason}; try training again"
            ) from error
        return denoiser.to(device).eval().requires_grad_(False)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that it was trained on."""
        return self.spec.classes

    @property
    def grid(self) -> GridOptions:
        """The grid of its training scans."""
        return read_grid(self.options["grid"], self.spec.shape[1:])

    @property
    def distilled(self) -> bool:
        """Whether it was made by `medsynth distill`: a model of few steps, whose output is not a mean of scans."""
        return bool(self.options.get("distilled"))

    @property
    def solver(self) -> Solver | None:
        """The only solver of a distilled run; None for other runs, which take every solver.

        `DataError` if a distilled run does not describe its solver.
        """
        if not self.distilled:
            return None
        try:
            solver = read_values(Solver, {"name": "euler", **self.options["distilled"]["solver"]})
            if not (solver.name == "euler" and solver.steps > 0 and 0 < solver.sigma_min < solver.sigma_max):
                raise ValueError("solver")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.folder / RUN_FILE}: need the steps and noise levels that it was distilled for, got other values; try "
                "distilling it again"
            ) from error
        return solver

    def check_editable(self) -> None:
        """Raise `ConfigError` for a distilled run, which cannot start from a real scan."""
        if self.distilled:
            raise ConfigError(
                f"{self.folder}: need a run of medsynth train to change real scans, got a distilled one; try the run it came from"
            )

    def read_metrics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return `(steps, values)`, both `(N,)`, of every metric in metrics.csv; empty without that file.

        `DataError` for a file with other content.
        """
        path = self.folder / METRICS_FILE
        if not path.is_file():
            return {}
        series: dict[str, list[tuple[int, float]]] = {}
        try:
            for row in csv.reader(io.StringIO(read_bytes(path).decode("utf-8"), newline="")):
                if len(row) != 3 or not row[0].isdecimal() or not row[2]:  # a kill may have cut the last one short
                    continue
                if math.isfinite(value := float(row[2])):
                    series.setdefault(row[1], []).append((int(row[0]), value))
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"{path}: need rows of step,name,value, got {error}; try moving the file away") from error
        return {
            name: (np.array([step for step, _ in points]), np.array([value for _, value in points]))
            for name, points in series.items()
        }

    def shared_patients(self, patients: Iterable[str]) -> list[str]:
        """Return, sorted, which of these patient IDs the run was trained or validated on; `DataError` if it cannot be known."""
        return self.patients().among(patients)

    def patients(self) -> Patients:
        """Return the fingerprints of each split's patients; `DataError` for a missing or changed file."""
        return read_patients(self.folder, self.checksums.get(PATIENTS_FILE))

    def attribute_table(self) -> AttributeTable:
        """Return the attributes of its training scans; `DataError` for a run without, or for a changed file."""
        path, attributes = self.folder / ATTRIBUTES_FILE, self.spec.attributes
        try:
            if not attributes or hash_file(path) != self.checksums.get(ATTRIBUTES_FILE):
                raise ValueError("a changed file" if attributes else "a run without attributes")
            return AttributeTable.from_dict(read_json(path), attributes)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"{path}: need the attributes of the run's training scans, got {error}; try training again"
            ) from error

    def text_encoding(self, named: str = "") -> TextEncoding:
        """Return how sentences become the numbers of its condition; `DataError` for a run without, or for a changed file.

        A run folder brings no code and chooses none: where a function encodes the sentences, it is the one that this user has
        `named`, or one that was named when the run was trained with this user's key. Else `DataError`.
        """
        path = self.folder / TEXT_FILE
        try:
            if not self.spec.text or hash_file(path) != self.checksums.get(TEXT_FILE):
                raise ValueError("a changed file" if self.spec.text else "a run without condition.text")
            arrays = _read_arrays(path)
            encoding = TextEncoding.from_arrays(arrays)
            if encoding.dimensions != self.spec.text:
                raise ValueError(f"{encoding.dimensions} dimensions instead of {self.spec.text}")
        except (OSError, ValueError, KeyError, TypeError, MemoryError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path}: need the text encoding of this run, got {error}; try a run trained with --condition.text"
            ) from error
        if encoding.encoder not in ("", named) and str(arrays.get("seal")) != _seal(encoding.encoder):
            raise DataError(
                f"{path}: need a run trained with the key in {own_key().path} to import the {encoding.encoder[:100]!r} that it "
                f"names, got another; try training it here, or {KEY_VARIABLE}=FILE"
            )
        return encoding

    def summary(self) -> str:
        """Return the outcome of a training, and the next command."""
        classes = ", ".join(
            f"{label} ({count})" for label, count in zip(self.spec.classes, self.spec.class_counts, strict=True)
        )
        return (
            f"{self.folder}: trained {self.steps} steps on {classes}\nfingerprint {self.fingerprint[:16]}\n"
            f"next: medsynth sample --run {self.folder} --count 100 --out SYNTHETIC"
        )


def save_run(folder: Path, spec: RunSpec, network: nn.Module, *, options: Mapping[str, Any], steps: int) -> Run:
    """Write the weights of a network and `run.json`, each atomically, and return the run; the other files must not change later.

    `run.json` is written first and also names the weights that are about to be replaced, so the folder is usable after a kill at
    any moment.
    """
    beside = (PATIENTS_FILE, ATTRIBUTES_FILE, TEXT_FILE, EARLY_FILE)
    checksums = {name: hash_file(folder / name) for name in beside if (folder / name).is_file()}
    before = load_run(folder) if (folder / RUN_FILE).is_file() else None
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        _write_weights(network, temporary)
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


def first_not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the first tensor that holds a NaN or an infinity; None if there is none."""
    return next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file; `DataError` for one with a NaN or an infinity, `SafetensorError` for damage."""
    tensors = load_file(path)
    if name := first_not_finite(tensors):
        raise DataError(f"{path}: need finite weights, got NaN or infinity in {name}; try training again")
    return tensors


def save_early(folder: Path, network: nn.Module) -> None:
    """Write the weights of a network early in its training, atomically; the next `save_run` records them."""
    with atomic_path(folder / EARLY_FILE) as temporary:
        _write_weights(network, temporary)


def _write_weights(network: nn.Module, path: Path) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if name := first_not_finite(tensors):
        raise DivergedError(f"weights: need finite numbers, got NaN or infinity in {name}")
    save_file(tensors, path, metadata={"format": FORMAT})


def write_attributes(folder: Path, table: AttributeTable) -> None:
    """Write `attributes.json`, sorted by content; `table` holds training scans only."""
    write_json(folder / ATTRIBUTES_FILE, table.select(range(len(table.labels))).as_dict())


def write_text_encoding(folder: Path, encoding: TextEncoding) -> None:
    """Write `text.npz`, atomically; equal encodings give equal bytes.

    The name of a user's function comes with a seal: with this user's key, it may be imported again.
    """
    arrays: dict[str, Any] = encoding.as_arrays()
    if encoding.encoder:
        arrays["seal"] = np.array(_seal(encoding.encoder))
    with atomic_path(folder / TEXT_FILE) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)


def load_run(folder: Run | Path | str) -> Run:
    """Read a run folder (a `Run` is returned as it is); `DataError` if it is not one or damaged, `ConfigError` for a URL."""
    if isinstance(folder, Run):
        return folder
    if _URL.match(str(folder)):
        raise ConfigError(f"{folder}: need a local run folder, got a URL; try copying the run to this machine first")
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise DataError(f"{folder}: need a run folder with {RUN_FILE}, got none; try the --out of `medsynth train`")
    try:
        content = read_json(path)
        if content["format"] == "medsynth-run/1":
            raise DataError(
                f"{folder}: this run was trained with medsynth 0.1, which this version cannot read; train it again, or install "
                "medsynth-diffusion==0.1.0 to use it"
            )
        if content["format"] not in _READ:
            raise DataError(f"{path}: need format {FORMAT}, got {content['format']}; try the medsynth that trained it")
        fingerprint, steps = _weights_there(Path(folder), content)
        spec = RunSpec.from_dict(content["spec"])
        read_grid(content["options"]["grid"], spec.shape[1:])
        return Run(
            folder=Path(folder),
            spec=spec,
            options=content["options"],
            steps=steps,
            fingerprint=fingerprint,
            checksums=dict(content.get("checksums", {})),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: need a run description, got damaged content ({reason}); try training again"
        ) from error


def load_denoiser(run: Path | str, device: torch.device | str = "cpu") -> Denoiser:
    """Return the trained denoiser of a run folder: `denoiser(noisy, sigma, condition) -> denoised`, scans in [-1, 1]."""
    return load_run(run).load_denoiser(device)


def _weights_there(folder: Path, content: Mapping[str, Any]) -> tuple[str, int]:
    """Return fingerprint and steps of the weights in a run folder: those that `run.json` names, or the ones before.

    Without weights, the steps are 0. Any other weights are refused when they are loaded.
    """
    named = [content, *([content["previous"]] if content.get("previous") else [])]
    if not all(type(each["fingerprint"]) is str and type(each["steps"]) is int for each in named):
        raise ValueError("fingerprint or steps")
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        return content["fingerprint"], 0
    found = hash_file(path)
    return next(
        ((each["fingerprint"], each["steps"]) for each in named if each["fingerprint"] == found),
        (content["fingerprint"], content["steps"]),
    )


def _seal(encoder: str) -> str:
    return own_key().derive(f"encoder {encoder}").hex()


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of `text.npz`; `ValueError` for a compressed file, whose arrays may be of any size."""
    with zipfile.ZipFile(path) as packed:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in packed.infolist()):
            raise ValueError("compressed arrays")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = dict(arrays)
    except Exception as error:  # the parser of damaged headers raises whatever Python's tokenizer does
        raise ValueError("damaged arrays") from error
    if not all(isinstance(array, np.ndarray) for array in found.values()):
        raise ValueError("members that are no arrays")
    return found
