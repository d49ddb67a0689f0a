import pytest
import torch

from medsynth.config import GuidanceOptions, NetworkOptions
from medsynth.diffusion import Solver, precondition
from medsynth.errors import ConfigError
from medsynth.networks import Condition, ConditionEmbedding, build_denoiser, sample_scans
from medsynth.networks.denoiser import shrink_features

SMALL = {"channels": (32, 64), "attention": (False, True)}


def build(stem="haar", rank=2, sigma_data=0.5, band_means=0.0, **options):
    torch.manual_seed(0)
    return build_denoiser(
        NetworkOptions(stem=stem, **SMALL | options),
        channels=1,
        size=(16,) * rank,
        classes=3,
        augmentation_parameters=4,
        sigma_data=sigma_data,
        band_means=band_means,
    ).eval()


@pytest.mark.parametrize("shrinkage", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("stem", ["haar", "pixel"])
def test_untrained_denoiser_is_the_gaussian_one(stem, rank, shrinkage):
    """MONAI's last layer starts at zero, so before training denoised = skip * noisy, the best linear guess."""
    denoiser = build(stem, rank, shrinkage=shrinkage)
    noisy = torch.randn(2, 1, *[16] * rank, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.5, 2.0])
    skip = (0.25 / (0.25 + sigma**2)).reshape(-1, *[1] * (rank + 1))
    with torch.no_grad():
        denoised = denoiser(noisy, sigma, denoiser.embedding.make(torch.tensor([0, 2])))
    torch.testing.assert_close(denoised, skip * noisy, rtol=1e-5, atol=1e-6)


def test_each_band_has_its_own_scale():
    denoiser = build(sigma_data=torch.tensor([2.0, 0.1, 0.1, 0.1]))
    flat = torch.full((1, 1, 16, 16), 0.7)  # all energy in the first band
    condition = denoiser.embedding.make(torch.tensor([0]))
    with torch.no_grad():
        denoised = denoiser(flat, torch.tensor([1.0]), condition)
    torch.testing.assert_close(denoised, flat * 4 / 5)


def test_the_mean_of_all_scans_is_the_best_guess_from_noise_alone():
    """An untrained denoiser is the exact one of Gaussian scans with that mean and spread."""
    means, spread = torch.tensor([-1.2, 0.0, 0.1, 0.0]), torch.tensor([0.6, 0.2, 0.2, 0.1])
    denoiser = build(sigma_data=spread, band_means=means)
    noisy = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    condition = denoiser.embedding.make(torch.tensor([0, 2]))
    far, near = torch.full((2,), 1e4), torch.full((2,), 0.3)
    with torch.no_grad():
        bands = denoiser.stem(denoiser(1e4 * noisy, far, condition))
        found = denoiser.stem(denoiser(noisy, near, condition))
    flat = means[None, :, None, None].expand_as(bands)
    torch.testing.assert_close(bands, flat, rtol=0, atol=1e-3)
    kept = (spread**2 / (spread**2 + 0.09))[None, :, None, None]
    torch.testing.assert_close(found, flat + kept * (denoiser.stem(noisy) - flat), rtol=1e-5, atol=1e-6)


def test_noise_stays_white_behind_the_stem():
    denoiser = build()
    noise = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    bands = denoiser.stem(noise)
    covariance = torch.cov(bands.transpose(0, 1).flatten(1))
    torch.testing.assert_close(covariance, torch.eye(4), rtol=0, atol=0.05)


