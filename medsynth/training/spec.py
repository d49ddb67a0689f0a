"""What a training makes of a cohort and its options: classes, shape, sigma_data, everything that a run says of itself."""

from __future__ import annotations

import numpy as np
import torch

from medsynth.cohorts import Cohort, PreparedCohort
from medsynth.cohorts.attributes import Attribute
from medsynth.cohorts.channels import read_headers
from medsynth.config import NetworkOptions, TrainingPlan
from medsynth.errors import ConfigError, DataError
from medsynth.networks import build_stem, check_network
from medsynth.runs import Run, RunSpec
from medsynth.scans import scan_suffix
from medsynth.training.augmentation import Augmentation
from medsynth.training.start import check_start


def trained_classes(cohort: Cohort, plan: TrainingPlan) -> tuple[str, ...]:
    """Classes to train on: those of the training split that are not left out.

    Raises `DataError` without any, and `ConfigError` for classes to leave out that are none, or all.
    """
    known = cohort.select(split="train").classes
    if not known:
        raise DataError("cohort: need scans in the training split, got none; try another split in medsynth index")
    left_out = {part.strip() for part in plan.leave_out.split(",") if part.strip()}
    if unknown := sorted(left_out - set(known)):
        raise ConfigError(f"leave_out: need classes of {', '.join(known)}; got {', '.join(unknown)}")
    if left_out == set(known):
        raise ConfigError("leave_out: need a class that stays, got all of them; try the rare class alone")
    return tuple(label for label in known if label not in left_out)


def make_spec(
    cohort: Cohort,
    prepared: PreparedCohort,
    plan: TrainingPlan,
    *,
    parents: tuple[int, ...] = (),
    attributes: tuple[Attribute, ...] = (),
    start: Run | None = None,
) -> RunSpec:
    """Return the description of a run on this cohort; measures sigma_data over the whole training split.

    A training that begins from the run `start` keeps its sigma_data, to which the weights belong. Raises `ConfigError` for a
    grid that the network cannot take or a start that does not fit.
    """
    shape = tuple(int(length) for length in prepared.scans.shape[1:])
    autoencoder = plan.autoencoder if plan.network.stem == "latent" else None
    check_network(plan.network, shape[1:], autoencoder=autoencoder)
    if plan.condition.given > 0 and shape[0] == 1:
        raise ConfigError(
            "condition.given: need scans of several channels, of which some can be given, got one; try condition.mask true"
        )
    train = prepared.indices(split="train")
    counts = np.bincount(prepared.labels[train], minlength=len(prepared.classes))
    patients = [
        len(np.unique(prepared.patients[prepared.indices(split="train", label=number)]))
        for number in range(len(prepared.classes))
    ]
    files = cohort.files_of(prepared.rows[int(train[0])])
    headers = read_headers(files, plan.reading)
    first, header = files["path"], headers["path"]
    several = set(prepared.channels) != {"path"}
    sigma_data, band_means = _bands(prepared, plan, start)
    spec = RunSpec(
        classes=prepared.classes,
        class_counts=tuple(counts.tolist()),
        class_patients=tuple(patients),
        shape=shape,
        affine=tuple(tuple(row) for row in prepared.affine.tolist()),
        intensity=prepared.intensity,
        dtype=header.dtype,
        suffix=scan_suffix(first) or ".dcm",
        modality=header.modality,
        network=plan.network,
        augmentation_parameters=Augmentation(plan.augment, len(shape) - 1).parameters,
        sigma_data=sigma_data,
        band_means=band_means,
        parents=parents,
        gate_sigma=plan.rare.gate_sigma,
        autoencoder=autoencoder,
        attributes=attributes,
        given=plan.condition.given > 0,
        channels=prepared.channels if several else (),
        dtypes=tuple(headers[name].dtype for name in dict.fromkeys(prepared.channels) if name in headers)
        if several
        else (),
    )
    if start is not None:
        check_start(start, spec)
    return spec


def _bands(
    prepared: PreparedCohort, plan: TrainingPlan, start: Run | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return sigma_data and means of the bands."""
    if start is not None:
        return start.spec.sigma_data, start.spec.band_means
    if plan.network.stem == "latent":  # by the scale of the latents
        return (1.0,) * plan.autoencoder.latent_channels, ()
    return measure_bands(prepared.scans, prepared.indices(split="train"), plan.network)


def measure_bands(
    scans: np.ndarray, chosen: np.ndarray, network: NetworkOptions
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return sigma_data for each band of the stem over the chosen scans, all equal without `band_scaling`, and the means.

    Without `centring` there are no means and sigma_data is the root mean square, else the standard deviation; so the network's
    input has unit power also where the mean is not zero. Values below 0.01 are raised to it: a band without content must not
    scale its noise up without bound.
    """
    stem = build_stem(network)
    total: torch.Tensor | float = 0.0
    squares: torch.Tensor | float = 0.0
    for start in range(0, len(chosen), 256):
        block = torch.from_numpy(np.asarray(scans[chosen[start : start + 256]], dtype=np.float32))
        bands = stem(block).double().flatten(2)
        total, squares = total + bands.mean(2).sum(0), squares + bands.square().mean(2).sum(0)
    means, power = torch.as_tensor(total) / len(chosen), torch.as_tensor(squares) / len(chosen)
    if not network.centring:
        means = torch.zeros_like(means)
    variance = power - means.square()
    if not network.band_scaling:
        variance = variance.mean().expand_as(variance)
    sigma_data = tuple(max(value, 1e-2) for value in variance.clamp(min=0).sqrt().tolist())
    return sigma_data, tuple(means.tolist()) if network.centring else ()
