"""The run folder of an autoencoder: like that of a diffusion model, with the verdict of the reconstruction gate.

```
run.json             stage `autoencoder`, classes, geometry, intensity, options, verdict, versions, fingerprint, checksums
model.safetensors    averaged weights (EMA) of the autoencoder
reconstruction.json  what it loses of each class, beside the limits
config.yaml  patients.json  metrics.csv  previews/  checkpoints/
```
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medsynth.cohorts import PreparedCohort
from medsynth.cohorts.grid import grid_size
from medsynth.config import AutoencoderOptions, TrainingPlan, changed_options
from medsynth.errors import ConfigError, DataError, GateError
from medsynth.files import atomic_path, hash_file, write_json
from medsynth.networks import Denoiser, LatentCodec, build_autoencoder
from medsynth.networks.autoencoder import least_bytes, read_autoencoder_options
from medsynth.runs import PATIENTS_FILE, RUN_FILE, WEIGHTS_FILE, read_patients
from medsynth.scans import Intensity
from medsynth.training.fitting import plain_options
from medsynth.training.reconstruction import Reconstruction
from medsynth.versions import installed_versions

FORMAT = "medsynth-autoencoder/1"
RECONSTRUCTION_FILE = "reconstruction.json"
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class AutoencoderSpec:
    """What an autoencoder says of itself; `shape` is `(channel, *spatial)` of its scans on their grid."""

    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    shape: tuple[int, ...]
    intensity: Intensity
    autoencoder: AutoencoderOptions

    def build(self) -> LatentCodec:
        """Return an untrained autoencoder of this architecture, frozen."""
        network = build_autoencoder(self.autoencoder, channels=self.shape[0], size=self.shape[1:])
        return LatentCodec(network, self.autoencoder)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self) | {"intensity": self.intensity.as_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> AutoencoderSpec:
        """Return the spec that `as_dict` described; `ValueError` for what no autoencoder says of itself."""
        shape = tuple(int(length) for length in content["shape"])
        if len(shape) not in (3, 4) or not all(0 < length <= 1 << 14 for length in shape):
            raise ValueError("spec.shape")
        return cls(
            classes=tuple(map(str, content["classes"])),
            class_counts=tuple(map(int, content["class_counts"])),
            shape=shape,
            intensity=Intensity.from_dict(content["intensity"]),
            autoencoder=read_autoencoder_options(content["autoencoder"]),
        )


@dataclass(frozen=True, kw_only=True)
class AutoencoderRun:
    """The run folder of an autoencoder that has been read; `reconstruction` is None until it is trained and judged."""

    folder: Path
    spec: AutoencoderSpec
    options: Mapping[str, Any]
    steps: int
    fingerprint: str
    checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reconstruction: Reconstruction | None = None

    def load_codec(self, device: torch.device | str = "cpu") -> LatentCodec:
        """Return the autoencoder on `device`, its latents not yet scaled; `DataError` if the weights do not fit or changed."""
        path = self.folder / WEIGHTS_FILE
        if not path.is_file() or hash_file(path) != self.fingerprint:
            raise DataError(
                f"{path}: need the weights that run.json names, got none or other bytes; try the same training again"
            )
        # Before memory is taken for the network that run.json describes.
        if path.stat().st_size < least_bytes(self.spec.autoencoder, len(self.spec.shape) - 1):
            raise DataError(f"{path}: need the weights of this autoencoder, got too few bytes; try training again")
        try:
            codec = self.spec.build()
            codec.autoencoder.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError, OSError, ConfigError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path}: need the weights of this autoencoder, got {reason}; try training again"
            ) from error
        return codec.to(device).eval()

    def patient_fingerprints(self) -> tuple[str, dict[str, set[str]]]:
        """Return the salt and the patients of each split, as `read_patients` does."""
        return read_patients(self.folder, self.checksums)

    def summary(self) -> str:
        """Return what a user should know when training is done."""
        head = f"{self.folder}: autoencoder, trained {self.steps} steps\nfingerprint {self.fingerprint[:16]}"
        if self.reconstruction is None:
            return f"{head}\nreconstruction gate: not judged yet"
        verdict = "failed" if self.reconstruction.failures() else "passed"
        return f"{head}\n{self.reconstruction.table()}\nreconstruction gate: {verdict}"

    def check_gate(self) -> None:
        """Raise `GateError` that names what missed its limit, with the ways out."""
        if self.reconstruction is not None and (failures := self.reconstruction.failures()):
            raise GateError(
                f"{self.folder}: need a reconstruction within the limits, got {'; '.join(failures)}; try another --out with "
                "more --max_steps, more --autoencoder.latent_channels or fewer --autoencoder.channels, or, where what is lost "
                "is noise, other limits (--reconstruction.psnr, ssim, lesion_error) with the same --out"
            )


def save_autoencoder(
    folder: Path, spec: AutoencoderSpec, codec: LatentCodec, *, options: Mapping[str, Any], steps: int
) -> None:
    """Write the weights and a `run.json` without verdict, each atomically."""
    patients = folder / PATIENTS_FILE
    tensors = {name: value.detach().cpu().contiguous() for name, value in codec.autoencoder.state_dict().items()}
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT})
        fingerprint = hash_file(temporary)
    _write(
        AutoencoderRun(
            folder=folder,
            spec=spec,
            options=dict(options),
            steps=steps,
            fingerprint=fingerprint,
            checksums={PATIENTS_FILE: hash_file(patients)} if patients.is_file() else {},
        )
    )


def save_reconstruction(run: AutoencoderRun, reconstruction: Reconstruction) -> AutoencoderRun:
    """Write `reconstruction.json` and the verdict into `run.json`, and return the run with it."""
    judged = replace(run, reconstruction=reconstruction)
    write_json(run.folder / RECONSTRUCTION_FILE, reconstruction.as_dict())
    _write(judged)
    return judged


def load_autoencoder(folder: Path | str) -> AutoencoderRun:
    """Read the run folder of an autoencoder; `DataError` if it is none, or damaged."""
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise DataError(
            f"{folder}: need the run folder of an autoencoder, got none; try medsynth train --stage autoencoder"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(
                f"{path}: need an autoencoder, format {FORMAT}, got {content['format']}; try the --out of "
                "medsynth train --stage autoencoder"
            )
        verdict = content["reconstruction"]
        return AutoencoderRun(
            folder=Path(folder),
            spec=AutoencoderSpec.from_dict(content["spec"]),
            options=dict(content["options"]),
            steps=int(content["steps"]),
            fingerprint=str(content["fingerprint"]),
            checksums=dict(content["checksums"]),
            reconstruction=None if verdict is None else Reconstruction.from_dict(verdict),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: need a run description, got damaged content ({reason}); try training again"
        ) from error


def open_autoencoder(plan: TrainingPlan) -> tuple[TrainingPlan, AutoencoderRun | None]:
    """Return the plan with the options of the autoencoder that it names, and the autoencoder; None for other stems.

    In the plan the run is then named by its weights, not by its path. Raises `GateError` for an autoencoder that failed its
    gate, and `ConfigError` for one that is not done, that works on another grid or other intensities, or where stem and
    options do not belong together.
    """
    given = plan.autoencoder.run
    if plan.network.stem != "latent":
        if given:
            raise ConfigError(
                f"autoencoder.run: need network.stem latent for it, got {plan.network.stem}; try --network.stem latent"
            )
        return plan, None
    if not given:
        raise ConfigError(
            "autoencoder.run: need the run folder of an autoencoder for network.stem latent, got none; try medsynth train "
            "--stage autoencoder first"
        )
    run = load_autoencoder(given)
    if run.reconstruction is None:
        raise ConfigError(
            f"{given}: need an autoencoder that is trained and judged, got one of {run.steps} steps without a verdict; try "
            "the command that trains it again"
        )
    run.check_gate()
    described = plain_options(plan)
    size = list(grid_size(plan.grid, len(run.spec.shape) - 1))
    wanted = {"grid": described["grid"] | {"size": size}, "intensity": described["intensity"]}
    used = {
        "grid": run.options["grid"] | {"size": list(run.spec.shape[1:])},
        "intensity": run.options["intensity"],
    }
    if changed := changed_options(used, wanted):
        raise ConfigError(
            f"autoencoder.run: need the grid and intensities of the autoencoder, got {'; '.join(changed)}; try its config.yaml"
        )
    return replace(plan, autoencoder=replace(run.spec.autoencoder, run=run.fingerprint[:16])), run


def check_scans(run: AutoencoderRun, prepared: PreparedCohort) -> None:
    """Raise `ConfigError` where the scans of a cohort have other channels or axes than those of the autoencoder."""
    shape = tuple(int(length) for length in prepared.scans.shape[1:])
    if shape != run.spec.shape:
        wanted, got = (" x ".join(map(str, each)) for each in (run.spec.shape, shape))
        raise ConfigError(
            f"autoencoder.run: need scans of {wanted} (channels first), got {got}; try another autoencoder"
        )


def put_autoencoder(denoiser: Denoiser, run: AutoencoderRun, prepared: PreparedCohort, plan: TrainingPlan) -> None:
    """Give a denoiser the weights of the autoencoder, and scale latents by what they are over the training split.

    It is measured without augmentation, and on a GPU where there is one.
    """
    assert denoiser.codec is not None
    gpu = plan.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    codec = run.load_codec("cuda" if gpu else "cpu")
    train = prepared.indices(split="train")
    blocks = (train[start : start + _BATCH] for start in range(0, len(train), _BATCH))
    codec.measure(
        torch.from_numpy(np.asarray(prepared.scans[block], dtype=np.float32)).to(codec.mean.device) for block in blocks
    )
    denoiser.codec.load_state_dict(codec.state_dict())


def _write(run: AutoencoderRun) -> None:
    content = {
        "format": FORMAT,
        "stage": "autoencoder",
        "fingerprint": run.fingerprint,
        "steps": run.steps,
        "checksums": dict(run.checksums),
        "reconstruction": None if run.reconstruction is None else run.reconstruction.as_dict(),
        "spec": run.spec.as_dict(),
        "options": dict(run.options),
        "versions": installed_versions(),
    }
    write_json(run.folder / RUN_FILE, content)
