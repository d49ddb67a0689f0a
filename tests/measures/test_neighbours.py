from __future__ import annotations

from math import prod

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from medsynth.errors import DataError
from medsynth.measures.neighbours import Manifold, Spacings, nearest_distances


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


def by_the_definitions(references: np.ndarray, candidates: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage scan by scan, from all distances by differences."""

    def ball_radii(features: np.ndarray) -> np.ndarray:
        return np.sort(cdist(features, features), axis=1)[:, k]  # column 0 is the item itself

    real, made = ball_radii(references), ball_radii(candidates)
    apart = cdist(references, candidates)
    m, n = apart.shape
    precision = sum(any(apart[i, j] < real[i] for i in range(m)) for j in range(n)) / n
    recall = sum(any(apart[i, j] < made[j] for j in range(n)) for i in range(m)) / m
    density = sum(sum(apart[i, j] < real[i] for i in range(m)) for j in range(n)) / (k * n)
    coverage = sum(apart[i].min() < real[i] for i in range(m)) / m
    return precision, recall, density, coverage


def manifold_measures(references: np.ndarray, candidates: np.ndarray, neighbours: int = 5) -> Manifold:
    """All candidates on all references."""
    everything = np.arange(len(references)), np.arange(len(candidates))
    return Spacings.of(references, candidates).across(*everything, neighbours=neighbours)


def values(found: Manifold) -> tuple[float, float, float, float]:
    return found.precision, found.recall, found.density, found.coverage


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("origin", [0.0, 500.0])
def test_manifold_agrees_with_the_definitions(k, origin):
    generator = np.random.default_rng(k)
    references = origin + generator.normal(size=(83, 6))
    candidates = origin + 1.2 + generator.normal(size=(61, 6))
    found = values(manifold_measures(references, candidates, neighbours=k))
    assert found == pytest.approx(by_the_definitions(references, candidates, k), abs=1e-9)
    assert all(0.05 < value < 0.95 for value in found)  # or the agreement would say little


def by_nearest_neighbours(references: np.ndarray, candidates: np.ndarray, k: int) -> list[float]:
    """The four measures as the package `prdc` writes them, with scikit-learn's searches in the place of its own."""
    real, made = NearestNeighbors().fit(references), NearestNeighbors().fit(candidates)
    real_radii = real.kneighbors(references, k + 1)[0][:, -1]
    made_radii = made.kneighbors(candidates, k + 1)[0][:, -1]
    apart, nearest = real.kneighbors(candidates, len(references))
    inside = apart < real_radii[nearest]
    to_made, which = made.kneighbors(references, len(candidates))
    return [
        inside.any(axis=1).mean(),
        (to_made < made_radii[which]).any(axis=1).mean(),
        inside.sum(axis=1).mean() / k,
        (to_made[:, 0] < real_radii).mean(),
    ]


@pytest.mark.parametrize("k", [1, 5])
def test_manifold_agrees_with_searches_of_scikit_learn(k):
    generator = np.random.default_rng(10 + k)
    references, candidates = generator.normal(size=(120, 30)), 0.25 + generator.normal(size=(90, 30))
    found = values(manifold_measures(references, candidates, neighbours=k))
    assert found == pytest.approx(by_nearest_neighbours(references, candidates, k), rel=1e-4)


def test_subsets_are_those_of_the_picked_features():
    generator = np.random.default_rng(8)
    real, made = generator.normal(size=(70, 5)), 0.5 + generator.normal(size=(50, 5))
    made[:5] = real[:5]  # copies lie on the rim of no ball
    spacings = Spacings.of(real, made)
    for _ in range(5):
        order, picked = generator.permutation(70), generator.permutation(50)[:30]
        one, other = order[:30], order[30:60]
        for found, expected in (
            (spacings.across(one, picked, neighbours=4), manifold_measures(real[one], made[picked], neighbours=4)),
            (spacings.inside(one, other, neighbours=4), manifold_measures(real[one], real[other], neighbours=4)),
        ):
            assert values(found) == pytest.approx(values(expected), abs=1e-12)
    few = spacings.across(order[:4], picked, neighbours=4)
    assert np.isnan(values(few)).tolist() == [True, False, True, True]


def test_known_points_on_a_line():
    # k = 1: radii 1, 1, 2 around 0, 1, 3 and 2.5, 2.5 around 1.5, 4. In balls of references: 1.5 in those of 1 and 3, 4 in that
    # of 3. References 0 (by 1.5 only), 1, 3 all lie in balls of candidates. The ball of 0 is empty.
    found = manifold_measures(np.array([[0.0], [1.0], [3.0]]), np.array([[1.5], [4.0]]), neighbours=1)
    assert values(found) == pytest.approx((1, 1, 3 / 2, 2 / 3))


def test_a_set_in_itself_is_precise_complete_dense_and_covered():
    features = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    for order in (np.arange(50), np.random.default_rng(2).permutation(50)):
        found = manifold_measures(features, features[order], neighbours=5)
        assert values(found) == (1, 1, 1, 1)


def test_sets_far_apart_share_nothing():
    generator = np.random.default_rng(3)
    found = manifold_measures(generator.normal(size=(30, 4)), 100 + generator.normal(size=(40, 4)))
    assert values(found) == (0, 0, 0, 0)


def test_repeating_one_candidate_keeps_precision_and_loses_the_rest():
    references = np.random.default_rng(4).normal(size=(60, 3))
    found = manifold_measures(references, np.repeat(references[:1], 60, axis=0), neighbours=3)
    assert found.precision == 1
    assert found.recall == 0  # balls of copies are empty
    radii = np.sort(cdist(references, references), axis=1)[:, 3]
    held = (cdist(references[:1], references)[0] < radii).sum()
    assert found.coverage == pytest.approx(held / 60)


def test_expectation_for_two_draws_of_one_distribution():
    # Exchangeable items: the mean density is 1, and a ball stays empty when the k nearest of all others are references
    # (Naeem et al. 2020).
    m, n, k, repeats = 40, 25, 3, 300
    expected = 1 - prod((m - i) / (m + n - i) for i in range(1, k + 1))
    generator = np.random.default_rng(5)
    found = [
        manifold_measures(generator.normal(size=(m, 2)), generator.normal(size=(n, 2)), neighbours=k)
        for _ in range(repeats)
    ]
    for name, truth in (("density", 1.0), ("coverage", expected)):
        draws = np.array([getattr(one, name) for one in found])
        assert abs(draws.mean() - truth) < 4 * draws.std() / np.sqrt(repeats), name


def test_too_few_items_have_no_measures():
    few, many = np.random.default_rng(6).normal(size=(3, 2)), np.random.default_rng(7).normal(size=(9, 2))
    assert np.isnan(values(manifold_measures(few, many, neighbours=3))).tolist() == [True, False, True, True]
    assert np.isnan(values(manifold_measures(many, few, neighbours=3))).tolist() == [False, True, False, False]
    assert np.isnan(values(manifold_measures(many, few[:0]))).all()
