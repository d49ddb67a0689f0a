from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import resnet50
from safetensors.torch import save_file

from medsynth.config import FeatureOptions
from medsynth.errors import ConfigError, DataError
from medsynth.measures import extractors
from medsynth.measures.extractors import Inception, open_extractor
from medsynth.measures.features import EfficientNetLite0, extract_features

SCANS = np.random.default_rng(0).uniform(-1, 1, size=(3, 1, 16, 16)).astype(np.float16)
MODULE = (
    "import torch\n\n\ndef means(scans):\n    assert not torch.is_grad_enabled()\n    return scans.mean(dim=(2, 3))\n"
)


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    """A module of the user's in the working directory, which is not on the path of imports."""
    path = tmp_path / "own_features.py"
    path.write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield path
    sys.modules.pop("own_features", None)


def test_the_default_is_lite0():
    assert isinstance(open_extractor(FeatureOptions()), EfficientNetLite0)


def test_a_users_function_gives_the_features(module):
    before = list(sys.path)
    extractor = open_extractor(FeatureOptions(extractor="own_features:means"))
    found = extract_features(extractor, SCANS)
    np.testing.assert_allclose(found, SCANS.astype(np.float32).mean(axis=(2, 3)), rtol=1e-5, atol=1e-6)
    assert extractor.name == "own_features:means"
    assert extractor.sha256 == hashlib.sha256(module.read_bytes()).hexdigest()
    assert sys.path == before
    assert (
        open_extractor(FeatureOptions(extractor="own_features:means", sha256=extractor.sha256)).name == extractor.name
    )
    with pytest.raises(DataError, match=r"need own_features:means with sha256 0{12}\.\.\., got"):
        open_extractor(FeatureOptions(extractor="own_features:means", sha256="0" * 64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"extractor": "lite1"}, r"^features\.extractor: need lite0, inception, radimagenet or module:function"),
        ({"extractor": "no_such_module:means"}, r"^features\.extractor: need a module .* 'no_such_module'"),
        ({"extractor": "own_features:medians"}, r"^features\.extractor: need a function 'medians' in own_features"),
        ({"extractor": "sys:exit"}, r"^features\.extractor: need a module with a source file, got sys"),
        ({"extractor": "lite0", "weights": "a.pt"}, r"^features\.weights: need none for lite0"),
        ({"extractor": "inception"}, r"^features\.weights: need the file with the weights of inception; download"),
        ({"extractor": "radimagenet", "weights": "https://a.b/c.pt"}, r"^features\.weights: need a file, got a URL"),
        ({"extractor": "radimagenet", "weights": "gone.pt"}, r"^features\.weights: need a readable file, got No such"),
    ],
)  # fmt: skip
def test_options_that_name_nothing_are_refused(module, options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        open_extractor(FeatureOptions(**options))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    made = resnet50(spatial_dims=2, n_input_channels=3, conv1_t_stride=2, feed_forward=False, bias_downsample=False)
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
    return made.eval()


def as_published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that weights have in the files of RadImageNet."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    return {f"backbone.{places[(parts := key.split('.', 1))[0]]}.{parts[1]}": value for key, value in state.items()}


@pytest.mark.parametrize("kind", ["torchvision", "published", "safetensors"])
def test_radimagenet_weights_of_any_layout_give_the_networks_features(tmp_path, network, kind):
    state = network.state_dict()
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "published":
        torch.save(as_published(state), path)
    else:
        torch.save({"state_dict": {**state, "fc.weight": torch.zeros(165, 2048), "fc.bias": torch.zeros(165)}}, path)
    extractor = open_extractor(FeatureOptions(extractor="radimagenet", weights=str(path)))
    assert extractor.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    # At the network's own size nothing is resized.
    pictures = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, size=(1, 2, 224, 224)).astype(np.float32))
    with torch.no_grad():
        expected = torch.cat([network(pictures[:, [channel] * 3]).flatten(1) for channel in (0, 1)], dim=1)
    torch.testing.assert_close(extractor(pictures), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0


def test_weights_of_another_network_or_hash_are_refused(tmp_path, network):
    path = tmp_path / "weights.pt"
    keras_like = {**network.state_dict(), "conv1.bias": torch.zeros(64)}
    torch.save(keras_like, path)
    options = FeatureOptions(extractor="radimagenet", weights=str(path))
    with pytest.raises(DataError, match="need the weights of a ResNet-50 in PyTorch's layout") as caught:
        open_extractor(options)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        DataError, match=r"^features\.sha256: need the file of weights with sha256 abcabcabcabc\.\.\., got "
    ):
        open_extractor(FeatureOptions(extractor="radimagenet", weights=str(path), sha256="abc" * 21 + "a"))


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("sprung"),))


@pytest.mark.parametrize("name", ["inception", "radimagenet"])
@pytest.mark.parametrize("content", ["pickle", "noise", "list", "nan"])
def test_files_that_are_no_weights_are_refused_and_not_executed(tmp_path, monkeypatch, fidelity, name, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    if content == "noise":
        path.write_bytes(b"no weights")
    else:
        contents = {"pickle": Trap(), "list": [1, 2], "nan": {"weight": torch.full((2048,), torch.nan)}}
        torch.save(contents[content], path)
    with pytest.raises(DataError, match=r"^features\.weights: need "):
        open_extractor(FeatureOptions(extractor=name, weights=str(path)))
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pt"]


class Network(torch.nn.Module):
    """Stands for torch-fidelity's network, which wants 8-bit RGB and returns a tuple."""

    def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features == ["2048"]
        self.weight = torch.nn.Parameter(torch.zeros(2048))
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, shown: torch.Tensor) -> tuple[torch.Tensor]:
        assert shown.dtype == torch.uint8
        return (shown.float().mean(dim=(1, 2, 3))[:, None] + self.weight,)


@pytest.fixture
def fidelity(monkeypatch) -> None:
    package, part = (
        types.ModuleType(name) for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3")
    )
    part.FeatureExtractorInceptionV3 = Network
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, part.__name__, part)


def test_inception_sees_8_bit_pictures_and_is_fid_only_with_the_known_weights(tmp_path, monkeypatch, fidelity):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.arange(2048.0)}, path)
    options = FeatureOptions(extractor="inception", weights=str(path))
    extractor = open_extractor(options)
    assert isinstance(extractor, Inception)
    assert (extractor.name, extractor.fid) == ("Inception", False)
    found = extractor(torch.tensor([-1.0, 0.0, 1.0, 5.0])[:, None, None, None].expand(-1, 1, 4, 4))
    assert found[:, 0].tolist() == [0, 128, 255, 255]
    assert found[0].tolist() == list(range(2048))
    monkeypatch.setattr(extractors, "FID_WEIGHTS_SHA256", extractor.sha256)
    known = open_extractor(options)
    assert (known.fid, known.title) == (True, "Inception, weights of FID")
    torch.save({"other": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="need the weights of the Inception network"):
        open_extractor(options)


def test_inception_without_its_package_says_how_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=r"try pip install 'medsynth-diffusion\[fid\]'$"):
        open_extractor(FeatureOptions(extractor="inception", weights=str(path)))
