"""Membership inference: does the denoiser's loss tell patients of the training from new ones?

The loss of a scan is that of training (Karras et al. 2022, equation 2) without augmentation, at a few fixed noise levels,
with noise that depends on the seed and the scan only. Whoever has the weights, and no less, can run this attack
(Carlini et al. 2023, arXiv 2301.13188, section 5); who has only scans of the generator learns less.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from medsynth.cohorts import PreparedCohort
from medsynth.config import PrivacyOptions
from medsynth.diffusion import match_rank
from medsynth.measures.classification import auroc
from medsynth.networks import Denoiser
from medsynth.runs import Run
from medsynth.seeds import numpy_generator, torch_generator

_BATCH = 16
_RESAMPLES = 1000
_FEWEST = 10  # patients on either side


@dataclass(frozen=True, kw_only=True)
class MembershipRow:
    """AUC of one class, or the mean over classes (`label` None), with its 95 % interval over patients; NaN: cannot tell."""

    label: str | None
    auc: float
    low: float
    high: float
    member_patients: int
    new_patients: int
    scans: int


@dataclass(frozen=True, kw_only=True)
class MembershipResult:
    """AUCs of members (patients of the training split) having a lower loss than patients of the test split.

    0.5 is a coin. `reason` says why nothing was measured, if so.
    """

    rows: tuple[MembershipRow, ...]
    sigmas: tuple[float, ...]
    limit: float
    reason: str | None = None

    @property
    def fails(self) -> bool:
        """Whether the interval of all classes together lies above the limit."""
        return any(row.label is None and row.low > self.limit for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for `report.json`; None for what cannot be told."""
        rows = [{key: _plain(value) for key, value in asdict(row).items()} for row in self.rows]
        return {
            "rows": rows,
            "sigmas": list(self.sigmas),
            "limit": self.limit,
            "fails": self.fails,
            "reason": self.reason,
        }


def score_membership(
    real: PreparedCohort,
    run: Run,
    *,
    options: PrivacyOptions,
    labels: tuple[int, ...] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> MembershipResult:
    """Return how well the run's denoiser tells its training patients from test patients, by class and together.

    At most `options.membership_scans` scans of each side and class, drawn at random. Intervals draw patients with
    replacement. The figure for all classes is the mean over classes, so that a class that is easy to denoise is no member
    for that. Above `options.membership_limit` (the lower end of the interval) it fails the gate: at an AUC of 0.8 a
    member and a new patient are told apart four times out of five, which no generator reaches that has learnt more of the
    distribution than of its patients. A lower figure is no proof that samples give nobody away: it informs.
    """
    chosen = tuple(range(len(real.classes))) if labels is None else labels
    reason = _unsuitable(real, run)
    if reason is not None:
        return MembershipResult(
            rows=(), sigmas=options.membership_sigmas, limit=options.membership_limit, reason=reason
        )
    parts = []
    for label in chosen:
        if real.classes[label] in run.spec.classes:
            generator = numpy_generator(seed, "privacy", "membership", real.classes[label])
            for split in ("train", "test"):
                parts.append(generator.permutation(real.indices(split, label))[: options.membership_scans])
    rows = np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))
    losses = denoising_losses(
        run.load_denoiser(), real, rows, run.spec.classes, options.membership_sigmas, seed, progress
    )
    # Losses of the levels differ in size; the mean of logarithms gives each the same say.
    members = real.splits[rows] == "train"
    by_class, draws = [], []
    for label in chosen:
        inside = real.labels[rows] == label
        if not inside.any():
            continue
        patients = real.patients[rows][inside]
        row, values = _auc_row(
            real.classes[label],
            np.log(losses[inside]).mean(axis=1),
            members[inside],
            patients,
            numpy_generator(seed, "privacy", "membership", "bootstrap", real.classes[label]),
        )
        by_class.append(row)
        draws.append(values)
    told = [number for number, row in enumerate(by_class) if np.isfinite(row.auc)]
    if told:
        together = np.mean([draws[number] for number in told], axis=0)
        by_class.append(
            MembershipRow(
                label=None,
                auc=float(np.mean([by_class[number].auc for number in told])),
                low=float(np.quantile(together, 0.025)),
                high=float(np.quantile(together, 0.975)),
                member_patients=sum(by_class[number].member_patients for number in told),
                new_patients=sum(by_class[number].new_patients for number in told),
                scans=sum(by_class[number].scans for number in told),
            )
        )
    none = None if told else f"fewer than {_FEWEST} training or test patients in each class"
    return MembershipResult(
        rows=tuple(by_class), sigmas=options.membership_sigmas, limit=options.membership_limit, reason=none
    )


