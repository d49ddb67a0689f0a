from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.evaluation.fidelity.comparison import as_indicators, disjoint_halves, half_size, random_picks


@pytest.mark.parametrize(
    ("patients", "size"),
    [
        ([], 0),
        ([1], 0),
        ([1, 2], 1),
        ([1, 2, 3], 1),
        ([1, 2, 3, 4], 2),
        ([7, 7, 7], 0),
        ([7, 7, 7, 8], 1),
        ([1, 1, 2, 2], 1),
    ],
)
def test_half_size(patients, size):
    assert half_size(np.array(patients, dtype=int)) == size


@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_halves_reach_the_promised_size_and_share_no_patient(patients, seed):
    patients = np.array(patients)
    size = half_size(patients)
    for first, second in zip(*disjoint_halves(patients, size, 4, np.random.default_rng(seed)), strict=True):
        assert len(set(first.tolist())) == len(set(second.tolist())) == size
        assert not set(patients[first].tolist()) & set(patients[second].tolist())


def test_every_scan_comes_into_either_half():
    first, second = disjoint_halves(np.arange(10), 5, 200, np.random.default_rng(0))
    for half in (first, second):
        share = np.bincount(half.ravel(), minlength=10) / 200
        assert share.min() > 0.35
        assert share.max() < 0.65


def test_picks_are_without_replacement_and_indicators_mark_them():
    picks = random_picks(9, 4, 5, np.random.default_rng(1))
    marks = as_indicators(picks, 9)
    assert marks.sum(axis=1).tolist() == [4] * 5
    for row, pick in zip(marks, picks, strict=True):
        assert set(np.flatnonzero(row)) == set(pick)
