"""`generate` from any denoiser: no run is needed, and one whose answer is known shows what it does."""

import numpy as np
import pytest
import torch

import medsynth
from medsynth.errors import ConfigError
from medsynth.networks import PlainDenoiser
from medsynth.sets import open_synthetic, write_scans

MEANS, SPREAD = torch.tensor([-0.4, 0.4, 0.0]), 0.1  # of two classes, and without a class
TWO = {"classes": ("low", "high"), "accelerator": "cpu"}


def denoise(noisy, sigma, condition):
    """The exact denoiser of independent Gaussian voxels about the mean of a class."""
    assert sigma.shape == condition.label.shape == (len(noisy),)
    mean, variance = (each.reshape(-1, *[1] * (noisy.ndim - 1)) for each in (MEANS[condition.label], sigma**2))
    return (SPREAD**2 * noisy + variance * mean) / (SPREAD**2 + variance)


class Model:
    def denoise(self, noisy, sigma, condition):
        return denoise(noisy, sigma, condition)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, noisy, sigma, condition):
        return denoise(noisy, sigma, condition) + self.weight


def arrays(model, **options):
    options = {"count": "low=3,high=2", "shape": (1, 8, 8), **TWO} | options
    return np.stack([made.scan.array for made in medsynth.generate(model, **options)])


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 12, 10, 8)])
def test_scans_follow_the_distribution_of_the_denoiser(shape):
    made = list(medsynth.generate(Model(), count={"high": 2}, shape=shape, **TWO))
    assert [(scan.label, scan.number, scan.scan.label) for scan in made] == [("high", 0, "high"), ("high", 1, "high")]
    scans = np.stack([scan.scan.array for scan in made])
    assert scans.shape == (2, *shape)
    assert scans.mean() == pytest.approx(0.4, abs=0.02)
    assert scans.std() == pytest.approx(SPREAD, rel=0.1)
    assert {scan.scan.provenance["synthetic"] for scan in made} == {"YES"}


def test_objects_functions_modules_and_adapters_give_the_same_scans():
    one = arrays(Model())
    adapter = PlainDenoiser(denoise, classes=TWO["classes"], shape=(1, 8, 8))
    for model in (denoise, Network(), adapter):
        np.testing.assert_allclose(arrays(model), one, atol=1e-6)
    np.testing.assert_allclose(arrays(Model(), batch_size=1), one, atol=1e-6)
    assert not np.array_equal(arrays(Model(), seed=1), one)


def test_groups_may_be_dictionaries_and_guidance_steers_away_from_no_class():
    wide = {"scale": 2.0, "sigma_low": 0.0, "sigma_high": 100.0}
    guided = arrays(Model(), count="high=4", guidance=wide, solver={"steps": 5})
    assert guided.mean() == pytest.approx(2 * 0.4, abs=0.05)
    rival = arrays(Model(), count="high=4", guidance=wide | {"scale": 1.5, "against": "high=low"})
    assert rival.mean() == pytest.approx(-0.4 + 1.5 * 0.8, abs=0.05)


def test_one_class_is_the_default_and_the_scans_become_a_set(tmp_path):
    made = medsynth.generate(Model(), count=2, shape=(1, 8, 8), accelerator="cpu")
    write_scans((scan.scan for scan in made), tmp_path / "set")
    cohort = open_synthetic(tmp_path / "set")
    assert [row.label for row in cohort.rows] == ["scan", "scan"]
    assert (
        medsynth.read_scan(cohort.file_of(cohort.rows[0]))
        .provenance["generator"]
        .startswith("a denoiser without a run")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": None}, r"shape: need \(channel, \*spatial\) for a denoiser without a run"),
        ({"where": "size=3"}, "need a run of medsynth train"),
        ({"text": "nodule"}, "need a run of medsynth train"),
        ({"count": "other=1"}, "count: need one of .* classes low, high; got 'other'"),
        ({"accelerator": "abacus"}, "accelerator: need auto, cpu or gpu"),
        ({"batch_size": 0}, "batch_size: need a whole number from 1 to 65,536"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        arrays(Model(), **options)


def test_a_run_has_its_own_classes_and_shape(tiny_run):
    with pytest.raises(ConfigError, match="classes, shape: a run has its own"):
        next(medsynth.generate(tiny_run, count=1, shape=(1, 16, 16)))
