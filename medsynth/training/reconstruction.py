"""The reconstruction gate: what an autoencoder loses of scans that it was not trained on, class by class and inside lesions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from medsynth.cohorts import Cohort, PreparedCohort
from medsynth.cohorts.grid import centre_of_mask, orient_scan, resize_mask
from medsynth.config import GridOptions, ReadingOptions, ReconstructionOptions
from medsynth.errors import DataError
from medsynth.measures.similarity import structural_similarity
from medsynth.networks import LatentCodec
from medsynth.scans import read_scan

_BATCH = 16
_RANGE = 2.0  # of the model, -1 to 1
_LEAST = 1e-10  # mean squared error that counts as none


@dataclass(frozen=True, kw_only=True)
class ReconstructionRow:
    """Means over the scans of one class; `lesion_error` is over those with a mask, `masks` of them, None without any.

    `split` is that of the scans: `train` for a class without validation scans. `psnr_lowest` is that of the worst scan.
    """

    label: str
    split: str
    scans: int
    psnr: float
    psnr_lowest: float
    ssim: float
    masks: int
    lesion_error: float | None


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What was measured, and the limits that it is held against."""

    rows: tuple[ReconstructionRow, ...]
    limits: ReconstructionOptions

    def failures(self) -> list[str]:
        """Return what misses its limit, such as `viral: PSNR 21.3 dB, need 26`; none is a pass."""
        found = []
        for row in self.rows:
            if row.psnr < self.limits.psnr:
                found.append(f"{row.label}: PSNR {row.psnr:.1f} dB, need {self.limits.psnr:g}")
            if row.ssim < self.limits.ssim:
                found.append(f"{row.label}: SSIM {row.ssim:.3f}, need {self.limits.ssim:g}")
            if row.lesion_error is not None and row.lesion_error > self.limits.lesion_error:
                found.append(f"{row.label}: lesion error {row.lesion_error:.3f}, need {self.limits.lesion_error:g}")
        return found

    def table(self) -> str:
        """Return the figures beside their limits, a line a class."""
        limits = self.limits
        head = ("class", "scans", f"PSNR >= {limits.psnr:g} dB", "worst scan", f"SSIM >= {limits.ssim:g}")
        lines = [(*head, f"lesion error <= {limits.lesion_error:g}")]
        for row in self.rows:
            lesion = "no masks" if row.lesion_error is None else f"{row.lesion_error:.3f} ({row.masks} scans)"
            scans = f"{row.scans} {row.split}"
            lines.append((row.label, scans, f"{row.psnr:.1f}", f"{row.psnr_lowest:.1f}", f"{row.ssim:.3f}", lesion))
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "passed": not self.failures(),
            "failures": self.failures(),
            "limits": asdict(self.limits),
            "rows": [asdict(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Reconstruction:
        """Return what `as_dict` described."""
        rows = tuple(ReconstructionRow(**row) for row in content["rows"])
        return cls(rows=rows, limits=ReconstructionOptions(**content["limits"]))


def measure_reconstruction(
    codec: LatentCodec,
    prepared: PreparedCohort,
    cohort: Cohort,
    *,
    grid: GridOptions,
    reading: ReadingOptions,
    limits: ReconstructionOptions,
    progress: bool = True,
) -> Reconstruction:
    """Return what `codec` loses of the validation scans of each class (its training scans where it has none).

    `cohort` has the rows of `prepared`, with their masks. `DataError` for a mask that does not lie on its scan.
    """
    groups = []
    for number, label in enumerate(prepared.classes):
        rows = prepared.indices(split="val", label=number)
        split = "val" if len(rows) else "train"
        groups.append((label, split, rows if len(rows) else prepared.indices(split="train", label=number)))
    found = []
    with tqdm(
        total=sum(len(rows) for _, _, rows in groups), desc="reconstruction", unit="scan", disable=not progress
    ) as bar:
        for label, split, rows in groups:
            if not len(rows):
                continue
            parts = []
            for start in range(0, len(rows), _BATCH):
                some = rows[start : start + _BATCH]
                parts.append(_score(codec, prepared, cohort, some, grid, reading))
                bar.update(len(some))
            psnr, ssim, lesion = (np.concatenate(values) for values in zip(*parts, strict=True))
            masked = lesion[np.isfinite(lesion)]
            found.append(
                ReconstructionRow(
                    label=label,
                    split=split,
                    scans=len(rows),
                    psnr=float(psnr.mean()),
                    psnr_lowest=float(psnr.min()),
                    ssim=float(ssim.mean()),
                    masks=len(masked),
                    lesion_error=float(masked.mean()) if len(masked) else None,
                )
            )
    return Reconstruction(rows=tuple(found), limits=limits)


def peak_ratio(first: Tensor, second: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each pair of scans `(N, C, *spatial)` in [-1, 1], in dB, `(N,)`."""
    squared = (first - second).square().flatten(1).mean(1).clamp(min=_LEAST)
    return 10 * torch.log10(_RANGE**2 / squared)


def lesion_error(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
    """Return the root mean square difference of two scans `(C, *spatial)` inside a mask `(1, *spatial)`, as a share of the range.

    NaN for an empty mask.
    """
    inside = np.broadcast_to(np.asarray(mask).any(axis=0), first.shape)
    if not inside.any():
        return float("nan")
    return float(np.sqrt(np.mean((first - second)[inside] ** 2))) / _RANGE


def _score(
    codec: LatentCodec,
    prepared: PreparedCohort,
    cohort: Cohort,
    rows: np.ndarray,
    grid: GridOptions,
    reading: ReadingOptions,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PSNR, SSIM and lesion error (NaN without a mask) of each of the rows."""
    scans = torch.from_numpy(np.asarray(prepared.scans[rows], dtype=np.float32))
    rebuilt = codec.decode(codec.encode(scans.to(codec.mean.device))).cpu().clamp(-1, 1)
    lesion = np.full(len(rows), np.nan)
    for place, row in enumerate(rows):
        if (mask := cohort.mask_of(cohort.rows[row])) is not None:
            placed = _mask_on_grid(mask, cohort.file_of(cohort.rows[row]), grid, reading)
            lesion[place] = lesion_error(scans[place].numpy(), rebuilt[place].numpy(), placed)
    return peak_ratio(scans, rebuilt).numpy(), structural_similarity(scans, rebuilt), lesion


def _mask_on_grid(mask: Path, file: Path, grid: GridOptions, reading: ReadingOptions) -> np.ndarray:
    """The mask `(C, *grid)` where the cache put its scan."""
    scan = orient_scan(read_scan(file, reading=reading))
    found = orient_scan(read_scan(mask, reading=reading))
    if found.spatial_shape != scan.spatial_shape or not np.allclose(found.affine, scan.affine, atol=1e-2):
        raise DataError(
            f"{mask}: need the geometry of its scan, {scan.spatial_shape}, got {found.spatial_shape} or another place; "
            "try resampling it"
        )
    by_mask = grid.spacing is not None and grid.centre == "mask"
    return resize_mask(found, grid=grid, centre=centre_of_mask(found) if by_mask else None)
