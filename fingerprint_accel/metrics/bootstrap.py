"""95 % confidence intervals of error rates, by resampling fingers (Efron 1979; ISO/IEC 19795-1).

Comparisons of one finger are not independent, so fingers are drawn with replacement, not comparisons. A finger that is
drawn k times gives its mated comparisons and its searches the weight k. A non-mated comparison has the product of the
weights of its two fingers, so that a finger is never compared with its own copy. The interval holds the middle 95 % of
the rates of all draws (percentile interval).

A leaf module: it imports numpy and other modules of this package only.
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
"""Number of draws."""
METHOD = (
    f"95 % percentile bootstrap over fingers, {RESAMPLES:,} draws with replacement; for identification the enrolled "
    "references stay the same and the fingers of the searches are drawn"
)
Interval = tuple[float, float]
"""Lower and upper end of an interval."""
Statistic = Callable[[WeightedCurves], np.ndarray]
"""One rate of each of B weighted curves, as (B,)."""


@dataclass(frozen=True)
class Difference:
    """Difference of one rate between two models on the same comparisons.

    Attributes:
        name: name of the rate.
        ours: rate of the evaluated model, as a share.
        theirs: rate of the other model, as a share.
        interval: 95 % interval of `ours - theirs`; each draw takes the same fingers for both models.
    """

    name: str
    ours: float
    theirs: float
    interval: Interval

    def verdict(self) -> str:
        """Return "lower" or "higher" where the interval excludes 0, else "no difference shown"."""
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
    """Return the intervals of several rates of a verification test.

    Args:
        scores: scores of the test.
        statistics: functions that compute the rates, such as `WeightedCurves.eer`.
        resamples: number of draws.
        seed: seed of the draws.
        most_nonmated: number of non-mated scores to use at most, as in `WeightedScores`.
    """
    drawn = _rates_of_draws([scores], statistics, resamples, seed, most_nonmated)
    return [_interval(values) for values in drawn[0]]


def bootstrap_eer(scores: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the interval of the equal error rate; arguments as in `bootstrap_scores`."""
    return bootstrap_scores(scores, [WeightedCurves.eer], resamples, seed)[0]


def bootstrap_fnir(
    searches: Searches, fpirs: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval]:
    """Return the intervals of the FNIR at several FPIRs in an open-set identification test.

    Args:
        searches: mated and non-mated searches.
        fpirs: false positive identification rates, as shares.
        resamples: number of draws.
        seed: seed of the draws.
    """
    names, codes = np.unique(searches.fingers, return_inverse=True)
    mated, fingers = searches.is_mated, codes[:, None]
    known = WeightedScores(searches.mated[mated], fingers[mated], searches.best_other[~mated], fingers[~mated])
    statistics = [fnmr_at(fpir) for fpir in fpirs]
    return [_interval(values) for values in _rates([known], statistics, len(names), resamples, seed)[0]]


def bootstrap_share(events: np.ndarray, fingers: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the interval of a share of prints or searches, such as a rank-k identification rate.

    Args:
        events: (N,) bool, whether the counted event occurred.
        fingers: (N,) finger of each print or search.
        resamples: number of draws.
        seed: seed of the draws.
    """
    _, codes = np.unique(fingers, return_inverse=True)
    counts = np.stack([np.bincount(codes, events), np.bincount(codes)], axis=1)
    # fingers with equal counts are exchangeable, so that drawing them is a multinomial draw of the kinds of fingers
    kinds, sizes = np.unique(counts, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(sizes.sum(), sizes / sizes.sum(), resamples)
    totals = draws @ kinds
    return _interval(totals[:, 0] / totals[:, 1])


def compare_scores(ours: Scores, theirs: Scores, resamples: int = RESAMPLES) -> list[Difference]:
    """Return the differences of the EER, and of the FNMR at the smallest FMR that rests on ten false matches.

    Args:
        ours: scores of the evaluated model.
        theirs: scores of the other model, for the same comparisons.
        resamples: number of draws.

    Raises:
        UserError: as `sorted_curve`.
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
    """Return the statistic "FNMR at this FMR"."""
    return lambda curves: curves.fnmr_at_fmr(fmr)


def _interval(values: np.ndarray) -> Interval:
    """Return the middle share `LEVEL` of the values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _rates_of_draws(
    several: Sequence[Scores],
    statistics: Sequence[Statistic],
    resamples: int,
    seed: int,
    most_nonmated: int = MOST_NONMATED,
) -> list[list[np.ndarray]]:
    """As `_rates`, for scores of the same comparisons."""
    pairs, (_, codes) = several[0].pairs, np.unique(several[0].fingers, return_inverse=True)
    compared = np.zeros(codes.max() + 1, bool)
    compared[codes[pairs.mated[:, 0]]] = compared[codes[pairs.nonmated]] = True
    codes = (np.cumsum(compared) - 1)[codes]  # fingers without a comparison are not drawn
    fingers = codes[pairs.mated[:, :1]], codes[pairs.nonmated]
    known = [WeightedScores(scores.mated, fingers[0], scores.nonmated, fingers[1], most_nonmated) for scores in several]
    return _rates(known, statistics, int(compared.sum()), resamples, seed)


def _rates(
    several: Sequence[WeightedScores], statistics: Sequence[Statistic], fingers: int, resamples: int, seed: int
) -> list[list[np.ndarray]]:
    """Return the rates of every draw, by model and statistic, each as (n,).

    Draws without a mated or without a non-mated comparison are left out.
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
    """Yield how often each finger is drawn, (fingers, B) float64, B <= `at_once` draws at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, at_once):
        some = [
            np.bincount(generator.integers(0, fingers, fingers), minlength=fingers)
            for _ in range(min(at_once, resamples - start))
        ]
        yield np.stack(some, axis=1).astype(np.float64)
