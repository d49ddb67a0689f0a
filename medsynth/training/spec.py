"""What a training makes of a cohort and its options: classes, conditions, the untrained network, the run's description."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsynth.cohorts import Cohort, PreparedCohort
from medsynth.cohorts.attributes import Attribute, AttributeTable, read_attributes
from medsynth.cohorts.channels import count_channels, read_headers
from medsynth.cohorts.grid import grid_size
from medsynth.cohorts.text import TextEncoding, fit_text
from medsynth.config import ConditionOptions, GridOptions, Loading, NetworkOptions, TrainOptions
from medsynth.errors import ConfigError, DataError
from medsynth.networks import Denoiser, build_denoiser, build_stem
from medsynth.runs import Run, RunSpec, load_run, write_attributes, write_text_encoding
from medsynth.scans import read_header, scan_suffix
from medsynth.training.augmentation import Augmentation

_LABELS = "unet.class_embedding.label.weight"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Attributes and encoded texts of all scans of a cohort, in order; None where the model has none."""

    table: AttributeTable | None = None
    texts: tuple[str, ...] = ()
    encoding: TextEncoding | None = None

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """The attributes that the model is conditioned on."""
        return () if self.table is None else self.table.attributes

    @property
    def text(self) -> int:
        """Dimensions of the encoded texts, 0 for none."""
        return 0 if self.encoding is None else self.encoding.dimensions

    def hashes(self) -> dict[str, str]:
        """Return hashes that change with any attribute or text."""
        known = {} if self.table is None else {"attributes": json.dumps(self.table.as_dict())}
        known |= {"text": json.dumps(self.texts)} if self.texts else {}
        return {name: hashlib.sha256(content.encode()).hexdigest() for name, content in known.items()}

    def add_to(self, prepared: PreparedCohort) -> PreparedCohort:
        """Return the prepared cohort with attributes and texts as numbers."""
        attributes = None if self.table is None else self.table.encode()
        text = None if self.encoding is None else self.encoding.encode(self.texts)
        return replace(prepared, attributes=attributes, text=text)

    def write(self, out: Path, train: np.ndarray) -> None:
        """Write the attributes of the training scans and the text encoding into a run folder."""
        if self.table is not None:
            write_attributes(out, self.table.select(train))
        if self.encoding is not None:
            write_text_encoding(out, self.encoding)


def read_conditions(
    cohort: Cohort, options: ConditionOptions, *, loading: Loading, encoding: TextEncoding | None = None
) -> Conditions:
    """Return attributes and texts of a cohort; the text encoding is fitted on the training split unless given.

    Raises `ConfigError` for a text column that does not exist, and as `read_attributes` and `fit_text` do.
    """
    table, column = read_attributes(cohort, options, loading=loading), options.text
    if not column:
        return Conditions(table=table)
    if not any(column in row.attributes for row in cohort.rows):
        known = ", ".join(sorted({name for row in cohort.rows for name in row.attributes})) or "none"
        raise ConfigError(f"condition.text: need a column of the cohort ({known}), got {column!r}")
    texts = tuple(row.attributes.get(column, "").strip() for row in cohort.rows)
    if encoding is None:
        train = [(text, row.patient_id) for text, row in zip(texts, cohort.rows, strict=True) if row.split == "train"]
        encoding = fit_text(
            [text for text, _ in train], [patient for _, patient in train], encoder=options.text_encoder
        )
    return Conditions(table=table, texts=texts, encoding=encoding)


def trained_cohort(cohort: Cohort, options: TrainOptions) -> tuple[Cohort, tuple[str, ...]]:
    """Return the scans of the classes to train on, and these classes: those of the training split that are not left out.

    Other scans are dropped. Raises `DataError` for an empty training split, and `ConfigError` for unknown classes to leave out,
    or all of them.
    """
    known = cohort.select(split="train").classes
    if not known:
        raise DataError("cohort: need scans in the training split, got none; try another split in medsynth index")
    if unknown := sorted(set(options.leave_out) - set(known)):
        raise ConfigError(f"leave_out: need classes of {', '.join(known)}; got {', '.join(unknown)}")
    classes = tuple(label for label in known if label not in options.leave_out)
    if not classes:
        raise ConfigError("leave_out: no class would be left; try the rare class alone")
    return replace(cohort, rows=tuple(row for row in cohort.rows if row.label in classes)), classes


def scan_shape(cohort: Cohort, grid: GridOptions, *, mask: bool, loading: Loading) -> tuple[int, ...]:
    """Return the shape `(C, *spatial)` that prepared scans will have, from the headers of the first training scan."""
    first = cohort.select(split="train").rows[0]
    rank = len(read_header(cohort.file_of(first), loading=loading).shape) - 1
    return (count_channels(cohort, first, mask=mask, loading=loading), *grid_size(grid, rank))


def build_untrained(
    options: TrainOptions, shape: Sequence[int], classes: Sequence[str], conditions: Conditions
) -> Denoiser:
    """Return the denoiser with its initial weights, which depend on the seed only; `ConfigError` as for `build_denoiser`."""
    if options.condition.observed > 0 and shape[0] == 1:
        raise ConfigError("condition.observed: need scans of several channels, got one; try condition.mask true")
    torch.manual_seed(options.seed)
    return build_denoiser(
        options.network,
        channels=shape[0],
        size=shape[1:],
        classes=len(classes),
        augmentation_parameters=Augmentation(options.augment, len(shape) - 1).parameters,
        categories=[len(attribute.categories) for attribute in conditions.attributes],
        observed=options.condition.observed > 0,
        text=conditions.text,
        autoencoder=options.autoencoder if options.network.stem == "latent" else None,
    )


