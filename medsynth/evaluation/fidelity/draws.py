"""Random draws of real scans behind every real-versus-real figure."""

from __future__ import annotations

import numpy as np


def half_size(patients: np.ndarray) -> int:
    """Return how many scans each of two halves without a common patient surely has, whatever the order of patients.

    `patients` `(N,)` is the patient of each scan. With one scan a patient this is half of the scans, rounded down; 0 if
    one patient has all.
    """
    if len(patients) == 0:
        return 0
    most = int(np.unique(patients, return_counts=True)[1].max())
    return max(0, len(patients) - most + 1) // 2


def disjoint_halves(
    patients: np.ndarray, size: int, repeats: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return `repeats` random pairs of halves of `size` scans each, positions `(repeats, size)` twice, no patient in both.

    `size` is at most `half_size(patients)`. Two scans of one patient are alike; halves that shared patients would
    seem closer than any new patients can be.
    """
    assert size <= half_size(patients), "halves without a common patient do not reach this size"
    _, numbers, counts = np.unique(patients, return_inverse=True, return_counts=True)
    halves = np.empty((2, repeats, size), dtype=np.int64)
    for repeat in range(repeats):
        side = np.empty(len(counts), dtype=np.int64)
        filled = [0, 0]
        for patient in generator.permutation(len(counts)):
            side[patient] = int(filled[1] < filled[0])
            filled[side[patient]] += counts[patient]
        for half in (0, 1):
            halves[half, repeat] = generator.permutation(np.flatnonzero(side[numbers] == half))[:size]
    return halves[0], halves[1]


def random_picks(count: int, size: int, repeats: int, generator: np.random.Generator) -> np.ndarray:
    """Return `repeats` random draws of `size` out of `count` items without replacement, positions `(repeats, size)`."""
    return np.stack([generator.permutation(count)[:size] for _ in range(repeats)])


def as_indicators(picks: np.ndarray, count: int) -> np.ndarray:
    """Return draws `(repeats, size)` as rows of zeros and ones `(repeats, count)`."""
    indicators = np.zeros((len(picks), count))
    np.put_along_axis(indicators, picks, 1.0, axis=1)
    return indicators
