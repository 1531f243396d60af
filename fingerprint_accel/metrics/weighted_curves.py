"""FMR and FNMR of many weightings of the same scores at once, as the bootstrap needs them.

A leaf module: it imports numpy only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MOST_NONMATED = 300_000
"""Non-mated scores that are kept at most."""
BLOCK = 2**20
"""Weights that are held at a time, of each kind of comparison."""


class WeightedScores:
    """Sorted scores with the fingers that they depend on.

    A weighting counts finger f `draws[f]` times. A comparison counts as often as the product of the counts of its
    fingers. Of more than `most_nonmated` non-mated scores, a sample is kept. One third of it are the highest scores,
    because low FMRs depend on them. Each of the others represents a few scores next to it.

    Args:
        mated: (n,) scores, -infinity for comparisons that failed.
        mated_fingers: (n, c) finger numbers that a comparison depends on; c is 1 or 2.
        nonmated: (m,) scores of the same type.
        nonmated_fingers: (m, c) finger numbers of the non-mated comparisons.
        most_nonmated: number of non-mated scores to keep at most.
    """

    def __init__(
        self,
        mated: np.ndarray,
        mated_fingers: np.ndarray,
        nonmated: np.ndarray,
        nonmated_fingers: np.ndarray,
        most_nonmated: int = MOST_NONMATED,
    ) -> None:
        order = np.argsort(mated, kind="stable")
        chosen, self.represented = _sampled(np.argsort(nonmated, kind="stable"), most_nonmated)
        self.mated, self.mated_fingers = mated[order], mated_fingers[order]
        self.nonmated, self.nonmated_fingers = nonmated[chosen], nonmated_fingers[chosen]
        finite = [scores[np.isfinite(scores)] for scores in (self.mated, self.nonmated)]
        self.thresholds = np.append(np.unique(np.concatenate(finite)), np.inf)

    @property
    def draws_at_once(self) -> int:
        """Number of weightings that fit into a block."""
        return max(1, BLOCK // max(len(self.mated), len(self.nonmated)))

    def curves(self, draws: np.ndarray) -> WeightedCurves:
        """Return one curve for each weighting that has mated and non-mated comparisons.

        Args:
            draws: (F, B) float64, how often each of F fingers counts in each of B weightings.
        """
        nonmated = _weights(draws, self.nonmated_fingers)
        if self.represented is not None:
            nonmated *= self.represented[:, None]
        mated_below, nonmated_below = _cumulated(_weights(draws, self.mated_fingers)), _cumulated(nonmated)
        usable = (mated_below[-1] > 0) & (nonmated_below[-1] > 0)
        if not usable.all():
            mated_below, nonmated_below = mated_below[:, usable], nonmated_below[:, usable]
        return WeightedCurves(self, mated_below, nonmated_below)


class WeightedCurves:
    """FMR and FNMR as step functions of the threshold, for B weightings of the same scores.

    Attributes:
        scores: the scores.
        mated_below: (n + 1, B) weight of the mated scores before each position.
        nonmated_below: (m + 1, B) weight of the non-mated scores before each position.
    """

    def __init__(self, scores: WeightedScores, mated_below: np.ndarray, nonmated_below: np.ndarray) -> None:
        self.scores, self.mated_below, self.nonmated_below = scores, mated_below, nonmated_below
        self._each = np.arange(mated_below.shape[1])

    def fmr(self, threshold: np.ndarray | float) -> np.ndarray:
        """(B,) share of the non-mated weight at or above a threshold, or a threshold for each weighting."""
        below = self.nonmated_below[_before(self.scores.nonmated, threshold), self._each]
        return (self.nonmated_below[-1] - below) / self.nonmated_below[-1]

    def fnmr(self, threshold: np.ndarray | float) -> np.ndarray:
        """(B,) share of the mated weight below a threshold, or a threshold for each weighting."""
        return self.mated_below[_before(self.scores.mated, threshold), self._each] / self.mated_below[-1]

    def eer(self) -> np.ndarray:
        """(B,) equal error rates, defined as in `Curve.eer`."""
        thresholds = self.scores.thresholds

        def crossed(place: np.ndarray) -> np.ndarray:
            return self.fnmr(thresholds[place]) >= self.fmr(thresholds[place])

        after = _first(crossed, len(thresholds), len(self._each))
        fmr_b, fnmr_b = self.fmr(thresholds[after]), self.fnmr(thresholds[after])
        before = thresholds[np.maximum(after - 1, 0)]
        fmr_a, fnmr_a = self.fmr(before), self.fnmr(before)
        gap_a, gap_b = fnmr_a - fmr_a, fnmr_b - fmr_b
        share = -gap_a / np.where(after > 0, gap_b - gap_a, 1)
        crossing = np.where(gap_b == 0, fmr_b, fmr_a + share * (fmr_b - fmr_a))
        return np.where(after > 0, crossing, fnmr_b)

    def fnmr_at_fmr(self, rate: float) -> np.ndarray:
        """(B,) lowest FNMR with FMR <= `rate`, defined as in `Curve.fnmr_at_fmr`."""
        total = self.nonmated_below[-1]
        accepted = np.floor(rate * total + 1e-9)

        def enough(place: np.ndarray) -> np.ndarray:
            return self.nonmated_below[place, self._each] >= total - accepted

        rejected = _first(enough, len(self.nonmated_below), len(self._each))
        highest = self.scores.nonmated[np.maximum(rejected - 1, 0)]
        below = np.where(rejected > 0, np.searchsorted(self.scores.mated, highest, side="right"), 0)
        return self.mated_below[below, self._each] / self.mated_below[-1]


def _sampled(order: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the places of the scores to keep, in ascending order of score, and how many scores each represents.

    Args:
        order: (m,) places of all scores, in ascending order of score.
        most: number of scores to keep; the second result is None where there are no more than that.
    """
    if len(order) <= most:
        return order, None
    top = most // 3
    edges = np.linspace(0, len(order) - top, most - top + 1).astype(np.int64)
    sizes = np.diff(edges)
    drawn = edges[:-1] + np.random.default_rng(0).integers(0, sizes)  # one of each run of neighbours
    chosen = np.concatenate([order[drawn], order[edges[-1] :]])
    return chosen, np.concatenate([sizes, np.ones(top, np.int64)]).astype(np.float64)


def _weights(draws: np.ndarray, fingers: np.ndarray) -> np.ndarray:
    """(F, B) counts of fingers and (n, c) fingers of comparisons -> (n, B) counts of comparisons."""
    weights = draws[fingers[:, 0]]
    for column in fingers.T[1:]:
        weights *= draws[column]
    return weights


def _cumulated(weights: np.ndarray) -> np.ndarray:
    """(n, B) -> (n + 1, B) sums of the rows before each position."""
    below = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=below[1:])
    return below


def _before(scores: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    """Number of sorted scores below each threshold."""
    return np.searchsorted(scores, np.asarray(threshold, scores.dtype), side="left")


def _first(holds: Callable[[np.ndarray], np.ndarray], count: int, columns: int) -> np.ndarray:
    """(columns,) lowest place at which a condition holds that stays true from there on; it holds at the last place."""
    low, high = np.zeros(columns, np.int64), np.full(columns, count - 1)
    while (low < high).any():
        middle = (low + high) // 2
        found = holds(middle)
        low, high = np.where(found, low, middle + 1), np.where(found, middle, high)
    return low
