import numpy as np
import pytest
import torch
from scipy.ndimage import rotate

from medsynth.config import AugmentationOptions
from medsynth.seeds import torch_generator
from medsynth.training import Augmentation

ALL = AugmentationOptions(probability=0.5, flip_axes=(0, 1), rotate_degrees=10, scale=0.1, translate=0.1, contrast=0.2)


def smooth(shape):
    """A scan without hard edges, so that two ways to interpolate agree."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    value = sum(torch.sin(3 * axis + number) for number, axis in enumerate(axes)) / len(shape)
    return value[None, None] * 0.8


def parameters_with(rank, **values):
    augmentation = Augmentation(ALL, rank)
    rotations = 1 if rank == 2 else 3
    places = {"flip": 0, "rotate": rank, "zoom": rank + rotations, "shift": rank + rotations + 1}
    parameters = torch.zeros(1, augmentation.parameters)
    for name, (offset, value) in values.items():
        parameters[0, places[name] + offset] = value
    return parameters


@pytest.mark.parametrize("rank", [2, 3])
def test_nothing_drawn_changes_nothing(rank):
    scan = smooth((16, 12, 8)[:rank])
    augmentation = Augmentation(ALL, rank)
    assert torch.equal(augmentation.apply(scan, torch.zeros(1, augmentation.parameters)), scan)


@pytest.mark.parametrize("rank", [2, 3])
def test_flip_mirrors_its_axis(rank):
    scan = smooth((16, 12, 8)[:rank])
    for axis in range(rank):
        flipped = Augmentation(ALL, rank).apply(scan, parameters_with(rank, flip=(axis, 1.0)))
        torch.testing.assert_close(flipped, scan.flip(axis + 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [2, 3])
def test_shift_moves_along_its_axis(rank):
    """0.1 of the size for each standard deviation: 2.5 deviations of 16 voxels are 4 voxels."""
    scan = smooth((16, 16, 16)[:rank])
    for axis in range(rank):
        moved = Augmentation(ALL, rank).apply(scan, parameters_with(rank, shift=(axis, 2.5)))
        there, here = [slice(None)] * scan.ndim, [slice(None)] * scan.ndim
        there[axis + 2], here[axis + 2] = slice(4, None), slice(None, -4)
        torch.testing.assert_close(moved[tuple(here)], scan[tuple(there)], rtol=0, atol=1e-5)


def test_rotation_on_an_oblong_grid_agrees_with_scipy():
    scan = smooth((40, 24))
    turned = Augmentation(ALL, 2).apply(scan, parameters_with(2, rotate=(0, 1.0)))[0, 0].numpy()
    expected = rotate(scan[0, 0].numpy(), 10, reshape=False, order=1, mode="nearest")
    other = rotate(scan[0, 0].numpy(), -10, reshape=False, order=1, mode="nearest")
    inner = (slice(8, -8), slice(6, -6))
    errors = [np.abs(turned - reference)[inner].max() for reference in (expected, other)]
    assert min(errors) < 0.01, errors


def test_zoom_about_the_centre():
    """One standard deviation enlarges by e^0.1: the value at a place comes from 1 / e^0.1 of its distance to the centre."""
    axis = torch.linspace(-1, 1, 33)
    scan = (0.9 * axis[:, None] + 0 * axis[None, :])[None, None]
    larger = Augmentation(ALL, 2).apply(scan, parameters_with(2, zoom=(0, 1.0)))
    torch.testing.assert_close(larger, scan * float(np.exp(-0.1)), rtol=0, atol=2e-3)


def test_draws_have_their_probability_spread_and_limits():
    drawn = Augmentation(ALL, 2).draw(20_000, torch_generator(0, "a"))
    flips, rotation = drawn[:, :2], drawn[:, 2]
    # A flip needs the change (1/2) and its axis' coin (1/2).
    torch.testing.assert_close(flips.mean(0), torch.full((2,), 0.25), rtol=0, atol=0.02)
    assert float((rotation != 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(rotation.abs().max()) <= 2.0
    # Standard deviation of a normal cut off at two deviations: 0.8796.
    assert float(rotation[rotation != 0].std()) == pytest.approx(0.8796, abs=0.02)


def test_what_is_switched_off_is_never_drawn():
    options = AugmentationOptions(probability=1.0, flip_axes=(), rotate_degrees=0, scale=0, translate=0.1, contrast=0)
    drawn = Augmentation(options, 3).draw(100, torch_generator(0, "b"))
    assert drawn.shape[1] == Augmentation(options, 3).parameters == 12
    used = (drawn != 0).any(dim=0).tolist()
    assert used == [False] * 7 + [True] * 3 + [False, True]


@pytest.mark.parametrize("rank", [2, 3])
def test_resampling_has_a_parameter_and_mirroring_is_not_resampling(rank):
    drawn = Augmentation(ALL, rank).draw(500, torch_generator(0, "c"))
    resampled = (drawn[:, rank:-2] != 0).any(dim=1)
    assert torch.equal(drawn[:, -1] == 1, resampled)
    assert float((~resampled & (drawn[:, :rank] != 0).any(dim=1)).float().mean()) > 0.02
    assert Augmentation(ALL, rank).draw(1, torch_generator(0, "c")).shape == (1, Augmentation(ALL, rank).parameters)


@pytest.mark.parametrize(("rank", "least"), [(2, 0.93), (3, 0.58)])
def test_resampling_does_not_blur(rank, least):
    """Power of white noise in the upper half of the frequencies after random shifts; linear interpolation keeps .35 and .22."""
    scans = 0.2 * torch.randn(24, 1, *(24,) * rank, generator=torch_generator(0, "d"))
    options = AugmentationOptions(probability=1.0, rotate_degrees=0, scale=0, translate=0.05)
    augmentation = Augmentation(options, rank)
    moved = augmentation.apply(scans, augmentation.draw(len(scans), torch_generator(0, "e")))
    inner = (slice(None), slice(None), *[slice(4, -4)] * rank)

    def power(of):
        spectrum = torch.fft.fftn(of[inner], dim=list(range(2, 2 + rank))).abs().square()
        frequency = torch.fft.fftfreq(16).abs()
        far = torch.stack(torch.meshgrid(*[frequency] * rank, indexing="ij")).amax(0) > 0.25
        return float(spectrum[..., far].mean())

    assert least < power(moved) / power(scans) < 1.07


@pytest.mark.parametrize("rank", [2, 3])
def test_a_mask_stays_a_mask(rank):
    """Contrast leaves it alone, and what moves it leaves -1 and 1."""
    options = AugmentationOptions(probability=1.0, contrast=0.4)
    shape = (16,) * rank
    scans = torch.rand(6, 1, *shape, generator=torch.Generator().manual_seed(0)) - 0.5
    mask = torch.where(scans > 0, 1.0, -1.0)
    augmentation = Augmentation(options, rank, mask=True)
    parameters = augmentation.draw(6, torch.Generator().manual_seed(1))
    both = augmentation.apply(torch.cat([scans, mask], dim=1), parameters)
    assert set(both[:, 1].unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(both[:, :1], Augmentation(options, rank).apply(scans, parameters))
    only = torch.zeros_like(parameters)
    only[:, -2] = parameters[:, -2]
    still = augmentation.apply(torch.cat([scans, mask], dim=1), only)
    torch.testing.assert_close(still[:, 1:], mask, rtol=0, atol=0)
    assert not torch.equal(still[:, :1], scans)
