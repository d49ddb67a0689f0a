"""The feature extractors that a user may name: the installed one, those that need a file of weights, or an own function."""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import resnet50
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch.nn.functional import interpolate

from medsynth.config import FeatureOptions
from medsynth.errors import ConfigError, DataError
from medsynth.files import hash_file, read_bytes
from medsynth.measures.features import EfficientNetLite0, Extractor, PictureExtractor

# Only with these weights (torch-fidelity's, converted from the TensorFlow graph of 2015-12-05) is a Fréchet distance FID.
FID_WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

_SIDE = 224
# RadImageNet's files are of a network in a list: its 1st, 2nd and 5th to 8th members have these names elsewhere.
_MEMBERS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def open_extractor(options: FeatureOptions, *, device: torch.device | str = "cpu") -> Extractor:
    """Return the extractor that the options name, ready for use on `device`.

    `ConfigError` for an unknown name, missing weights or a missing package, and for a module or function that cannot be
    imported; `DataError` for weights or a module with another hash than `options.sha256`, or that do not fit the network.
    """
    name = options.extractor
    if name in ("inception", "radimagenet"):
        weights = Weights(options)
        return Inception(weights, device) if name == "inception" else RadImageNet(weights, device)
    if options.weights:
        raise ConfigError(f"features.weights: need none for {name}, got a file; try --features.extractor radimagenet")
    if name != "lite0" and ":" not in name:
        raise ConfigError(
            f"features.extractor: need lite0, inception, radimagenet or module:function, got {name!r}; try lite0"
        )
    extractor = EfficientNetLite0(device) if name == "lite0" else UserExtractor(name, device)
    _check_sha256(name, options.sha256, extractor.sha256)
    return extractor


class UserExtractor:
    """A user's own function: a torch batch `(N, C, *spatial)` in [-1, 1] in, features `(N, D)` out.

    `name` is `module:function`; `sha256` is that of the module's source file. The module is imported, so its code runs; it may
    be in the working directory.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        module_name, _, function_name = name.partition(":")
        module = _import(module_name)
        function = getattr(module, function_name, None)
        if not callable(function):
            raise ConfigError(
                f"features.extractor: need a function {function_name!r} in {module_name}, got none; try another name"
            )
        source = getattr(module, "__file__", None)
        if source is None:
            raise ConfigError(
                f"features.extractor: need a module with a source file, got {module_name}; try a .py file of your own"
            )
        self.name = name
        self.title = f"the function {name}"
        self.sha256 = hash_file(Path(source))
        self._device = torch.device(device)
        self._function: Callable[[torch.Tensor], Any] = function

    def __call__(self, scans: torch.Tensor) -> torch.Tensor:
        """Return float32 features `(N, D)`, on the CPU, as the function gave them."""
        with torch.inference_mode():
            found = self._function(scans.to(self._device, torch.float32))
        return torch.as_tensor(found).to("cpu", torch.float32)


class Weights:
    """The file of weights that the options name: its path (for code that can only read files), its bytes and their hash."""

    def __init__(self, options: FeatureOptions) -> None:
        if not options.weights:
            raise ConfigError(
                f"features.weights: need the file with the weights of {options.extractor}; download it from its publisher, "
                "then --features.weights FILE"
            )
        if "://" in options.weights:
            raise ConfigError("features.weights: need a file, got a URL; download it first")
        self.path = Path(options.weights)
        try:
            self.content = read_bytes(self.path, limit=8 << 30)
        except OSError as error:
            raise ConfigError(
                f"features.weights: need a readable file, got {error.strerror or error}; try another path"
            ) from error
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        _check_sha256("the file of weights", options.sha256, self.sha256)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return named tensors from a safetensors or torch file; no pickle in it is executed."""
        try:
            if self.path.suffix == ".safetensors":
                state = load_safetensors(self.content)
            else:
                with warnings.catch_warnings():
                    # torch warns at length about a pickle; our error follows.
                    warnings.simplefilter("ignore")
                    state = torch.load(io.BytesIO(self.content), weights_only=True, map_location="cpu")
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
            raise self._refused("other content") from error
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise self._refused("another object")
        if name := next((name for name, value in state.items() if not bool(value.isfinite().all())), None):
            raise self._refused(f"NaN or infinity in {name}")
        return state

    def _refused(self, got: str) -> DataError:
        return DataError(
            f"features.weights: need a state dict (safetensors, or torch.save of tensors), got {got}; "
            "try saving network.state_dict()"
        )

    def of_another_network(self, wanted: str) -> DataError:
        """Return the error for weights that do not fit the network."""
        return DataError(
            f"features.weights: need the weights of {wanted}, got those of another network (sha256 {self.sha256[:12]}...); "
            "try the file that its authors publish for PyTorch"
        )


