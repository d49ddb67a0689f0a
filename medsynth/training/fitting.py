"""What every training does, whatever it trains: check its run folder, write what belongs in it, and fit with Lightning."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from medsynth.cohorts import Cohort, PreparedCohort, prepare_cohort
from medsynth.config import GridOptions, IntensityOptions, changed_options
from medsynth.errors import ConfigError
from medsynth.files import remove_partial, write_text
from medsynth.networks import Denoiser
from medsynth.processes import (
    check_world,
    cluster_environment,
    is_first_process,
    is_loss,
    leave_group_at_exit,
    lost_process,
    meeting,
)
from medsynth.runs import METRICS_FILE, RUN_FILE, DivergedError, Run, RunSpec, load_run, write_patients
from medsynth.scans import Intensity
from medsynth.training.batches import Options, TrainingData
from medsynth.training.callbacks import Previews, Progress, Throughput
from medsynth.training.checkpoints import (
    CHECKPOINT,
    AtomicCheckpointIO,
    MetricsLog,
    RunKeeper,
    StopOnSignal,
    check_checkpoint,
)
from medsynth.training.module import TrainingModule
from medsynth.training.preflight import check_disk, check_memory, check_precision
from medsynth.training.spec import Conditions

# Files that a training killed before its first run.json may have left.
_OWN = {
    "model.safetensors", "early.safetensors", "patients.json", "attributes.json", "text.npz", "metrics.csv", "config.yaml",
    "previews", "checkpoints", "tensorboard", "trajectories",
}  # fmt: skip
# Options that say where things are and what is shown. They are not stored.
_PLACES = ("run", "cohort", "out", "cache_dir", "progress", "preflight")
# Options that may change when a training is continued. The numbers of processes and of smaller batches change which dropout masks
# are drawn (and a GPU draws other noise than a CPU), so weights are bit-for-bit the same only if these stay.
_FREE = (
    "accelerator", "devices", "num_nodes", "num_workers", "accumulate_grad_batches", "activation_checkpointing", "monitor",
    "max_mib", "nan",
)  # fmt: skip
# Options that may also change while a training is not finished, since it may have diverged with them.
_CURES = ("optimiser.learning_rate", "precision")
# Warnings of Lightning without consequence here.
_NOISE = (
    ".*sync_dist=True.*",
    ".*does not have many workers.*",
    ".*tensorboard.*",
    ".*Checkpoint directory.*",
    ".*LeafSpec.*",
)
# malloc.h of glibc, and the largest threshold that it accepts.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST_ON_HEAP = -1, -3, 32 << 20


def check_options(options: Options) -> None:
    """Raise `ConfigError` for batches that cannot be divided, or a launcher with another number of processes."""
    check_world(devices=options.devices, num_nodes=options.num_nodes)
    scans, rest = divmod(options.batch_size, options.devices * options.num_nodes)
    parts = options.accumulate_grad_batches
    if not rest and scans % parts:
        better = max(number for number in range(1, parts) if scans % number == 0)
        raise ConfigError(
            f"accumulate_grad_batches: need a divisor of the {scans} scans per step and process, got {parts}; try {better}"
        )


def plain_options(options: Options) -> dict[str, Any]:
    """Return the options as JSON values, without those that say where things are and what is shown."""
    values = {name: value for name, value in dataclasses.asdict(options).items() if name not in _PLACES}
    return cast(dict[str, Any], json.loads(json.dumps(values, default=str)))


def open_previous(options: Options) -> Run | None:
    """Return the run in the folder of a training; None if there is none yet."""
    return load_run(options.out) if (Path(options.out) / RUN_FILE).is_file() else None


@dataclass(kw_only=True)
class Training:
    """A training and its run folder, `options.out`: the checks before it, its prepared scans, and the fit.

    `options` name other runs by the beginning of their fingerprints. The patients of `before`, the run whose weights it builds
    on, are added to those of this run. `inherited` are further options for run.json.
    """

    options: Options
    cohort: Cohort
    classes: tuple[str, ...]
    grid: GridOptions
    intensity: IntensityOptions | Intensity
    mask: bool = False
    conditions: Conditions = Conditions()
    before: Run | None = None
    inherited: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out = Path(self.options.out)
        self.previous = open_previous(self.options)
        self._lines: list[str] = []

    @property
    def finished(self) -> bool:
        """Whether the folder holds a run with all steps."""
        return self.previous is not None and self.previous.steps >= self.options.max_steps

    def check_needs(self, network: nn.Module, shape: tuple[int, ...], *, passes: int = 0) -> None:
        """Raise `ConfigError` if disk, or memory for `passes` per scan, are too small for `network`; 0 skips memory."""
        check_disk(self.out, network)
        if isinstance(network, Denoiser):
            check_precision(network, shape, self.options)
            if passes and not self.finished and is_first_process():
                self._lines.append(check_memory(network, shape, self.options, passes=passes))

    def prepare(self) -> PreparedCohort:
        """Prepare the scans, and check that the folder is free or holds the same training.

        Raises `ConfigError` for one with other files, options or data (it names them), and as `check_checkpoint` does.
        """
        if self.before is not None and is_first_process() and not (self.out / CHECKPOINT).is_file():
            self.before.patients().open_key()  # else the patients of both could not be told together
        prepared = prepare_cohort(
            self.cohort,
            grid=self.grid,
            intensity=self.intensity,
            loading=self.options,
            classes=self.classes,
            mask=self.mask,
        )
        self.prepared = self.conditions.add_to(prepared)
        self.stored = dict(self.inherited) | plain_options(self.options) | {"cohort": prepared.key}
        self.stored |= self.conditions.hashes()
        out, checkpoint = self.out, self.out / CHECKPOINT
        self.resumed = checkpoint.is_file()
        if self.previous is not None:
            free = _FREE if self.finished else (*_FREE, *_CURES)
            if changed := changed_options(self.previous.options, self.stored, free=free):
                raise ConfigError(
                    f"{out}: holds a run with other options or data ({'; '.join(changed)}); try the same ones, or another --out"
                )
        elif self.resumed:
            raise ConfigError(f"{out}: need {RUN_FILE} beside the checkpoint, got none; try another --out")
        elif out.is_dir() and not all(path.name in _OWN or path.name.startswith(".partial-") for path in out.iterdir()):
            raise ConfigError(
                f"{out}: need a new folder or a run to continue, got a folder with other files; try another --out"
            )
        if self.finished:
            remove_partial(out)
        elif self.resumed:
            check_checkpoint(checkpoint, checkpoint.parent)
        return self.prepared

    def fit(
        self,
        module: TrainingModule,
        spec: RunSpec,
        data: TrainingData,
        previews: Previews,
        *,
        callbacks: Sequence[Callback] = (),
        lines: Sequence[str] = (),
    ) -> pl.Trainer:
        """Train `module` to the last step and return the trainer; `callbacks` act before the run is written.

        `lines` are printed before the first step. Raises `ConfigError` for devices that do not exist, when another process
        died or the training diverged, and `KeyboardInterrupt` when a signal stopped the training, after a checkpoint was written.
        """
        options, out = self.options, self.out
        keeper = RunKeeper(out, spec, self.stored, options.monitor.checkpoint_every)
        stop = StopOnSignal(out / CHECKPOINT, keeper)
        trainer = _make_trainer(
            options,
            [*callbacks, stop, keeper],
            previews if options.monitor.preview_every > 0 else None,
            validate=options.monitor.validate_every > 0 and len(data.validation) > 0,
        )
        if trainer.is_global_zero:
            self._begin_folder()
            if options.progress:
                print(*self._lines, *lines, sep="\n", file=sys.stderr, flush=True)
        with warnings.catch_warnings(), _freed_memory_kept(trainer):
            for text in _NOISE:
                warnings.filterwarnings("ignore", text)
            try:
                # A run's own checkpoint is plain tensors and numbers; nothing else is loaded.
                with meeting(trainer.world_size):
                    trainer.fit(
                        module,
                        *data.loaders(trainer, options),
                        ckpt_path=out / CHECKPOINT if self.resumed else None,
                        weights_only=True,
                    )
            except SystemExit as error:  # Lightning's answer to a second Ctrl-C
                raise KeyboardInterrupt("at once; the same command continues from the last checkpoint") from error
            except DivergedError as error:
                raise ConfigError(f"{out}: {error}; {self._after_divergence(keeper.kept)}") from error
            except RuntimeError as error:
                if str(error).startswith("DataLoader worker"):
                    raise ConfigError(
                        "num_workers: need processes that load scans until the end, but one ended, perhaps for lack of memory; "
                        "try fewer --num_workers; the same command continues"
                    ) from error
                if trainer.world_size == 1 or not is_loss(error):
                    raise
                raise lost_process(trainer.world_size, cause=error) from error
            finally:
                stop.restore_signals()
        trainer.strategy.barrier()  # the first rank has written the run
        if stop.stopped:
            raise KeyboardInterrupt(f"stopped at step {trainer.global_step}; the same command continues from there")
        return trainer

    def _after_divergence(self, kept: int) -> str:
        """Return what is left of a training that diverged after the checkpoint of step `kept`, and what to do."""
        options = self.options
        cures = f"a smaller --optimiser.learning_rate (this one: {options.optimiser.learning_rate:g})"
        cures += "" if options.precision == "32-true" else " or --precision 32-true"
        if not kept:
            return f"there is no checkpoint yet; try the same command with {cures}"
        return f"the last good checkpoint is of step {kept}; try the same command with {cures}: it continues from there"

    def _begin_folder(self) -> None:
        """Write what a run folder holds before its first weights, and remove what a killed process left."""
        self.out.mkdir(parents=True, exist_ok=True)
        remove_partial(self.out)
        write_text(self.out / "config.yaml", yaml.safe_dump(plain_options(self.options), sort_keys=False))
        if not self.resumed:
            rows = {split: self.cohort.select(split=split).rows for split in ("train", "val")}
            patients = {split: [row.patient_id for row in found] for split, found in rows.items()}
            before = None if self.before is None else self.before.patients()
            key = write_patients(self.out, patients, before=before)
            self._lines.append(
                f"patients: whom this run was trained on can be told with the key {key.path} only; keep it, and never publish it"
            )
            self.conditions.write(self.out, self.prepared.indices(split="train"))


def _make_trainer(
    options: Options, callbacks: list[Callback], previews: Previews | None, *, validate: bool
) -> pl.Trainer:
    monitor, out = options.monitor, Path(options.out)
    if options.progress:
        callbacks.append(Progress())
    if previews is not None:
        callbacks.append(previews)
    # Last, so that previews do not count as waiting.
    callbacks.append(Throughput(monitor.log_every, options.batch_size))
    checkpoints = ModelCheckpoint(
        dirpath=out / CHECKPOINT.parent,
        filename=CHECKPOINT.stem,
        every_n_train_steps=monitor.checkpoint_every,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    loggers: list[Any] = [MetricsLog(out / METRICS_FILE)]
    if monitor.tensorboard:
        try:
            from lightning.pytorch.loggers import TensorBoardLogger

            loggers.append(TensorBoardLogger(save_dir=out, name="tensorboard", version=""))
        except ModuleNotFoundError as error:
            raise ConfigError(
                "monitor.tensorboard: need the package tensorboard, got none; try pip install 'medsynth-diffusion[tensorboard]'"
            ) from error
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    leave_group_at_exit()
    try:
        return pl.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.num_nodes,
            precision=options.precision,
            max_steps=options.max_steps,
            max_epochs=-1,
            deterministic=options.deterministic,
            val_check_interval=min(monitor.validate_every, options.max_steps) if validate else None,
            check_val_every_n_epoch=None,
            limit_val_batches=None if validate else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=min(monitor.log_every, options.max_steps),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO(out / CHECKPOINT.parent), cluster_environment()],
            callbacks=[*callbacks, checkpoints],
            logger=loggers,
            default_root_dir=out,
        )
    except MisconfigurationException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"accelerator: need devices that exist, got {options.accelerator!r}: {reason}; try auto"
        ) from error


@contextmanager
def _freed_memory_kept(trainer: pl.Trainer) -> Iterator[None]:
    """On a CPU under Linux, keep freed memory for the next step instead of returning it to the system; return it at the end.

    A step frees all of its activations; getting them back from the system costs an eighth of the computing time at 64 x 64.
    """
    on_cpu = trainer.strategy.root_device.type == "cpu"
    system = ctypes.CDLL(None) if sys.platform == "linux" and on_cpu else None
    if system is None or not hasattr(system, "mallopt"):  # another library than glibc
        yield
        return
    system.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    system.mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
    try:
        yield
    finally:
        system.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_ON_HEAP)
        system.malloc_trim(0)
