"""Which prints a protocol compares, and that scores belong to their pairs."""

import numpy as np
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.metrics.protocols import comparisons, score_protocol


def ten_by_eight(seed=0):
    """The size of an FVC `_B` set, rows in random order."""
    order = np.random.default_rng(seed).permutation(80)
    return order // 8, order % 8 + 1


def test_fvc_counts_and_pairs():
    fingers, impressions = ten_by_eight()
    pairs = comparisons("fvc", fingers, impressions)
    assert (len(pairs.mated), len(pairs.nonmated), pairs.nonmated_possible) == (280, 45, 45)
    assert (fingers[pairs.mated[:, 0]] == fingers[pairs.mated[:, 1]]).all()
    assert (impressions[pairs.nonmated] == 1).all()
    assert (fingers[pairs.nonmated[:, 0]] != fingers[pairs.nonmated[:, 1]]).all()


def test_all_pairs_counts():
    pairs = comparisons("all-pairs", *ten_by_eight())
    assert (len(pairs.mated), len(pairs.nonmated)) == (280, 2880)
    both = np.concatenate([pairs.mated, pairs.nonmated])
    assert (both[:, 0] < both[:, 1]).all()
    assert len(np.unique(both, axis=0)) == 80 * 79 // 2


def test_first_impression_is_the_lowest_there_is():
    fingers, impressions = np.array([0, 0, 1, 1, 2]), np.array([4, 2, 7, 9, 3])
    pairs = comparisons("fvc", fingers, impressions)
    assert pairs.nonmated.tolist() == [[1, 2], [1, 4], [2, 4]]
    assert pairs.mated.tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("protocol", ["fvc", "all-pairs"])
def test_scores_are_those_of_their_pairs(protocol):
    rng = np.random.default_rng(1)
    fingers, impressions = rng.integers(0, 700, 2500), rng.integers(0, 5, 2500)
    vectors = rng.normal(size=(2500, 12)).astype(np.float32)
    scores = score_protocol(protocol, vectors, fingers, impressions)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for values, pairs in ((scores.mated, scores.pairs.mated), (scores.nonmated, scores.pairs.nonmated)):
        expected = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1)
        np.testing.assert_allclose(values, expected, atol=1e-6)
    assert len(scores.nonmated) == scores.pairs.nonmated_possible
    first, second = fingers[scores.pairs.nonmated].T
    assert (first != second).all()


def test_sample_of_comparisons_is_fixed_fair_and_without_repetition():
    fingers, impressions = np.arange(3000) // 3, np.arange(3000) % 3
    bound = 60_000
    pairs = comparisons("all-pairs", fingers, impressions, bound)
    again = comparisons("all-pairs", fingers, impressions, bound)
    np.testing.assert_array_equal(pairs.nonmated, again.nonmated)
    assert len(pairs.nonmated) == len(np.unique(pairs.nonmated, axis=0)) == bound
    assert pairs.nonmated_possible == 3000 * 2999 // 2 - 3000
    per_print = np.bincount(pairs.nonmated.ravel(), minlength=3000)
    assert per_print.min() >= 0.5 * per_print.mean()
    assert per_print.max() <= 1.5 * per_print.mean()


@pytest.mark.parametrize(
    ("fingers", "problem"), [([0, 0, 0], "at least two fingers; the dataset has 1"), ([0, 1, 2], "two impressions")]
)
def test_datasets_without_comparisons(fingers, problem):
    with pytest.raises(UserError, match=problem):
        comparisons("all-pairs", np.array(fingers), np.arange(3))
    with pytest.raises(UserError, match="unknown protocol"):
        comparisons("fvd", np.array([0, 0, 1]), np.arange(3))
