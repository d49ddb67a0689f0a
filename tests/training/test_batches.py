import numpy as np
import pytest

from medsynth.errors import ConfigError
from medsynth.training import StepSampler, class_shares
from medsynth.training.batches import ValidationScans

LABELS = np.array([0] * 900 + [1] * 90 + [2] * 10)


def sampler(**options):
    shares = class_shares(np.bincount(LABELS), 0.5)
    return StepSampler(LABELS, **{"shares": shares, "batch_size": 64, "total_steps": 50, "seed": 1} | options)


def test_shares_are_tempered():
    counts = np.array([900, 100, 0])
    assert class_shares(counts, 1.0).tolist() == [0.9, 0.1, 0.0]
    assert class_shares(counts, 0.5).tolist() == [0.75, 0.25, 0.0]
    assert class_shares(counts, 0.0).tolist() == [0.5, 0.5, 0.0]


def test_every_batch_holds_the_shares_to_less_than_two_scans():
    shares = class_shares(np.bincount(LABELS), 0.5)
    batches = sampler()
    for step in range(50):
        found = np.bincount(LABELS[batches.global_batch(step)], minlength=3)
        assert np.abs(found - 64 * shares).max() < 2


def test_every_scan_of_a_class_is_equally_likely():
    batches = sampler(batch_size=1000)
    drawn = np.concatenate([batches.global_batch(step) for step in range(200)])
    rare = np.bincount(drawn[LABELS[drawn] == 2] - 990, minlength=10)
    # Multinomial counts: no scan further than five standard deviations from the mean.
    assert np.abs(rare - rare.mean()).max() < 5 * np.sqrt(rare.mean())


def test_a_resumed_iteration_continues_where_it_stopped():
    whole = list(sampler())
    rest = list(sampler(first_step=lambda: 20))
    assert rest == whole[20:]
    assert len(sampler(first_step=lambda: 20)) == 50, "Lightning counts the steps of the whole training"


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_global_batch(world):
    alone = list(sampler())
    ranks = [list(sampler(rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(alone):
        together = sorted((draw for rank in ranks for draw in rank[step]), key=lambda draw: draw.position)
        assert together == batch


def test_batch_size_must_divide():
    with pytest.raises(ConfigError, match="batch_size: need a multiple of the 3 processes, got 64"):
        sampler(world=3)


@pytest.mark.parametrize(("scans", "world"), [(10, 1), (9, 2), (10, 4), (1, 3)])
def test_the_same_scans_are_validated_on_by_any_number_of_processes(scans, world):
    numbers = np.arange(100, 100 + scans)
    shares = [
        ValidationScans([{"index": n} for n in range(200)], numbers, rank=rank, world=world) for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1  # else one would miss a collective call
    items = [share[place] for share in shares for place in range(len(share))]
    assert sorted(item["index"] for item in items if item["counted"]) == numbers.tolist()
    assert len(ValidationScans([], np.arange(0), rank=0, world=world)) == 0
