"""The reconstruction check: what an autoencoder loses of scans that it was not trained on, for each class and inside lesions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from medsynth.cohorts import Cohort, PreparedCohort
from medsynth.cohorts.channels import read_mask
from medsynth.cohorts.grid import centre_of_mask, orient_scan, resize_mask
from medsynth.config import GridOptions, Loading
from medsynth.measures.similarity import structural_similarity
from medsynth.networks import LatentCodec
from medsynth.scans import read_scan

_BATCH = 16
_RANGE = 2.0  # of the model, -1 to 1
_LEAST = 1e-10  # a mean squared error that counts as none


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What every class must reach: PSNR (dB) and SSIM at least, and the error inside masks (share of the range) at most."""

    psnr: float = 26.0
    ssim: float = 0.8
    lesion_error: float = 0.05


LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class ReconstructionRow:
    """Means over the scans of one class: validation scans, or training scans (`split` "train") if it has none.

    `psnr_lowest` is that of the worst scan, `lesion_error` the mean over the `masks` scans with a mask; None without any.
    """

    label: str
    split: str
    scans: int
    psnr: float
    psnr_lowest: float
    ssim: float
    masks: int
    lesion_error: float | None

    def __str__(self) -> str:
        lesion = "" if self.lesion_error is None else f", lesion error {self.lesion_error:.3f} ({self.masks} masks)"
        return (
            f"{self.label}: PSNR {self.psnr:.1f} dB (worst scan {self.psnr_lowest:.1f}), SSIM {self.ssim:.3f}{lesion}; "
            f"{self.scans} {self.split} scans"
        )

    def failures(self) -> list[str]:
        """Return every figure outside its limit, such as `viral: PSNR 21.3 dB, need 26`."""
        lesion = self.lesion_error or 0.0  # none without masks
        figures = (
            (self.psnr < LIMITS.psnr, f"PSNR {self.psnr:.1f} dB, need {LIMITS.psnr:g}"),
            (self.ssim < LIMITS.ssim, f"SSIM {self.ssim:.3f}, need {LIMITS.ssim:g}"),
            (lesion > LIMITS.lesion_error, f"lesion error {lesion:.3f}, need {LIMITS.lesion_error:g}"),
        )
        return [f"{self.label}: {text}" for failed, text in figures if failed]


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """The figures of all classes, which are compared with `LIMITS`."""

    rows: tuple[ReconstructionRow, ...]

    def failures(self) -> list[str]:
        """Return every figure outside its limit; empty if the check passed."""
        return [failure for row in self.rows for failure in row.failures()]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        failures, rows = self.failures(), [asdict(row) for row in self.rows]
        return {"passed": not failures, "failures": failures, "limits": asdict(LIMITS), "rows": rows}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Reconstruction:
        """Return what `as_dict` described."""
        return cls(rows=tuple(ReconstructionRow(**row) for row in content["rows"]))


def measure_reconstruction(
    codec: LatentCodec, prepared: PreparedCohort, cohort: Cohort, grid: GridOptions, *, loading: Loading
) -> Reconstruction:
    """Return what `codec` loses of the validation scans of each class (its training scans if it has none).

    `cohort` has the rows of `prepared`, with their masks. `DataError` for a mask of another geometry than its scan.
    """
    found = []
    with tqdm(desc="reconstructing", unit="scan", disable=not loading.progress) as bar:
        for number, label in enumerate(prepared.classes):
            split = "val" if len(prepared.indices(split="val", label=number)) else "train"
            rows = prepared.indices(split=split, label=number)
            parts = []
            for start in range(0, len(rows), _BATCH):
                some = rows[start : start + _BATCH]
                parts.append(_score(codec, prepared, cohort, some, grid, loading))
                bar.update(len(some))
            psnr, ssim, lesion = (np.concatenate(values) for values in zip(*parts, strict=True))
            masked = lesion[np.isfinite(lesion)]
            row = ReconstructionRow(
                label=label,
                split=split,
                scans=len(rows),
                psnr=float(psnr.mean()),
                psnr_lowest=float(psnr.min()),
                ssim=float(ssim.mean()),
                masks=len(masked),
                lesion_error=float(masked.mean()) if len(masked) else None,
            )
            found.append(row)
    return Reconstruction(rows=tuple(found))


def peak_ratio(first: Tensor, second: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each pair of scans `(N, C, *spatial)` in [-1, 1], in dB, `(N,)`."""
    squared = (first - second).square().flatten(1).mean(1).clamp(min=_LEAST)
    return 10 * torch.log10(_RANGE**2 / squared)


def lesion_error(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
    """Return the root mean square difference of scans `(C, *spatial)` inside a mask `(1, *spatial)`, as a share of the range.

    NaN for an empty mask.
    """
    inside = np.broadcast_to(np.asarray(mask).any(axis=0), first.shape)
    if not inside.any():
        return float("nan")
    return float(np.sqrt(np.mean((first - second)[inside] ** 2))) / _RANGE


def _score(
    codec: LatentCodec, prepared: PreparedCohort, cohort: Cohort, rows: np.ndarray, grid: GridOptions, loading: Loading
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return PSNR, SSIM and lesion error (NaN without a mask) of each of the rows."""
    scans = torch.from_numpy(np.asarray(prepared.scans[rows], dtype=np.float32))
    rebuilt = codec.decode(codec.encode(scans.to(codec.mean.device))).cpu().clamp(-1, 1)
    lesion = np.full(len(rows), np.nan)
    for place, row in enumerate(rows):
        if (file := cohort.mask_of(cohort.rows[row])) is not None:
            scan = orient_scan(read_scan(cohort.file_of(cohort.rows[row]), loading=loading))
            mask = read_mask(file, scan, loading)
            by_mask = grid.spacing is not None and grid.centre == "mask"
            placed = resize_mask(mask, grid=grid, centre=centre_of_mask(mask) if by_mask else None)
            lesion[place] = lesion_error(scans[place].numpy(), rebuilt[place].numpy(), placed)
    return peak_ratio(scans, rebuilt).numpy(), structural_similarity(scans, rebuilt), lesion
