"""Distances that see through flips, shifts, contrast and noise: against a plain search, and planted truths."""

from itertools import product

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medsynth.errors import DataError
from medsynth.measures.alignment import AlignedReferences, Neighbours, aligned_distances


def pictures(count, seed, shape=(20, 24), channels=1):
    noise = np.random.default_rng(seed).normal(size=(count, channels, *shape))
    return (0.3 * gaussian_filter(noise, (0, 0, *[1.5] * len(shape))) / 0.15).astype(np.float32)


def moved(scan, shifts):
    """`scan` (C, *spatial) moved by `shifts`, with edges continued."""
    width = max(map(abs, shifts))
    padded = np.pad(scan, [(0, 0), *[(width, width)] * len(shifts)], mode="edge")
    return padded[
        (slice(None), *[slice(width + s, width + s + n) for s, n in zip(shifts, scan.shape[1:], strict=True)])
    ]


def aligned_neighbours(
    queries, references, *, groups, among=None, shift=4, smoothing=1.0, count=8, **chosen
) -> Neighbours:
    within = AlignedReferences(references, groups=groups, among=among, shift=shift, smoothing=smoothing)
    return within.nearest(queries, count, **chosen)


def plain_distance(query, reference, shift):
    """The definition, by loops: the inner part of the query in each flip and turn against each window of the reference."""
    spatial = range(1, query.ndim)
    inner = query[(slice(None), *[slice(shift, n - shift) for n in query.shape[1:]])]
    best = -1.0
    square = query.shape[-1] == query.shape[-2]
    for turns, *flips in product((0, 1) if square else (0,), *[(False, True)] * len(spatial)):
        mirrored = np.flip(np.rot90(inner, turns, (-2, -1)), [a for a, on in zip(spatial, flips, strict=True) if on])
        for offsets in product(range(2 * shift + 1), repeat=len(spatial)):
            starts = [slice(o, o + n) for o, n in zip(offsets, inner.shape[1:], strict=True)]
            best = max(best, np.corrcoef(mirrored.ravel(), reference[(slice(None), *starts)].ravel())[0, 1])
    return np.sqrt(2 - 2 * best)


@pytest.mark.parametrize(("shape", "channels"), [((20, 24), 1), ((16, 16), 2), ((12, 10, 8), 1)])
def test_the_distance_is_that_of_a_plain_search(shape, channels):
    queries, references = pictures(3, 1, shape, channels), pictures(3, 2, shape, channels)
    expected = [plain_distance(q.astype(float), r.astype(float), 2) for q, r in zip(queries, references, strict=True)]
    found = aligned_distances(queries, references, shift=2, smoothing=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_no_distance_is_below_that_of_a_plain_search_and_a_copy_has_it():
    references = pictures(12, 4)
    queries = np.stack([moved(each, (2, -1)) for each in references[[7, 2]]] + [*pictures(2, 3)])
    expected = np.array([[plain_distance(q.astype(float), r.astype(float), 2) for r in references] for q in queries])
    found = aligned_neighbours(queries, references, groups=np.arange(12), count=5, shift=2, smoothing=0)
    chosen = np.take_along_axis(expected, found.indices, axis=1)
    assert (found.distances >= chosen - 1e-5).all()
    assert found.indices[:2, 0].tolist() == found.evidence_indices[:2, 0].tolist() == [7, 2]
    np.testing.assert_allclose(found.distances[:2, 0], chosen[:2, 0], atol=1e-5)
    assert (np.diff(found.distances) >= 0).all()
    assert (np.diff(found.evidence) <= 0).all()


@pytest.mark.parametrize("shape", [(40, 48), (16, 20, 24)])
def test_a_copy_is_found_whatever_was_done_to_it(shape):
    references = pictures(30, 5, shape)
    generator = np.random.default_rng(6)
    axes = range(1, 1 + len(shape))
    copies = [
        references[3],
        np.flip(references[4], axes),
        moved(references[5], [4] * len(shape)),
        references[6] * 1.1 - 0.2,
        moved(np.flip(references[7], 1) * 0.9, [-3, 4, 2][: len(shape)]),
    ]
    noisy = references[8] + generator.normal(0, 0.03, references[8].shape)
    found = aligned_neighbours(np.stack([*copies, noisy]), references, groups=np.arange(30), count=2)
    np.testing.assert_array_equal(found.indices[:, 0], [3, 4, 5, 6, 7, 8])
    assert found.distances[0, 0] < 1e-6
    assert found.distances[:5, 0].max() < 0.05  # smoothing at the edge of a moved picture leaves a trace
    assert found.distances[5, 0] < 0.06
    assert found.distances[:, 1].min() > 0.5


def test_one_of_each_group_and_none_of_the_barred():
    references = pictures(9, 7)
    references[1] = references[0] + 0.01 * references[5]
    groups = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3])
    found = aligned_neighbours(references[:2], references, groups=groups, count=4, barred=np.array([-1, 0]))
    assert found.indices[0, 0] == 0
    assert sorted(groups[found.indices[0]]) == [0, 1, 2, 3]
    assert sorted(groups[found.indices[1, :3]]) == [1, 2, 3]
    assert found.indices[1, 3] == -1
    assert found.distances[1, 3] == np.inf


