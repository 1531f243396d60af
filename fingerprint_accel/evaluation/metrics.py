"""Error rates of a comparison, from its scores (ISO/IEC 19795-1; FVC: Maio et al. 2002, "FVC2000", IEEE TPAMI 24(3)).

Scores are similarities. A comparison is accepted when its score is at or above the threshold: FMR is the share of
non-mated comparisons accepted, FNMR the share of mated comparisons rejected.

A leaf module: it imports numpy, torch, `protocols` and the package's errors only, so that the training loop may use it.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np
import torch

from fingerprint_accel.evaluation.protocols import score_protocol

TAR_FARS = (1e-2, 1e-3, 1e-4)
VALIDATION_NONMATED = 4_000_000
DEFINITIONS = {
    "FMR": "False match rate: share of non-mated comparisons with a score at or above the threshold.",
    "FNMR": "False non-match rate: share of mated comparisons with a score below the threshold.",
    "EER": "Equal error rate: where FMR = FNMR, on the straight line between the two neighbouring operating points of "
    "the step curve between which FNMR - FMR changes sign.",
    "FMR100": "Lowest FNMR with FMR at most 1 %.",
    "FMR1000": "Lowest FNMR with FMR at most 0.1 %.",
    "ZeroFMR": "Lowest FNMR with FMR = 0 on these comparisons.",
    "TAR@FAR": "True acceptance rate: 1 - lowest FNMR with FMR at most the stated rate.",
    "Resolvability": "A rate at FMR = f is given only with at least 1/f non-mated comparisons. That is the least at "
    "which a single false match is visible; by the rule of 3, no false match in n comparisons shows at 95 % "
    "confidence only that FMR is below 3/n.",
}


@dataclass(frozen=True)
class Curve:
    """FMR and FNMR as step functions of the threshold, over sorted scores.

    Attributes:
        mated: (n,) sorted scores.
        nonmated: (m,) sorted scores, of the same type.
        mated_below: (n + 1,) weight of the mated scores before each position; None counts each as 1.
        nonmated_below: (m + 1,) likewise.
    """

    mated: np.ndarray
    nonmated: np.ndarray
    mated_below: np.ndarray | None = None
    nonmated_below: np.ndarray | None = None

    def fmr(self, threshold: np.ndarray | float) -> np.ndarray:
        """Share of non-mated weight at or above each threshold."""
        below, total = _below(self.nonmated, self.nonmated_below, threshold)
        return (total - below) / total

    def fnmr(self, threshold: np.ndarray | float) -> np.ndarray:
        """Share of mated weight below each threshold."""
        below, total = _below(self.mated, self.mated_below, threshold)
        return below / total

    def eer(self) -> tuple[float, float]:
        """Equal error rate, and the neighbouring operating point's threshold at which FMR and FNMR differ least.

        FNMR - FMR never falls as the threshold rises, from -1 to 1, so the crossing is found by bisection.
        """
        after = min(self._crossing(self.mated), self._crossing(self.nonmated))
        before = max(_previous(self.mated, after), _previous(self.nonmated, after))
        fmr_a, fnmr_a = float(self.fmr(before)), float(self.fnmr(before))
        fmr_b, fnmr_b = float(self.fmr(after)), float(self.fnmr(after))
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
        count = len(self.nonmated)
        below = np.arange(0) if self.nonmated_below is None else self.nonmated_below
        if self.nonmated_below is None:
            position = count - int(np.floor(rate * count + 1e-9))
        else:  # lowest position with at most rate * total at or above it
            position = int(np.searchsorted(below, below[-1] * (1 - rate) - 1e-9 * below[-1], side="left"))
        if position == 0:
            return 0.0, float("-inf")
        highest_rejected = self.nonmated[position - 1]
        mated_rejected = int(np.searchsorted(self.mated, highest_rejected, side="right"))
        if self.mated_below is None:
            return mated_rejected / len(self.mated), float(highest_rejected)
        return float(self.mated_below[mated_rejected] / self.mated_below[-1]), float(highest_rejected)


@dataclass(frozen=True)
class Metrics:
    """Error rates, as shares; None where the non-mated comparisons cannot resolve the rate (see `DEFINITIONS`).

    Attributes:
        eer: equal error rate.
        eer_threshold: score of the operating point next to it.
        fmr100: lowest FNMR with FMR <= 1 %.
        fmr1000: lowest FNMR with FMR <= 0.1 %.
        zero_fmr: lowest FNMR with FMR = 0.
        tar: 1 - lowest FNMR by FAR, resolvable FARs only.
        mated: number of mated comparisons.
        nonmated: number of non-mated comparisons.
        mated_mean, mated_std, nonmated_mean, nonmated_std: moments of the scores.
    """

    eer: float
    eer_threshold: float
    fmr100: float | None
    fmr1000: float | None
    zero_fmr: float
    mated: int
    nonmated: int
    mated_mean: float
    mated_std: float
    nonmated_mean: float
    nonmated_std: float
    tar: dict[float, float] = field(default_factory=dict)


def resolvable(far: float, nonmated: int) -> bool:
    """Whether that many non-mated comparisons can show a false match rate of `far`: at least 1/far of them."""
    return nonmated * far >= 1 - 1e-9


def sorted_curve(mated: np.ndarray, nonmated: np.ndarray) -> Curve:
    """Sorts the scores of the two kinds of comparison.

    Raises:
        ValueError: a NaN score, or no score of one kind.
    """
    dtype = np.result_type(mated, nonmated)
    dtype = dtype if dtype in (np.float32, np.float64) else np.dtype(np.float64)
    both = [np.sort(np.asarray(scores, dtype).ravel()) for scores in (mated, nonmated)]
    for name, scores in zip(("mated", "non-mated"), both, strict=True):
        if not len(scores):
            raise ValueError(f"no {name} scores")
        if np.isnan(scores[-1]):  # NaN sorts last
            raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} {name} scores are NaN")
    return Curve(*both)


def compute_metrics(mated: np.ndarray, nonmated: np.ndarray) -> Metrics:
    """All error rates of a set of scores; O(n log n), exact with ties.

    Raises:
        ValueError: a NaN score, or no score of one kind.
    """
    curve = sorted_curve(mated, nonmated)
    eer, threshold = curve.eer()
    count = len(curve.nonmated)

    def at(far: float) -> float | None:
        return curve.fnmr_at_fmr(far)[0] if resolvable(far, count) else None

    rates = {far: at(far) for far in TAR_FARS}
    return Metrics(
        eer=eer,
        eer_threshold=threshold,
        fmr100=at(1e-2),
        fmr1000=at(1e-3),
        zero_fmr=curve.fnmr_at_fmr(0.0)[0],
        mated=len(curve.mated),
        nonmated=count,
        mated_mean=float(curve.mated.mean(dtype=np.float64)),
        mated_std=float(curve.mated.std(dtype=np.float64)),
        nonmated_mean=float(curve.nonmated.mean(dtype=np.float64)),
        nonmated_std=float(curve.nonmated.std(dtype=np.float64)),
        tar={far: 1 - rate for far, rate in rates.items() if rate is not None},
    )


def det_curve(mated: np.ndarray, nonmated: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every operating point, from accepting nothing (threshold infinity) to accepting everything.

    Returns:
        fmr (rising from 0 to 1), fnmr (falling from 1 to 0) and thresholds (falling), one entry per distinct score
        and one for infinity.

    Raises:
        ValueError: a NaN score, or no score of one kind.
    """
    curve = sorted_curve(mated, nonmated)
    scores = np.unique(np.concatenate([curve.mated, curve.nonmated]))
    thresholds = np.append(scores, scores.dtype.type(np.inf))[::-1]
    return curve.fmr(thresholds), curve.fnmr(thresholds), thresholds


