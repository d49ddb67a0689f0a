"""The conversion to the model's range and back, and what is measured, against NumPy over all values at once."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medsynth.config import IntensityOptions
from medsynth.errors import ConfigError, DataError
from medsynth.scans import Intensity, measure_intensity

FINITE = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def never() -> Iterator[np.ndarray]:
    raise AssertionError("must not be consumed")
    yield np.zeros(1)


def test_ends_middle_and_clipping() -> None:
    intensity = Intensity(low=(-1000.0,), high=(400.0,))
    values = np.array([[[-1000.0, -300.0, 400.0, 3000.0, -2000.0]]], dtype=np.float32)
    model = intensity.to_model(values)
    assert model.dtype == np.float32
    np.testing.assert_array_equal(model, [[[-1, 0, 1, 1, -1]]])
    np.testing.assert_array_equal(intensity.to_physical(model), [[[-1000, -300, 400, 400, -1000]]])


def test_each_channel_has_its_ends() -> None:
    intensity = Intensity(low=(0, 100), high=(10, 300))
    values = np.array([[[5, 10]], [[100, 200]]], dtype=np.int16)
    np.testing.assert_array_equal(intensity.to_model(values), [[[0, 1]], [[-1, 0]]])
    with pytest.raises(DataError, match="2 channels"):
        intensity.to_model(values[:1])
    with pytest.raises(DataError):
        intensity.to_physical(np.zeros(3))


@settings(max_examples=200, deadline=None)
@given(
    values=arrays.arrays(np.float32, arrays.array_shapes(min_dims=3, max_dims=4, max_side=5), elements=FINITE),
    low=FINITE,
    width=st.floats(1e-3, 1e6),
)
def test_round_trip_within_the_stated_tolerance(values: np.ndarray, low: float, width: float) -> None:
    intensity = Intensity(low=(low,), high=(low + width,))
    model = intensity.to_model(values)
    assert model.min() >= -1
    assert model.max() <= 1
    clipped = np.clip(values.astype(np.float64), low, low + width)
    tolerance = 2e-7 * max(abs(low), abs(low + width), width)
    np.testing.assert_allclose(intensity.to_physical(model), clipped, rtol=0, atol=tolerance)
    np.testing.assert_allclose(intensity.to_physical(model.astype(np.float64)), clipped, rtol=0, atol=tolerance)


def test_a_strided_scan_of_many_blocks_is_converted_whole() -> None:
    values = np.random.default_rng(0).integers(0, 65536, size=(1400, 1, 1600), dtype=np.uint16).transpose(1, 2, 0)
    intensity = Intensity(low=(0,), high=(65535,))
    model = intensity.to_model(values)
    np.testing.assert_allclose(model, values / 65535 * 2 - 1, atol=1e-7)
    np.testing.assert_array_equal(np.rint(intensity.to_physical(model)), values)


@pytest.mark.parametrize(
    ("low", "high"),
    [((1,), (0,)), ((0,), (np.nan,)), ((-np.inf,), (0,)), ((0, 1), (2,)), ((), ()), ((-1e308,), (1e308,))],
)
def test_impossible_ends_are_refused(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="intensity"):
        Intensity(low=low, high=high)


def test_dictionary_round_trip_through_json() -> None:
    intensity = Intensity(low=(-0.1, 2), high=(1 / 3, 1e7))
    assert Intensity.from_dict(json.loads(json.dumps(intensity.as_dict()))) == intensity
    for broken in ({}, {"low": 1, "high": [2]}, {"low": [2], "high": [1]}, {"low": ["a"], "high": [1]}):
        with pytest.raises(DataError, match="intensity"):
            Intensity.from_dict(broken)


def test_range_and_window_do_not_look_at_scans() -> None:
    assert measure_intensity(IntensityOptions(method="range", low=-5, high=7), never()) == Intensity(
        low=(-5,), high=(7,)
    )
    lung = IntensityOptions(method="window", low=-600, high=1500)
    assert measure_intensity(lung, never()) == Intensity(low=(-1350,), high=(150,))


@pytest.mark.parametrize(
    "options",
    [
        IntensityOptions(method="range", low=1, high=1),
        IntensityOptions(method="range", low=np.nan, high=1),
        IntensityOptions(method="window", low=40, high=0),
        IntensityOptions(low=99, high=1),
        IntensityOptions(low=-1, high=50),
        IntensityOptions(low=1, high=101),
        IntensityOptions(method="other"),  # type: ignore[arg-type]
    ],
)
def test_impossible_options_are_refused(options: IntensityOptions) -> None:
    with pytest.raises(ConfigError, match="intensity"):
        measure_intensity(options, [np.zeros((1, 2, 2))])


def test_minmax_is_exact_in_each_channel() -> None:
    rng = np.random.default_rng(0)
    scans = [rng.normal(size=(2, 5, 6)) * [[[1]], [[1000]]] for _ in range(7)]
    together = np.concatenate([scan.reshape(2, -1) for scan in scans], axis=1)
    measured = measure_intensity(IntensityOptions(method="minmax"), iter(scans))
    assert measured == Intensity(low=tuple(together.min(axis=1)), high=tuple(together.max(axis=1)))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "bool"])
def test_percentiles_of_integers_are_those_of_numpy(dtype: str) -> None:
    rng = np.random.default_rng(1)
    high = 1 if dtype == "bool" else np.iinfo(dtype).max
    scans = [(rng.beta(1, 5, size=(1, 30, 40)) * high).astype(dtype) for _ in range(20)]
    scans.insert(0, np.zeros((1, 3, 3), dtype))
    together = np.concatenate([scan.ravel() for scan in scans]).astype(np.float64)
    for low, high in ((0.1, 99.9), (0, 100), (25, 50)):
        measured = measure_intensity(IntensityOptions(low=low, high=high), scans)
        np.testing.assert_allclose(
            [measured.low[0], measured.high[0]], np.percentile(together, [low, high]), rtol=1e-12
        )


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(-20, 20), shift=st.floats(-1e5, 1e5))
def test_percentiles_of_floats_keep_the_stated_tolerance(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    growth = 10.0 ** rng.uniform(-3, 3, size=6)  # later scans may outgrow the bins of earlier ones
    scans = [rng.standard_t(2, size=(1, 7, 9)) * 10.0 ** (scale / 4) * factor + shift for factor in growth]
    together = np.concatenate([scan.ravel() for scan in scans])
    measured = measure_intensity(IntensityOptions(low=1, high=90), iter(scans))
    tolerance = (together.max() - together.min()) / 65536 + 1e-12 * np.abs(together).max()
    np.testing.assert_allclose(
        [measured.low[0], measured.high[0]], np.percentile(together, [1, 90]), rtol=0, atol=tolerance
    )
    assert measure_intensity(IntensityOptions(low=1, high=90), iter(scans)) == measured


def test_integers_after_floats_and_floats_after_integers() -> None:
    whole, parts = np.arange(256, dtype=np.uint8).reshape(1, 16, 16), np.linspace(0, 1, 256).reshape(1, 16, 16)
    expected = np.percentile(np.concatenate([whole.ravel(), parts.ravel()]), [10, 60])
    for scans in ([whole, parts], [parts, whole]):
        measured = measure_intensity(IntensityOptions(low=10, high=60), scans)
        np.testing.assert_allclose([measured.low[0], measured.high[0]], expected, atol=255 / 65536)


def test_scans_that_cannot_be_measured_are_refused() -> None:
    good = np.zeros((1, 2, 2))
    for scans, message in (
        ([], "at least one scan"),
        ([good, np.zeros((2, 2, 2))], "1 channels"),
        ([np.full((1, 2, 2), np.nan)], "finite"),
        ([np.zeros((1, 0, 2))], "of numbers"),
        ([np.zeros((1, 2, 2), complex)], "of numbers"),
    ):
        with pytest.raises(DataError, match=message):
            measure_intensity(IntensityOptions(), scans)
