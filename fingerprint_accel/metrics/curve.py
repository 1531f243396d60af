"""FMR and FNMR as functions of the threshold, exact with ties (ISO/IEC 19795-1).

Scores are similarities. A comparison is accepted when its score is at or above the threshold: FMR is the share of
non-mated comparisons accepted, FNMR the share of mated comparisons rejected. A score of -infinity stands for a
comparison with a print from which nothing could be extracted: it is rejected at every threshold, so that the rates are
the generalised ones of ISO/IEC 19795-1 (GFMR, GFNMR).

A leaf module: it imports numpy and the package's errors only.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from fingerprint_accel.errors import UserError

FAILED = -np.inf


@dataclass(frozen=True)
class Curve:
    """FMR and FNMR as step functions of the threshold, over sorted scores.

    Attributes:
        mated: (n,) sorted scores.
        nonmated: (m,) sorted scores, of the same type.
        mated_below: (n + 1,) weight, a whole number, of the mated scores before each position.
        nonmated_below: (m + 1,) likewise.
    """

    mated: np.ndarray
    nonmated: np.ndarray
    mated_below: np.ndarray
    nonmated_below: np.ndarray

    @classmethod
    def of(cls, mated: np.ndarray, nonmated: np.ndarray) -> Curve:
        """Of sorted scores that count once each."""
        return cls(mated, nonmated, np.arange(len(mated) + 1), np.arange(len(nonmated) + 1))

    def fmr(self, threshold: np.ndarray | float) -> np.ndarray:
        """Share of non-mated weight at or above each threshold."""
        total = self.nonmated_below[-1]
        share: np.ndarray = (total - self.nonmated_below[_position(self.nonmated, threshold)]) / total
        return share

    def fnmr(self, threshold: np.ndarray | float) -> np.ndarray:
        """Share of mated weight below each threshold."""
        share: np.ndarray = self.mated_below[_position(self.mated, threshold)] / self.mated_below[-1]
        return share

    def eer(self) -> tuple[float, float]:
        """Equal error rate, and the neighbouring operating point's threshold at which FMR and FNMR differ least.

        FNMR - FMR never falls as the threshold rises, so the crossing is found by bisection. Where failures to extract
        keep FNMR above FMR at every threshold there is none, and the lowest FNMR stands for it.
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
        """Lowest of `scores` used as a threshold at which FNMR >= FMR; infinity when there is none."""
        found = bisect_left(range(len(scores)), True, key=lambda i: bool(self.fnmr(scores[i]) >= self.fmr(scores[i])))
        return float(scores[found]) if found < len(scores) else float("inf")

    def fnmr_at_fmr(self, rate: float) -> tuple[float, float]:
        """Lowest FNMR with FMR <= `rate`, and the non-mated score above which the threshold lies (-inf: accept all)."""
        total = self.nonmated_below[-1]
        accepted = np.floor(rate * total + 1e-9)
        position = int(np.searchsorted(self.nonmated_below, total - accepted, side="left"))
        highest_rejected = float(self.nonmated[position - 1]) if position > 0 else FAILED
        rejected = np.searchsorted(self.mated, self.mated.dtype.type(highest_rejected), side="right")
        return float(self.mated_below[rejected] / self.mated_below[-1]), highest_rejected

    def threshold_at_fmr(self, rate: float) -> float:
        """The threshold of `fnmr_at_fmr`: the lowest similarity to accept.

        That is the next number above the highest non-mated score rejected, in the scores' own precision; where none has
        to be rejected, the lowest score of all comparisons that did not fail.
        """
        rejected = self.fnmr_at_fmr(rate)[1]
        if rejected == FAILED:
            made = [scores[np.searchsorted(scores, FAILED, side="right") :] for scores in (self.mated, self.nonmated)]
            return float(min((scores[0] for scores in made if len(scores)), default=np.inf))
        return float(np.nextafter(self.nonmated.dtype.type(rejected), self.nonmated.dtype.type(np.inf)))

    def operating_points(self, most: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every operating point from accepting nothing (threshold infinity) to accepting everything, or some of them.

        Args:
            most: about how many to choose of each kind of score, dense where errors are rare; None gives all.

        Returns:
            fmr (rising from 0), fnmr (falling from 1) and thresholds (falling): one entry per distinct score and one
            for infinity.
        """
        chosen = [self.mated[_ranks(len(self.mated), most)], self.nonmated[::-1][_ranks(len(self.nonmated), most)]]
        scores = np.unique(np.concatenate(chosen))
        thresholds = np.append(scores[scores > FAILED], scores.dtype.type(np.inf))[::-1]
        return self.fmr(thresholds), self.fnmr(thresholds), thresholds


def sorted_curve(mated: np.ndarray, nonmated: np.ndarray) -> Curve:
    """Sorts the scores of the two kinds of comparison.

    Raises:
        UserError: a score that is NaN or +infinity, no score of one kind, or only failed comparisons of one kind.
    """
    dtype = np.result_type(mated, nonmated)
    dtype = dtype if dtype in (np.float32, np.float64) else np.dtype(np.float64)
    both = [np.sort(np.asarray(scores, dtype).ravel()) for scores in (mated, nonmated)]
    for name, scores in zip(("mated", "non-mated"), both, strict=True):
        if not len(scores):
            raise UserError(f"no {name} scores: error rates need comparisons of both kinds")
        if np.isnan(scores[-1]):  # NaN sorts last
            raise UserError(f"{int(np.isnan(scores).sum())} of {len(scores)} {name} scores are NaN")
        if scores[-1] == np.inf:
            raise UserError(f"{int(np.isposinf(scores).sum())} of {len(scores)} {name} scores are infinite")
        if scores[-1] == FAILED:
            raise UserError(f"nothing could be extracted for any of the {len(scores)} {name} comparisons")
    return Curve.of(*both)


def resolvable(rate: float, count: int) -> bool:
    """Whether that many comparisons can show an error rate: at least 1/rate of them."""
    return count * rate >= 1 - 1e-9


def _ranks(count: int, most: int | None) -> np.ndarray:
    """Ranks from 0 to count - 1: all, or about `most` of them, half of them evenly spaced, half by their logarithm."""
    if most is None or count <= most:
        return np.arange(count)
    even = np.linspace(0, count - 1, most // 2)
    dense = np.geomspace(1, count, most - most // 2) - 1
    return np.unique(np.concatenate([even, dense]).round().astype(np.int64))


def _position(scores: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    """Number of sorted scores below each threshold."""
    return np.searchsorted(scores, np.asarray(threshold, scores.dtype), side="left")


def _previous(scores: np.ndarray, threshold: float) -> float:
    """Highest of the sorted scores below `threshold`, or -infinity."""
    position = int(_position(scores, threshold))
    return float(scores[position - 1]) if position else FAILED
