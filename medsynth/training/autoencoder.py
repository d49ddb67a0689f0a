"""`medsynth train --stage autoencoder`, and how a training on latents uses the result.

The run folder of an autoencoder is like any other; its weights are those of the autoencoder, and `reconstruction.json` holds the
figures of the reconstruction check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from medsynth.cohorts import Cohort, PreparedCohort
from medsynth.config import AutoencoderOptions, ConditionOptions, NetworkOptions, TrainOptions, changed_options
from medsynth.errors import ConfigError, DataError, GateError
from medsynth.files import hash_file, read_json, write_json
from medsynth.networks import Denoiser, LatentCodec, build_autoencoder
from medsynth.networks.autoencoder import divergence, least_bytes
from medsynth.runs import WEIGHTS_FILE, Run, load_run, read_weights
from medsynth.seeds import torch_generator
from medsynth.training.augmentation import Augmentation
from medsynth.training.batches import scan_data
from medsynth.training.callbacks import PREVIEW_SCANS, Previews
from medsynth.training.fitting import Training, check_options, plain_options
from medsynth.training.module import TrainingModule, batch_parts, place_noise
from medsynth.training.preflight import planned_device
from medsynth.training.reconstruction import Reconstruction, measure_reconstruction, peak_ratio
from medsynth.training.spec import make_spec, scan_shape, trained_cohort

RECONSTRUCTION_FILE = "reconstruction.json"
_BATCH = 16
# The last blocks before each halving: features at a half, a quarter, an eighth and a sixteenth of the width.


@dataclass(frozen=True, kw_only=True)
class AutoencoderRun(Run):
    """The run folder of an autoencoder; `reconstruction` is None until it is trained and checked."""

    reconstruction: Reconstruction | None = None

    @classmethod
    def of(cls, run: Run) -> AutoencoderRun:
        """Return the run as that of an autoencoder; `DataError` for another stage or damaged figures."""
        if run.options.get("stage") != "autoencoder":
            raise DataError(
                f"{run.folder}: need an autoencoder, got a diffusion run; try the --out of medsynth train --stage autoencoder"
            )
        path = run.folder / RECONSTRUCTION_FILE
        try:
            content = read_json(path) if path.is_file() else {}
            # Figures of earlier weights do not count.
            found = Reconstruction.from_dict(content) if content.get("fingerprint") == run.fingerprint else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: need the figures of the reconstruction check, got {error}; delete it") from error
        return cls(**vars(run), reconstruction=found)

    def load_codec(self, device: torch.device | str = "cpu") -> LatentCodec:
        """Return the autoencoder on `device`, its latents not yet scaled; `DataError` if the weights do not fit or changed."""
        path, options = self.folder / WEIGHTS_FILE, self.spec.autoencoder
        assert options is not None
        try:
            if hash_file(path) != self.fingerprint:
                raise ValueError("other bytes")
            # Before memory is allocated for the network that run.json describes.
            if path.stat().st_size < least_bytes(options, len(self.spec.shape) - 1):
                raise ValueError("too few bytes")
            codec = build_codec(options, self.spec.shape)
            codec.load_state_dict(read_weights(path))
        except (SafetensorError, RuntimeError, OSError, ValueError, ConfigError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path}: need the weights of this autoencoder, got {reason}; try training again"
            ) from error
        return codec.to(device).eval()

    def summary(self) -> str:
        """Return the outcome of the training and of the check, and the next command."""
        head = f"{self.folder}: autoencoder, trained {self.steps} steps\nfingerprint {self.fingerprint[:16]}"
        if self.reconstruction is None:
            return f"{head}\nreconstruction check: not done yet; run the same command again"
        lines = [head, *map(str, self.reconstruction.rows)]
        if self.reconstruction.failures():
            return "\n".join([*lines, "reconstruction check: failed"])
        following = (
            f"next: medsynth train --network.stem latent --autoencoder.run {self.folder} --cohort COHORT --out RUN"
        )
        return "\n".join([*lines, "reconstruction check: passed", following])

    def check(self) -> None:
        """Raise `GateError` that names the figures outside their limits, and the ways out."""
        if self.reconstruction is not None and (failures := self.reconstruction.failures()):
            raise GateError(
                f"{self.folder}: the autoencoder loses too much of the scans ({'; '.join(failures)}); train another with more "
                "--max_steps, more --autoencoder.latent_channels or fewer --autoencoder.channels"
            )


def train_autoencoder(cohort: Cohort, options: TrainOptions) -> AutoencoderRun:
    """Train an autoencoder on the training split of `cohort`, check it, and return its run; continue what `options.out` holds.

    Raises `GateError` for one that fails the reconstruction check (its run stays), else as `train_run` does.
    """
    check_options(options)
    for name, value in (("autoencoder.run", options.autoencoder.run), ("start", options.start)):
        if value:
            raise ConfigError(f"{name}: an autoencoder cannot begin from {value}; try --stage diffusion")
    cohort, classes = trained_cohort(cohort, options)
    shape = scan_shape(cohort, options.grid, mask=False, loading=options)
    torch.manual_seed(options.seed)
    codec = build_codec(options.autoencoder, shape)
    # What its run says of itself: the stem `latent` without a denoiser, and no conditions.
    options = replace(options, network=NetworkOptions(stem="latent"), condition=ConditionOptions())
    training = Training(options=options, cohort=cohort, classes=classes, grid=options.grid, intensity=options.intensity)
    training.check_needs(codec, shape)
    prepared, out = training.prepare(), training.out
    trainer = None
    if not training.finished:
        codec.autoencoder.use_checkpoint = options.activation_checkpointing
        scans, latents = (" x ".join(map(str, each)) for each in (shape, codec.shape(shape)))
        parameters = sum(parameter.numel() for parameter in codec.parameters())
        line = f"autoencoder: scans of {scans}, latents of {latents}; {parameters / 1e6:.1f} million parameters"
        trainer = training.fit(
            AutoencoderModule(codec, options, classes=classes, rank=len(shape) - 1),
            make_spec(cohort, prepared, options),
            scan_data(prepared, options),
            ReconstructionPreviews(prepared, options),
            lines=[f"{line}; {options.max_steps} steps of {options.batch_size} scans"],
        )
    if trainer is None or trainer.is_global_zero:
        run = AutoencoderRun.of(load_run(out))
        if run.reconstruction is None:
            codec = run.load_codec(_device(options))
            found = measure_reconstruction(codec, prepared, cohort, options.grid, loading=options)
            write_json(out / RECONSTRUCTION_FILE, {"fingerprint": run.fingerprint} | found.as_dict())
    if trainer is not None:
        trainer.strategy.barrier()
    run = AutoencoderRun.of(load_run(out))
    run.check()
    return run


def build_codec(options: AutoencoderOptions, shape: tuple[int, ...]) -> LatentCodec:
    """Return an untrained autoencoder, frozen, for scans of `shape` `(C, *spatial)`."""
    return LatentCodec(build_autoencoder(options, channels=shape[0], size=shape[1:]), options)


def open_autoencoder(cohort: Cohort, options: TrainOptions) -> tuple[TrainOptions, AutoencoderRun | None]:
    """Return the options with those of the autoencoder that they name, and its run; None for other stems.

    The options then name the run by its weights, not by its path. Raises `GateError` for an autoencoder that failed its check,
    and `ConfigError` for an unfinished one, other scans, grid or intensities, or a contradiction between stem and options.
    """
    folder = options.autoencoder.run
    if options.network.stem != "latent":
        if folder:
            raise ConfigError(
                f"autoencoder.run: only network.stem latent uses it, got {options.network.stem}; try --network.stem latent"
            )
        return options, None
    if not folder:
        raise ConfigError(
            "autoencoder.run: network.stem latent needs the run folder of an autoencoder; try medsynth train --stage autoencoder "
            "first"
        )
    if options.condition.mask:
        raise ConfigError("condition.mask: need network.stem haar or pixel, got latent; try condition.mask false")
    run = AutoencoderRun.of(load_run(folder))
    if run.reconstruction is None:
        raise ConfigError(
            f"{folder}: this autoencoder is not finished ({run.steps} steps); run the command that trains it again"
        )
    run.check()
    shape = scan_shape(cohort, options.grid, mask=False, loading=options)
    config = plain_options(options)
    wanted = {"grid": config["grid"] | {"size": list(shape[1:])}, "intensity": config["intensity"]}
    used = {"grid": run.options["grid"] | {"size": list(run.spec.shape[1:])}, "intensity": run.options["intensity"]}
    changed = changed_options(used, wanted)
    if shape[0] != run.spec.shape[0]:
        changed.append(f"channels {run.spec.shape[0]} -> {shape[0]}")
    if changed:
        raise ConfigError(
            f"autoencoder.run: need the grid and intensities of the autoencoder, got {'; '.join(changed)}; try its config.yaml"
        )
    assert run.spec.autoencoder is not None
    return replace(options, autoencoder=replace(run.spec.autoencoder, run=run.fingerprint[:16])), run


def put_autoencoder(denoiser: Denoiser, run: AutoencoderRun, prepared: PreparedCohort, options: TrainOptions) -> None:
    """Give a denoiser the weights of the autoencoder, and scale its latents over the training split, without augmentation."""
    assert denoiser.codec is not None
    codec = run.load_codec(_device(options))
    train = prepared.indices(split="train")
    blocks = (train[start : start + _BATCH] for start in range(0, len(train), _BATCH))
    codec.measure(
        torch.from_numpy(np.asarray(prepared.scans[block], dtype=np.float32)).to(codec.mean.device) for block in blocks
    )
    denoiser.codec.load_state_dict(codec.state_dict())


def _device(options: TrainOptions) -> torch.device:
    """Return the GPU of this process, or the CPU; scaling needs float64, which MPS lacks."""
    device = planned_device(options)
    return device if device.type == "cuda" else torch.device("cpu")


class AutoencoderModule(TrainingModule[LatentCodec]):
    """Trains an autoencoder; batches and draws are those of `DiffusionModule`.

    The loss is the mean absolute error plus the weighted divergence of the posterior per voxel. The latents of `averaged` are
    not scaled.
    """

    def __init__(self, codec: LatentCodec, options: TrainOptions, *, classes: Sequence[str], rank: int) -> None:
        super().__init__(
            codec.requires_grad_(True),
            classes=classes,
            validated=("error", "psnr"),
            total_steps=options.max_steps,
            optimiser=options.optimiser,
            accumulate_grad_batches=options.accumulate_grad_batches,
            seed=options.seed,
        )
        self.augmentation = Augmentation(options.augment, rank)
        self._weights = options.autoencoder

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        scans = batch["scan"]
        places = self.places(batch, batch_idx)
        generator = torch_generator(self._seed, "step", *places.keys, device=scans.device)
        parameters = self.augmentation.draw(places.total, generator)[places.device]
        sums: dict[str, Tensor] = {}
        for part in batch_parts(len(scans), self._accumulate):
            clean = self.augmentation.apply(scans[part], parameters[part])
            terms = self._terms(clean, places.host[part], places.keys)
            loss = torch.stack([weight * values.sum() for weight, values in terms.values()]).sum() / len(scans)
            for name, (_, values) in terms.items():
                sums[name] = sums.get(name, 0.0) + values.detach().sum() / len(scans)
            sums["loss"] = sums.get("loss", 0.0) + loss.detach()
            if part.stop < len(scans):
                self.add_gradient(loss)
        for name, value in sums.items():
            self.log(f"train_{name}", value, prog_bar=name == "loss", batch_size=len(scans))
        return loss  # of the last part, for the trainer's own backward pass

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add the errors of the averaged autoencoder for each class."""
        scans, codec = batch["scan"], self.averaged
        rebuilt = codec.decode(codec.encode(scans)).clamp(-1, 1)
        self.count_losses(batch, 0, (rebuilt - scans).abs().flatten(1).mean(1))
        self.count_losses(batch, 1, peak_ratio(scans, rebuilt))

    def log_validation(self, losses: Tensor, seen: Tensor) -> None:
        """Log the mean absolute error and the peak signal-to-noise ratio over classes, and the ratio of each class."""
        self.log("val_loss", losses[seen, 0].mean().float(), prog_bar=True, rank_zero_only=True)
        self.log("val_psnr", losses[seen, 1].mean().float(), rank_zero_only=True)
        for row in seen.tolist():
            self.log(f"val_psnr/{self.classes[row]}", losses[row, 1].float(), rank_zero_only=True)

    def _terms(self, clean: Tensor, places: Sequence[int], keys: tuple[int, int]) -> dict[str, tuple[float, Tensor]]:
        """Return weight and values `(N,)` of each term of the loss."""
        mean, deviation = (each.float() for each in self.network.autoencoder.encode(clean))
        latents = mean + deviation * place_noise(mean, places, self._seed, *keys)
        rebuilt = self.network.autoencoder.decode(latents).float()
        return {
            "error": (1.0, (rebuilt - clean).abs().flatten(1).mean(1)),
            "divergence": (self._weights.kl_weight, divergence(mean, deviation) / clean[0].numel()),
        }


class ReconstructionPreviews(Previews):
    """Real scans of every class above their reconstructions; these pictures are patient data."""

    def show(self, trainer: pl.Trainer, module: TrainingModule) -> list[tuple[str, np.ndarray]]:
        """Return validation scans of each class (training scans if it has none) and their reconstructions."""
        codec, rows = module.averaged, []
        assert isinstance(codec, LatentCodec)
        for number, label in enumerate(self.prepared.classes):
            val, train = (self.prepared.indices(split=split, label=number) for split in ("val", "train"))
            chosen = (val if len(val) else train)[: PREVIEW_SCANS[self.rank]]
            scans = torch.from_numpy(np.asarray(self.prepared.scans[chosen], dtype=np.float32))
            rebuilt = codec.decode(codec.encode(scans.to(module.device))).clamp(-1, 1).cpu()
            rows += [(f"{label}: scans", scans.numpy()), (f"{label}: reconstructed", rebuilt.numpy())]
        return rows
