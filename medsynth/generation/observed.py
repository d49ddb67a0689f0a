"""Channels that new scans take from real ones: masks to fill, or sequences from which a missing one is generated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import affine_transform
from torch import Tensor

from medsynth.cohorts import read_cohort
from medsynth.cohorts.attributes import known_values
from medsynth.cohorts.channels import parse_channels, select_channels
from medsynth.cohorts.manifest import MASK
from medsynth.config import Loading, ObservedOptions
from medsynth.errors import ConfigError, DataError
from medsynth.generation.donors import RealScans, prepare_real
from medsynth.networks import observe_channels
from medsynth.runs import Run
from medsynth.scans import Intensity
from medsynth.seeds import numpy_generator

# Standard deviations of a changed mask: degrees, ln(zoom), fraction of the grid; draws are cut off at two of them.
_TURN, _ZOOM, _SHIFT, _CUT = 8.0, 0.1, 0.04, 2.0
_ATTEMPTS = 8  # to change a mask without moving all of it off the grid


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservedScans:
    """Channels of real scans, which new scans observe.

    `real` has zeros in channels that are not observed; `known` `(C,)` says which are, `names` their files. `labels` and
    `attributes` are those of the cohort. `seed` decides which scan each new one observes.
    """

    options: ObservedOptions
    names: tuple[str, ...]
    real: RealScans
    known: np.ndarray
    labels: tuple[str, ...]
    attributes: tuple[tuple[str, ...], ...]
    seed: int

    @property
    def real_pixels(self) -> bool:
        """Whether an image is observed, and not only masks."""
        return self.names != (MASK,)

    def source(self, label: str, number: int) -> int:
        """Return the place of the scan that a new one observes: each of the class once, in random order, before any again."""
        places = [place for place, name in enumerate(self.labels) if name == label]
        lap, turn = divmod(number, len(places))
        # "given" was the word of medsynth 0.1 for observed; a seed keeps meaning the same scans.
        return places[int(numpy_generator(self.seed, "given", label, lap).permutation(len(places))[turn])]

    def condition(self, label: str, numbers: Iterable[int], seeds: Sequence[int]) -> Tensor:
        """Return `Condition.observed` of new scans of one class."""
        scans = np.stack([self.real.scans[self.source(label, number)] for number in numbers]).astype(np.float32)
        if self.options.change:
            scans[:, -1] = [change_mask(mask, seed) for mask, seed in zip(scans[:, -1], seeds, strict=True)]
        known = torch.from_numpy(self.known)[None].expand(len(scans), -1)
        return observe_channels(torch.from_numpy(scans), known)

    def columns(self, label: str, number: int) -> dict[str, str]:
        """Return what the row of a new scan says of the scan it observed."""
        row = self.real.rows[self.source(label, number)]
        return {"observed_from": str(row), "contains_real_pixels": str(int(self.real_pixels))}

    def facts(self) -> dict[str, Any]:
        """Return what the set's provenance says; no path and no patient."""
        observed = {"channels": list(self.names), "split": self.options.split, "change": self.options.change}
        return {"observed": observed | self.real.facts(), "contains_real_pixels": self.real_pixels}


def check_observed(run: Run, options: ObservedOptions) -> tuple[str, ...]:
    """Return the channels to observe, none if the options name neither cohort nor channels.

    Raises `ConfigError` for a run that cannot observe any, channels that it lacks or that are all it has, and options that
    contradict each other.
    """
    if not options.cohort and not options.channels.strip():
        if options.change:
            raise ConfigError("observed.change: changes observed masks, got no channels; try --observed.channels mask")
        return ()
    if not run.spec.observed:
        raise ConfigError(
            "observed.channels: need a run trained with condition.observed above 0, got one without; try medsynth train "
            "--condition.observed 0.5"
        )
    names = parse_channels(options.channels, run.spec.channel_names, option="observed.channels")
    if not options.cohort:
        raise ConfigError(
            "observed.cohort: need the cohort of the scans to observe, got none; try --observed.cohort cohort.csv"
        )
    if options.change and names != (MASK,):
        raise ConfigError(f"observed.change: changes masks only, got {', '.join(names)}; try --observed.change false")
    return names


