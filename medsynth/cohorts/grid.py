"""From a scan of any orientation and size to the model's grid, and back to millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from nibabel import orientations
from torch.nn import functional

from medsynth.config import GridOptions
from medsynth.errors import ConfigError
from medsynth.scans import Intensity, Scan

# Axes of volumes, and of pictures by the world axis that they lack (sagittal, coronal, axial): slices run towards the head, rows
# towards the back (or the feet), columns towards the patient's left (or back).
_VOLUME = "SPL"
_PICTURES = ("IPR", "ILA", "PLS")
_MOST_VOXELS = 1 << 29  # 2 GiB of float32, before the scan is cut to the grid


def orient_scan(scan: Scan) -> Scan:
    """Return the scan with its axes in the order and direction in which radiologists view pictures.

    Volumes become (slice towards the head, row towards the back, column towards the left), pictures rows and columns of their
    plane; oblique axes count as the nearest world axis. Voxels move in the array, not in the patient: the affine follows. A scan
    with these axes, such as a PNG, is returned unchanged.
    """
    now = orientations.io_orientation(scan.affine)
    flat = len(scan.spatial_shape) == 2
    wanted = orientations.axcodes2ornt(_PICTURES[int(now[2, 0])] if flat else _VOLUME)
    if flat:
        wanted[2, 1] = now[2, 1]
    change = orientations.ornt_transform(now, wanted)
    pixels = np.moveaxis(scan.array, 0, -1)
    pixels = pixels[:, :, np.newaxis] if flat else pixels
    affine = scan.affine @ orientations.inv_ornt_aff(change, pixels.shape[:3])
    pixels = orientations.apply_orientation(pixels, change)
    return replace(scan, array=np.moveaxis(pixels[:, :, 0] if flat else pixels, -1, 0), affine=affine)


def scan_axes(scan: Scan) -> str:
    """Return where the array's axes point, nearest to each: three letters out of R/L, A/P, S/I."""
    return "".join(orientations.aff2axcodes(scan.affine))


