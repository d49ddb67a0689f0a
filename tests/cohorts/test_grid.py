from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.cohorts.grid import (
    centre_of_mask,
    grid_affine,
    grid_size,
    orient_scan,
    resize_mask,
    resize_scan,
    scan_axes,
)
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


def box(shape, spacing, low, high):
    """A bright box, given in millimetres from the middle of the scan, in voxels that lie on its borders."""
    centres = np.meshgrid(
        *[(np.arange(count) - (count - 1) / 2) * size for count, size in zip(shape, spacing, strict=True)],
        indexing="ij",
    )
    inside = np.all([(low <= axis) & (axis < high) for axis in centres], axis=0)
    return Scan(array=np.where(inside, 10.0, 0.0)[None], affine=np.diag([*spacing, 1.0]))


def test_spacing_makes_millimetres_the_same_in_every_scan():
    grid = GridOptions(size=16, spacing=1.0)
    for shape, spacing in (((24, 24, 24), (1, 1, 1)), ((48, 48, 12), (0.5, 0.5, 2)), ((10, 48, 96), (2, 0.5, 0.25))):
        array, found = resize_scan(box(shape, spacing, -4, 4), grid=grid, intensity=RANGE)
        assert found == (1, 1, 1)
        expected = np.full((16, 16, 16), -1.0)
        expected[4:12, 4:12, 4:12] = 1
        # Thick slices are interpolated to thinner ones, so borders are soft by up to half a thick slice.
        apart = np.abs(array[0] - expected)
        assert apart.mean() < 0.06
        assert np.allclose(array[0, 6:10, 6:10, 6:10], 1)


def test_short_scans_are_padded_with_background_or_edges():
    scan = Scan(array=np.arange(4.0).reshape(1, 4, 1).repeat(4, axis=2))
    cut, _ = resize_scan(scan, grid=GridOptions(size=(8, 4), spacing=1.0), intensity=RANGE)
    assert np.allclose(RANGE.to_physical(cut)[0, :, 0], [0, 0, 0, 1, 2, 3, 0, 0])
    grid = GridOptions(size=(8, 4), spacing=1.0, padding="edge")
    edge, _ = resize_scan(scan, grid=grid, intensity=RANGE)
    assert np.allclose(RANGE.to_physical(edge)[0, :, 0], [0, 0, 0, 1, 2, 3, 3, 3])


def test_a_mask_lies_where_its_scan_lies_and_keeps_its_values():
    shape = (20, 30, 12)
    mask = np.zeros((1, *shape), dtype=np.uint8)
    mask[0, 12:18, 3:11, 5:9] = 7
    affine = np.diag([1.0, 0.5, 2.0, 1.0])
    scan = Scan(array=np.where(mask, 10.0, 0.0), affine=affine)
    centre = centre_of_mask(Scan(array=mask, affine=affine))
    assert centre == (14.5, 6.5, 6.5)
    for grid in (
        GridOptions(size=12, spacing=1.0),
        GridOptions(size=24, spacing=0.5),
        GridOptions(size=(6, 4, 8), spacing=1),
    ):
        array, _ = resize_scan(scan, grid=grid, intensity=RANGE, centre=centre)
        found = resize_mask(Scan(array=mask, affine=affine), grid=grid, centre=centre)
        assert found.dtype == np.uint8
        assert set(np.unique(found)) <= {0, 7}
        # Bright where the mask is, but for borders that fall between voxels.
        assert ((array > 0) == (found > 0)).mean() > 0.95
        middle = tuple(length // 2 for length in found.shape[1:])
        assert found[(0, *middle)] == 7
        held = np.argwhere(found[0])
        assert (
            np.abs(held.mean(axis=0) - (np.array(found.shape[1:]) - 1) / 2).max() <= 1
        )  # half a voxel, and half where a border falls on a middle


def test_masks_without_a_lesion_have_no_centre():
    assert centre_of_mask(Scan(array=np.zeros((1, 3, 3)))) is None


@pytest.mark.parametrize("spacing", [0, -1.0, (1.0, 2.0), float("nan"), ()])
def test_spacing_must_be_lengths(spacing):
    with pytest.raises(ConfigError, match=r"grid\.spacing"):
        resize_scan(Scan(array=np.zeros((1, 4, 4, 4))), grid=GridOptions(size=4, spacing=spacing), intensity=RANGE)


def test_a_centre_outside_the_scan_is_refused():
    with pytest.raises(ConfigError, match=r"grid\.centre"):
        resize_scan(
            Scan(array=np.zeros((1, 4, 4))), grid=GridOptions(size=2, spacing=1.0), intensity=RANGE, centre=(40, 2)
        )


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.sampled_from([1, -1])] * 3),
    spacing=st.sampled_from([None, 1.5, (2.0, 1.0, 0.7)]),
)
def test_every_orientation_of_a_volume_gives_the_same_input(order, flips, spacing):
    """All 48 ways in which a scanner may store one volume: bit for bit one model input."""
    world = np.random.default_rng(0).random((9, 7, 5)) * 10
    affine = np.diag([1.0, 1.5, 2.5, 1.0])
    stored = world.transpose(order)
    turned = np.zeros((4, 4))
    turned[3, 3] = 1
    for axis, from_axis in enumerate(order):
        turned[:, axis] = affine[:, from_axis]
        if flips[axis] < 0:
            stored = np.flip(stored, axis)
            turned[:, 3] += turned[:, axis] * (stored.shape[axis] - 1)
            turned[:, axis] *= -1
    turned[:, 3] += affine[:, 3] - [0, 0, 0, 1]
    turned[3, 3] = 1
    grid = GridOptions(size=8, spacing=spacing)
    reference, _ = resize_scan(orient_scan(Scan(array=world[None], affine=affine)), grid=grid, intensity=RANGE)
    found, _ = resize_scan(orient_scan(Scan(array=stored[None], affine=turned)), grid=grid, intensity=RANGE)
    np.testing.assert_array_equal(found, reference)


def test_a_spacing_that_would_take_all_memory_is_refused() -> None:
    scan = Scan(array=np.zeros((1, 16, 16), np.int16), affine=np.diag([20.0, 20.0, 1.0, 1.0]))
    with pytest.raises(
        ConfigError, match=r"grid: need at most 536,870,912 voxels .*, got 1\.02e\+11 for one of 20 x 20 mm"
    ):
        resize_scan(scan, grid=GridOptions(size=16, spacing=0.001), intensity=Intensity(low=(0.0,), high=(1.0,)))