def trained_like(denoiser):
    """Give the zero-initialised layers random weights, so that every input matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return denoiser


def test_class_and_augmentation_reach_the_output_and_rows_do_not_mix():
    denoiser = trained_like(build())
    noisy = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    sigma = torch.full((4,), 1.0)
    parameters = torch.zeros(4, 4)
    parameters[3, 1] = 1.0
    condition = Condition(torch.tensor([0, 1, 3, 0]), parameters)  # class 0, class 1, withheld, augmented
    with torch.no_grad():
        together = denoiser(noisy, sigma, condition)
        alone = denoiser(noisy[1:2], sigma[1:2], Condition(condition.label[1:2], parameters[1:2]))
    for other in (1, 2, 3):
        assert float((together[0] - together[other]).abs().max()) > 1e-3
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_withheld_rows_only():
    embedding = ConditionEmbedding(3, 4, 8)
    condition = Condition(torch.tensor([0, 1, 2]), torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    changed = embedding.withhold(condition, torch.tensor([False, True, False]))
    assert changed.label.tolist() == [0, 3, 2]
    assert changed.augmentation is condition.augmentation
    assert embedding.withhold(condition).label.tolist() == [3, 3, 3]


def test_dropout_acts_while_training_only():
    denoiser = trained_like(build(dropout=0.5))
    noisy = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    inputs = (noisy, torch.ones(1), denoiser.embedding.make(torch.tensor([0])))
    with torch.no_grad():
        assert torch.equal(denoiser(*inputs), denoiser(*inputs))
        denoiser.train()
        assert not torch.equal(denoiser(*inputs), denoiser(*inputs))


def test_sampled_scans_depend_on_their_own_seed_only():
    denoiser = trained_like(build())
    options = {
        "shape": (1, 16, 16),
        "solver": Solver(name="dpmpp_2m", steps=3, sigma_min=0.05, sigma_max=80.0),
        "guidance": GuidanceOptions(scale=2.0),
    }
    together = sample_scans(denoiser, torch.tensor([0, 1, 2]), [5, 6, 7], **options)
    alone = sample_scans(denoiser, torch.tensor([1]), [6], **options)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    again = sample_scans(denoiser, torch.tensor([0, 1, 2]), [5, 6, 7], **options)
    assert torch.equal(together, again)
    assert float((together[0] - together[1]).abs().max()) > 0.01
    assert float(together.abs().max()) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": (True,)}, "network.attention"),
        ({"channels": (30, 64)}, r"network.channels: need multiples of 32, got \[30\]"),
        ({"levels": 3}, r"network.levels: need 1 or 2, got 3"),
        ({"channels": (32, 64, 64, 64), "attention": (False,) * 4}, r"grid.size: need multiples of 16.*got \[24, 24\]"),
    ],
)
def test_contradictions_are_named(change, message):
    options = NetworkOptions(**SMALL | change)
    with pytest.raises(ConfigError, match=message):
        build_denoiser(options, channels=1, size=(24, 24), classes=2, augmentation_parameters=0, sigma_data=0.5)


def test_one_channel_a_group_is_refused_since_it_hides_the_condition():
    """Normalisation removes the mean of a group, and with it the shift of its only channel."""
    options = NetworkOptions(channels=(32,), attention=(False,), norm_groups=32)
    with pytest.raises(ConfigError, match=r"norm_groups: need at least two channels per group.*try 4"):
        build_denoiser(options, channels=1, size=(8, 8), classes=2, augmentation_parameters=0, sigma_data=0.5)


@pytest.mark.parametrize("level", [0.01, 0.3, 20.0])
def test_shrinkage_can_remove_all_noise(level):
    """One gate per value goes from keeping everything to nothing, (2a): with nothing added and the gate that solves
    skip + output * gate / scale = 0, the denoised scan is zero whatever the noise."""
    sigma_data, sigma = torch.tensor(0.5), torch.tensor(level)
    bands = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scale = precondition(sigma, sigma_data)
    gate = -(scale.skip / scale.output) * (sigma**2 + (sigma_data / 4) ** 2).sqrt()
    features = torch.cat([torch.zeros_like(bands), gate.expand_as(bands)], dim=1)
    shrunk = scale.skip * bands + scale.output * shrink_features(features, bands, sigma, sigma_data)
    torch.testing.assert_close(shrunk, torch.zeros_like(bands), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shrinkage", [False, True])
@pytest.mark.parametrize("stem", ["haar", "pixel"])
def test_a_scan_without_noise_comes_back_whatever_the_network_says(stem, shrinkage):
    denoiser = trained_like(build(stem, shrinkage=shrinkage))
    scan = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        same = denoiser(scan, torch.full((2,), 1e-6), denoiser.embedding.make(torch.tensor([0, 1])))
    torch.testing.assert_close(same, scan, rtol=0, atol=1e-3)


def test_shrinkage_denoises_sparse_scans_better_than_redrawn_noise():
    """Dots on nothing, more bands than channels: after the same steps the gated network leaves less of the noise."""
    errors = {}
    for shrinkage in (False, True):
        denoiser = build(levels=2, channels=(32, 32), shrinkage=shrinkage).train()
        generator = torch.Generator().manual_seed(0)
        optimiser = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
        for _ in range(60):
            scans = 3.0 * (torch.rand(16, 1, 16, 16, generator=generator) < 0.02)
            noisy = scans + 0.3 * torch.randn(scans.shape, generator=generator)
            condition = denoiser.embedding.make(torch.zeros(16, dtype=torch.long))
            loss = (denoiser(noisy, torch.full((16,), 0.3), condition) - scans).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        errors[shrinkage] = float(loss.detach())
    assert errors[True] < 0.8 * errors[False]
