"""Two models on the same comparisons: is the difference more than chance?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fingerprint_accel.metrics.bootstrap import bootstrap_differences, eer
from fingerprint_accel.metrics.curve import Curve
from fingerprint_accel.metrics.protocols import Scores
from fingerprint_accel.metrics.verification import compute_metrics, sensible_fmr


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

    @property
    def difference(self) -> float:
        """Below 0 where the evaluated model errs less."""
        return self.ours - self.theirs

    def verdict(self) -> str:
        """What the interval says."""
        low, high = self.interval
        if high < 0:
            return "lower"
        return "higher" if low > 0 else "no difference shown"


def compare_scores(ours: Scores, theirs: Scores, resamples: int = 1000) -> list[Difference]:
    """Differences of the EER and of the FNMR at the smallest FMR that rests on some false matches.

    Args:
        ours, theirs: scores of the same comparisons.
        resamples: of the bootstrap.

    Raises:
        UserError: unusable scores, as `compute_metrics`.
    """
    rates: list[tuple[str, Callable[[Curve], float]]] = [("EER", eer)]
    fmr = sensible_fmr(len(ours.nonmated))
    if fmr is not None:
        rates.append((f"FNMR at FMR {100 * fmr:g} %", lambda curve: curve.fnmr_at_fmr(fmr)[0]))
    intervals = bootstrap_differences(ours, theirs, [rate for _, rate in rates], resamples)
    values = []
    for scores in (ours, theirs):
        metrics = compute_metrics(scores.mated, scores.nonmated)
        values.append([metrics.eer] + ([metrics.fnmr_at_fmr[fmr]] if fmr is not None else []))
    return [
        Difference(name, our, their, interval)
        for (name, _), our, their, interval in zip(rates, *values, intervals, strict=True)
    ]