@torch.inference_mode()
def denoising_losses(
    denoiser: Denoiser,
    real: PreparedCohort,
    rows: np.ndarray,
    classes: tuple[str, ...],
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
    bar = tqdm(total=losses.size, desc="membership inference", unit="scan", disable=not progress, leave=False)
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        clean = denoiser.encode(torch.from_numpy(np.asarray(real.scans[some], dtype=np.float32)).to(device))
        labels = torch.tensor([classes.index(real.classes[real.labels[row]]) for row in some], device=device)
        condition = denoiser.embedding.make(labels)
        for level, value in enumerate(sigmas):
            noise = torch.stack(
                [
                    torch.randn(clean.shape[1:], generator=torch_generator(seed, "membership", level, int(row)))
                    for row in some
                ]
            ).to(device)
            sigma = torch.full((len(some),), value, device=device)
            denoised = denoiser(clean + match_rank(sigma, clean) * noise, sigma, condition)
            losses[start : start + len(some), level] = (denoised - clean).square().flatten(1).mean(1).cpu().numpy()
            bar.update(len(some))
    bar.close()
    return np.maximum(losses, 1e-12)


def _auc_row(
    label: str, losses: np.ndarray, members: np.ndarray, patients: np.ndarray, generator: np.random.Generator
) -> tuple[MembershipRow, np.ndarray]:
    """Return the AUC of one class with its interval, and its value in each resample of patients."""
    sides = [np.unique(patients[members]), np.unique(patients[~members])]
    if min(map(len, sides)) < _FEWEST:
        unknown = float("nan")
        counts = {"member_patients": len(sides[0]), "new_patients": len(sides[1]), "scans": len(losses)}
        return MembershipRow(label=label, auc=unknown, low=unknown, high=unknown, **counts), np.zeros(0)
    weights = np.zeros((_RESAMPLES, len(losses)))
    for side, inside in zip(sides, (members, ~members), strict=True):
        drawn = generator.multinomial(len(side), np.full(len(side), 1 / len(side)), size=_RESAMPLES)
        weights[:, inside] = drawn[:, np.searchsorted(side, patients[inside])]
    draws = auroc(members, -losses, weights)
    row = MembershipRow(
        label=label,
        auc=float(auroc(members, -losses, np.ones((1, len(losses))))[0]),
        low=float(np.quantile(draws, 0.025)),
        high=float(np.quantile(draws, 0.975)),
        member_patients=len(sides[0]),
        new_patients=len(sides[1]),
        scans=len(losses),
    )
    return row, draws


def _unsuitable(real: PreparedCohort, run: Run) -> str | None:
    """Return why the run's denoiser cannot look at these scans, or None."""
    if run.distilled:
        # Its answers are no means of scans, so that an AUC of 0.5 would calm for nothing.
        return "a distilled run is no denoiser; its teacher, which saw the patients, can be judged"
    if run.spec.mask and real.channels[-1:] != ("mask",):
        return "the run makes masks, which the real cohort lacks"
    if tuple(real.scans.shape[1:]) != tuple(run.spec.shape):
        here, there = (" x ".join(map(str, shape)) for shape in (real.scans.shape[1:], run.spec.shape))
        return f"the scans were compared on a grid of {here}, the run works on {there}"
    if not set(real.classes) & set(run.spec.classes):
        return "the run knows none of the classes"
    return None


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
