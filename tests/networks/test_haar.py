"""The Haar stem: W Wᵀ = I, round trip and energy to 1e-6, in 2D and 3D, one and two levels."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, avg_pool3d

from medsynth.networks import HaarTransform

cases = pytest.mark.parametrize(("levels", "rank"), [(1, 2), (2, 2), (1, 3), (2, 3)])


@cases
def test_matrix_is_orthonormal(levels, rank):
    size = 4
    pixels = size**rank
    basis = torch.eye(pixels, dtype=torch.float64).reshape(pixels, 1, *[size] * rank)
    matrix = HaarTransform(levels)(basis).flatten(1)  # row i: the transform of pixel i
    identity = torch.eye(pixels, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix.T @ matrix, identity, rtol=0, atol=1e-12)


@cases
def test_round_trip_and_energy(levels, rank):
    scans = 2 * torch.rand(3, 2, *[8, 16, 8][:rank], generator=torch.Generator().manual_seed(0)) - 1
    transform = HaarTransform(levels)
    bands = transform(scans)
    assert bands.shape == (3, transform.band_count(2, rank), *[n // 2**levels for n in scans.shape[2:]])
    torch.testing.assert_close(transform.inverse(bands), scans, rtol=0, atol=1e-6)
    torch.testing.assert_close(bands.square().sum(), scans.square().sum(), rtol=1e-6, atol=0)


@cases
def test_first_bands_are_local_means(levels, rank):
    scans = torch.randn(1, 2, *[8] * rank, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pool = avg_pool2d if rank == 2 else avg_pool3d
    expected = pool(scans, 2**levels) * 2 ** (levels * rank / 2)
    torch.testing.assert_close(HaarTransform(levels)(scans)[:, :2], expected)


def test_bands_stay_in_single_precision_under_autocast():
    scans = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        transform = HaarTransform(1)
        result = transform.inverse(transform(scans))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, scans, rtol=0, atol=1e-6)


def test_without_levels_nothing_changes():
    scans = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(2))
    transform = HaarTransform(0)
    assert torch.equal(transform(scans), scans)
    assert torch.equal(transform.inverse(scans), scans)
    assert (transform.band_count(2, 2), transform.factor()) == (2, 1)
