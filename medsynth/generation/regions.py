"""Where donors are painted anew: masks of real scans, or one that the user gives, laid on the run's grid and widened."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt
from tqdm.auto import tqdm

from medsynth.cohorts import Cohort
from medsynth.cohorts.channels import check_geometry, read_channels, read_mask
from medsynth.cohorts.grid import centre_of_mask, orient_scan, resize_mask, resize_scan
from medsynth.config import InpaintOptions, ReadingOptions
from medsynth.errors import ConfigError, DataError
from medsynth.generation.donors import Donors, choose_evenly
from medsynth.runs import Run
from medsynth.scans import Intensity, Scan, read_header, read_scan

DONOR, CLASS = "donor", "class"


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """The region of each scan of a set.

    `packed` `(R, bytes)` are the bits of `R` different regions of shape `shape`, `lesions` those of the masks that they were
    widened from, `chosen` `(N,)` says which is whose, `rows` `(R,)` are the rows of the cohort that they come from, None of a
    mask that the user gave. `facts` is what provenance says.
    """

    packed: np.ndarray
    lesions: np.ndarray
    shape: tuple[int, ...]
    chosen: np.ndarray
    rows: np.ndarray | None
    facts: dict[str, Any]

    def of(self, numbers: Sequence[int]) -> np.ndarray:
        """Return the regions of some scans of the set, bool `(N, *grid)`."""
        return self._unpack(self.packed, numbers)

    def lesions_of(self, numbers: Sequence[int]) -> np.ndarray:
        """Return the masks in these regions, bool `(N, *grid)`."""
        return self._unpack(self.lesions, numbers)

    def _unpack(self, packed: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
        bits = np.unpackbits(packed[self.chosen[list(numbers)]], axis=1, count=int(np.prod(self.shape)))
        return bits.astype(bool).reshape(-1, *self.shape)

    def source(self, number: int) -> str | None:
        """Return the row that the region of a scan comes from, as text; None of a mask that the user gave."""
        return None if self.rows is None else str(self.rows[self.chosen[number]])


def check_inpainting(options: InpaintOptions) -> None:
    """Raise `ConfigError` for options that make no sense."""
    if not 0 <= options.margin_mm < float("inf"):
        raise ConfigError(f"inpaint.margin_mm: need a length from 0 mm, got {options.margin_mm}; try 5")
    if options.blend_voxels < 0:
        raise ConfigError(f"inpaint.blend_voxels: need a number from 0, got {options.blend_voxels}; try 2")
    if options.repeats < 1:
        raise ConfigError(f"inpaint.repeats: need a number from 1, got {options.repeats}; try 4")
    if not options.region:
        raise ConfigError("inpaint.region: need class, donor or the file of a mask, got nothing; try class")


def find_regions(
    run: Run,
    cohort: Cohort,
    donors: Donors,
    chosen: np.ndarray,
    *,
    target_class: str,
    seed: int,
    options: InpaintOptions,
    reading: ReadingOptions = ReadingOptions(),
    progress: bool = True,
) -> Regions:
    """Return the regions of the scans whose donors are `chosen` `(N,)`, places among the donors.

    Raises `DataError` that names the file of a mask that is empty, covers all, or has another geometry than its scan, and for a
    cohort without masks where they are wanted.
    """
    if options.region == DONOR:
        used, which = np.unique(chosen, return_inverse=True)
        rows = donors.rows[used]
    elif options.region == CLASS:
        masked = [
            number
            for number, row in enumerate(cohort.rows)
            if (row.split, row.label) == ("train", target_class) and row.mask is not None
        ]
        if not masked:
            raise DataError(
                f"inpaint.region: need a mask of one training scan of {target_class!r} at least, got none in the cohort; try the "
                "column mask, or the file of a mask"
            )
        order = choose_evenly(seed, "regions", target_class, available=len(masked), count=len(chosen))
        used, which = np.unique(order, return_inverse=True)
        rows = np.array(masked)[used]
    else:
        regions = [_given_region(run, cohort, donors, Path(options.region), options, reading)]
        return _pack(regions, np.zeros(len(chosen), dtype=np.int64), None, "file", options)
    bar = tqdm(rows, desc="reading masks", unit="mask", disable=not progress)
    regions = [_region_of(run, cohort, int(number), options, reading) for number in bar]
    return _pack(regions, which, rows, options.region, options)


def blend_weights(region: np.ndarray, voxels: int) -> np.ndarray:
    """Return, float32, how much of what was painted each voxel `(*grid)` of a region takes: 0 outside, 1 from `voxels` inside on.

    In between it rises smoothly with the distance to the outside; some voxel has 1 however small the region.
    """
    depth = distance_transform_edt(region)
    share = np.clip(depth / max(1.0, min(voxels + 1.0, float(depth.max()))), 0, 1)
    return (share * share * (3 - 2 * share)).astype(np.float32)


def widen(region: np.ndarray, spacing: Sequence[float], margin_mm: float) -> np.ndarray:
    """Return the voxels `(*grid)` whose middle lies within `margin_mm` of that of a voxel of the region."""
    if not region.any():
        return region
    return distance_transform_edt(~region, sampling=spacing) <= margin_mm + 1e-6


def lay_region(mask: Scan, *, run: Run, centre: Sequence[float] | None = None) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return which voxels of the run's grid an oriented mask touches, bool `(*grid)`, and their size in millimetres.

    Where voxels become larger not by nearest neighbours, as masks for training are laid: what is smaller must not be lost.
    """
    inside = replace(mask, array=(mask.array != 0).any(axis=0, keepdims=True).astype(np.float32))
    grid = replace(run.grid, padding="background")
    intensity = Intensity(low=(0.0,), high=(1.0,))
    (share,), spacing = resize_scan(inside, grid=grid, intensity=intensity, centre=centre)
    if all(size <= old + 1e-6 for size, old in zip(spacing, mask.spacing, strict=True)):
        # Interpolation would widen it by half a voxel of its own.
        return resize_mask(inside, grid=grid, centre=centre)[0] > 0, spacing
    return share > -1, spacing


