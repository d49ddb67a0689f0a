"""The real scans that edits begin from: which they are, each as the network sees it and as it is stored, and what edits share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medsynth.cohorts import Cohort, Row, hash_cohort, hash_scans, prepare_cohort
from medsynth.cohorts.channels import count_channels, mask_channel, read_channels, read_mask
from medsynth.cohorts.grid import centre_of_mask, resize_scan
from medsynth.config import EditOptions, Loading
from medsynth.errors import DataError
from medsynth.generation.generator import Generator, SyntheticScan, check_class, check_count, plan_job, to_stored
from medsynth.generation.where import AttributeDraw, plan_attributes
from medsynth.runs import Run
from medsynth.scans import Intensity, read_header
from medsynth.seeds import derive_seed, numpy_generator
from medsynth.sets import DONOR_DIGITS


@dataclass(frozen=True, kw_only=True, eq=False)
class RealScans:
    """Scans of a real cohort on a run's grid: `scans` `(N, C, *spatial)` float16 in [-1, 1], `rows` `(N,)` their row numbers.

    `patients` is the number of their patients; `sha256` is a hash of content, classes and rows.
    """

    scans: np.ndarray
    rows: np.ndarray
    patients: int
    sha256: str

    def facts(self) -> dict[str, Any]:
        """Return what provenance says of them; no path and no patient."""
        return {"scans": len(self.rows), "patients": self.patients, "sha256": self.sha256}


class Edit(Generator):
    """What counterfactuals and inpainting share: a donor for each scan, and attributes if any are wanted."""

    name = "edit"
    split = "train"
    seed_key: str  # separates the seeds of the two
    donors: RealScans
    chosen: np.ndarray
    cohort_hash: str  # of all its rows, by which an evaluation recognises it
    hashes: list[str]  # of the file of each row

    def __init__(self, run: Run, cohort: Cohort, options: EditOptions) -> None:
        """Check the options; `ConfigError` for what does not fit the run, before a scan is read."""
        run.check_editable()
        check_class("target_class", options.target_class, run.spec.classes)
        self.cohort, self.options = cohort, options
        self.job = plan_job(run, options, {options.target_class: check_count(options.count, options.count)})
        wanted = plan_attributes(run, options.where, options.where_from)
        # Attributes that nobody asked for stay unspecified: the donor's are not the target's.
        self.attributes = wanted if options.where.strip() else AttributeDraw()

    def prepare(self, *, progress: bool) -> None:
        self.options = replace(self.options, progress=progress)
        options, label = self.options, self.options.donor_class
        with_mask = options.method == "inpaint" and options.inpaint.region == "donor"
        self.donors = find_donors(self.job.run, self.cohort, label, with_mask=with_mask, loading=options)
        quiet = replace(options, progress=False)
        self.cohort_hash, self.hashes = hash_cohort(self.cohort, loading=quiet), hash_scans(self.cohort, loading=quiet)
        available = len(self.donors.rows)
        self.chosen = choose_evenly(options.seed, "donors", label, available=available, count=options.count)

    def facts(self) -> dict[str, Any]:
        classes = {"donor_class": self.options.donor_class, "target_class": self.options.target_class}
        return {**classes, "donors": self.donors.facts() | {"cohort": self.cohort_hash}, **self.attributes.facts()}

    def with_donors(self, made: Sequence[SyntheticScan]) -> list[SyntheticScan]:
        """Return scans whose files name the file of their donor by a hash, without which nobody believes the row's `donor`."""
        named = []
        for each in made:
            donor = self.hashes[self.donors.rows[self.chosen[each.number]]][:DONOR_DIGITS]
            scan = replace(each.scan, provenance={**each.scan.provenance, "donor": donor})
            named.append(replace(each, scan=scan))
        return named

    def seed_of(self, label: str, number: int) -> int:
        # Not of strength or region: with another one, the noise is the same.
        return derive_seed(self.options.seed, self.seed_key, self.options.donor_class, label, number)

    def columns_of(self, label: str, number: int) -> dict[str, str]:
        drawn = self.attributes.draw(label, self.seed_of(label, number))
        return {"donor": str(self.donors.rows[self.chosen[number]]), **self.attributes.columns(drawn)}