def validation_metrics(embeddings: torch.Tensor, fingers: torch.Tensor) -> dict[str, float | None]:
    """EER and TAR@FAR over all pairs of prints, for the training loop.

    Exact up to `VALIDATION_NONMATED` non-mated pairs (about 2,800 prints); beyond, over that many, a fixed sample.

    Args:
        embeddings: (N, D) on any device.
        fingers: (N,) finger of each print.

    Returns:
        `eer`, `tar@far=0.01`, `tar@far=0.001`, `tar@far=0.0001` (None where not resolvable), `mated`, `nonmated`.

    Raises:
        UserError: fewer than two fingers, no finger with two prints, or an embedding that is not finite.
    """
    labels = fingers.cpu().numpy()
    vectors = embeddings.detach().float().cpu().numpy()
    scores = score_protocol("all-pairs", vectors, labels, np.zeros(len(labels), np.int64), VALIDATION_NONMATED)
    metrics = compute_metrics(scores.mated, scores.nonmated)
    tars: dict[str, float | None] = {f"tar@far={far:g}": metrics.tar.get(far) for far in TAR_FARS}
    return {"eer": metrics.eer, **tars, "mated": metrics.mated, "nonmated": metrics.nonmated}


def _below(
    scores: np.ndarray, cumulative: np.ndarray | None, threshold: np.ndarray | float
) -> tuple[np.ndarray, float]:
    """Weight of the sorted scores below each threshold, and of all of them."""
    position = np.searchsorted(scores, np.asarray(threshold, scores.dtype), side="left")
    if cumulative is None:
        return position, len(scores)
    return cumulative[position], cumulative[-1]


def _previous(scores: np.ndarray, threshold: float) -> float:
    """Highest of the sorted scores below `threshold`, or -infinity."""
    position = int(np.searchsorted(scores, scores.dtype.type(threshold), side="left"))
    return float(scores[position - 1]) if position else float("-inf")
