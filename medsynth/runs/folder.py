"""The run folder: one trained model and everything needed to use or continue it.

```
run.json            format version, classes, geometry, intensity, options, versions, fingerprint of the weights, checksums
model.safetensors   averaged weights (EMA) of the denoiser
early.safetensors   those that it had early in the training, for autoguidance
config.yaml         the options of `medsynth train`, without paths
patients.json       salted fingerprints of the patients it was trained and validated on
attributes.json     which values of the chosen attributes occur together in training scans, sorted; not whose they are
metrics.csv         step,name,value
previews/           pictures of every class while training
checkpoints/        for resuming only, with checksums of their own
```
Weights are safetensors; no pickle in a run folder is ever executed. No path, file name or ID of a patient is in it.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medsynth.cohorts.attributes import AttributeTable
from medsynth.config import GridOptions, SolverOptions
from medsynth.errors import ConfigError, DataError
from medsynth.files import atomic_path, hash_file, write_json
from medsynth.networks import Denoiser
from medsynth.runs.patients import PATIENTS_FILE, patient_fingerprint, read_patients
from medsynth.runs.spec import RunSpec
from medsynth.runs.values import as_tuples, is_positive, is_whole
from medsynth.versions import installed_versions

FORMAT = "medsynth-run/1"
RUN_FILE, WEIGHTS_FILE, EARLY_FILE, METRICS_FILE, ATTRIBUTES_FILE = (
    "run.json",
    "model.safetensors",
    "early.safetensors",
    "metrics.csv",
    "attributes.json",
)
# Path("https://host") is "https:/host".
_URL = re.compile(r"[a-z][a-z0-9+.\-]+:/", re.IGNORECASE)
_GRID = {"fit": ("pad", "crop", "stretch"), "centre": ("scan", "mask"), "padding": ("background", "edge")}


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
        return self._load(WEIGHTS_FILE, self.fingerprint, device)

    def load_early(self, device: torch.device | str = "cpu") -> Denoiser:
        """Return the denoiser that it was early in the training, as `load_denoiser` does; `ConfigError` if it kept none."""
        if self.early is None:
            raise ConfigError(
                f"{self.folder}: need a run that kept the weights it had early on (monitor.early_share), got none; try a run "
                "folder of a smaller or less trained model"
            )
        return self._load(EARLY_FILE, self.early, device)

    @property
    def early(self) -> str | None:
        """Fingerprint (sha256) of the weights that it had early in the training; None where none are kept."""
        return self.checksums.get(EARLY_FILE)

    def _load(self, name: str, fingerprint: str, device: torch.device | str) -> Denoiser:
        path = self.folder / name
        if not path.is_file():
            raise DataError(f"{path}: need the trained weights, got no file; try training until the first checkpoint")
        if hash_file(path) != fingerprint:
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
        given = {name: as_tuples(value) for name, value in self.options["grid"].items() if name != "size"}
        return GridOptions(size=self.spec.shape[1:], **given)

    @property
    def distilled(self) -> bool:
        """Whether it is a model of few steps, made by `medsynth distill`; what it returns is then no mean of scans."""
        return bool(self.options.get("distilled"))

    @property
    def solver(self) -> SolverOptions | None:
        """The one solver of a distilled run; None for a denoiser, which every solver takes.

        Of a consistency model that is a name, of one that learnt trajectories steps and noise levels too. `DataError` if the run
        does not say which.
        """
        if not self.distilled:
            return None
        told = self.options["distilled"]
        if "trajectories" not in told:
            return SolverOptions(name="consistency")
        steps, low, high = (told.get("solver", {}).get(name) for name in ("steps", "sigma_min", "sigma_max"))
        if not (is_whole(steps) and steps > 0 and is_positive(low) and is_positive(high) and low < high):
            raise DataError(
                f"{self.folder / RUN_FILE}: need the steps and noise levels that it was distilled for, got {told!r}; try "
                "distilling it again"
            )
        return SolverOptions(name="euler", steps=steps, sigma_min=low, sigma_max=high)

    def check_editable(self) -> None:
        """Raise `ConfigError` for a run that goes from noise to scans in fixed steps, on which no scan lies to begin from."""
        if self.solver is not None and self.solver.steps is not None:
            raise ConfigError(
                f"{self.folder}: need a run of medsynth train to change real scans, got one distilled to fixed steps; try the "
                "run it came from"
            )

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
        return sorted(name for name in set(patients) if patient_fingerprint(name, salt) in seen)

    def patient_fingerprints(self) -> tuple[str, dict[str, set[str]]]:
        """Return what `read_patients` does of this run."""
        return read_patients(self.folder, self.checksums)

    def attribute_table(self) -> AttributeTable:
        """Return the attributes of its training scans; `DataError` for a run without, or whose file is another."""
        path, attributes = self.folder / ATTRIBUTES_FILE, self.spec.attributes
        try:
            if not attributes or hash_file(path) != self.checksums.get(ATTRIBUTES_FILE):
                raise ValueError("another file" if attributes else "a run without attributes")
            return AttributeTable.from_dict(json.loads(path.read_text(encoding="utf-8")), attributes)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"{path}: need the attributes of the run's training scans, got {error}; try training again"
            ) from error

    def summary(self) -> str:
        """Return what a user should know when training is done."""
        classes = ", ".join(
            f"{label} ({count})" for label, count in zip(self.spec.classes, self.spec.class_counts, strict=True)
        )
        return f"{self.folder}: trained {self.steps} steps on {classes}\nfingerprint {self.fingerprint[:16]}"


def save_run(folder: Path, spec: RunSpec, denoiser: Denoiser, *, options: Mapping[str, Any], steps: int) -> Run:
    """Write weights and `run.json`, each atomically, and return the run; other files that it names must not change afterwards.

    `run.json` comes first and also names the weights that it is about to replace: whatever a kill in between leaves can be used.
    """
    path = folder / WEIGHTS_FILE
    beside = (PATIENTS_FILE, ATTRIBUTES_FILE, EARLY_FILE)
    checksums = {name: hash_file(folder / name) for name in beside if (folder / name).is_file()}
    before = load_run(folder) if (folder / RUN_FILE).is_file() else None
    with atomic_path(path) as temporary:
        _write_weights(denoiser, temporary)
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


def save_early(folder: Path, denoiser: Denoiser) -> None:
    """Write the weights that a denoiser has early in its training, atomically; the next `save_run` names them."""
    with atomic_path(folder / EARLY_FILE) as temporary:
        _write_weights(denoiser, temporary)


def _write_weights(denoiser: Denoiser, path: Path) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.state_dict().items()}
    save_file(tensors, path, metadata={"format": FORMAT})


def write_attributes(folder: Path, table: AttributeTable) -> None:
    """Write `attributes.json`, sorted by content; `table` holds training scans only."""
    write_json(folder / ATTRIBUTES_FILE, table.select(range(len(table.labels))).as_dict())


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


def _weights_there(folder: Path, content: Mapping[str, Any]) -> tuple[str, int]:
    """Return fingerprint and steps of the weights that a run folder holds: those that `run.json` names, or those before.

    Without weights the steps are 0; other weights than these are refused when they are loaded.
    """
    named = [content, *([content["previous"]] if content.get("previous") else [])]
    if not all(isinstance(each["fingerprint"], str) and is_whole(each["steps"]) for each in named):
        raise ValueError("fingerprint or steps")
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        return content["fingerprint"], 0
    found = hash_file(path)
    return next(
        ((each["fingerprint"], each["steps"]) for each in named if each["fingerprint"] == found),
        (content["fingerprint"], content["steps"]),
    )


def _is_grid(given: Mapping[str, Any]) -> bool:
    """Whether options of the grid are such; runs from before some were options have their defaults."""
    spacing = given.get("spacing")
    lengths = spacing if isinstance(spacing, list) else [] if spacing is None else [spacing]
    return (
        given.keys() <= {field.name for field in dataclasses.fields(GridOptions)}
        and all(given.get(name, known[0]) in known for name, known in _GRID.items())
        and all(map(is_positive, lengths))
    )
