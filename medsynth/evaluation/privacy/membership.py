"""Membership inference: does the denoiser's loss reveal which patients it was trained on?

The loss of a scan is that of training (Karras et al. 2022, equation 2) without augmentation, at a few fixed noise levels,
with noise that depends only on the seed and the scan. Anybody who has the weights can run this attack
(Carlini et al. 2023, arXiv 2301.13188, section 5); synthetic scans alone reveal less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from medsynth.diffusion import match_rank
from medsynth.evaluation.arrays import ScanArrays
from medsynth.evaluation.privacy.nearness import GateSettings
from medsynth.measures.classification import auroc
from medsynth.networks import Denoiser
from medsynth.seeds import numpy_generator, torch_generator

_BATCH = 16
_RESAMPLES = 1000
_FEWEST = 10  # patients on either side


@dataclass(frozen=True)
class MembershipRow:
    """AUC of one class, or the mean over classes (`label` None), with its 95 % interval over patients; NaN: cannot tell."""

    label: str | None
    auc: float
    low: float
    high: float
    member_patients: int
    new_patients: int
    scans: int

    @classmethod
    def of(cls, label: str | None, aucs: np.ndarray, counts: np.ndarray) -> MembershipRow:
        """Return a row from the AUC, followed by those of resamples, and the numbers of patients on either side and of scans."""
        return cls(label, float(aucs[0]), *np.quantile(aucs[1:], [0.025, 0.975]).tolist(), *counts.tolist())


@dataclass(frozen=True, kw_only=True)
class MembershipResult:
    """AUCs of members (patients of the training split) having a lower loss than patients of the test split.

    0.5 is a coin. `reason` says why nothing was measured, if so.
    """

    rows: tuple[MembershipRow, ...]
    sigmas: tuple[float, ...]
    limit: float
    reason: str | None = None

    @classmethod
    def unmeasured(cls, reason: str, settings: GateSettings = GateSettings()) -> MembershipResult:
        """Return a result without figures."""
        return cls(rows=(), sigmas=settings.membership_sigmas, limit=settings.membership_limit, reason=reason)

    @property
    def fails(self) -> bool:
        """Whether the interval of all classes together lies above the limit."""
        return any(row.label is None and row.low > self.limit for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for `report.json`, NaN among them."""
        return {**asdict(self), "fails": self.fails}


def score_membership(
    real: ScanArrays,
    denoiser: Denoiser,
    classes: Sequence[str],
    *,
    settings: GateSettings = GateSettings(),
    labels: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> MembershipResult:
    """Return how well the denoiser of `classes` separates its training patients from test patients, by class and together.

    At most `settings.membership_scans` scans of each side and class, drawn at random; of the classes `labels` (all by default).
    Intervals draw patients with replacement. The figure for all classes is the mean over classes, so that a class that is easy
    to denoise is not mistaken for members. Above `settings.membership_limit` (the lower end of the interval) it fails the gate:
    at an AUC of 0.8 a member and a new patient are distinguished four times out of five, which no generator reaches that has
    learnt more of the distribution than of its patients. A lower figure does not prove that samples reveal nobody.
    """
    chosen = range(len(real.classes)) if labels is None else labels
    parts = [np.zeros(0, dtype=np.int64)]
    for label in chosen:
        if (name := real.classes[label]) in classes:
            generator = numpy_generator(seed, "privacy", "membership", name)
            for split in ("train", "test"):
                parts.append(generator.permutation(real.rows_of(name, (split,)))[: settings.membership_scans])
    rows = np.sort(np.concatenate(parts))
    losses = denoising_losses(denoiser, real, rows, classes, settings.membership_sigmas, seed, progress)
    # Losses of the levels differ in size; the mean of logarithms weighs them equally.
    losses = np.log(losses).mean(axis=1)
    members, patients = real.splits[rows] == "train", real.patients[rows]
    found = []
    for label in chosen:
        inside = real.labels[rows] == label
        if inside.any():
            generator = numpy_generator(seed, "privacy", "membership", "bootstrap", real.classes[label])
            found.append((real.classes[label], *_aucs(losses[inside], members[inside], patients[inside], generator)))
    by_class = [MembershipRow.of(*each) for each in found]
    if measured := [(aucs, counts) for _, aucs, counts in found if np.isfinite(aucs[0])]:
        together, counts = (np.stack(parts) for parts in zip(*measured, strict=True))
        by_class.append(MembershipRow.of(None, together.mean(axis=0), counts.sum(axis=0)))
    return MembershipResult(
        rows=tuple(by_class),
        sigmas=settings.membership_sigmas,
        limit=settings.membership_limit,
        reason=None if measured else f"fewer than {_FEWEST} training or test patients in each class",
    )


@torch.inference_mode()
def denoising_losses(
    denoiser: Denoiser,
    real: ScanArrays,
    rows: np.ndarray,
    classes: Sequence[str],
    sigmas: tuple[float, ...],
    seed: int,
    progress: bool,
) -> np.ndarray:
    """Return the mean squared error of denoising the scans at `rows` (or their latents), at each noise level, `(N, levels)`.

    `classes` are those of the run. The noise of a scan depends on the seed, its row and the level.
    """
    denoiser = denoiser.eval()
    device = denoiser.sigma_data.device
    losses = np.empty((len(rows), len(sigmas)))
    starts = range(0, len(rows), _BATCH)
    for start in tqdm(starts, desc="membership inference", unit="batch", disable=not progress, leave=False):
        some = rows[start : start + _BATCH]
        clean = denoiser.encode(torch.from_numpy(np.asarray(real.scans[some], dtype=np.float32)).to(device))
        labels = torch.tensor([classes.index(real.classes[real.labels[row]]) for row in some], device=device)
        condition = denoiser.embedding.make(labels)
        for level, value in enumerate(sigmas):
            generators = [torch_generator(seed, "membership", level, int(row)) for row in some]
            noise = torch.stack([torch.randn(clean.shape[1:], generator=each) for each in generators]).to(device)
            sigma = torch.full((len(some),), value, device=device)
            denoised = denoiser(clean + match_rank(sigma, clean) * noise, sigma, condition)
            losses[start : start + len(some), level] = (denoised - clean).square().flatten(1).mean(1).cpu().numpy()
    return np.maximum(losses, 1e-12)


def _aucs(
    losses: np.ndarray, members: np.ndarray, patients: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUC and that of each resample of patients, NaN with too few; and the numbers of patients and of scans."""
    sides = [np.unique(patients[members]), np.unique(patients[~members])]
    counts = np.array([len(sides[0]), len(sides[1]), len(losses)])
    if min(map(len, sides)) < _FEWEST:
        return np.full(1 + _RESAMPLES, np.nan), counts
    weights = np.ones((1 + _RESAMPLES, len(losses)))
    for side, inside in zip(sides, (members, ~members), strict=True):
        drawn = generator.multinomial(len(side), np.full(len(side), 1 / len(side)), size=_RESAMPLES)
        weights[1:, inside] = drawn[:, np.searchsorted(side, patients[inside])]
    return auroc(members, -losses, weights), counts
