"""A self-test of a few seconds: what a training, a sampling, a file and a figure need, once each and on a 16 x 16 grid."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from medsynth.installation.findings import Findings, without_names

if TYPE_CHECKING:
    from medsynth.networks import Denoiser

_SIDE = 16
_DECAY = 0.9
_FEATURE_MEAN = 0.0544  # of the features of a ramp, wherever they were computed so far


def run_self_test(*, progress: bool = True) -> Findings:
    """Run every step and say how long each took; a step that fails is a problem, and the others run all the same.

    The state of torch's random numbers is left as it was.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps: dict[str, Callable[[], str]] = {
        "loading the networks": _load,
        "a training step": lambda: _train(device),
        "sampling, 4 steps of DPM-Solver++": lambda: _sample(device),
        "weights to a file and back": _weights,
        "scans to PNG, NIfTI and NPZ and back": _scans,
        "features of a scan": lambda: _features(device),
    }
    facts, problems = [], []
    with torch.random.fork_rng(), tqdm(steps.items(), desc="self-test", unit="step", disable=not progress) as bar:
        for name, step in bar:
            bar.set_postfix_str(name)
            began = time.perf_counter()
            try:
                said = step()
            # Whatever goes wrong in an installation that is not sound: it belongs into the report.
            except Exception as error:
                said = "FAILED"
                reason = without_names(f"{type(error).__name__}: {error}")
                problems.append(
                    f"self-test, {name}: need it to work, got {reason}; try installing medsynth-diffusion again"
                )
            facts.append((name, f"{time.perf_counter() - began:5.2f} s  {said}".rstrip()))
    return Findings(title=f"self-test ({device.type})", facts=tuple(facts), problems=tuple(problems))


def _load() -> str:
    from medsynth import networks

    return f"from {networks.__name__}"


def _denoiser(device: torch.device) -> Denoiser:
    from medsynth.config import NetworkOptions
    from medsynth.networks import build_denoiser

    torch.manual_seed(0)
    network = NetworkOptions(channels=(32,), attention=(False,), dropout=0.0)
    return build_denoiser(
        network, channels=1, size=(_SIDE, _SIDE), classes=2, augmentation_parameters=0, sigma_data=0.5
    ).to(device)


def _train(device: torch.device) -> str:
    """Forward, backward, AdamW and the average of the weights, each of which must leave its mark."""
    denoiser = _denoiser(device)
    average = AveragedModel(denoiser, multi_avg_fn=get_ema_multi_avg_fn(_DECAY))
    average.update_parameters(denoiser)  # the first update copies
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    before = [parameter.detach().clone() for parameter in denoiser.parameters()]
    clean = torch.rand(4, 1, _SIDE, _SIDE, device=device) * 2 - 1
    sigma = torch.tensor([0.1, 0.5, 2.0, 10.0], device=device)
    labels = torch.tensor([0, 1, 0, 1], device=device)
    noisy = clean + sigma[:, None, None, None] * torch.randn_like(clean)
    loss = (denoiser(noisy, sigma, denoiser.embedding.make(labels)) - clean).square().mean()
    loss.backward()
    optimiser.step()
    average.update_parameters(denoiser)
    after = list(denoiser.parameters())
    if not torch.isfinite(loss) or all(map(torch.equal, before, after)):
        raise ArithmeticError("the step changed no weight")
    for old, new, averaged in zip(before, after, average.parameters(), strict=True):
        torch.testing.assert_close(averaged, _DECAY * old + (1 - _DECAY) * new)
    return f"loss {loss.item():.3f}"


def _sample(device: torch.device) -> str:
    from medsynth.config import GuidanceOptions, SolverOptions
    from medsynth.networks import sample_scans

    denoiser, labels = _denoiser(device).eval(), torch.tensor([0, 1])

    def sample(seeds: list[int]) -> torch.Tensor:
        return sample_scans(
            denoiser, labels, seeds, shape=(1, _SIDE, _SIDE), solver=SolverOptions(steps=4), guidance=GuidanceOptions()
        )

    first, again, other = sample([1, 2]), sample([1, 2]), sample([3, 4])
    if not torch.isfinite(first).all() or torch.equal(first, other):
        raise ArithmeticError("scans are not finite, or do not depend on their seed")
    torch.testing.assert_close(first, again, rtol=0, atol=2e-4)
    return "the same seed, the same scans"


def _weights() -> str:
    state = _denoiser(torch.device("cpu")).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        found = load_file(path)
    if found.keys() != state.keys() or not all(torch.equal(found[name], state[name]) for name in state):
        raise OSError("other weights came back")
    return f"{sum(tensor.numel() for tensor in state.values())} numbers"


def _scans() -> str:
    from medsynth.scans import Scan, read_scan, write_scan

    array = np.arange(_SIDE * _SIDE, dtype=np.int16).reshape(1, _SIDE, _SIDE) - 100
    affine = np.diag([-0.5, -0.5, 1.0, 1.0])
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".png", ".nii.gz", ".npz"):
            path = Path(folder) / f"scan{suffix}"
            write_scan(Scan(array=array, affine=affine, provenance={"synthetic": "YES"}), path)
            found = read_scan(path)
            if found.array.dtype != array.dtype or not np.array_equal(found.array, array):
                raise OSError(f"{suffix}: other pixels came back")
            if not np.allclose(found.affine, affine) or found.provenance != {"synthetic": "YES"}:
                raise OSError(f"{suffix}: another geometry or origin came back")
    return "equal"


def _features(device: torch.device) -> str:
    from medsynth.measures.features import EfficientNetLite0

    ramp = torch.linspace(-1, 1, _SIDE * _SIDE).reshape(1, 1, _SIDE, _SIDE)
    found = EfficientNetLite0(device)(ramp)
    if found.shape != (1, 1280) or not torch.isfinite(found).all():
        raise ArithmeticError("features are not 1280 finite numbers")
    mean = float(found.mean())
    if abs(mean - _FEATURE_MEAN) > 0.002:
        raise ArithmeticError(f"features have a mean of {mean:.4f} and not of {_FEATURE_MEAN}")
    return f"mean {mean:.4f}"
