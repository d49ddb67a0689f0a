"""The segmentation network of the control benchmarks: training and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet

import medsynth
from medsynth.cohorts import PreparedCohort, prepare_cohort
from medsynth.config import Loading
from medsynth.runs import Run
from medsynth.seeds import numpy_generator


def read_scans(path: Path, run: Run, cache: Path) -> PreparedCohort:
    """Return the scans of a cohort with their masks as the last channel, on the run's grid."""
    return prepare_cohort(
        medsynth.read_cohort(path),
        grid=run.grid,
        intensity=run.spec.intensity,
        classes=run.spec.classes,
        mask=True,
        loading=Loading(cache_dir=cache),
    )


def with_lesion(scans: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return those rows whose mask is not empty."""
    return np.array([row for row in rows if (scans[row, -1] > 0).any()], dtype=np.int64)


def train_network(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], *, steps: int, batch: int, seed: int
) -> torch.nn.Module:
    """Return a network trained on scans `(N, C + 1, *spatial)` and rows of each part, as often from each part."""
    torch.manual_seed(seed)
    rank, channels = parts[0][0].ndim - 2, parts[0][0].shape[1] - 1
    # Without residual units: with them MONAI's UNet normalises its only output, and no lesion can be small any more.
    network = UNet(
        spatial_dims=rank,
        in_channels=channels,
        out_channels=1,
        channels=(16, 32, 64, 64),
        strides=(2, 2, 2),
        num_res_units=0,
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    loss_of = DiceCELoss(sigmoid=True, batch=True)
    random = numpy_generator(seed, "segmentation")
    for _ in range(steps):
        chosen = []
        for place in range(batch):
            scans, rows = parts[place % len(parts)]
            scan = np.asarray(scans[rows[random.integers(len(rows))]], dtype=np.float32)
            flips = tuple(axis for axis in range(1, scan.ndim) if random.random() < 0.5)
            chosen.append(np.flip(scan, flips).copy())
        scans_ = torch.from_numpy(np.stack(chosen))
        loss = loss_of(network(scans_[:, :-1]), (scans_[:, -1:] > 0).float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def predict(network: torch.nn.Module, scans: np.ndarray) -> np.ndarray:
    """Return the lesion probability of each voxel, `(N, *spatial)`, of scans `(N, C + 1, *spatial)`, whose masks are not used."""
    parts = []
    for start in range(0, len(scans), 16):
        part = torch.from_numpy(np.asarray(scans[start : start + 16, :-1], dtype=np.float32))
        parts.append(torch.sigmoid(network(part))[:, 0].numpy())
    return np.concatenate(parts)