def find_observed(
    run: Run, options: ObservedOptions, labels: Sequence[str], *, seed: int, loading: Loading = Loading()
) -> ObservedScans | None:
    """Return the channels that new scans of the classes `labels` observe, on the run's grid; None without any.

    Raises `ConfigError` as `check_observed`, and `DataError` for a cohort without such scans, or that the run's grid cannot take.
    """
    names = check_observed(run, options)
    if not names:
        return None
    cohort = read_cohort(options.cohort)
    numbers = [n for n, row in enumerate(cohort.rows) if row.split == options.split and row.label in labels]
    for label in labels:
        if all(cohort.rows[number].label != label for number in numbers):
            known = ", ".join(cohort.select(split=options.split).classes) or "none"
            raise DataError(
                f"observed.cohort: need {options.split} scans of {label!r}, got none; try classes among {known}, or another "
                "observed.split"
            )
    spec, images = run.spec, [name for name in names if name != MASK]
    chosen = replace(cohort, rows=tuple(cohort.rows[number] for number in numbers))
    # If no scan has a mask, as with healthy patients, the observed masks are empty.
    masked = MASK in names and any(row.mask is not None for row in chosen.rows)
    intensity, which = spec.image_intensity, np.array([name in names for name in spec.channel_names])
    if len(intensity.low) > 1:
        # Without an image to observe, that of any image.
        places = [place for place, name in enumerate(spec.channel_names) if name in images] or [0]
        low, high = (tuple(ends[place] for place in places) for ends in (intensity.low, intensity.high))
        intensity = Intensity(low=low, high=high)
    shown = select_channels(chosen, images)
    real = prepare_real(run, shown, numbers, intensity=intensity, mask=masked, loading=loading)
    first = 0 if images else real.scans.shape[1] - masked
    wanted, got = (int(which.sum()), *spec.shape[1:]), (real.scans.shape[1] - first, *real.scans.shape[2:])
    if wanted != (got[0] + (MASK in names) - masked, *got[1:]):
        raise DataError(
            f"observed.cohort: need channels and axes of {wanted}, got {got}; try the cohort that the run was trained on"
        )
    scans = np.zeros((len(numbers), *spec.shape), dtype=np.float16)
    if MASK in names:
        scans[:, -1] = -1
    scans[:, np.flatnonzero(which)[: got[0]]] = real.scans[:, first:]
    real, values = replace(real, scans=scans), known_values(chosen, spec.attributes, loading=loading)
    of = tuple(row.label for row in chosen.rows)
    return ObservedScans(options=options, names=names, real=real, known=which, labels=of, attributes=values, seed=seed)


def change_mask(mask: np.ndarray, seed: int) -> np.ndarray:
    """Return a mask `(*spatial)` of -1 and 1, turned, scaled and shifted a little by a seed; some of it stays on the grid."""
    random = numpy_generator(seed, "given change")
    centre = (np.array(mask.shape) - 1) / 2
    for _ in range(_ATTEMPTS):
        matrix = np.eye(mask.ndim) * math.exp(-_ZOOM * _draw(random))
        for first, second in [(0, 1)] if mask.ndim == 2 else [(1, 2), (0, 2), (0, 1)]:
            angle = math.radians(_TURN) * _draw(random)
            turn = np.eye(mask.ndim)
            turn[[first, second], [first, second]] = math.cos(angle)
            turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
            matrix = matrix @ turn
        shift = np.array([_SHIFT * length * _draw(random) for length in mask.shape])
        moved = affine_transform(mask, matrix, offset=centre - matrix @ (centre + shift), order=0, cval=-1.0)
        if (moved > 0).any() or not (mask > 0).any():
            return np.asarray(moved, dtype=mask.dtype)
    return mask


def _draw(random: np.random.Generator) -> float:
    return float(np.clip(random.normal(), -_CUT, _CUT))
