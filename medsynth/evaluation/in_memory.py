"""Fidelity figures of two arrays, for those who have scans in memory and no cohort."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from medsynth.config import FeatureOptions
from medsynth.errors import DataError
from medsynth.evaluation.arrays import ScanArrays
from medsynth.evaluation.fidelity import FidelitySettings, score_fidelity
from medsynth.evaluation.verdict import fidelity_verdict, without_nan
from medsynth.measures.extractors import open_extractor
from medsynth.measures.features import extract_features

_MOST_CHANNELS = 4
_ENDS = (0.1, 99.9)  # percentiles of the real values that become -1 and 1


def compare(
    real: np.ndarray, synthetic: np.ndarray, *, features: FeatureOptions = FeatureOptions(), seed: int = 0
) -> dict[str, Any]:
    """Return how far synthetic scans are from real ones, each figure beside that of two halves of the real scans.

    Both are `(N, C, *spatial)` or `(N, *spatial)` in any range, which is brought to [-1, 1] by the 0.1th and 99.9th percentile
    of the real values; with four axes, the second one is that of channels if it is at most 4 long. Every scan counts as a
    patient of its own. `verdict` and `sentence` sum up the figures, which are dictionaries of `value`, `low`, `high` (95 %),
    the same of real halves (`real_median`, `real_low`, `real_high`) and `verdict`; see `fidelity.comparison.Comparison` for
    their names.

    Raises `DataError` for arrays whose scans have different shapes, for values that are not finite or all equal, and for fewer
    than two real scans or no synthetic one.
    """
    one, other = (np.asarray(array, dtype=np.float32) for array in (real, synthetic))
    if one.shape[1:] != other.shape[1:] or not 3 <= one.ndim <= 5:
        raise DataError(
            f"scans: need two arrays (N, C, *spatial) or (N, *spatial) of equal shape except N, got {one.shape} and "
            f"{other.shape}"
        )
    if len(one) < 2 or len(other) < 1:
        raise DataError(f"scans: need at least two real scans and a synthetic one, got {len(one)} and {len(other)}")
    low, high = np.percentile(one, _ENDS)
    if not (np.isfinite(one).all() and np.isfinite(other).all() and low < high):
        raise DataError("scans: need finite values that are not all equal; try removing NaN and empty scans")
    if one.ndim == 3 or (one.ndim == 4 and one.shape[1] > _MOST_CHANNELS):
        one, other = one[:, None], other[:, None]
    extractor = open_extractor(features)
    sides = []
    for array in (one, other):
        scans = np.clip((array - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32)
        sides.append(ScanArrays(
            scans=scans, features=extract_features(extractor, scans), labels=np.zeros(len(scans), dtype=int),
            classes=("one class",), splits=np.full(len(scans), "test"), patients=np.arange(len(scans)),
        ))  # fmt: skip
    settings = FidelitySettings(sheet_scans=0)
    found = score_fidelity(*sides, extractor=extractor, settings=settings, seed=seed, progress=False)
    row = found.rows[0]
    assert row.held_out is not None, "two scans of two patients make two halves"
    verdict = fidelity_verdict(row, found)
    figures = {**asdict(row.held_out), "identical": row.counts.identical, "features": extractor.title}
    # Nothing is known of what a generator saw.
    sentence = str(verdict["sentence"]).replace("held-out ", "")
    content: dict[str, Any] = without_nan({"verdict": verdict["verdict"], "sentence": sentence, **figures})
    return content