def resize_scan(
    scan: Scan, *, grid: GridOptions, intensity: Intensity, centre: Sequence[float] | None = None
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return a scan on the grid, float32 `(C, *grid)` in [-1, 1], and its new voxel size in millimetres.

    `pad` and `crop` keep the aspect ratio in millimetres, so voxels become isotropic; with `grid.spacing` they get that size, to
    within half a voxel over the whole scan. `centre` is the index, along the scan's spatial axes, of what comes to the middle of
    the grid, to half a voxel (default: the middle of the scan). Raises `ConfigError` if the grid has another number of axes, or
    the centre lies so far outside that nothing is left.
    """
    inner = _inner_shape(scan, grid)
    pixels = torch.from_numpy(np.ascontiguousarray(scan.array, dtype=np.float32))[None]
    smaller = tuple(min(now, then) for now, then in zip(scan.spatial_shape, inner, strict=True))
    if smaller != scan.spatial_shape:
        pixels = functional.interpolate(pixels, size=smaller, mode="area")
    if inner != smaller:
        linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(inner)]
        pixels = functional.interpolate(pixels, size=inner, mode=linear, align_corners=False)
    values = np.asarray(intensity.to_model(pixels[0].numpy()), dtype=np.float32)
    # -1 is the lowest intensity: the background that pads.
    result = _place(values, scan, grid, centre, background=-1.0)
    extent = np.array(scan.spatial_shape) * np.array(scan.spacing)
    return result, tuple(float(length) for length in extent / np.array(inner))


def resize_mask(mask: Scan, *, grid: GridOptions, centre: Sequence[float] | None = None) -> np.ndarray:
    """Return a mask `(C, *grid)` as `resize_scan` places its scan, but by nearest neighbours and with 0 as background."""
    array = np.asarray(mask.array)
    for axis, (have, want) in enumerate(zip(mask.spatial_shape, _inner_shape(mask, grid), strict=True), 1):
        # The voxel in which the middle of each new voxel lies.
        array = np.take(array, np.floor((np.arange(want) + 0.5) * have / want).astype(np.int64), axis=axis)
    return _place(array, mask, grid, centre, background=0)


def centre_of_mask(mask: Scan) -> tuple[float, ...] | None:
    """Return the middle, as an index along the spatial axes, of the box around all non-zero voxels; None if there are none."""
    inside = np.nonzero(np.asarray(mask.array).any(axis=0))
    if inside[0].size == 0:
        return None
    return tuple(float(axis.min() + axis.max()) / 2 for axis in inside)


def _inner_shape(scan: Scan, grid: GridOptions) -> tuple[int, ...]:
    """Return the voxels along each axis of a whole scan after resampling, before it is cut and padded to the grid."""
    size = grid_size(grid, len(scan.spatial_shape))
    extent = np.array(scan.spatial_shape) * np.array(scan.spacing)
    voxel = extent / np.array(size)
    if grid.spacing is not None:
        voxel = np.array(grid_spacing(grid, len(size)))
    elif grid.fit != "stretch":
        voxel = np.full(len(size), voxel.max() if grid.fit == "pad" else voxel.min())
    inner = np.maximum(1, np.rint(extent / voxel))
    if inner.prod() > _MOST_VOXELS:
        said = " x ".join(f"{length:g}" for length in extent / np.array(scan.spatial_shape))
        raise ConfigError(
            f"grid: need at most {_MOST_VOXELS:,} voxels for a whole scan after resampling, got {inner.prod():.3g} for one of "
            f"{said} mm voxels; try a larger grid.spacing or another grid.fit"
        )
    return tuple(int(length) for length in inner)


def _place(
    values: np.ndarray, scan: Scan, grid: GridOptions, centre: Sequence[float] | None, *, background: float
) -> np.ndarray:
    """Cut and pad resampled values `(C, *inner)` to the grid, with the scan's `centre` in its middle."""
    cut, padding = [slice(None)], [(0, 0)]
    size = grid_size(grid, len(scan.spatial_shape))
    for axis, (have, want) in enumerate(zip(values.shape[1:], size, strict=True)):
        first = int((have - want) / 2)
        if centre is not None:
            off = (centre[axis] + 0.5) / scan.spatial_shape[axis] - 0.5
            first = int(np.rint((have - want) / 2 + off * have))
        cut.append(slice(max(0, first), max(0, min(have, first + want))))
        padding.append((max(0, -first), max(0, first + want - have)))
    kept = values[tuple(cut)]
    if 0 in kept.shape:
        raise ConfigError(f"grid.centre: need a centre inside the scan, got {centre}; try grid.centre scan")
    if grid.padding == "edge":
        return np.pad(kept, padding, mode="edge")
    return np.pad(kept, padding, constant_values=background)


def grid_spacing(grid: GridOptions, axes: int) -> tuple[float, ...]:
    """Return `grid.spacing` along each of `axes` spatial axes; `ConfigError` for another number, or a length not above 0."""
    wanted = grid.spacing
    spacing = (wanted,) * axes if isinstance(wanted, int | float) else tuple(wanted or ())
    if len(spacing) != axes or not all(np.isfinite(spacing)) or min(spacing) <= 0:
        raise ConfigError(f"grid.spacing: need 1 or {axes} lengths above 0 mm for {axes}D scans, got {wanted}; try 1.0")
    return tuple(float(length) for length in spacing)


def grid_size(grid: GridOptions, axes: int) -> tuple[int, ...]:
    """Return the pixels along each of `axes` spatial axes; `ConfigError` if the grid has another number or is empty."""
    size = (grid.size,) * axes if isinstance(grid.size, int) else tuple(grid.size)
    if len(size) != axes or min(size) < 1:
        raise ConfigError(f"grid.size: need 1 or {axes} positive numbers for {axes}D scans, got {grid.size}; try 64")
    return size


def grid_affine(axes: str, spacing: Sequence[float] | np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return the 4x4 affine (RAS, mm) of a grid of `size` voxels of `spacing` mm whose axes point to `axes`.

    Its centre is the origin: scans of a cohort have no other point in common.
    """
    lengths, centre, affine = np.ones(3), np.zeros(3), np.eye(4)
    lengths[: len(spacing)] = spacing
    centre[: len(size)] = (np.array(size) - 1) / 2
    worlds, directions = orientations.axcodes2ornt(axes).T
    affine[:3, :3] = 0
    affine[worlds.astype(int), range(3)] = directions * lengths
    affine[:3, 3] = -affine[:3, :3] @ centre
    return affine
