"""FMR and FNMR as functions of the threshold, exact with ties (ISO/IEC 19795-1).

Scores are similarities. A comparison is accepted if its score is at or above the threshold. FMR is the share of
non-mated comparisons that are accepted. FNMR is the share of mated comparisons that are rejected. A score of -infinity
marks a comparison with a print that failed to acquire. Such a comparison is rejected at every threshold, so the rates
are generalised rates in the sense of ISO/IEC 19795-1 (GFMR, GFNMR).

This module imports only numpy and the errors of this package.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from fingerprint_accel.errors import UserError

FAILED = -np.inf
"""Score of a comparison with a print that failed to acquire."""


@dataclass(frozen=True)
class Curve:
    """FMR and FNMR as step functions of the threshold, computed from sorted scores.

    Attributes:
        mated: (n,) scores of the mated comparisons in ascending order.
        nonmated: (m,) scores of the non-mated comparisons in ascending order; has the dtype of `mated`.
    """

    mated: np.ndarray
    nonmated: np.ndarray

    def fmr(self, threshold: np.ndarray | float) -> np.ndarray:
        """Return the FMR at each threshold: the share of non-mated scores at or above the threshold."""
        total = len(self.nonmated)
        share: np.ndarray = (total - _position(self.nonmated, threshold)) / total
        return share

    def fnmr(self, threshold: np.ndarray | float) -> np.ndarray:
        """Return the FNMR at each threshold: the share of mated scores below the threshold."""
        share: np.ndarray = _position(self.mated, threshold) / len(self.mated)
        return share

    def eer(self) -> tuple[float, float]:
        """Compute the equal error rate and its threshold.

        FNMR - FMR never falls as the threshold rises, so the point where it crosses zero is found by bisection. The EER
        is interpolated linearly between the two neighbouring operating points. If failures to acquire keep FNMR above
        FMR at every threshold, there is no crossing, and the lowest FNMR is returned.

        Returns:
            The EER as a share, and the threshold of the nearest operating point.
        """
        after = min(self._crossing(self.mated), self._crossing(self.nonmated))
        before = max(_previous(self.mated, after), _previous(self.nonmated, after))
        fmr_b, fnmr_b = float(self.fmr(after)), float(self.fnmr(after))
        if before == FAILED:
            return fnmr_b, after
        fmr_a, fnmr_a = float(self.fmr(before)), float(self.fnmr(before))
        gap_a, gap_b = fnmr_a - fmr_a, fnmr_b - fmr_b  # below 0, at least 0
        share = -gap_a / (gap_b - gap_a)
        nearest = after if np.isfinite(after) and gap_b <= -gap_a else before
        return (fmr_b if gap_b == 0 else fmr_a + share * (fmr_b - fmr_a)), nearest

    def _crossing(self, scores: np.ndarray) -> float:
        """Return the lowest of the sorted `scores` at which, as threshold, FNMR >= FMR; infinity if there is none."""
        found = bisect_left(range(len(scores)), True, key=lambda i: bool(self.fnmr(scores[i]) >= self.fmr(scores[i])))
        return float(scores[found]) if found < len(scores) else float("inf")

    def fnmr_at_fmr(self, rate: float) -> tuple[float, float]:
        """Compute the lowest FNMR at which the FMR is at most `rate`.

        Returns:
            The FNMR, and the highest non-mated score that has to be rejected; -infinity if none has to be rejected.
        """
        total = len(self.nonmated)
        position = total - int(np.floor(rate * total + 1e-9))
        highest_rejected = float(self.nonmated[position - 1]) if position > 0 else FAILED
        rejected = np.searchsorted(self.mated, self.mated.dtype.type(highest_rejected), side="right")
        return float(rejected / len(self.mated)), highest_rejected

    def threshold_at_fmr(self, rate: float) -> float:
        """Return the lowest similarity to accept so that the FMR is at most `rate`.

        The threshold is the next number above the highest non-mated score that has to be rejected, in the precision of
        the scores. If none has to be rejected, it is the lowest score of all comparisons that did not fail.
        """
        rejected = self.fnmr_at_fmr(rate)[1]
        if rejected == FAILED:
            made = [scores[np.searchsorted(scores, FAILED, side="right") :] for scores in (self.mated, self.nonmated)]
            return float(min((scores[0] for scores in made if len(scores)), default=np.inf))
        return float(np.nextafter(self.nonmated.dtype.type(rejected), self.nonmated.dtype.type(np.inf)))

    def operating_points(self, most: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pairs of FMR and FNMR with their thresholds, from accepting nothing to accepting everything.

        Args:
            most: approximate number of thresholds to choose from the mated scores, and the same number from the
                non-mated scores. The points are denser where errors are rare. None returns one point for each distinct
                score.

        Returns:
            FMR (rising from 0), FNMR (falling from 1) and thresholds (falling from infinity).
        """
        chosen = [self.mated[_ranks(len(self.mated), most)], self.nonmated[::-1][_ranks(len(self.nonmated), most)]]
        scores = np.unique(np.concatenate(chosen))
        thresholds = np.append(scores[scores > FAILED], scores.dtype.type(np.inf))[::-1]
        return self.fmr(thresholds), self.fnmr(thresholds), thresholds