def make_spec(
    cohort: Cohort,
    prepared: PreparedCohort,
    options: TrainOptions,
    *,
    conditions: Conditions = Conditions(),
    start: Run | None = None,
) -> RunSpec:
    """Return the description of a run; sigma_data is that of the run `start`, or measured over the training split."""
    train = prepared.indices(split="train")
    counts, patients = count_training(prepared)
    files = cohort.files_of(prepared.rows[int(train[0])])
    headers = read_headers(files, options)
    names = prepared.channels if set(prepared.channels) != {"path"} else ()
    latent = options.network.stem == "latent"
    if start is not None:
        sigma_data, band_means = start.spec.sigma_data, start.spec.band_means
    elif latent:  # latents are scaled to it
        sigma_data, band_means = (1.0,) * options.autoencoder.latent_channels, ()
    else:
        sigma_data, band_means = measure_bands(prepared.scans, train, options.network)
    shape = tuple(int(length) for length in prepared.scans.shape[1:])
    return RunSpec(
        classes=prepared.classes,
        class_counts=counts,
        class_patients=patients,
        shape=shape,
        affine=tuple(tuple(row) for row in prepared.affine.tolist()),
        intensity=prepared.intensity,
        dtype=headers["path"].dtype,
        suffix=scan_suffix(files["path"]) or ".dcm",
        modality=headers["path"].modality,
        network=options.network,
        augmentation_parameters=Augmentation(options.augment, len(shape) - 1).parameters,
        sigma_data=sigma_data,
        band_means=band_means,
        autoencoder=options.autoencoder if latent else None,
        attributes=conditions.attributes,
        text=conditions.text,
        observed=options.condition.observed > 0,
        channels=names,
        dtypes=tuple(headers[name].dtype for name in dict.fromkeys(names) if name in headers),
    )


def count_training(prepared: PreparedCohort) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of training scans and of their patients, of each class."""
    groups = [prepared.indices(split="train", label=number) for number in range(len(prepared.classes))]
    return tuple(map(len, groups)), tuple(len(np.unique(prepared.patients[group])) for group in groups)


@torch.no_grad()
def set_bands(denoiser: Denoiser, spec: RunSpec) -> None:
    """Give the denoiser the sigma_data and band means of its training scans."""
    denoiser.sigma_data.copy_(torch.tensor(spec.sigma_data))
    denoiser.band_means.copy_(torch.tensor(spec.band_means or 0.0))


def measure_bands(
    scans: np.ndarray, chosen: np.ndarray, network: NetworkOptions
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the standard deviation (sigma_data, at least 0.01) and mean of each band of the stem over the chosen scans."""
    stem = build_stem(network)
    sums = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(chosen), 256):
        block = torch.from_numpy(np.asarray(scans[chosen[start : start + 256]], dtype=np.float32))
        bands = stem(block).double().flatten(2)
        sums = sums + torch.stack([bands.mean(2).sum(0), bands.square().mean(2).sum(0)])
    means, power = sums / len(chosen)
    deviations = (power - means.square()).clamp(min=0).sqrt()
    # A band without content must not amplify its noise without bound.
    return tuple(max(value, 1e-2) for value in deviations.tolist()), tuple(means.tolist())


def open_start(options: TrainOptions) -> tuple[TrainOptions, Run | None]:
    """Return options that name `start` by its fingerprint, and its run; `ConfigError` for a run of another kind."""
    if options.start is None:
        return options, None
    start = load_run(options.start)
    if start.options.get("stage") == "autoencoder" or start.distilled:
        raise ConfigError(f"start: need a diffusion run of medsynth train, got {options.start}; try another run")
    if start.spec.mask != options.condition.mask:
        raise ConfigError(f"condition.mask: need {start.spec.mask} as in start, got {options.condition.mask}")
    return replace(options, start=start.fingerprint[:16]), start


@torch.no_grad()
def load_start(denoiser: Denoiser, spec: RunSpec, start: Run) -> None:
    """Give a new denoiser the weights of `start`. Classes are matched by name; a new one begins as the mean of those of `start`.

    Raises `ConfigError` if the weights do not fit a run described by `spec` (it names what differs).
    """
    ours, theirs = _facts(spec), _facts(start.spec)
    if differs := [f"{name} {theirs[name]} -> {value}" for name, value in ours.items() if theirs[name] != value]:
        raise ConfigError(
            f"start: need a run with the same grid, intensities and network, got {'; '.join(differs)}; try its config.yaml"
        )
    weights = start.load_denoiser().state_dict()
    known = weights[_LABELS]
    before = dict(zip(start.spec.classes, known, strict=False))  # the last row is that of no class
    rows = [before.get(label, known[:-1].mean(dim=0)) for label in spec.classes]
    denoiser.load_state_dict(weights | {_LABELS: torch.stack([*rows, known[-1]])})


def _facts(spec: RunSpec) -> dict[str, Any]:
    """Return what two runs must share for one to begin from the weights of the other; the scale of attributes may differ."""
    names = ("shape", "channels", "observed", "network", "autoencoder", "augmentation_parameters", "text")
    facts = {name: getattr(spec, name) for name in names}
    attributes = [(attribute.name, attribute.categories) for attribute in spec.attributes]
    return facts | {"intensity": spec.intensity.as_dict(), "attributes": attributes}
