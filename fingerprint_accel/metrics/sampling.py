"""Random samples of comparisons in which all fingers occur about equally often.

This module imports only numpy, `protocols` and the errors of this package.
"""

from __future__ import annotations

import numpy as np

from fingerprint_accel.errors import UserError
from fingerprint_accel.metrics.protocols import Pairs, plan


def sampled_comparisons(fingers: np.ndarray, impressions: np.ndarray, count: int, seed: int = 0) -> Pairs:
    """Draw a random sample of the `all-pairs` comparisons, in which every finger occurs about equally often.

    Args:
        fingers: (N,) finger identifier of every print.
        impressions: (N,) impression number of every print.
        count: largest number of mated comparisons, and largest number of non-mated comparisons.
        seed: random seed of the sample.

    Raises:
        UserError: if `count` is below 1, if there are fewer than two fingers, or if no finger has two impressions.
    """
    if count < 1:
        raise UserError(f"--pairs {count}: must be at least 1")
    _, mated, possible = plan("sampled", fingers, impressions)
    fingers = np.asarray(fingers)
    return Pairs(_mated_sample(mated, fingers, count, seed), _nonmated_sample(fingers, count, seed), possible)


def _mated_sample(mated: np.ndarray, fingers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw a random sample of mated pairs with equally many pairs for every finger, in their original order.

    The number of pairs of a finger is `count` divided by the number of fingers, rounded up or down at random. A finger
    with fewer pairs contributes all of its pairs.

    Args:
        mated: (n, 2) mated pairs.
        fingers: (N,) finger identifier of every print.
        count: size of the sample.
        seed: random seed.
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


def _nonmated_sample(fingers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw a random sample of non-mated pairs without replacement, in which all fingers occur about equally often.

    The fingers are shuffled and arranged in a circle. In each iteration, every finger is paired with the finger that
    follows it at a fixed offset on the circle. Every finger therefore occurs in two pairs per iteration. The offsets
    are used in random order, and the impressions are drawn at random. After all offsets, the iterations repeat with
    pairs of impressions that are not yet in the sample. Any two fingers differ by at most two in their number of
    comparisons, unless a finger has too few impressions.

    Args:
        fingers: (N,) finger identifier of every print.
        count: size of the sample.
        seed: random seed.

    Returns:
        (m, 2) row indices of the prints. m is `count`, or the number of all non-mated pairs if this is smaller.
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