def choose_evenly(seed: int, *keys: str, available: int, count: int) -> np.ndarray:
    """Return `count` of `available` places, each once in random order before any again; a smaller count gives the first ones."""
    laps = -(-count // available)
    orders = [numpy_generator(seed, *keys, lap).permutation(available) for lap in range(laps)]
    return np.concatenate(orders)[:count]


def find_donors(run: Run, cohort: Cohort, label: str, *, with_mask: bool, loading: Loading) -> RealScans:
    """Return the training scans of a class, all of them or those with a mask, on the run's grid and in its range.

    Raises `ConfigError` for an unknown class, `DataError` for a cohort without such scans or with synthetic ones, and for scans
    that the run's grid cannot take.
    """
    check_class("donor_class", label, run.spec.classes)
    if any(row.attributes.get("synthetic") == "1" for row in cohort.rows):
        raise DataError(
            f"{cohort.folder}: need real scans as donors, got rows that say synthetic=1; try the cohort of medsynth index"
        )
    numbers = [place for place, row in enumerate(cohort.rows) if row.split == "train" and row.label == label]
    if not numbers:
        known = ", ".join(cohort.select(split="train").classes) or "none"
        raise DataError(f"donor_class: need training scans of {label!r} in the cohort, got none; try one of {known}")
    if with_mask:
        numbers = [place for place in numbers if cohort.rows[place].mask is not None]
        if not numbers:
            raise DataError(
                f"inpaint.region: need at least one mask of a training scan of {label!r}, got none in the cohort; try a column "
                "mask, region class, or the path of a mask"
            )
    real = replace(cohort, rows=tuple(cohort.rows[number] for number in numbers))
    # Refused by the first one, before any is decoded.
    first, wanted = real.rows[0], run.spec.shape
    file = real.file_of(first)
    channels = count_channels(real, first, mask=run.spec.mask, loading=loading)
    axes = len(read_header(file, loading=loading).shape) - 1
    if (wanted[0], len(wanted) - 1) != (channels, axes):
        raise DataError(
            f"{file}: need {wanted[0]} channels and {len(wanted) - 1} axes like the run's scans, got {channels} and {axes}; try "
            "the cohort that the run was trained on"
        )
    # If no scan has a mask, as with healthy patients, the channel of masks is empty.
    masked = run.spec.mask and any(row.mask is not None for row in real.rows)
    intensity = run.spec.intensity if masked else run.spec.image_intensity
    found = prepare_real(run, real, numbers, intensity=intensity, mask=masked, loading=loading)
    if not run.spec.mask or masked:
        return found
    return replace(found, scans=np.concatenate([found.scans, np.full_like(found.scans[:, :1], -1)], axis=1))


def prepare_real(
    run: Run, real: Cohort, numbers: Sequence[int], *, intensity: Intensity, mask: bool, loading: Loading
) -> RealScans:
    """Return the scans of `real`, whose rows have these numbers in their cohort, on the run's grid."""
    classes = run.spec.classes
    prepared = prepare_cohort(real, grid=run.grid, intensity=intensity, loading=loading, classes=classes, mask=mask)
    digest = hashlib.sha256(json.dumps([prepared.key, list(numbers)]).encode())
    patients = len(np.unique(prepared.patients))
    return RealScans(scans=prepared.scans, rows=np.array(numbers), patients=patients, sha256=digest.hexdigest())


def read_donor(
    run: Run, cohort: Cohort, row: Row, *, loading: Loading = Loading()
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return a scan on the run's grid, float32 `(C, *grid)` in [-1, 1], and its images by name as they are stored.

    If the scan has the run's grid, stored images are its original voxels, bit for bit; otherwise those of the grid, converted
    once. Both are in the run's dtype and axis order. `DataError` as `prepare_cohort`.
    """
    scan = read_channels(cohort.files_of(row), loading)
    file = cohort.mask_of(row)
    by_mask = run.grid.spacing is not None and run.grid.centre == "mask"
    mask = None if file is None or not (by_mask or run.spec.mask) else read_mask(file, scan, loading)
    centre = None if mask is None or not by_mask else centre_of_mask(mask)
    intensity = run.spec.image_intensity
    images, spacing = resize_scan(scan, grid=run.grid, intensity=intensity, centre=centre)
    array = images
    if run.spec.mask:
        array = np.concatenate([array, mask_channel(mask, run.spec.shape[1:], grid=run.grid, centre=centre)])
    stored = to_stored(array, run)
    same = scan.spatial_shape == run.spec.shape[1:] and np.allclose(spacing, scan.spacing)
    if same and np.array_equal(intensity.to_model(scan.array.astype(np.float32)), images):
        for name, (channels, _) in run.spec.files.items():
            original = scan.array[channels].astype(stored[name].dtype)
            if np.array_equal(original, scan.array[channels]):
                stored[name] = original
    return array, stored
