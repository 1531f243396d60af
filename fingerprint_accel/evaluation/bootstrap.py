"""How much the error rates owe to the fingers that happen to be in the dataset."""

from __future__ import annotations

import numpy as np

from fingerprint_accel.evaluation.metrics import Curve
from fingerprint_accel.evaluation.protocols import Scores

MAX_SCORES = 200_000  # non-mated scores per resample; beyond, a fixed sample of them


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
    generator = np.random.default_rng(seed)
    names, codes = np.unique(scores.fingers, return_inverse=True)
    mated_finger = codes[scores.pairs.mated[:, 0]]
    nonmated_finger = codes[scores.pairs.nonmated]
    nonmated = scores.nonmated
    if len(nonmated) > MAX_SCORES:
        chosen = generator.choice(len(nonmated), MAX_SCORES, replace=False)
        nonmated, nonmated_finger = nonmated[chosen], nonmated_finger[chosen]
    mated_order, nonmated_order = np.argsort(scores.mated, kind="stable"), np.argsort(nonmated, kind="stable")
    mated, nonmated = scores.mated[mated_order], nonmated[nonmated_order]
    mated_finger, nonmated_finger = mated_finger[mated_order], nonmated_finger[nonmated_order]
    rates = []
    for _ in range(resamples):
        draws = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names)).astype(np.float64)
        mated_weight = draws[mated_finger]
        nonmated_weight = draws[nonmated_finger[:, 0]] * draws[nonmated_finger[:, 1]]
        if mated_weight.sum() > 0 and nonmated_weight.sum() > 0:
            rates.append(weighted_eer(mated, mated_weight, nonmated, nonmated_weight))
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def weighted_eer(
    mated: np.ndarray, mated_weight: np.ndarray, nonmated: np.ndarray, nonmated_weight: np.ndarray
) -> float:
    """EER of sorted scores that count several times; scores of weight 0 are left out."""
    kept, other = mated_weight > 0, nonmated_weight > 0
    below_mated = np.concatenate([[0.0], np.cumsum(mated_weight[kept])])
    below_nonmated = np.concatenate([[0.0], np.cumsum(nonmated_weight[other])])
    return Curve(mated[kept], nonmated[other], below_mated, below_nonmated).eer()[0]