def test_rows_and_members_choose():
    scans = pictures(8, 8)
    found = aligned_neighbours(
        scans, scans, groups=np.arange(8), rows=np.array([5, 2]), among=np.array([1, 2, 7]), count=1
    )
    assert found.indices.shape == (2, 1)
    assert found.indices[1, 0] == 2
    assert found.indices[0, 0] in (1, 2, 7)


def test_blocks_do_not_change_the_result(monkeypatch):
    queries, references = pictures(7, 9), pictures(23, 10)
    groups = np.arange(23) // 2
    whole = aligned_neighbours(queries, references, groups=groups, count=6)
    monkeypatch.setattr("medsynth.measures.alignment._QUERIES_AT_ONCE", {2: 3})
    monkeypatch.setattr("medsynth.measures.alignment._REFERENCES_AT_ONCE", {2: 10})
    parts = aligned_neighbours(queries, references, groups=groups, count=6)
    np.testing.assert_allclose(parts.distances, whole.distances)
    np.testing.assert_array_equal(parts.indices, whole.indices)


def test_scans_without_contrast_are_far_from_all():
    flat = np.zeros((2, 1, 20, 24), dtype=np.float32)
    found = aligned_neighbours(flat, np.concatenate([pictures(2, 11), flat]), groups=np.arange(4), count=4)
    np.testing.assert_allclose(found.distances, np.sqrt(2))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="one grid"):
        aligned_neighbours(pictures(1, 0), pictures(1, 0, (16, 16)), groups=np.arange(1))
    with pytest.raises(DataError, match="at least one scan"):
        aligned_neighbours(pictures(1, 0), pictures(1, 0), groups=np.arange(1), among=np.array([], dtype=int))


def test_the_copied_scan_of_a_patient_is_found_among_others_that_look_alike():
    """Three scans of each patient differ a little; a shift by an odd number of pixels lies between pixels of the search."""
    anatomy = np.repeat(pictures(12, seed=4, shape=(64, 64)), 3, axis=0)
    scans = anatomy + 0.06 * pictures(36, seed=5, shape=(64, 64))
    patients = np.repeat(np.arange(12), 3)
    for shifts in ((1, 0), (1, 1), (-3, 1)):
        queries = np.stack([moved(scan, shifts) for scan in scans])
        found = aligned_neighbours(queries, scans, groups=patients, count=4, shift=4)
        np.testing.assert_array_equal(found.indices[:, 0], np.arange(36))
        assert found.distances[:, 0].max() < 0.05
        # Each patient counts once.
        assert all(len(set(patients[row])) == 4 for row in found.indices)
