"""`medsynth edit --method inpaint`: one region of each donor generated anew as another class, the rest left as it is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from tqdm.auto import tqdm

from medsynth.cohorts import Cohort
from medsynth.cohorts.channels import check_geometry, read_channels, read_mask
from medsynth.cohorts.grid import centre_of_mask, orient_scan, resize_mask, resize_scan
from medsynth.cohorts.manifest import PATH
from medsynth.config import EditOptions, InpaintOptions
from medsynth.errors import ConfigError, DataError
from medsynth.generation.donors import Edit, choose_evenly, read_donor
from medsynth.generation.generator import Chunk, SyntheticScan, to_stored, wrap_scans
from medsynth.networks import Denoiser, inpaint_scans, observe_channels
from medsynth.runs import Run
from medsynth.scans import Intensity, Scan, read_header, read_scan

DONOR, CLASS = "donor", "class"
BLEND_VOXELS = 2  # voxels, inside the region, over which the donor passes into what was painted


class Painting(Edit):
    """Generates one region of each donor anew as the target class.

    Outside the region a scan has the values of its donor, bit for bit: those of the donor's file if its grid is that of the run.
    The mask of a scan is the region; for a run that generates masks it is the mask within the region, which the network observes.
    """

    seed_key = "inpaint"
    notice = (
        "Every scan in this folder is partly synthetic and must not be used for diagnosis. Outside one region it is a real "
        "training scan, its donor, pixel for pixel. The real pixels show a patient: this set must stay within your institution."
    )
    masks = True

    regions: Regions

    def __init__(self, run: Run, cohort: Cohort, options: EditOptions) -> None:
        """Check the options; also `ConfigError` for a latent run."""
        inpaint = options.inpaint
        if not inpaint.region:
            raise ConfigError("inpaint.region: need class, donor or the path of a mask, got nothing; try class")
        if run.spec.autoencoder is not None:
            raise ConfigError(
                "method: need a run with network.stem haar or pixel to inpaint, got latent; try --method counterfactual"
            )
        super().__init__(run, cohort, options)

    def prepare(self, *, progress: bool) -> None:
        super().prepare(progress=progress)
        self.regions = find_regions(self)

    def facts(self) -> dict[str, Any]:
        options = self.options.inpaint
        # Not the path of a file: it may name a patient.
        region: dict[str, Any] = {"from": options.region if options.region in (DONOR, CLASS) else "file"}
        region |= {"margin_mm": float(options.margin_mm), "blend_voxels": BLEND_VOXELS, "repeats": options.repeats}
        region |= {"masks": len(self.regions.packed), "sha256": self.regions.sha256()}
        return {**super().facts(), "edit": "inpaint", "region": region, "contains_real_pixels": True}

    def columns_of(self, label: str, number: int) -> dict[str, str]:
        rows = self.regions.rows if self.options.inpaint.region == CLASS else None
        source = {} if rows is None else {"region_from": str(rows[self.regions.chosen[number]])}
        return {**super().columns_of(label, number), **source, "contains_real_pixels": "1"}

    def make(self, denoiser: Denoiser, chunk: Chunk) -> list[SyntheticScan]:
        run, labels = self.job.run, self.job.labels(chunk)
        seeds = [self.seed_of(chunk.label, number) for number in chunk.numbers]
        rows = [self.cohort.rows[self.donors.rows[self.chosen[number]]] for number in chunk.numbers]
        read = [read_donor(run, self.cohort, row, loading=self.options) for row in rows]
        known = np.stack([array for array, _ in read])
        lesions, where = self.regions.of(chunk.numbers)
        painted_in, observed = np.repeat(where[:, None], known.shape[1], axis=1), None
        if run.spec.mask:
            # The network observes where the lesion is: its mask is not generated.
            known[:, -1] = np.where(where, lesions * 2.0 - 1, known[:, -1])
            painted_in[:, -1] = False
            shown = torch.arange(known.shape[1]) == known.shape[1] - 1
            if run.spec.observed:
                observed = observe_channels(torch.from_numpy(known), shown[None].expand(len(known), -1))
        drawn = [self.attributes.draw(chunk.label, seed) for seed in seeds]
        wanted = denoiser.embedding.make(labels, attributes=self.attributes.encode(drawn), observed=observed)
        steering = {**self.job.steering(denoiser, labels), "repeats": self.options.inpaint.repeats}
        inside = torch.from_numpy(painted_in)
        painted = inpaint_scans(denoiser, torch.from_numpy(known), inside, wanted, seeds, **steering).cpu().numpy()
        scans = np.stack([blend(*each) for each in zip(known, painted, where, strict=True)])
        facts = {"edit": "inpaint", "donor_class": self.options.donor_class, "contains_real_pixels": "YES"}
        described, attributes = self.job.describe("edit", **facts), [self.attributes.columns(each) for each in drawn]
        made = wrap_scans(self.job, torch.from_numpy(scans), chunk, seeds, described, attributes)
        restored = []
        for each, scan, (_, stored), region in zip(made, scans, read, where, strict=True):
            # Outside the region, the donor's stored voxels; the region is the mask unless the scan has one.
            arrays = {name: np.where(region, image, stored[name]) for name, image in to_stored(scan, run).items()}
            images = {name: replace(each.scan, array=array) for name, array in arrays.items()}
            mask = each.mask or replace(each.scan, array=region[None].astype(np.uint8))
            restored.append(replace(each, scan=images.pop(PATH), sequences=images, mask=mask))
        return self.with_donors(restored)


def blend(known: np.ndarray, painted: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Return `known` `(C, *grid)` that passes into `painted` inside the region."""
    return np.where(region, known + blend_weights(region, BLEND_VOXELS) * (painted - known), known)


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """The region of each scan of a set, and the mask that it was widened from.

    `packed` `(R, 2, bytes)` are the bits of mask and region on the grid `shape`; `chosen` `(N,)` says which each scan has;
    `rows` `(R,)` are their rows in the cohort, None for a mask from the user.
    """

    packed: np.ndarray
    shape: tuple[int, ...]
    chosen: np.ndarray
    rows: np.ndarray | None

    def of(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return masks and regions of some scans of the set, bool `(N, *grid)` each."""
        bits = np.unpackbits(self.packed[self.chosen[list(numbers)]], axis=2, count=math.prod(self.shape))
        masks, regions = bits.astype(bool).reshape(-1, 2, *self.shape).swapaxes(0, 1)
        return masks, regions

    def sha256(self) -> str:
        """Return a hash of all regions, and of which scan has which."""
        numbers = self.chosen if self.rows is None else np.concatenate([self.chosen, self.rows])
        return hashlib.sha256(self.packed.tobytes() + numbers.astype(np.int64).tobytes()).hexdigest()


def find_regions(edit: Edit) -> Regions:
    """Return the regions of the scans of an edit whose donors have been read.

    Raises `DataError` that names the file of a mask that is empty, covers everything, or has another geometry than its scan, and
    for a cohort without masks where they are needed.
    """
    options, rows, shape = edit.options.inpaint, edit.cohort.rows, edit.job.run.spec.shape[1:]
    if options.region == DONOR:
        used, which = np.unique(edit.chosen, return_inverse=True)
        sources = edit.donors.rows[used]
    elif options.region == CLASS:
        target = edit.options.target_class
        having = [number for number, row in enumerate(rows) if row.mask is not None]
        masked = [number for number in having if (rows[number].split, rows[number].label) == ("train", target)]
        if not masked:
            raise DataError(
                f"inpaint.region: need at least one mask of a training scan of {target!r}, got none in the cohort; try a column "
                "mask, or the path of a mask"
            )
        order = choose_evenly(edit.options.seed, "regions", target, available=len(masked), count=len(edit.chosen))
        used, which = np.unique(order, return_inverse=True)
        sources = np.array(masked)[used]
    else:
        packed = _region_of_file(edit, Path(options.region))[None]
        return Regions(packed=packed, shape=shape, chosen=np.zeros(len(edit.chosen), dtype=np.int64), rows=None)
    bar = tqdm(sources, desc="reading masks", unit="mask", disable=not edit.options.progress)
    found, run = [], edit.job.run
    for row in (rows[number] for number in bar):
        file = edit.cohort.mask_of(row)
        assert file is not None
        mask = read_mask(file, read_channels(edit.cohort.files_of(row), edit.options), edit.options)
        centre = centre_of_mask(mask) if run.grid.spacing is not None and run.grid.centre == "mask" else None
        found.append(_packed(*lay_region(mask, run=run, centre=centre), options, file))
    return Regions(packed=np.stack(found), shape=shape, chosen=which, rows=sources)


def blend_weights(region: np.ndarray, voxels: int) -> np.ndarray:
    """Return the share, float32 `(*grid)`, that what was painted has in each voxel: 0 outside the region, 1 from `voxels` inside.

    In between it rises smoothly with the distance from the border; some voxel has 1 however small the region.
    """
    depth = distance_transform_edt(region)
    share = np.clip(depth / max(1.0, min(voxels + 1.0, float(depth.max()))), 0, 1)
    return (share * share * (3 - 2 * share)).astype(np.float32)


def widen(region: np.ndarray, spacing: Sequence[float], margin_mm: float) -> np.ndarray:
    """Return the voxels `(*grid)` whose centre lies within `margin_mm` of the centre of a voxel of the region."""
    if not region.any():
        return region
    return distance_transform_edt(~region, sampling=spacing) <= margin_mm + 1e-6


def lay_region(mask: Scan, *, run: Run, centre: Sequence[float] | None = None) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return the voxels of the run's grid that an oriented mask touches, bool `(*grid)`, and their size in millimetres.

    Unlike masks for training it is not laid by nearest neighbours onto larger voxels: small masks must not be lost.
    """
    inside = replace(mask, array=(mask.array != 0).any(axis=0, keepdims=True).astype(np.float32))
    grid = replace(run.grid, padding="background")
    intensity = Intensity(low=(0.0,), high=(1.0,))
    (share,), spacing = resize_scan(inside, grid=grid, intensity=intensity, centre=centre)
    if all(size <= old + 1e-6 for size, old in zip(spacing, mask.spacing, strict=True)):
        # Interpolation would widen it by half of its own voxels.
        return resize_mask(inside, grid=grid, centre=centre)[0] > 0, spacing
    return share > -1, spacing


def _region_of_file(edit: Edit, file: Path) -> np.ndarray:
    """Return the user's mask and its region as bits; the mask lies on the run's grid or that of all donors."""
    run, cohort, loading, options = edit.job.run, edit.cohort, edit.options, edit.options.inpaint
    mask = orient_scan(read_scan(file, loading=loading))
    size = run.spec.shape[1:]
    if mask.spatial_shape == size:
        spacing = np.linalg.norm(np.array(run.spec.affine)[:3, : len(size)], axis=0)
        return _packed((mask.array != 0).any(axis=0), tuple(map(float, spacing)), options, file)
    if run.grid.spacing is not None and run.grid.centre == "mask":
        raise DataError(
            f"{file}: need a mask on the run's grid {size}, since this run centres each scan on its own mask; try one"
        )
    first, *others = [cohort.rows[number] for number in edit.donors.rows]
    scan = read_channels(cohort.files_of(first), loading)
    check_geometry(mask, scan, file, whose="the donors, or the run's grid")
    shape = read_header(cohort.file_of(first), loading=loading).shape[1:]
    for row in others:
        other = read_header(cohort.file_of(row), loading=loading).shape[1:]
        if other != shape:
            raise DataError(
                f"{file}: need donors of one geometry for one mask, got {shape} and {other}; try a mask on the run's grid {size}"
            )
    return _packed(*lay_region(mask, run=run), options, file)


def _packed(mask: np.ndarray, spacing: Sequence[float], options: InpaintOptions, file: Path) -> np.ndarray:
    """Return the bits `(2, bytes)` of a mask on the grid and its region; refuse an empty one, and one that covers everything."""
    if not mask.any():
        raise DataError(
            f"{file}: need a mask with a region on the run's grid, got an empty one; try leaving out its scan"
        )
    region = widen(mask, spacing, options.margin_mm)
    if region.all():
        raise DataError(f"{file}: need a region that leaves part of the donor, got all of it; try medsynth sample")
    return np.packbits(np.stack([mask, region]).reshape(2, -1), axis=1)
