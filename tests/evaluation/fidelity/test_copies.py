from __future__ import annotations

import numpy as np

from medsynth.evaluation.fidelity.copies import identical_scans


def test_only_scans_equal_in_every_pixel_are_identical():
    references = np.random.default_rng(0).normal(size=(5, 1, 4, 4)).astype(np.float16)
    candidates = references[[3, 1, 4]].astype(np.float32)
    candidates[1, 0, 2, 2] += 1e-3
    assert identical_scans(candidates, references).tolist() == [True, False, True]


def test_zero_has_no_sign():
    zeros = np.zeros((1, 1, 2, 2), dtype=np.float16)
    assert identical_scans(-zeros, zeros).tolist() == [True]


def test_no_candidates():
    assert identical_scans(np.zeros((0, 1, 2, 2)), np.zeros((3, 1, 2, 2))).shape == (0,)
