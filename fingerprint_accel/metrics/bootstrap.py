"""95 % confidence intervals of error rates, by resampling fingers (Efron 1979; ISO/IEC 19795-1).

Comparisons of one finger are not independent, so the bootstrap draws fingers with replacement, not comparisons. If a
finger is drawn k times, each mated comparison and each search of this finger has the weight k. The weight of a
non-mated comparison is the product of the draw counts of the two fingers. Copies of a finger are never compared with
each other. The rate is computed for each draw, and the interval contains the middle 95 % of these rates (percentile
interval).

This module imports only numpy and other modules of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fingerprint_accel.metrics.curve import Curve, sorted_curve
from fingerprint_accel.metrics.identification import Searches
from fingerprint_accel.metrics.protocols import Scores
from fingerprint_accel.metrics.verification import sensible_fmr
from fingerprint_accel.metrics.weighted_curves import MOST_NONMATED, WeightedCurves, WeightedScores

LEVEL = 0.95
"""Confidence level of the intervals."""
RESAMPLES = 1000
"""Default number of bootstrap draws."""
METHOD = (
    f"95 % percentile bootstrap over fingers, {RESAMPLES:,} draws with replacement; for identification the enrolled "
    "references stay the same and the fingers of the searches are drawn"
)
Interval = tuple[float, float]
"""Lower and upper end of a confidence interval."""
Statistic = Callable[[WeightedCurves], np.ndarray]
"""Function that takes the curves of B bootstrap draws, and returns an array (B,) with one rate for each draw."""


@dataclass(frozen=True)
class Difference:
    """Difference of one error rate between two models on the same comparisons.

    Attributes:
        name: name of the rate.
        ours: rate of the evaluated model, as a share.
        theirs: rate of the other model, as a share.
        interval: 95 % interval of `ours - theirs`. Each bootstrap draw uses the same fingers for both models.
    """

    name: str
    ours: float
    theirs: float
    interval: Interval

    def verdict(self) -> str:
        """State whether the evaluated model has a "lower" or "higher" rate than the other model.

        Returns:
            "lower", "higher", or "no difference shown" if the interval contains 0.
        """
        low, high = self.interval
        if high < 0:
            return "lower"
        return "higher" if low > 0 else "no difference shown"


def bootstrap_scores(
    scores: Scores,
    statistics: Sequence[Statistic],
    resamples: int = RESAMPLES,
    seed: int = 0,
    most_nonmated: int = MOST_NONMATED,
) -> list[Interval]:
    """Compute the 95 % intervals of several rates of a verification test.

    Args:
        scores: similarities of the test.
        statistics: functions that compute the rates, such as `WeightedCurves.eer`.
        resamples: number of bootstrap draws.
        seed: random seed of the draws.
        most_nonmated: largest number of non-mated scores to use, see `WeightedScores`.

    Returns:
        One interval for each of `statistics`.
    """
    drawn = _rates_of_draws([scores], statistics, resamples, seed, most_nonmated)
    return [_interval(values) for values in drawn[0]]


def bootstrap_eer(scores: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Compute the 95 % interval of the equal error rate.

    Args:
        scores: similarities of a verification test.
        resamples: number of bootstrap draws.
        seed: random seed of the draws.
    """
    return bootstrap_scores(scores, [WeightedCurves.eer], resamples, seed)[0]


def bootstrap_fnir(
    searches: Searches, fpirs: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval]:
    """Compute the 95 % intervals of the FNIR at several FPIRs in an open-set identification test.

    FNIR and FPIR are the false-negative and the false-positive identification rate.

    Args:
        searches: mated and non-mated searches.
        fpirs: FPIRs as shares.
        resamples: number of bootstrap draws.
        seed: random seed of the draws.

    Returns:
        One interval for each FPIR.
    """
    names, codes = np.unique(searches.fingers, return_inverse=True)
    mated, fingers = searches.is_mated, codes[:, None]
    known = WeightedScores(searches.mated[mated], fingers[mated], searches.best_other[~mated], fingers[~mated])
    statistics = [fnmr_at(fpir) for fpir in fpirs]
    return [_interval(values) for values in _rates([known], statistics, len(names), resamples, seed)[0]]


