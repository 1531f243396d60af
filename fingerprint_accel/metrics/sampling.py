"""Samples of comparisons in which every finger takes part equally often.

A leaf module: it imports numpy only.
"""

from __future__ import annotations

import numpy as np


def mated_sample(mated: np.ndarray, fingers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Some of the mated pairs: the same number of each finger, as far as it has so many; without repetition.

    Args:
        mated: (n, 2) row numbers, all pairs to choose from.
        fingers: (N,) finger of every row.
        count: pairs wanted; each finger gives this divided by the number of fingers, rounded, at random, up or down.
        seed: of the choice.

    Returns:
        (m, 2), m <= count, in the order of `mated`.
    """
    generator = np.random.default_rng(seed)
    _, finger = np.unique(fingers[mated[:, 0]], return_inverse=True)
    of_finger = np.bincount(finger)
    quota = np.full(len(of_finger), count // len(of_finger))
    quota[generator.permutation(len(of_finger))[: count % len(of_finger)]] += 1
    order = np.lexsort((generator.random(len(mated)), finger))
    rank = np.empty(len(mated), np.int64)
    rank[order] = np.arange(len(mated)) - np.repeat(np.cumsum(of_finger) - of_finger, of_finger)
    return mated[rank < quota[finger]]


def nonmated_sample(fingers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Pairs of prints of different fingers, without repetition; every finger in about as many.

    The fingers lie shuffled on a ring, and in each round every finger is compared with the one at a certain distance,
    so that it takes part twice; the distances come in random order, and which impressions meet is drawn. When every two
    fingers have met, the rounds begin again with other impressions. Numbers of comparisons of two fingers differ by two
    at most, unless a finger has too few impressions.

    Args:
        fingers: (N,) finger of every row, at least two different ones.
        count: pairs wanted; all there are if there are fewer.
        seed: of the choice.

    Returns:
        (m, 2) row numbers, lower first, m <= count.
    """
    generator = np.random.default_rng(seed)
    rows = np.argsort(fingers, kind="stable")
    _, starts, sizes = np.unique(fingers[rows], return_index=True, return_counts=True)
    number = len(sizes)
    ring = generator.permutation(number)
    distances = 1 + generator.permutation(number // 2)
    draw = generator.integers(0, 2**40, number)
    found: list[np.ndarray] = []
    missing = count
    for again in range(int(sizes.max()) ** 2):
        for distance in distances.tolist():
            here = np.arange(number // 2 if 2 * distance == number else number)
            first, second = ring[here], ring[(here + distance) % number]
            possible = sizes[first] * sizes[second]
            above, below = np.divmod((draw[first] + draw[second] + again) % possible, sizes[second])
            pairs = np.stack([rows[starts[first] + above], rows[starts[second] + below]], axis=1)
            found.append(np.sort(pairs[again < possible][:missing], axis=1))
            missing -= len(found[-1])
            if missing <= 0:
                return np.concatenate(found)
    return np.concatenate(found)


def sample_of_fingers(fingers: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Rows of all prints, or of a seeded choice of fingers with about `most` prints, at least two fingers."""
    if len(fingers) <= most:
        return np.arange(len(fingers))
    sizes = np.bincount(fingers)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(sizes))
    chosen = order[: max(2, int(np.searchsorted(np.cumsum(sizes[order]), most, side="right")))]
    return np.flatnonzero(np.isin(fingers, chosen))
