"""Match two lists of minutiae of the same print: found ones with true ones.

A leaf module: it imports numpy only.
"""

from __future__ import annotations

import math

import numpy as np

MAX_DISTANCE_MM = 0.61  # 12 pixels at 500 ppi: a little more than one ridge period
MAX_ANGLE = math.radians(30)


def match_minutiae(
    found: np.ndarray, truth: np.ndarray, max_distance: float, max_angle: float = MAX_ANGLE
) -> np.ndarray:
    """Pair minutiae one to one, the closest first.

    Args:
        found: (n, 3 or more) x, y, angle in radians. Further columns are ignored.
        truth: (m, 3 or more), likewise.
        max_distance: Largest distance of a pair, in the unit of x and y.
        max_angle: Largest difference of directions in radians. Opposite directions differ by pi.

    Returns:
        (k, 2) int64 positions in `found` and `truth`, nearest pair first. The precision is k / n, and the recall is k /
        m.
    """
    apart = np.hypot(found[:, None, 0] - truth[None, :, 0], found[:, None, 1] - truth[None, :, 1])  # (n, m)
    turned = np.abs(angle_difference(found[:, None, 2], truth[None, :, 2]))
    here, there = np.nonzero((apart <= max_distance) & (turned <= max_angle))
    free_here, free_there = np.ones(len(found), bool), np.ones(len(truth), bool)
    pairs = []
    for candidate in np.argsort(apart[here, there], kind="stable"):
        i, j = here[candidate], there[candidate]
        if free_here[i] and free_there[j]:
            free_here[i] = free_there[j] = False
            pairs.append((i, j))
    return np.array(pairs, np.int64).reshape(-1, 2)


def angle_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return `first` - `second` on the circle, from -pi to pi."""
    return (np.asarray(first) - second + np.pi) % (2 * np.pi) - np.pi
