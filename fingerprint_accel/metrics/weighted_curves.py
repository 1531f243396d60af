"""FMR and FNMR as functions of the threshold, for many bootstrap draws of fingers at once.

A bootstrap draw counts each finger zero, one or several times. The scores are the same in all draws. Each draw gives
each comparison a weight. This module imports only numpy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MOST_NONMATED = 300_000
"""Default largest number of non-mated scores to use. If there are more, a sample of them is used."""
BLOCK = 2**20
"""Largest number of weights in memory at a time, for each of mated and non-mated comparisons."""


class WeightedScores:
    """Sorted scores, with the fingers whose bootstrap counts determine the weight of each score.

    A draw counts finger f `draws[f]` times. The weight of a comparison is the product of the counts of its fingers. If
    there are more than `most_nonmated` non-mated scores, a sample is kept. One third of the sample consists of the
    highest scores, because low FMRs depend on the highest scores. Each of the other scores of the sample represents
    several neighbouring scores.

    Args:
        mated: (n,) scores of mated comparisons, -infinity for comparisons that failed.
        mated_fingers: (n, c) indices of the fingers that each mated comparison depends on; c is 1 or 2.
        nonmated: (m,) scores of non-mated comparisons; has the dtype of `mated`.
        nonmated_fingers: (m, c) indices of the fingers that each non-mated comparison depends on.
        most_nonmated: largest number of non-mated scores to keep.
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
        """Largest number of bootstrap draws to compute at a time, so that at most `BLOCK` weights are in memory."""
        return max(1, BLOCK // max(len(self.mated), len(self.nonmated)))

    def curves(self, draws: np.ndarray) -> WeightedCurves:
        """Compute FMR and FNMR as functions of the threshold, for each of B bootstrap draws.

        Draws without mated or without non-mated comparisons are left out.

        Args:
            draws: (F, B) float64, how often each of F fingers is counted in each draw.
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

    Each weighting is a bootstrap draw of fingers.

    Attributes:
        scores: the sorted scores.
        mated_below: (n + 1, B) sum of the weights of the first i mated scores, for i from 0 to n.
        nonmated_below: (m + 1, B) sum of the weights of the first i non-mated scores, for i from 0 to m.
    """

    def __init__(self, scores: WeightedScores, mated_below: np.ndarray, nonmated_below: np.ndarray) -> None:
        self.scores, self.mated_below, self.nonmated_below = scores, mated_below, nonmated_below
        self._each = np.arange(mated_below.shape[1])

    def fmr(self, threshold: np.ndarray | float) -> np.ndarray:
        """Return the FMR of each weighting (B,): the weighted share of non-mated scores at or above the threshold.

        Args:
            threshold: scalar for all weightings, or (B,) with one threshold for each weighting.
        """
        below = self.nonmated_below[_before(self.scores.nonmated, threshold), self._each]
        return (self.nonmated_below[-1] - below) / self.nonmated_below[-1]

    def fnmr(self, threshold: np.ndarray | float) -> np.ndarray:
        """Return the FNMR of each weighting (B,): the weighted share of mated scores below the threshold.

        Args:
            threshold: scalar for all weightings, or (B,) with one threshold for each weighting.
        """
        return self.mated_below[_before(self.scores.mated, threshold), self._each] / self.mated_below[-1]

    def eer(self) -> np.ndarray:
        """Return the equal error rates (B,) of all weightings, as defined in `Curve.eer`."""
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
        """Return the lowest FNMR with FMR at most `rate`, as an array (B,) over weightings; see `Curve.fnmr_at_fmr`."""
        total = self.nonmated_below[-1]
        accepted = np.floor(rate * total + 1e-9)

        def enough(place: np.ndarray) -> np.ndarray:
            return self.nonmated_below[place, self._each] >= total - accepted

        rejected = _first(enough, len(self.nonmated_below), len(self._each))
        highest = self.scores.nonmated[np.maximum(rejected - 1, 0)]
        below = np.where(rejected > 0, np.searchsorted(self.scores.mated, highest, side="right"), 0)
        return self.mated_below[below, self._each] / self.mated_below[-1]


def _sampled(order: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Choose a sample of sorted scores that contains all of the highest scores.

    The highest scores form one third of the sample. The other scores are divided into runs of neighbours, and one score
    of each run is drawn.

    Args:
        order: (m,) indices of all scores, in ascending order of score.
        most: number of scores to keep.

    Returns:
        Indices of the chosen scores in ascending order of score, and how many scores each of them represents. The
        second result is None if all scores are kept.
    """
    if len(order) <= most:
        return order, None
    top = most // 3
    edges = np.linspace(0, len(order) - top, most - top + 1).astype(np.int64)
    sizes = np.diff(edges)
    drawn = edges[:-1] + np.random.default_rng(0).integers(0, sizes)  # one score of each run of neighbours
    chosen = np.concatenate([order[drawn], order[edges[-1] :]])
    return chosen, np.concatenate([sizes, np.ones(top, np.int64)]).astype(np.float64)


def _weights(draws: np.ndarray, fingers: np.ndarray) -> np.ndarray:
    """Compute the weights of comparisons in bootstrap draws: the product of the counts of their fingers.

    Args:
        draws: (F, B) how often each of F fingers is counted in each of B draws.
        fingers: (n, c) indices of the fingers of each comparison.

    Returns:
        Weights (n, B).
    """
    weights = draws[fingers[:, 0]]
    for column in fingers.T[1:]:
        weights *= draws[column]
    return weights


def _cumulated(weights: np.ndarray) -> np.ndarray:
    """Return cumulative sums (n + 1, B) of `weights` (n, B): row i is the sum of the first i rows of `weights`."""
    below = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=below[1:])
    return below


def _before(scores: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    """Return how many of the sorted scores are below each threshold."""
    return np.searchsorted(scores, np.asarray(threshold, scores.dtype), side="left")


def _first(holds: Callable[[np.ndarray], np.ndarray], count: int, columns: int) -> np.ndarray:
    """Find the lowest index at which a monotonic condition holds, for several columns at once, by bisection.

    Args:
        holds: function that takes one index per column and returns whether the condition holds. In each column, the
            condition must hold at the last index, and at all indices after the first index at which it holds.
        count: number of indices.
        columns: number of columns.

    Returns:
        Lowest index of each column, (columns,) int64.
    """
    low, high = np.zeros(columns, np.int64), np.full(columns, count - 1)
    while (low < high).any():
        middle = (low + high) // 2
        found = holds(middle)
        low, high = np.where(found, low, middle + 1), np.where(found, middle, high)
    return low
