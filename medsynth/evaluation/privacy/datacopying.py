"""Does a whole set lean towards the patients that its generator saw? A test without any threshold on distances.

A generator that draws smooth or typical scans comes nearer to the training scans than real patients do, who have outliers
among them: comparing these distances would accuse it wrongly. But it comes just as near to patients that it never saw. So
each synthetic scan looks for its nearest patient among all, and without copying the sides turn up as often as they would
if patients had been split anew (the question of Meehan et al. 2020, arXiv 2004.05675, asked by sides).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsynth.cohorts import PreparedCohort

_PERMUTATIONS = 5000


@dataclass(frozen=True, kw_only=True)
class Lean:
    """`share` of `scans` synthetic scans whose nearest patient is one that the generator saw; `expected` without copying.

    `excess` is (share - expected) / (1 - expected): the part of the set that would have to be copied to explain it. `p_value`
    is the chance of such a share or a higher one when it makes no difference which side a patient is on.
    """

    share: float
    expected: float
    excess: float
    p_value: float
    scans: int


def measure_lean(
    nearest: np.ndarray, real: PreparedCohort, seen: np.ndarray, generator: np.random.Generator
) -> Lean | None:
    """Return how far the `nearest` real rows `(M,)` of synthetic scans lean to patients with rows in `seen`; None if M is 0.

    The test permutes sides among the patients of each class, exactly as if they had been split anew: it holds for any
    number of synthetic scans, for sides of unequal size, where a few patients are the nearest of many scans, and whatever
    the generator. -1 in `nearest` does not count. What it takes for granted is a random split by patient.
    """
    nearest = nearest[nearest >= 0]
    patients, first, numbers = np.unique(real.patients, return_index=True, return_inverse=True)
    sides = np.isin(patients, real.patients[seen])
    if len(nearest) == 0 or sides.all():
        return None
    counts = np.bincount(numbers[nearest], minlength=len(patients))
    strata = real.labels[first]
    observed = int(counts[sides].sum())
    sums = np.zeros(_PERMUTATIONS, dtype=np.int64)
    expected = 0.0
    for stratum in np.unique(strata):
        inside = strata == stratum
        of_stratum, seen_here = counts[inside], int(sides[inside].sum())
        expected += float(of_stratum.sum() * seen_here / inside.sum())
        sums += np.array([generator.permutation(of_stratum)[:seen_here].sum() for _ in range(_PERMUTATIONS)])
    share, expected = observed / len(nearest), expected / len(nearest)
    return Lean(
        share=share,
        expected=expected,
        excess=(share - expected) / (1 - expected) if expected < 1 else 0.0,
        p_value=float((1 + (sums >= observed).sum()) / (1 + _PERMUTATIONS)),
        scans=len(nearest),
    )
