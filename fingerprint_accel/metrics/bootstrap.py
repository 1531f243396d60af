"""How much error rates owe to the fingers that happen to be in the dataset, of one model and of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fingerprint_accel.metrics.curve import Curve, sorted_curve
from fingerprint_accel.metrics.protocols import Scores
from fingerprint_accel.metrics.verification import sensible_fmr

MAX_SCORES = 200_000  # non-mated scores per resample; beyond, a fixed sample of them
LEVEL = 0.95  # of the intervals


def bootstrap_eer(scores: Scores, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the EER when fingers are drawn again with replacement (Efron 1979; ISO/IEC 19795-1).

    A finger drawn k times gives its mated scores the weight k; a non-mated score weighs the product of its two fingers'
    numbers of draws, so that a finger is never compared with its own copy.

    Args:
        scores: of a protocol.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        Lower and upper end.
    """
    return _interval([curve.eer()[0] for (curve,) in _resampled([scores], resamples, seed)])


@dataclass(frozen=True)
class Difference:
    """One rate of two models.

    Attributes:
        name: of the rate.
        ours, theirs: shares.
        interval: 95 % bootstrap interval of ours - theirs over fingers, the same fingers drawn for both.
    """

    name: str
    ours: float
    theirs: float
    interval: tuple[float, float]

    def verdict(self) -> str:
        """What the interval says: more than chance?"""
        low, high = self.interval
        if high < 0:
            return "lower"
        return "higher" if low > 0 else "no difference shown"


def compare_scores(ours: Scores, theirs: Scores, resamples: int = 1000) -> list[Difference]:
    """Differences of the EER and of the FNMR at the smallest FMR that rests on some false matches.

    Args:
        ours, theirs: scores of the same comparisons.
        resamples: number of draws.

    Raises:
        UserError: unusable scores, as `sorted_curve`.
    """
    assert np.array_equal(ours.pairs.mated, theirs.pairs.mated), "the same comparisons"
    rates: dict[str, Callable[[Curve], float]] = {"EER": lambda curve: curve.eer()[0]}
    fmr = sensible_fmr(len(ours.nonmated))
    if fmr is not None:
        rates[f"FNMR at FMR {100 * fmr:g} %"] = lambda curve: curve.fnmr_at_fmr(fmr)[0]
    our_curve, their_curve = (sorted_curve(scores.mated, scores.nonmated) for scores in (ours, theirs))
    draws = [[rate(a) - rate(b) for rate in rates.values()] for a, b in _resampled([ours, theirs], resamples, seed=0)]
    return [
        Difference(name, rate(our_curve), rate(their_curve), _interval(values))
        for (name, rate), values in zip(rates.items(), zip(*draws, strict=True), strict=True)
    ]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle share `LEVEL` of the values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled(several: Sequence[Scores], resamples: int, seed: int) -> Iterator[list[Curve]]:
    """For each draw of fingers, the weighted curve of every one of `several` scores of the same comparisons.

    Draws without a mated or without a non-mated comparison are left out.
    """
    generator = np.random.default_rng(seed)
    pairs = several[0].pairs
    compared = [several[0].fingers[rows] for rows in (pairs.mated[:, 0], pairs.nonmated)]
    names, codes = np.unique(np.concatenate([fingers.ravel() for fingers in compared]), return_inverse=True)
    mated_finger, nonmated_finger = codes[: len(pairs.mated)], codes[len(pairs.mated) :].reshape(-1, 2)
    chosen: np.ndarray | slice = slice(None)
    if len(nonmated_finger) > MAX_SCORES:
        chosen = generator.choice(len(nonmated_finger), MAX_SCORES, replace=False)
        nonmated_finger = nonmated_finger[chosen]
    ordered = [(_sorted(scores.mated), _sorted(scores.nonmated[chosen])) for scores in several]
    for _ in range(resamples):
        draws = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names)).astype(np.float64)
        mated_weight = draws[mated_finger]
        nonmated_weight = draws[nonmated_finger[:, 0]] * draws[nonmated_finger[:, 1]]
        if mated_weight.any() and nonmated_weight.any():
            yield [
                weighted_curve(mated, mated_weight[m_order], nonmated, nonmated_weight[n_order])
                for (mated, m_order), (nonmated, n_order) in ordered
            ]


def weighted_curve(
    mated: np.ndarray, mated_weight: np.ndarray, nonmated: np.ndarray, nonmated_weight: np.ndarray
) -> Curve:
    """Curve of sorted scores that count several times; scores of weight 0 are left out."""
    kept, other = mated_weight > 0, nonmated_weight > 0
    below_mated = np.concatenate([[0.0], np.cumsum(mated_weight[kept])])
    below_nonmated = np.concatenate([[0.0], np.cumsum(nonmated_weight[other])])
    return Curve(mated[kept], nonmated[other], below_mated, below_nonmated)


def _sorted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(values, kind="stable")
    return values[order], order
