"""Which minutiae count as the same: near, of like direction, each once."""

import math

import numpy as np
from minutia_matching import angle_difference, match_minutiae


def minutiae(*rows):
    return np.array(rows, np.float32).reshape(-1, 3)


def test_distance_and_angle_bound_a_pair():
    truth = minutiae((100, 100, 0.0))
    assert len(match_minutiae(minutiae((112, 100, 0.0)), truth, 12)) == 1
    assert len(match_minutiae(minutiae((112.1, 100, 0.0)), truth, 12)) == 0
    assert len(match_minutiae(minutiae((100, 100, math.radians(29))), truth, 12)) == 1
    assert len(match_minutiae(minutiae((100, 100, math.radians(31))), truth, 12)) == 0
    assert len(match_minutiae(minutiae((100, 100, math.pi)), truth, 12)) == 0  # the opposite direction


def test_directions_meet_across_zero():
    near = match_minutiae(minutiae((0, 0, math.radians(350))), minutiae((0, 0, math.radians(10))), 1)
    assert near.tolist() == [[0, 0]]
    assert np.degrees(angle_difference(np.radians([10.0, 350, 0]), np.radians([350.0, 10, 181]))).round(6).tolist() == [
        20,
        -20,
        179,
    ]


def test_each_is_used_once_and_the_nearest_pair_wins():
    found = minutiae((10, 0, 0), (12, 0, 0), (50, 50, 1))
    truth = minutiae((13, 0, 0), (80, 80, 0))
    assert match_minutiae(found, truth, 12).tolist() == [[1, 0]]
    truth = minutiae((13, 0, 0), (4, 0, 0))
    assert match_minutiae(found, truth, 12).tolist() == [[1, 0], [0, 1]]


def test_precision_and_recall_of_a_known_case():
    """30 of 40 true minutiae found with 2 px of noise, besides 10 false ones far from all of them."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(5)), axis=-1).reshape(40, 2) * 40.0
    truth = np.column_stack([grid, rng.uniform(0, 2 * np.pi, 40), np.ones(40)])
    found = truth[rng.permutation(40)[:30]] + np.array([1.4, -1.4, 0.1, 0])
    false = np.column_stack([grid[:10] + 20, rng.uniform(0, 2 * np.pi, 10), np.ones(10)])
    pairs = match_minutiae(np.concatenate([false, found]), truth, 12)
    assert len(pairs) / 40 == 0.75
    assert set(pairs[:, 0]) == set(range(10, 40))
    assert np.allclose(truth[pairs[:, 1], :2] + [1.4, -1.4], np.concatenate([false, found])[pairs[:, 0], :2])


def test_nothing_found_or_nothing_there():
    nothing, one = minutiae(), minutiae((1, 1, 0))
    for found, truth in ((nothing, one), (one, nothing), (nothing, nothing)):
        assert match_minutiae(found, truth, 12).shape == (0, 2)
