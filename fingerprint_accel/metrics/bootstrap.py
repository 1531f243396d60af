"""How much the error rates owe to the fingers that happen to be in the dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fingerprint_accel.metrics.curve import Curve
from fingerprint_accel.metrics.protocols import Scores

MAX_SCORES = 200_000  # non-mated scores per resample; beyond, a fixed sample of them
Rate = Callable[[Curve], float]


def eer(curve: Curve) -> float:
    """The equal error rate."""
    return curve.eer()[0]


def bootstrap_eer(scores: Scores, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the EER when fingers are drawn again with replacement (Efron 1979; ISO/IEC 19795-1).

    A finger drawn k times gives its mated scores the weight k; a non-mated score weighs the product of its two fingers'
    numbers of draws, so that a finger is never compared with its own copy.

    Args:
        scores: of a protocol.
        resamples: number of draws.
        seed: of the draws.
        level: of the interval.

    Returns:
        Lower and upper end.
    """
    return interval([eer(curve) for (curve,) in resampled([scores], resamples, seed)], level)


def bootstrap_differences(
    ours: Scores, theirs: Scores, rates: Sequence[Rate], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> list[tuple[float, float]]:
    """Percentile interval of each rate's difference, ours - theirs, when the same fingers are drawn for both.

    Args:
        ours, theirs: scores of the same comparisons.
        rates: what is computed of a curve.
        resamples, seed, level: as `bootstrap_eer`.
    """
    assert np.array_equal(ours.pairs.mated, theirs.pairs.mated), "the same comparisons"
    found = [
        [rate(our_curve) - rate(their_curve) for rate in rates]
        for our_curve, their_curve in resampled([ours, theirs], resamples, seed)
    ]
    return [interval(values, level) for values in zip(*found, strict=True)]


def interval(values: Sequence[float], level: float) -> tuple[float, float]:
    """The middle share `level` of the values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled(several: Sequence[Scores], resamples: int, seed: int) -> Iterator[list[Curve]]:
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
