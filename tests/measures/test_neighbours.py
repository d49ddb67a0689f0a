from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from medsynth.errors import DataError
from medsynth.measures.neighbours import nearest_distances


@pytest.fixture
def scans() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(37, 1, 6, 5)).astype(np.float32), generator.normal(size=(53, 1, 6, 5))


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_agrees_with_brute_force_at_any_block_size(scans, block):
    queries, references = scans
    oracle = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(references.reshape(53, -1).astype(np.float32))
    expected, index = oracle.kneighbors(queries.reshape(37, -1))
    distances, indices = nearest_distances(queries, references, block=block)
    np.testing.assert_allclose(distances, expected[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(indices, index[:, 0])


def test_exact_copies_are_found_at_distance_zero_far_from_the_origin(scans):
    _, references = scans
    references = (1000 + 1e-3 * references).astype(np.float32)
    distances, indices = nearest_distances(references[::-1], references)
    np.testing.assert_array_equal(distances, 0)
    np.testing.assert_array_equal(indices, np.arange(53)[::-1])


def test_tensors_and_half_precision_arrays_give_the_same(scans):
    queries, references = scans[0].astype(np.float16), scans[1].astype(np.float16)
    from_arrays = nearest_distances(queries, references)
    from_tensors = nearest_distances(torch.from_numpy(queries), torch.from_numpy(references))
    np.testing.assert_array_equal(from_arrays[0], from_tensors[0])
    np.testing.assert_array_equal(from_arrays[1], from_tensors[1])


def test_only_the_chosen_references_count(scans):
    queries, references = scans
    among = np.arange(52, 3, -3)
    distances, indices = nearest_distances(queries, references, among=among, block=5)
    expected, found = nearest_distances(queries, references[among])
    np.testing.assert_array_equal(distances, expected)
    np.testing.assert_array_equal(indices, among[found])


def test_known_triangle():
    distances, indices = nearest_distances(np.array([[3.0, 4.0]]), np.array([[0.0, 0.0], [9.0, 12.0], [3.0, 5.5]]))
    assert distances.tolist() == [1.5]
    assert indices.tolist() == [2]


def test_refuses_what_cannot_be_compared():
    with pytest.raises(DataError, match="need at least one"):
        nearest_distances(np.zeros((2, 3)), np.zeros((0, 3)))
    with pytest.raises(DataError, match="shape"):
        nearest_distances(np.zeros((2, 3)), np.zeros((2, 4)))
