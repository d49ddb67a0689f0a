"""A self-test of a few seconds on a 16 x 16 grid: a training step, a sampling, weights and scans in files, features."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from medsynth.config import GuidanceOptions, NetworkOptions, SolverOptions
from medsynth.diffusion import resolve_solver
from medsynth.installation.diagnosis import Diagnosis, without_names
from medsynth.measures.features import EfficientNetLite0
from medsynth.networks import Denoiser, build_denoiser, sample_scans
from medsynth.scans import Scan, read_scan, write_scan

_SIDE = 16
_FEATURE_MEAN = 0.0544  # mean feature of a ramp, the same on every machine so far


def run_self_test(found: Diagnosis, *, progress: bool = True) -> None:
    """Run every step, also after one that fails, and add its time to `found`; torch's random state is left as it was."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = {
        "a training step": _train,
        "sampling": _sample,
        "weights to a file and back": _weights,
        "scans to files and back": _scans,
        "features of a scan": _features,
    }
    found.facts.append(("self-test", f"on {device.type}"))
    with torch.random.fork_rng(), tqdm(steps.items(), desc="self-test", unit="step", disable=not progress) as bar:
        for name, step in bar:
            bar.set_postfix_str(name)
            began = time.perf_counter()
            try:
                result = step(device)
            # Whatever goes wrong in a broken installation belongs in the report.
            except Exception as error:
                result = "FAILED"
                reason = without_names(f"{type(error).__name__}: {error}")
                found.problems.append(f"self-test, {name}: failed: {reason}; try installing medsynth-diffusion again")
            found.facts.append((f"  {name}", f"{time.perf_counter() - began:5.2f} s  {result}"))


def _denoiser(device: torch.device) -> Denoiser:
    torch.manual_seed(0)
    network = NetworkOptions(channels=(32,), attention=(False,), dropout=0.0)
    return build_denoiser(network, channels=1, size=(_SIDE, _SIDE), classes=2).to(device)


def _train(device: torch.device) -> str:
    """Forward, backward and AdamW, which must change the weights."""
    denoiser = _denoiser(device)
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    before = [parameter.detach().clone() for parameter in denoiser.parameters()]
    clean = torch.rand(4, 1, _SIDE, _SIDE, device=device) * 2 - 1
    sigma = torch.tensor([0.1, 0.5, 2.0, 10.0], device=device)
    labels = torch.tensor([0, 1, 0, 1], device=device)
    noisy = clean + sigma[:, None, None, None] * torch.randn_like(clean)
    loss = (denoiser(noisy, sigma, denoiser.embedding.make(labels)) - clean).square().mean()
    loss.backward()
    optimiser.step()
    if not torch.isfinite(loss) or all(map(torch.equal, before, denoiser.parameters())):
        raise ArithmeticError("the step changed no weight")
    return f"loss {loss.item():.3f}"


def _sample(device: torch.device) -> str:
    denoiser, labels = _denoiser(device).eval(), torch.tensor([0, 1])
    solver = resolve_solver(SolverOptions(steps=4))

    def sample(seeds: list[int]) -> torch.Tensor:
        return sample_scans(denoiser, labels, seeds, shape=(1, _SIDE, _SIDE), solver=solver, guidance=GuidanceOptions())

    first, again, other = sample([1, 2]), sample([1, 2]), sample([3, 4])
    if not torch.isfinite(first).all() or torch.equal(first, other):
        raise ArithmeticError("scans are not finite, or do not depend on their seed")
    torch.testing.assert_close(first, again, rtol=0, atol=2e-4)
    return "the same seed gives the same scans"


def _weights(device: torch.device) -> str:
    state = {name: tensor.cpu().contiguous() for name, tensor in _denoiser(device).state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(state, path)
        torch.testing.assert_close(load_file(path), state, rtol=0, atol=0)
    return "equal"


def _scans(_: torch.device) -> str:
    array = np.arange(_SIDE * _SIDE, dtype=np.int16).reshape(1, _SIDE, _SIDE) - 100
    affine = np.diag([-0.5, -0.5, 1.0, 1.0])
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".png", ".nii.gz", ".npz"):
            path = Path(folder) / f"scan{suffix}"
            write_scan(Scan(array=array, affine=affine, provenance={"synthetic": "YES"}), path)
            found = read_scan(path)
            np.testing.assert_array_equal(found.array, array, err_msg=suffix, strict=True)
            np.testing.assert_allclose(found.affine, affine, err_msg=suffix)
            if found.provenance != {"synthetic": "YES"}:
                raise OSError(f"{suffix}: the provenance read back differs")
    return "equal: PNG, NIfTI, NPZ"


def _features(device: torch.device) -> str:
    found = EfficientNetLite0(device)(torch.linspace(-1, 1, _SIDE * _SIDE).reshape(1, 1, _SIDE, _SIDE))
    mean = float(found.mean())
    if found.shape != (1, 1280) or not abs(mean - _FEATURE_MEAN) <= 0.002:
        raise ArithmeticError(f"need 1280 features with a mean of {_FEATURE_MEAN}, got {found.shape[1]} of {mean:.4f}")
    return f"mean {mean:.4f}"
