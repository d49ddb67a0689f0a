import torch

from medsynth.config import GuidanceOptions
from medsynth.diffusion import guide
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