class Inception(PictureExtractor):
    """Pool features of the Inception network behind FID (Szegedy et al. 2016; weights of 2015-12-05), 2048 a picture.

    The network is torch-fidelity's, which resizes as TensorFlow did. Pictures are shown in grey as 8-bit values. `fid` says
    whether a Fréchet distance on these features is FID: only with the known weights. `ConfigError` without the extra `fid`,
    `DataError` for weights that are not a plain state dict.
    """

    name = "Inception"

    def __init__(self, weights: Weights, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        try:
            package = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        except (ImportError, RuntimeError) as error:  # torchvision beside another torch raises RuntimeError
            raise ConfigError(
                "features.extractor: need torch-fidelity for inception, got none that can be imported; "
                "try pip install 'medsynth-diffusion[fid]'"
            ) from error
        weights.state_dict()  # before torch-fidelity reads the file: no pickle is executed
        try:
            network = package.FeatureExtractorInceptionV3(
                "inception", ["2048"], feature_extractor_weights_path=str(weights.path)
            )
        except (RuntimeError, KeyError) as error:
            raise weights.of_another_network("the Inception network of torch-fidelity") from error
        self.sha256 = weights.sha256
        self.fid = weights.sha256 == FID_WEIGHTS_SHA256
        self.title = "Inception, weights of FID" if self.fid else "Inception, other weights than those of FID"
        self._network = network.eval().requires_grad_(False).to(self._device)

    def _pooled(self, shown: torch.Tensor) -> torch.Tensor:
        bytes_ = ((shown.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
        features: torch.Tensor = self._network(bytes_.contiguous())[0]
        return features.float()


class RadImageNet(PictureExtractor):
    """Average-pooled features of a ResNet-50 trained on radiological pictures (Mei et al. 2022, RadImageNet), 2048 a picture.

    Weights are in PyTorch's layout of the network, as RadImageNet publishes them (`backbone.0.weight`, ...) or as torchvision
    names them (`conv1.weight`, ...); a classifier in the file is ignored. Pictures are resized to 224 x 224, in [-1, 1] as in
    training. `DataError` for weights of another network, such as those converted from Keras.
    """

    name = "RadImageNet"
    title = "ResNet-50, RadImageNet weights as given"

    def __init__(self, weights: Weights, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        network = resnet50(
            spatial_dims=2, n_input_channels=3, conv1_t_stride=2, feed_forward=False, bias_downsample=False
        )
        state = {name: value for key, value in weights.state_dict().items() if (name := _resnet_name(key)) is not None}
        try:
            network.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise weights.of_another_network("a ResNet-50 in PyTorch's layout") from error
        self.sha256 = weights.sha256
        self._network = network.eval().requires_grad_(False).to(self._device)

    def _pooled(self, shown: torch.Tensor) -> torch.Tensor:
        resized = interpolate(shown, (_SIDE, _SIDE), mode="bilinear", antialias=True).clamp(-1, 1)
        pooled: torch.Tensor = self._network(resized.expand(-1, 3, -1, -1))
        return pooled.flatten(1)


def _check_sha256(of: str, wanted: str, found: str) -> None:
    wanted = wanted.strip().lower()
    if wanted not in ("", found):
        raise DataError(
            f"features.sha256: need {of} with sha256 {wanted[:12]}..., got {found[:12]}...; try the publisher's file again"
        )


def _resnet_name(key: str) -> str | None:
    """Return the name that MONAI's ResNet has for a weight of a ResNet-50 file; None for its classifier."""
    name = key.removeprefix("module.")
    if name.startswith("backbone."):
        member, _, rest = name.removeprefix("backbone.").partition(".")
        name = f"{_MEMBERS[member]}.{rest}" if member in _MEMBERS else name.removeprefix("backbone.")
    return None if name.startswith(("fc.", "classifier.", "linear.")) else name


def _import(name: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError, SyntaxError) as error:
        raise ConfigError(
            f"features.extractor: need a module that can be imported, got {name!r} ({error}); try it in the working directory"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
