from __future__ import annotations

import itertools

import numpy as np
import pytest

from medsynth.cohorts.grid import grid_affine, grid_size, orient_scan, resize_scan, scan_axes
from medsynth.config import GridOptions
from medsynth.errors import ConfigError
from medsynth.scans import Intensity, Scan

RANGE = Intensity(low=(0.0,), high=(10.0,))


def numbered_scan(codes: str, shape: tuple[int, ...]) -> Scan:
    """Return a scan of distinct values whose axes point to `codes`, with unequal voxels and an origin."""
    directions = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    affine = np.eye(4)
    for axis, (code, length) in enumerate(zip(codes, (0.5, 2.0, 3.0), strict=True)):
        affine[:3, axis] = np.multiply(directions[code], length)
    affine[:3, 3] = (5, -7, 11)
    return Scan(array=np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape), affine=affine)


def positions(scan: Scan) -> dict[float, tuple[float, ...]]:
    """Return where in the patient each value lies."""
    flat = {}
    for index in itertools.product(*(range(length) for length in scan.spatial_shape)):
        voxel = np.array([*index, *[0] * (3 - len(index)), 1.0])
        flat[float(scan.array[(0, *index)])] = tuple(np.round(scan.affine @ voxel, 6)[:3])
    return flat


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SPL", "ASR", "IRP", "PLS"])
def test_volumes_become_slices_rows_columns_and_no_voxel_moves_in_the_patient(codes):
    scan = numbered_scan(codes, (3, 4, 5))
    turned = orient_scan(scan)
    assert scan_axes(turned) == "SPL"
    assert positions(turned) == positions(scan)


@pytest.mark.parametrize(
    ("codes", "axes"), [("RAS", "PLS"), ("PLS", "PLS"), ("ALI", "PLI"), ("SRA", "ILA"), ("LIP", "ILP"), ("ASR", "IPR")]
)
def test_pictures_become_rows_and_columns_of_their_plane(codes, axes):
    scan = numbered_scan(codes, (3, 4))
    turned = orient_scan(scan)
    assert scan_axes(turned) == axes
    assert positions(turned) == positions(scan)


def test_a_picture_without_geometry_stays_as_it_is():
    scan = Scan(array=np.arange(12.0).reshape(1, 3, 4))
    turned = orient_scan(scan)
    assert np.array_equal(turned.array, scan.array)
    assert np.array_equal(turned.affine, scan.affine)


def test_areas_are_averaged_before_intensities_are_clipped():
    pixels = np.zeros((1, 4, 4))
    pixels[0, :2, :2] = [[0, 40], [0, 0]]  # mean 10, though clipped first it would be 2.5
    array, spacing = resize_scan(Scan(array=pixels), grid=GridOptions(size=2), intensity=RANGE)
    assert np.allclose(array[0], [[1, -1], [-1, -1]])
    assert spacing == (2, 2)


def test_growing_axes_are_interpolated_linearly():
    grid = GridOptions(size=(1, 4), fit="stretch")
    array, _ = resize_scan(Scan(array=np.array([[[0.0, 10.0]]])), grid=grid, intensity=RANGE)
    assert np.allclose(array[0, 0], [-1, -0.5, 0.5, 1])


@pytest.mark.parametrize("rank", [2, 3])
def test_fit_pads_crops_or_stretches(rank):
    shape = (8, *[4] * (rank - 1))
    scan = Scan(array=np.full((1, *shape), 10.0))
    padded, spacing = resize_scan(scan, grid=GridOptions(size=4, fit="pad"), intensity=RANGE)
    inside = (0, slice(None), *[slice(1, 3)] * (rank - 1))
    assert (padded[inside] == 1).all()
    assert padded.sum() == 4 * 2 ** (rank - 1) - (4**rank - 4 * 2 ** (rank - 1))
    assert spacing == (2,) * rank
    cropped, spacing = resize_scan(scan, grid=GridOptions(size=4, fit="crop"), intensity=RANGE)
    assert (cropped == 1).all()
    assert spacing == (1,) * rank
    stretched, spacing = resize_scan(scan, grid=GridOptions(size=4, fit="stretch"), intensity=RANGE)
    assert (stretched == 1).all()
    assert spacing == (2, *[1] * (rank - 1))


def test_crop_keeps_the_centre():
    pixels = np.arange(8.0).reshape(1, 8, 1).repeat(4, axis=2)
    array, _ = resize_scan(Scan(array=pixels), grid=GridOptions(size=4, fit="crop"), intensity=RANGE)
    assert np.allclose(RANGE.to_physical(array)[0, :, 0], [2, 3, 4, 5])


def test_unequal_voxels_come_out_equal():
    scan = Scan(array=np.ones((1, 10, 20)), affine=np.diag([2.0, 1.0, 1.0, 1.0]))
    _, spacing = resize_scan(scan, grid=GridOptions(size=10), intensity=RANGE)
    assert spacing == (2, 2)


def test_the_grid_must_suit_the_scan():
    assert grid_size(GridOptions(size=5), 3) == (5, 5, 5)
    for size in ((4, 4), 0, (4, 4, -1)):
        with pytest.raises(ConfigError, match=r"grid\.size"):
            grid_size(GridOptions(size=size), 3)


def test_grid_affine_is_centred():
    affine = grid_affine("SPL", (2.0, 0.5, 0.25), (5, 4, 3))
    assert np.allclose(affine @ [2, 1.5, 1, 1], [0, 0, 0, 1])
    assert np.allclose(affine[:3, :3], [[0, 0, -0.25], [0, -0.5, 0], [2, 0, 0]])
