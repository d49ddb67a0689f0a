"""Edits by an untrained denoiser, which is the exact one of Gaussian scans: where the flow from a donor ends is known."""

import pytest
import torch

from medsynth.config import GuidanceOptions, NetworkOptions
from medsynth.diffusion import Solver
from medsynth.networks import (
    Condition,
    PlainDenoiser,
    build_denoiser,
    draw_noise,
    edit_scans,
    inpaint_scans,
    observe_channels,
    sample_scans,
)

STD = 0.5


def solver_of(name="dpmpp_2m", **values):
    return Solver(**{"name": name, "steps": 20, "sigma_min": 0.02, "sigma_max": 80.0} | values)


def build(rank, mean=0.0):
    """The mean of scans is that of the first Haar band, which is 2 ** (rank / 2) times as large."""
    bands = torch.zeros(2**rank)
    bands[0] = mean * 2 ** (rank / 2)
    return build_denoiser(
        NetworkOptions(channels=(32, 64), attention=(False, True)),
        channels=1,
        size=(16,) * rank,
        classes=2,
        augmentation_parameters=0,
        sigma_data=STD,
        band_means=bands,
    ).eval()


def donors_of(rank, count=3):
    return 0.3 * torch.randn(count, 1, *[16] * rank, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("strength", [0.05, 0.5, 3.0])
def test_an_edit_follows_the_flow_from_its_noised_donor(rank, strength):
    """For scans ~ Normal(0, std^2), noisy / sqrt(std^2 + sigma^2) stays as it is along the flow."""
    donors, seeds = donors_of(rank), [5, 6, 7]
    solver = solver_of(name="heun", steps=40, sigma_max=4.0)
    edits = edit_scans(
        build(rank),
        donors,
        torch.tensor([0, 1, 0]),
        seeds,
        strength=strength,
        solver=solver,
        guidance=GuidanceOptions(),
    )
    noisy = donors + strength * draw_noise(seeds, donors.shape[1:])
    exact = (noisy * STD / (STD**2 + strength**2) ** 0.5).clamp(-1, 1)
    torch.testing.assert_close(edits, exact, rtol=0, atol=5e-3)


@pytest.mark.parametrize("rank", [2, 3])
def test_new_scans_have_the_mean_of_scans_from_any_first_level(rank):
    """For scans ~ Normal(mean, std^2) the deviation from the mean, over sqrt(std^2 + sigma^2), stays as it is along the flow.

    Noise about 0 instead would leave mean * (1 - std / sqrt(std^2 + sigma_max^2)) of it.
    """
    mean, seeds, largest = -0.5, [5, 6, 7], 2.0
    solver = solver_of(name="heun", steps=40, sigma_max=largest)
    shape = (1, *[16] * rank)
    made = sample_scans(
        build(rank, mean), torch.tensor([0, 1, 0]), seeds, shape=shape, solver=solver, guidance=GuidanceOptions()
    )
    exact = mean + draw_noise(seeds, shape) * largest * STD / (STD**2 + largest**2) ** 0.5
    torch.testing.assert_close(made, exact.clamp(-1, 1), rtol=0, atol=5e-3)
    alone = sample_scans(build(rank), torch.tensor([0]), [5], shape=shape, solver=solver, guidance=GuidanceOptions())
    start = build(rank).initial_noise(draw_noise([5], shape), largest)
    assert torch.equal(start, draw_noise([5], shape)), "without means nothing changes"
    assert (made[:1] - alone).mean() < -0.3


def test_an_edit_of_nothing_from_the_first_level_is_a_new_scan():
    """From just below sigma_max a donor no longer counts."""
    solver, seeds, labels = solver_of(steps=30), [1, 2, 3], torch.tensor([0, 1, 1])
    new = sample_scans(build(2), labels, seeds, shape=(1, 16, 16), solver=solver, guidance=GuidanceOptions())
    edits = edit_scans(build(2), donors_of(2), labels, seeds, strength=79.99, solver=solver, guidance=GuidanceOptions())
    torch.testing.assert_close(edits, new, rtol=0, atol=0.02)


def test_an_edit_depends_on_its_own_donor_and_seed_only():
    options = {"strength": 0.7, "solver": solver_of(steps=12), "guidance": GuidanceOptions(scale=2.0)}
    denoiser, donors = build(2), donors_of(2)
    together = edit_scans(denoiser, donors, torch.tensor([0, 1, 0]), [5, 6, 7], **options)
    alone = edit_scans(denoiser, donors[1:2], torch.tensor([1]), [6], **options)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


def test_guidance_steers_away_from_the_class_that_is_named():
    """At scale 2 the first estimate is 2 D(own) - D(rival); with the own class for a rival guidance does nothing."""
    denoiser = build(2)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    own, seeds, solver = torch.tensor([0, 1]), [1, 2], solver_of(name="euler", steps=1, sigma_max=1.0)
    guidance = GuidanceOptions(scale=2.0, sigma_low=0.1, sigma_high=2.0)

    def sampled(**options):
        return sample_scans(denoiser, own, seeds, shape=(1, 16, 16), solver=solver, guidance=guidance, **options)

    noise, level = draw_noise(seeds, (1, 16, 16)), torch.ones(2)
    embedding = denoiser.embedding
    estimates = [denoiser(noise, level, embedding.make(label)).detach() for label in (own, own.flip(0))]
    torch.testing.assert_close(sampled(rivals=own.flip(0)), (2 * estimates[0] - estimates[1]).clamp(-1, 1))
    torch.testing.assert_close(sampled(rivals=own), estimates[0].clamp(-1, 1))
    withheld = torch.full((2,), embedding.classes)
    torch.testing.assert_close(sampled(), sampled(rivals=withheld))
    assert (sampled() - sampled(rivals=own.flip(0))).abs().max() > 1e-3


def test_bfloat16_changes_scans_by_less_than_a_grey_level():
    """Of 8 bits; with weights that are not zero, so that the network matters."""
    denoiser = build(2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    options = {"shape": (1, 16, 16), "guidance": GuidanceOptions()}
    exact, fast = (
        sample_scans(denoiser, torch.tensor([0, 1]), [3, 4], solver=solver_of(precision=precision), **options)
        for precision in ("32-true", "bf16-mixed")
    )
    assert fast.dtype == torch.float32
    assert 0 < float((fast - exact).square().mean().sqrt()) < 1 / 255


class Gaussian:
    """The exact denoiser of scans ~ Normal(0.5 for class 1, -0.5 for class 0, and 0 without a class; STD^2)."""

    def denoise(self, noisy, sigma, condition):
        mean = torch.tensor([-0.5, 0.5, 0.0])[condition.label].reshape(-1, 1, 1, 1)
        variance = sigma.reshape(-1, 1, 1, 1) ** 2
        return (STD**2 * noisy + variance * mean) / (STD**2 + variance)


def plain():
    return PlainDenoiser(Gaussian().denoise, classes=("dark", "bright"), shape=(1, 8, 8))


def test_any_denoiser_can_be_sampled():
    """Along the flow the deviation from the mean, over sqrt(std^2 + sigma^2), stays as it is; edits follow it from the donor."""
    denoiser, labels, seeds = plain(), torch.tensor([0, 1]), [5, 6]
    solver, guidance = solver_of("heun", steps=60, sigma_max=10.0), GuidanceOptions()
    made = sample_scans(denoiser, labels, seeds, shape=(1, 8, 8), solver=solver, guidance=guidance)
    mean = (labels - 0.5).reshape(-1, 1, 1, 1)
    noise = draw_noise(seeds, (1, 8, 8))
    exact = mean + (10 * noise - mean) * STD / (STD**2 + 10**2) ** 0.5
    torch.testing.assert_close(made, exact.clamp(-1, 1), rtol=0, atol=5e-3)
    donors = torch.full((2, 1, 8, 8), 0.2)
    edits = edit_scans(denoiser, donors, labels, seeds, strength=0.7, solver=solver, guidance=guidance)
    exact = mean + (donors + 0.7 * noise - mean) * STD / (STD**2 + 0.7**2) ** 0.5
    torch.testing.assert_close(edits, exact.clamp(-1, 1), rtol=0, atol=5e-3)


def test_guidance_of_any_denoiser_steers_away_from_the_withheld_class():
    """At scale 2 everywhere, the mean moves from 0 to twice that of the class: 1, where half of the values are cut off."""
    guidance = GuidanceOptions(scale=2.0, sigma_low=0.0, sigma_high=1000.0)
    made = sample_scans(
        plain(), torch.tensor([1] * 40), list(range(40)), shape=(1, 8, 8),
        solver=solver_of("heun", steps=40), guidance=guidance,
    )  # fmt: skip
    assert float((made == 1).double().mean()) == pytest.approx(0.5, abs=0.03)


def test_observed_channels_come_back_unchanged():
    torch.manual_seed(0)
    denoiser = build_denoiser(
        NetworkOptions(channels=(32,), attention=(False,)), channels=2, size=(16, 16), classes=2, observed=True
    ).eval()
    real = donors_of(2).expand(-1, 2, -1, -1)
    observed = observe_channels(real, torch.tensor([[True, False]]).expand(3, -1))
    condition = denoiser.embedding.make(torch.tensor([0, 1, 1]), observed=observed)
    made = sample_scans(
        denoiser, condition, [1, 2, 3], shape=(2, 16, 16), solver=solver_of(steps=3), guidance=GuidanceOptions()
    )
    assert torch.equal(made[:, 0], real[:, 0].clamp(-1, 1))
    assert not torch.equal(made[:, 1], real[:, 1])


def test_inpainting_keeps_everything_outside_the_region():
    donors, region = donors_of(2), torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    region[..., 4:9, 5:12] = True
    made = inpaint_scans(
        build(2), donors, region, torch.tensor([0, 1, 1]), [1, 2, 3],
        repeats=2, solver=solver_of(steps=5), guidance=GuidanceOptions(),
    )  # fmt: skip
    assert torch.equal(made[~region], donors[~region])
    assert float((made - donors)[region].abs().min()) > 0


def test_text_reaches_the_output_and_its_absence_is_learnt():
    torch.manual_seed(0)
    denoiser = build_denoiser(
        NetworkOptions(channels=(32,), attention=(False,)), channels=1, size=(16, 16), classes=2, text=3
    ).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    noisy, level = draw_noise([1], (1, 16, 16)).expand(4, -1, -1, -1), torch.ones(4)
    text = torch.tensor([[1.0, 0, 0], [0, 1, 0], [torch.nan] * 3, [torch.nan] * 3])
    labels = torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        made = denoiser(noisy, level, denoiser.embedding.make(labels, text=text))
        absent = denoiser(noisy, level, Condition(labels, torch.zeros(4, 0)))
    assert torch.equal(made[2], made[3])
    assert torch.equal(absent[0], made[3]), "no text is an unknown text"
    assert all(float((made[0] - made[other]).abs().max()) > 1e-4 for other in (1, 2))
    hidden = denoiser.embedding.withhold(denoiser.embedding.make(labels, text=text), torch.tensor([True] + [False] * 3))
    assert hidden.text[0].isnan().all()
    assert torch.equal(hidden.text[1], text[1])
    assert hidden.label.tolist() == [2, 0, 0, 0]