def bootstrap_share(events: np.ndarray, fingers: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Compute the 95 % interval of a share of prints or searches, such as a rank-k identification rate.

    Args:
        events: (N,) bool, whether the event occurred for each print or search, for example a correct identification.
        fingers: (N,) finger identifier of each print or search.
        resamples: number of bootstrap draws.
        seed: random seed of the draws.
    """
    _, codes = np.unique(fingers, return_inverse=True)
    counts = np.stack([np.bincount(codes, events), np.bincount(codes)], axis=1)
    # Fingers with equal counts are interchangeable, so one multinomial draw over the different counts replaces many.
    kinds, sizes = np.unique(counts, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(sizes.sum(), sizes / sizes.sum(), resamples)
    totals = draws @ kinds
    return _interval(totals[:, 0] / totals[:, 1])


def compare_scores(ours: Scores, theirs: Scores, resamples: int = RESAMPLES) -> list[Difference]:
    """Compare two models by EER, and by FNMR at the smallest FMR for which ten false matches are expected.

    Args:
        ours: similarities that the evaluated model computed.
        theirs: similarities that the other model computed for the same comparisons.
        resamples: number of bootstrap draws.

    Returns:
        The difference of each rate, with a 95 % interval.

    Raises:
        UserError: if the scores of a model are not valid, see `sorted_curve`.
    """
    assert np.array_equal(ours.pairs.mated, theirs.pairs.mated), "the same comparisons"
    rates: dict[str, tuple[Callable[[Curve], float], Statistic]] = {
        "EER": (lambda curve: curve.eer()[0], WeightedCurves.eer)
    }
    fmr = sensible_fmr(len(ours.nonmated))
    if fmr is not None:
        rates[f"FNMR at FMR {100 * fmr:g} %"] = (lambda curve: curve.fnmr_at_fmr(fmr)[0], fnmr_at(fmr))
    curves = [sorted_curve(scores.mated, scores.nonmated) for scores in (ours, theirs)]
    drawn = _rates_of_draws([ours, theirs], [statistic for _, statistic in rates.values()], resamples, seed=0)
    return [
        Difference(name, rate(curves[0]), rate(curves[1]), _interval(first - second))
        for (name, (rate, _)), first, second in zip(rates.items(), *drawn, strict=True)
    ]


def fnmr_at(fmr: float) -> Statistic:
    """Return a function that computes the FNMR at a given FMR, for the argument `statistics` of `bootstrap_scores`."""
    return lambda curves: curves.fnmr_at_fmr(fmr)


def _interval(values: np.ndarray) -> Interval:
    """Return the range that contains the middle share `LEVEL` of the values, by quantiles."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _rates_of_draws(
    several: Sequence[Scores],
    statistics: Sequence[Statistic],
    resamples: int,
    seed: int,
    most_nonmated: int = MOST_NONMATED,
) -> list[list[np.ndarray]]:
    """Compute several rates for every bootstrap draw of fingers, for one or two models.

    Args:
        several: similarities of each model, for the same comparisons.
        statistics: functions that compute the rates.
        resamples: number of draws.
        seed: random seed of the draws.
        most_nonmated: largest number of non-mated scores to use, see `WeightedScores`.

    Returns:
        Nested list: for each model and each of `statistics`, an array (n,) with the rates of all usable draws; see
            `_rates`.
    """
    pairs, (_, codes) = several[0].pairs, np.unique(several[0].fingers, return_inverse=True)
    compared = np.zeros(codes.max() + 1, bool)
    compared[codes[pairs.mated[:, 0]]] = compared[codes[pairs.nonmated]] = True
    codes = (np.cumsum(compared) - 1)[codes]  # fingers that occur in no comparison are not drawn
    fingers = codes[pairs.mated[:, :1]], codes[pairs.nonmated]
    known = [WeightedScores(scores.mated, fingers[0], scores.nonmated, fingers[1], most_nonmated) for scores in several]
    return _rates(known, statistics, int(compared.sum()), resamples, seed)


def _rates(
    several: Sequence[WeightedScores], statistics: Sequence[Statistic], fingers: int, resamples: int, seed: int
) -> list[list[np.ndarray]]:
    """Compute several rates for every bootstrap draw of fingers, for one or several sets of scores.

    Draws without a mated or without a non-mated comparison are left out.

    Args:
        several: sets of scores, which depend on the same fingers.
        statistics: functions that compute the rates.
        fingers: number of fingers.
        resamples: number of draws.
        seed: random seed of the draws.

    Returns:
        Nested list: for each set of scores and each of `statistics`, an array (n,) with the rates of all usable draws.
    """
    found: list[list[list[np.ndarray]]] = [[[] for _ in statistics] for _ in several]
    at_once = min(scores.draws_at_once for scores in several)
    for draws in _draws(fingers, resamples, seed, at_once):
        for of_scores, scores in zip(found, several, strict=True):
            curves = scores.curves(draws)
            for values, statistic in zip(of_scores, statistics, strict=True):
                values.append(statistic(curves))
    return [[np.concatenate(values) for values in of_scores] for of_scores in found]


def _draws(fingers: int, resamples: int, seed: int, at_once: int) -> Iterator[np.ndarray]:
    """Draw fingers with replacement, and yield how often each finger is drawn, for batches of B draws.

    Args:
        fingers: number of fingers, which is also the number of fingers per draw.
        resamples: total number of draws.
        seed: random seed.
        at_once: largest number of draws in a batch.

    Yields:
        (fingers, B) float64 counts.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, at_once):
        some = [
            np.bincount(generator.integers(0, fingers, fingers), minlength=fingers)
            for _ in range(min(at_once, resamples - start))
        ]
        yield np.stack(some, axis=1).astype(np.float64)
