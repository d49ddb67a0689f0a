import pytest
import torch

from medsynth.config import GuidanceOptions
from medsynth.diffusion import Solver, autoguide, check_guidance, guide, heun, noise_levels
from medsynth.errors import ConfigError
from medsynth.networks import Condition


def test_guidance_acts_inside_its_interval_and_extrapolates():
    calls = []

    def denoise(noisy, sigma, condition):
        calls.append(len(noisy))
        return noisy * 0 + condition.label.reshape(-1, 1, 1, 1).to(noisy)

    condition = Condition(torch.tensor([2, 3]), torch.zeros(2, 0))
    nothing = Condition(torch.tensor([1, 1]), torch.zeros(2, 0))
    guided = guide(denoise, condition, nothing, GuidanceOptions(scale=3.0, sigma_low=0.5, sigma_high=2.0))
    noisy = torch.zeros(2, 1, 2, 2)

    def at(level):
        return guided(noisy, torch.full((2,), level))[:, 0, 0, 0].tolist()

    assert at(1.0) == [1 + 3 * (2 - 1), 1 + 3 * (3 - 1)]
    assert calls == [4], "condition and its absence go through the network in one batch"
    assert at(2.0) == [4, 7], "the upper end belongs to the interval"
    assert at(0.5) == [2, 3], "the lower end does not"
    assert at(5.0) == [2, 3]
    assert calls == [4, 4, 2, 2], "outside the interval one evaluation is enough"


def test_scale_one_costs_nothing():
    calls = []

    def denoise(noisy, sigma, condition):
        calls.append(len(noisy))
        return noisy

    condition = Condition(torch.zeros(2, dtype=torch.long), torch.zeros(2, 0))
    guided = guide(denoise, condition, condition, GuidanceOptions(scale=1.0, sigma_low=0.0, sigma_high=100.0))
    guided(torch.zeros(2, 1, 2, 2), torch.ones(2))
    assert calls == [2]


def gaussian(mean, std):
    """The exact denoiser of scans ~ Normal(mean, std^2)."""
    return lambda noisy, sigma: (std**2 * noisy + sigma[:, None] ** 2 * mean) / (std**2 + sigma[:, None] ** 2)


def solved(denoise, count=2000):
    noise = torch.randn(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return heun(denoise, noise, noise_levels(Solver(name="heun", steps=60, sigma_max=40.0, sigma_min=0.02)))


EVERYWHERE = {"sigma_low": 0.0, "sigma_high": 1000.0, "weak": "early"}


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 3.0])
def test_autoguidance_moves_beyond_the_stronger_mean(scale):
    """Denoisers of two Gaussians of one width, at 1 and 0.25: weak + scale * (strong - weak) is that of one at their line."""
    strong, weak = gaussian(1.0, 0.5), gaussian(0.25, 0.5)
    found = solved(autoguide(strong, weak, GuidanceOptions(scale=scale, **EVERYWHERE)))
    exact = solved(gaussian(0.25 + scale * 0.75, 0.5))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)
    assert float(found.mean()) == pytest.approx(0.25 + scale * 0.75, abs=0.03)


def test_autoguidance_sharpens_two_modes_and_keeps_both():
    """Of two narrow modes the weaker model knows a smeared version: guided scans lie nearer to the modes, half at each."""

    def mixture(std):
        def denoise(noisy, sigma):
            variance = std**2 + sigma[:, None] ** 2
            right = torch.sigmoid(2 * noisy / variance)  # of modes at -1 and 1
            mean = 2 * right - 1
            return (std**2 * noisy + sigma[:, None] ** 2 * mean) / variance

        return denoise

    strong, weak = mixture(0.3), mixture(0.6)
    plain = solved(strong)
    guided = solved(autoguide(strong, weak, GuidanceOptions(scale=2.0, **EVERYWHERE)))

    def off(scans):
        return float((scans.abs() - 1).square().mean())

    assert off(guided) < 0.8 * off(plain)
    assert float((guided > 0).double().mean()) == pytest.approx(0.5, abs=0.03)


def test_autoguidance_evaluates_the_weaker_model_only_where_it_counts():
    calls = []

    def model(name, value):
        def denoise(noisy, sigma):
            calls.append(name)
            return torch.full_like(noisy, value)

        return denoise

    options = GuidanceOptions(scale=3.0, sigma_low=0.5, sigma_high=2.0, weak="early")
    guided = autoguide(model("strong", 2.0), model("weak", 1.0), options)
    values = {level: float(guided(torch.zeros(1, 1), torch.full((1,), level))) for level in (0.5, 1.0, 2.0, 5.0)}
    assert values == {0.5: 2.0, 1.0: 4.0, 2.0: 4.0, 5.0: 2.0}
    assert calls == ["strong", *["strong", "weak"] * 2, "strong"]


def test_the_two_kinds_of_guidance_exclude_each_other():
    with pytest.raises(ConfigError, match=r"guidance\.weak: need one of weak and against, got both"):
        check_guidance(GuidanceOptions(scale=2.0, weak="early", against="viral=bacterial"))
