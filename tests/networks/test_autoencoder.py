"""The latent space: its scale, its place in the denoiser, and solvers that end in scans."""

import dataclasses

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from medsynth.config import AutoencoderOptions, GuidanceOptions, NetworkOptions
from medsynth.diffusion import Solver
from medsynth.errors import ConfigError
from medsynth.networks import LatentCodec, build_autoencoder, build_denoiser, draw_noise, edit_scans, sample_scans
from medsynth.networks.autoencoder import divergence

SMALL = AutoencoderOptions(channels=(8, 16), latent_channels=3)


def build_codec(rank=2, options=SMALL):
    torch.manual_seed(0)
    return LatentCodec(build_autoencoder(options, channels=1, size=(16,) * rank), options)


def build(rank=2):
    torch.manual_seed(0)
    denoiser = build_denoiser(
        NetworkOptions(stem="latent", channels=(32,), attention=(False,)),
        channels=1,
        size=(16,) * rank,
        classes=2,
        augmentation_parameters=0,
        sigma_data=1.0,
        autoencoder=SMALL,
    )
    denoiser.codec.measure([scans_of(rank, 8)])
    return denoiser.eval()


def scans_of(rank, count):
    return 0.4 * torch.randn(count, 1, *[16] * rank, generator=torch.Generator().manual_seed(4)) - 0.3


@pytest.mark.parametrize("rank", [2, 3])
def test_latents_of_the_measured_scans_have_mean_0_and_root_mean_square_1(rank):
    codec, scans = build_codec(rank), scans_of(rank, 10)
    before = codec.encode(scans)
    assert (before.transpose(0, 1).flatten(1).square().mean(1).sqrt() - 1).abs().max() > 0.05
    codec.measure(scans.split(3))
    latents = codec.encode(scans).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(latents.mean(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(latents.square().mean(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rank", [2, 3])
def test_the_scale_changes_nothing_of_a_reconstruction(rank):
    """What `encode` scales, `decode` scales back: the reconstruction is that of the bare autoencoder."""
    codec, scans = build_codec(rank), scans_of(rank, 4)
    bare = codec.autoencoder.reconstruct(scans)
    codec.measure([scans])
    torch.testing.assert_close(codec.decode(codec.encode(scans)), bare.detach(), rtol=0, atol=1e-4)
    assert codec.shape((1, *[16] * rank)) == tuple(codec.encode(scans).shape[1:]) == (3, *[8] * rank)


def test_a_scan_is_encoded_the_same_alone_and_among_others(monkeypatch):
    codec, scans = build_codec(), scans_of(2, 5)
    whole = codec.encode(scans)
    monkeypatch.setattr("medsynth.networks.autoencoder._VOXELS", 512)  # two scans at a time
    torch.testing.assert_close(codec.encode(scans), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.decode(whole)[3:4], codec.decode(whole[3:4]), rtol=0, atol=1e-5)


def test_divergence_is_that_of_normal_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, deviation = torch.randn(4, 3, 5, 5, generator=generator), torch.rand(4, 3, 5, 5, generator=generator) + 0.1
    expected = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(divergence(mean, deviation), expected)


@pytest.mark.parametrize("rank", [2, 3])
def test_untrained_denoiser_is_the_gaussian_one_of_latents(rank):
    denoiser = build(rank)
    shape = denoiser.noise_shape((1, *[16] * rank))
    noisy = draw_noise([1, 2], shape)
    sigma = torch.tensor([0.5, 2.0])
    with torch.no_grad():
        denoised = denoiser(noisy, sigma, denoiser.embedding.make(torch.tensor([0, 1])))
    skip = (1 / (1 + sigma**2)).reshape(-1, *[1] * (rank + 1))
    torch.testing.assert_close(denoised, skip * noisy, rtol=1e-5, atol=1e-6)


def test_new_scans_are_decoded_latents():
    """The exact flow of standard normal latents takes noise at sigma to noise * sigma / sqrt(1 + sigma^2)."""
    denoiser, seeds = build(), [3, 4]
    solver = Solver(name="heun", steps=40, sigma_min=0.02, sigma_max=4.0)
    made = sample_scans(
        denoiser, torch.tensor([0, 1]), seeds, shape=(1, 16, 16), solver=solver, guidance=GuidanceOptions()
    )
    latents = draw_noise(seeds, (3, 8, 8)) * 4 / (1 + 4**2) ** 0.5
    torch.testing.assert_close(made, denoiser.decode(latents).clamp(-1, 1), rtol=0, atol=5e-3)


def test_a_slight_edit_is_the_reconstruction_of_its_donor():
    denoiser, donors = build(), scans_of(2, 3)
    edits = edit_scans(
        denoiser,
        donors,
        torch.tensor([0, 1, 0]),
        [5, 6, 7],
        strength=0.003,
        solver=Solver(name="dpmpp_2m", steps=4, sigma_min=0.05, sigma_max=80.0),
        guidance=GuidanceOptions(),
    )
    expected = denoiser.decode(denoiser.encode(donors)).clamp(-1, 1)
    torch.testing.assert_close(edits, expected, rtol=0, atol=0.02)


def test_only_the_unet_learns():
    denoiser = build().train()
    trained = {name.split(".")[0] for name, each in denoiser.named_parameters() if each.requires_grad}
    assert trained == {"unet"}
    assert any(name.startswith("codec.autoencoder") for name in denoiser.state_dict()), "weights travel along"


def test_other_stems_leave_scans_as_they_are():
    denoiser = build_denoiser(
        NetworkOptions(channels=(32,), attention=(False,)),
        channels=1, size=(16, 16), classes=2, augmentation_parameters=0, sigma_data=0.5,
    )  # fmt: skip
    scans = scans_of(2, 2)
    assert denoiser.encode(scans) is scans
    assert denoiser.decode(scans) is scans
    assert denoiser.noise_shape((1, 16, 16)) == (1, 16, 16)


@pytest.mark.parametrize(
    ("change", "size", "message"),
    [
        ({"channels": (8, 12)}, 16, r"autoencoder.channels: need multiples of 8, got \[8, 12\]"),
        (
            {"channels": (8, 8, 8)},
            18,
            r"grid.size: need multiples of 4 for this autoencoder, got \[18, 18\]; try \[16, 16\]",
        ),
    ],
)
def test_what_no_autoencoder_can_be_built_of_is_named(change, size, message):
    with pytest.raises(ConfigError, match=message):
        build_autoencoder(dataclasses.replace(SMALL, **change), channels=1, size=(size, size))


def test_the_grid_has_to_suit_autoencoder_and_unet_together():
    options = NetworkOptions(stem="latent", channels=(32, 64), attention=(False, False))
    facts = {"channels": 1, "classes": 2, "augmentation_parameters": 0, "sigma_data": 1.0}
    with pytest.raises(ConfigError, match=r"grid.size: need multiples of 4 for this network, got \[18, 18\]"):
        build_denoiser(options, size=(18, 18), autoencoder=SMALL, **facts)
    with pytest.raises(ConfigError, match=r"autoencoder.run: need a trained autoencoder for network.stem latent"):
        build_denoiser(options, size=(16, 16), **facts)