def sorted_curve(mated: np.ndarray, nonmated: np.ndarray) -> Curve:
    """Sort mated and non-mated scores, and return the FMR and FNMR as functions of the threshold.

    Args:
        mated: scores of the mated comparisons; -infinity for comparisons with a print that failed to acquire.
        nonmated: scores of the non-mated comparisons, with -infinity as in `mated`.

    Raises:
        UserError: if a score is NaN or +infinity, if there is no mated or no non-mated score, or if all mated or all
            non-mated comparisons failed.
    """
    dtype = np.result_type(mated, nonmated)
    dtype = dtype if dtype in (np.float32, np.float64) else np.dtype(np.float64)
    both = [np.sort(np.asarray(scores, dtype).ravel()) for scores in (mated, nonmated)]
    for name, scores in zip(("mated", "non-mated"), both, strict=True):
        if not len(scores):
            raise UserError(f"no {name} scores: error rates need mated and non-mated comparisons")
        if np.isnan(scores[-1]):  # NaN sorts last
            raise UserError(f"{int(np.isnan(scores).sum())} of {len(scores)} {name} scores are NaN")
        if scores[-1] == np.inf:
            raise UserError(f"{int(np.isposinf(scores).sum())} of {len(scores)} {name} scores are infinite")
        if scores[-1] == FAILED:
            raise UserError(f"all {len(scores)} {name} comparisons include a print that failed to acquire")
    return Curve(*both)


def resolvable(rate: float, count: int) -> bool:
    """Return whether `count` comparisons suffice to measure the error rate `rate`: 1 / `rate` are needed."""
    return count * rate >= 1 - 1e-9


def _ranks(count: int, most: int | None) -> np.ndarray:
    """Choose about `most` positions in a sorted list of `count` scores, to plot a curve with few points.

    Half of the chosen positions are evenly spaced. The others are denser towards position 0 (logarithmically spaced).

    Args:
        count: number of scores.
        most: approximate number of positions; None for all.
    """
    if most is None or count <= most:
        return np.arange(count)
    even = np.linspace(0, count - 1, most // 2)
    dense = np.geomspace(1, count, most - most // 2) - 1
    return np.unique(np.concatenate([even, dense]).round().astype(np.int64))


def _position(scores: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    """Return how many of the sorted scores are below each threshold."""
    return np.searchsorted(scores, np.asarray(threshold, scores.dtype), side="left")


def _previous(scores: np.ndarray, threshold: float) -> float:
    """Return the highest of the sorted scores that is below `threshold`, or -infinity if there is none."""
    position = int(_position(scores, threshold))
    return float(scores[position - 1]) if position else FAILED
