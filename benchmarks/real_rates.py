"""Rates of a matcher on a set, and tables of many: sets as rows, matchers and ways of comparison as columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from real_sets import SETS, mean_of_real

from fingerprint_accel.metrics.bootstrap import bootstrap_eer
from fingerprint_accel.metrics.protocols import Scores
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.text import aligned

AS_IT_IS, COMPARE = "as it is", "compare"
CLAIMED = ("0.01", "0.001")  # keys of a calibration: the FMR of its thresholds


@dataclass(frozen=True)
class Measured:
    """Rates of a set, as shares; None if the set has too few non-mated comparisons to resolve the rate.

    Attributes:
        eer: Equal error rate.
        eer_interval_95: 95 % interval of the EER over fingers.
        fnmr_at_fmr_1_percent: False non-match rate at FMR 1 %.
        fnmr_at_fmr_01_percent: False non-match rate at FMR 0.1 %.
        mated_mean: Mean similarity of mated comparisons.
        nonmated_mean: Mean similarity of non-mated comparisons.
        prints: Number of prints.
        mated: Number of mated comparisons.
        nonmated: Number of non-mated comparisons.
        seconds: Seconds for the set.
        fmr_at_threshold: FMR measured at the thresholds of the model's calibration, by the FMR that each claims.
    """

    eer: float
    eer_interval_95: tuple[float, float]
    fnmr_at_fmr_1_percent: float | None
    fnmr_at_fmr_01_percent: float | None
    mated_mean: float
    nonmated_mean: float
    prints: int
    mated: int
    nonmated: int
    seconds: float
    fmr_at_threshold: dict[str, float] = field(default_factory=dict)


Rates = Mapping[str, Mapping[str, Mapping[str, Measured]]]
"""Rates by matcher (a model or NBIS), set and way of comparison."""


class Column(NamedTuple):
    """A way of comparison of a matcher."""

    judge: str
    way: str


def measured(scores: Scores, seconds: float, thresholds: Mapping[str, float] | None = None) -> Measured:
    """Return the rates of compared prints.

    Args:
        scores: Scores of all comparisons of a set.
        seconds: Duration of the comparisons.
        thresholds: Lowest accepted similarity, by the FMR that it claims.
    """
    metrics = compute_metrics(scores.mated, scores.nonmated)
    nonmated = scores.nonmated.astype(np.float64)  # decisions compare in float64
    found = {rate: float((nonmated >= value).mean()) for rate, value in (thresholds or {}).items()}
    return Measured(
        metrics.eer,
        bootstrap_eer(scores),
        metrics.fmr100,
        metrics.fmr1000,
        metrics.mated_mean,
        metrics.nonmated_mean,
        len(scores.fingers),
        metrics.mated,
        metrics.nonmated,
        seconds,
        found,
    )


def columns(rates: Rates) -> list[Column]:
    """Return every way of comparison of every matcher, in order."""
    return [Column(judge, way) for judge, sets in rates.items() for way in next(iter(sets.values()))]


def pooled_fmr(sets: Mapping[str, Mapping[str, Measured]], claimed: str) -> float:
    """Return the FMR at the threshold for a claimed FMR, over the non-mated comparisons of all real sets."""
    real = [ways[AS_IT_IS] for name, ways in sets.items() if not SETS[name].synthetic]
    wrong = sum(m.fmr_at_threshold.get(claimed, math.nan) * m.nonmated for m in real)
    return wrong / sum(m.nonmated for m in real) if real else math.nan


def rate_table(
    title: str, rates: Rates, value: Callable[[Measured], float | None], cell: Callable[[Measured], str] | None = None
) -> list[list[str]]:
    """Return the rows of a table: real sets, their mean, then synthetic sets.

    Args:
        title: Heading of the column of sets.
        rates: Measured rates.
        value: Selects the share whose mean is taken.
        cell: Formats the cell of a set; by default the share in percent.
    """
    across = columns(rates)
    cell = cell or (lambda m: percent(value(m)))
    rows = [[title, *(f"{judge}, {way}" for judge, way in across)]]
    for name in _sets(rates, synthetic=False):
        rows.append([SETS[name].title, *(cell(rates[judge][name][way]) for judge, way in across)])
    means = [
        mean_of_real({name: _number(value(ways[way])) for name, ways in rates[judge].items()}) for judge, way in across
    ]
    rows.append(["mean of real sets", *map(percent, means)])
    for name in _sets(rates, synthetic=True):
        rows.append([SETS[name].title, *(cell(rates[judge][name][way]) for judge, way in across)])
    return rows


def with_quoted(rows: list[list[str]], title: str, quoted: Mapping[str, float]) -> list[list[str]]:
    """Add a column of published figures, in percent by set."""
    by_title = {SETS[name].title: f"{value:.2f}" for name, value in quoted.items()}
    by_title["mean of real sets"] = f"{mean_of_real(quoted):.2f}"
    return [[*row, title if number == 0 else by_title[row[0]]] for number, row in enumerate(rows)]


def threshold_table(rates: Rates) -> list[list[str]]:
    """Return rows: similarity of different fingers, and FMR at the stated thresholds of each calibrated model."""
    judges = [judge for judge, sets in rates.items() if next(iter(sets.values()))[AS_IT_IS].fmr_at_threshold]
    claims = [f"FMR where {100 * float(claimed):g} % is claimed" for claimed in CLAIMED]
    rows = [["as it is", *(f"{judge}: {name}" for judge in judges for name in ("non-mated mean", *claims))]]
    for synthetic in (False, True):
        for name in _sets(rates, synthetic):
            found = [rates[judge][name][AS_IT_IS] for judge in judges]
            rows.append([SETS[name].title, *(cell for m in found for cell in _accepted(m))])
        if not synthetic:
            rows.append(["real sets together", *(cell for judge in judges for cell in _together(rates[judge]))])
    return rows


def _accepted(m: Measured) -> list[str]:
    """Format the FMR at the stated thresholds of a set."""
    return [f"{m.nonmated_mean:.3f}", *(percent(m.fmr_at_threshold.get(claimed)) for claimed in CLAIMED)]


def _together(sets: Mapping[str, Mapping[str, Measured]]) -> list[str]:
    """Format the FMR at the stated thresholds of all real sets together."""
    mean = mean_of_real({name: ways[AS_IT_IS].nonmated_mean for name, ways in sets.items()})
    return [f"{mean:.3f}", *(percent(pooled_fmr(sets, claimed)) for claimed in CLAIMED)]


def report(rates: Rates) -> str:
    """Format all tables: EER with intervals, FNMR at two FMRs, and FMR at the stated thresholds."""
    names = next(iter(rates.values()))
    eers = rate_table("EER, % (95 %)", rates, lambda m: m.eer, _eer_with_interval)
    if "NBIS" not in rates:
        eers = with_quoted(eers, "NBIS, quoted", {name: SETS[name].nbis for name in names})
    tables = [
        with_quoted(eers, "SourceAFIS, quoted", {name: SETS[name].sourceafis for name in names}),
        rate_table("FNMR at FMR 0.1 %, %", rates, lambda m: m.fnmr_at_fmr_01_percent),
        rate_table("FNMR at FMR 1 %, %", rates, lambda m: m.fnmr_at_fmr_1_percent),
        threshold_table(rates),
    ]
    return "\n\n".join(aligned(rows, words=1) for rows in tables if len(rows[0]) > 1)


def percent(share: float | None) -> str:
    """Format a share with two decimals and without the sign, or "-" if it is not resolved."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.2f}"


def _eer_with_interval(m: Measured) -> str:
    """Format an EER with its interval."""
    low, high = m.eer_interval_95
    return f"{percent(m.eer)} ({100 * low:.1f}-{100 * high:.1f})"


def _sets(rates: Rates, synthetic: bool) -> list[str]:
    """Return the names of the real sets, or of the synthetic ones."""
    return [name for name in next(iter(rates.values())) if SETS[name].synthetic == synthetic]


def _number(share: float | None) -> float:
    """Return a share as a number, NaN if it is not resolved."""
    return math.nan if share is None else share