def _region_of(
    run: Run, cohort: Cohort, number: int, options: InpaintOptions, reading: ReadingOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask of a row, at the place where it is in its scan, and the region that it makes."""
    row = cohort.rows[number]
    file = cohort.mask_of(row)
    assert file is not None
    mask = read_mask(file, read_channels(cohort.files_of(row), reading), reading)
    centre = centre_of_mask(mask) if run.grid.spacing is not None and run.grid.centre == "mask" else None
    region, spacing = lay_region(mask, run=run, centre=centre)
    return _checked(region, spacing, options, file)


def _given_region(
    run: Run, cohort: Cohort, donors: Donors, file: Path, options: InpaintOptions, reading: ReadingOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask that the user gives and its region, on the run's grid or that of all donors."""
    mask = orient_scan(read_scan(file, reading=reading))
    size = run.spec.shape[1:]
    if mask.spatial_shape == size:
        region = (mask.array != 0).any(axis=0)
        return _checked(region, _grid_spacing(run), options, file)
    if run.grid.spacing is not None and run.grid.centre == "mask":
        raise DataError(
            f"{file}: need a mask on the run's grid {size}, where scans are laid by their own masks; try one"
        )
    scans = [cohort.rows[number] for number in donors.rows]
    check_geometry(
        mask, read_channels(cohort.files_of(scans[0]), reading), file, whose="of the donors, or the run's grid"
    )
    shape = read_header(cohort.file_of(scans[0]), reading=reading).shape[1:]
    for row in scans[1:]:
        other = read_header(cohort.file_of(row), reading=reading).shape[1:]
        if other != shape:
            raise DataError(
                f"{file}: need donors of one geometry for one mask, got {shape} and {other}; try a mask on the run's grid {size}"
            )
    region, spacing = lay_region(mask, run=run)
    return _checked(region, spacing, options, file)


def _grid_spacing(run: Run) -> tuple[float, ...]:
    affine = np.array(run.spec.affine)
    return tuple(float(length) for length in np.linalg.norm(affine[:3, : len(run.spec.shape) - 1], axis=0))


def _checked(
    mask: np.ndarray, spacing: Sequence[float], options: InpaintOptions, file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask on the grid and its region; refuse an empty one, and one that leaves nothing as it is."""
    if not mask.any():
        raise DataError(
            f"{file}: need a mask with a region on the run's grid, got an empty one; try leaving out its scan"
        )
    region = widen(mask, spacing, options.margin_mm)
    if region.all():
        raise DataError(f"{file}: need a region that leaves something of the donor, got all of it; try medsynth sample")
    return mask, region


def _pack(
    found: Sequence[tuple[np.ndarray, np.ndarray]],
    chosen: np.ndarray,
    rows: np.ndarray | None,
    source: str,
    options: InpaintOptions,
) -> Regions:
    lesions, packed = (np.stack([np.packbits(pair[part]) for pair in found]) for part in (0, 1))
    digest = hashlib.sha256(packed.tobytes() + lesions.tobytes() + np.asarray(chosen, dtype=np.int64).tobytes())
    if rows is not None:
        digest.update(np.asarray(rows, dtype=np.int64).tobytes())
    return Regions(
        packed=packed,
        lesions=lesions,
        shape=found[0][0].shape,
        chosen=chosen,
        rows=rows,
        facts={
            # Not the path of a file: it may name a patient.
            "from": source,
            "margin_mm": float(options.margin_mm),
            "blend_voxels": options.blend_voxels,
            "repeats": options.repeats,
            "masks": len(found),
            "sha256": digest.hexdigest(),
        },
    )
