"""The real scans that edits begin from: which they are, and each as the network sees it and as it is stored."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medsynth.cohorts import Cohort, Row, prepare_cohort
from medsynth.cohorts.channels import count_channels, mask_channel, read_channels, read_mask
from medsynth.cohorts.grid import centre_of_mask, resize_scan
from medsynth.config import ReadingOptions
from medsynth.errors import DataError
from medsynth.generation.generate import check_class, to_stored
from medsynth.runs import Run
from medsynth.scans import read_header
from medsynth.seeds import numpy_generator


@dataclass(frozen=True, kw_only=True, eq=False)
class Donors:
    """Real scans to begin from: `scans` is `(N, C, *spatial)` float16 in [-1, 1], `rows` `(N,)` their rows in the cohort.

    `patients` is how many patients they are of; `sha256` stands for their content, their class and their rows.
    """

    scans: np.ndarray
    rows: np.ndarray
    label: str
    patients: int
    sha256: str

    def choose(self, seed: int, count: int) -> np.ndarray:
        """Return the place of the donor of each of `count` scans, as `choose_evenly` does."""
        return choose_evenly(seed, "donors", self.label, available=len(self.rows), count=count)


def choose_evenly(seed: int, *keys: str, available: int, count: int) -> np.ndarray:
    """Return `count` places among `available`: each once, in random order, before any again.

    The first n are the same for every count.
    """
    whole = -(-count // available)
    orders = [numpy_generator(seed, *keys, lap).permutation(available) for lap in range(whole)]
    return np.concatenate(orders)[:count]


def find_donors(
    run: Run,
    cohort: Cohort,
    label: str,
    *,
    split: str = "train",
    with_mask: bool = False,
    reading: ReadingOptions = ReadingOptions(),
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Donors:
    """Return the scans of one class and split, those alone that have a mask or all, on the run's grid and in its range.

    Raises `ConfigError` for an unknown class, `DataError` for a cohort without such scans or with synthetic ones, and for scans
    that the run's grid cannot take.
    """
    check_class("donor_class", label, run.spec.classes)
    if any(row.attributes.get("synthetic") == "1" for row in cohort.rows):
        raise DataError(
            f"{cohort.folder}: need real scans as donors, got rows that say synthetic=1; try the cohort of medsynth index"
        )
    numbers = [place for place, row in enumerate(cohort.rows) if row.split == split and row.label == label]
    kind = {"train": "training", "val": "validation"}.get(split, split)
    if not numbers:
        known = ", ".join(cohort.select(split=split).classes) or "none"
        raise DataError(f"donor_class: need {kind} scans of {label!r} in the cohort, got none; try one of {known}")
    if with_mask:
        numbers = [place for place in numbers if cohort.rows[place].mask is not None]
        if not numbers:
            raise DataError(
                f"inpaint.region: need a mask of one {kind} scan of {label!r} at least, got none in the cohort; try the column "
                "mask, region class, or the file of a mask"
            )
    real = replace(cohort, rows=tuple(cohort.rows[number] for number in numbers))
    _check_channels(run, real, reading)
    # Where no scan has a mask, as none of healthy patients has, the channel of masks is empty.
    masked = run.spec.mask and any(row.mask is not None for row in real.rows)
    prepared = prepare_cohort(
        real,
        grid=run.grid,
        intensity=run.spec.intensity if masked else run.spec.image_intensity,
        reading=reading,
        classes=run.spec.classes,
        mask=masked,
        cache_dir=cache_dir,
        progress=progress,
    )
    scans = prepared.scans
    if run.spec.mask and not masked:
        scans = np.concatenate([scans, np.full_like(scans[:, :1], -1)], axis=1)
    return Donors(
        scans=scans,
        rows=np.array(numbers),
        label=label,
        patients=len(np.unique(prepared.patients)),
        sha256=hashlib.sha256(json.dumps([prepared.key, numbers]).encode()).hexdigest(),
    )


def read_donor(
    run: Run, cohort: Cohort, row: Row, *, reading: ReadingOptions = ReadingOptions()
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return a scan on the run's grid, float32 `(C, *grid)` in [-1, 1], and its images by name as they are stored.

    Stored images are the original voxels, bit by bit, of a scan whose own grid is that of the run; of others those on the grid,
    converted once. Both are in the run's dtype and in the order of its axes. `DataError` as `prepare_cohort` raises it.
    """
    scan = read_channels(cohort.files_of(row), reading)
    file = cohort.mask_of(row)
    by_mask = run.grid.spacing is not None and run.grid.centre == "mask"
    mask = None if file is None or not (by_mask or run.spec.mask) else read_mask(file, scan, reading)
    centre = None if mask is None or not by_mask else centre_of_mask(mask)
    intensity = run.spec.image_intensity
    array, spacing = resize_scan(scan, grid=run.grid, intensity=intensity, centre=centre)
    images = array
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


def _check_channels(run: Run, real: Cohort, reading: ReadingOptions) -> None:
    """Refuse scans of other channels or axes than the run's by the first one, before any is decoded."""
    first = real.rows[0]
    file = real.file_of(first)
    channels = count_channels(real, first, mask=run.spec.mask, reading=reading)
    axes = len(read_header(file, reading=reading).shape) - 1
    wanted = run.spec.shape
    if (wanted[0], len(wanted) - 1) != (channels, axes):
        raise DataError(
            f"{file}: need {wanted[0]} channels and {len(wanted) - 1} axes like the run's scans, got {channels} and {axes}; try "
            "the cohort that the run was trained on"
        )
