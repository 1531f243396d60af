"""Samples of comparisons: fixed by their seed, without repetition, every finger equally often."""

import numpy as np
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.metrics.protocols import comparisons
from fingerprint_accel.metrics.sampling import sampled_comparisons


def uneven(seed=0):
    """50 fingers with 2 to 6 impressions, rows in random order."""
    rng = np.random.default_rng(seed)
    fingers = rng.permutation(np.repeat(np.arange(50), rng.integers(2, 7, 50)))
    return fingers, np.arange(len(fingers))


@pytest.mark.parametrize("count", [20, 50, 130, 700])
def test_every_finger_takes_part_equally_often(count):
    fingers, impressions = uneven()
    pairs = sampled_comparisons(fingers, impressions, count, seed=3)
    sizes = np.bincount(fingers)
    per_finger = np.bincount(fingers[pairs.mated[:, 0]], minlength=50)
    possible = sizes * (sizes - 1) // 2
    assert (per_finger >= np.minimum(count // 50, possible)).all()
    assert (per_finger <= np.minimum(count // 50 + 1, possible)).all()
    assert len(pairs.nonmated) == count
    taking_part = np.bincount(fingers[pairs.nonmated].ravel(), minlength=50)
    assert np.ptp(taking_part) <= 2
    assert len(pairs.mated) == count or count > 50


def test_pairs_are_of_their_kind_once_each_and_fixed_by_the_seed():
    fingers, impressions = uneven()
    pairs = sampled_comparisons(fingers, impressions, 900, seed=1)
    for rows, same in ((pairs.mated, True), (pairs.nonmated, False)):
        assert len(np.unique(rows, axis=0)) == len(rows)
        assert (rows[:, 0] < rows[:, 1]).all()
        assert ((fingers[rows[:, 0]] == fingers[rows[:, 1]]) == same).all()
    again, other = (sampled_comparisons(fingers, impressions, 900, seed) for seed in (1, 2))
    np.testing.assert_array_equal(again.nonmated, pairs.nonmated)
    np.testing.assert_array_equal(again.mated, pairs.mated)
    assert not np.array_equal(other.nonmated, pairs.nonmated)


def test_all_there_are_where_more_are_wanted():
    fingers, impressions = uneven()
    pairs, everything = sampled_comparisons(fingers, impressions, 10**6), comparisons("all-pairs", fingers, impressions)
    assert len(pairs.nonmated) == pairs.nonmated_possible == len(everything.nonmated)
    np.testing.assert_array_equal(np.unique(pairs.nonmated, axis=0), np.unique(everything.nonmated, axis=0))
    np.testing.assert_array_equal(pairs.mated, everything.mated)


def test_impossible_samples():
    with pytest.raises(UserError, match="--pairs 0: must be at least 1"):
        sampled_comparisons(np.array([0, 0, 1]), np.arange(3), 0)
    with pytest.raises(UserError, match="need a finger with two impressions"):
        sampled_comparisons(np.array([0, 1, 2]), np.arange(3), 10)
    pairs = sampled_comparisons(np.array([0, 0, 1]), np.arange(3), 10)
    assert (pairs.mated.tolist(), sorted(pairs.nonmated.tolist())) == ([[0, 1]], [[0, 2], [1, 2]])
