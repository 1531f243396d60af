"""Rates of one judge on one set, and tables of many: sets down, judges and their ways of comparing across."""

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
CLAIMED = ("0.01", "0.001")  # FMR that a calibration states thresholds for, as it names them


@dataclass(frozen=True)
class Measured:
    """Rates of one set, as shares; None where the set has too few non-mated comparisons to resolve the rate.

    Attributes:
        eer: equal error rate.
        eer_interval_95: its 95 % interval over fingers.
        fnmr_at_fmr_1_percent, fnmr_at_fmr_01_percent: false non-match rates at FMR 1 % and 0.1 %.
        mated_mean, nonmated_mean: mean similarities.
        prints: number of prints.
        mated, nonmated: number of comparisons.
        seconds: since the set was opened.
        fmr_at_threshold: FMR measured at the thresholds that the model's calibration states, by the FMR that it claims.
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
"""By judge (a model or NBIS), set and way of comparing."""


class Column(NamedTuple):
    """One way in which one judge compares."""

    judge: str
    way: str


def measured(scores: Scores, seconds: float, thresholds: Mapping[str, float] | None = None) -> Measured:
    """Rates of compared prints.

    Args:
        scores: of all comparisons of a set.
        seconds: that they took.
        thresholds: lowest similarity accepted, by the FMR that is claimed for it.
    """
    metrics = compute_metrics(scores.mated, scores.nonmated)
    nonmated = scores.nonmated.astype(np.float64)  # as decisions compare
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
    """Every way of every judge, in order."""
    return [Column(judge, way) for judge, sets in rates.items() for way in next(iter(sets.values()))]


def pooled_fmr(sets: Mapping[str, Mapping[str, Measured]], claimed: str) -> float:
    """FMR at the threshold for a claimed one, over the non-mated comparisons of all real sets together."""
    real = [ways[AS_IT_IS] for name, ways in sets.items() if not SETS[name].synthetic]
    wrong = sum(m.fmr_at_threshold.get(claimed, math.nan) * m.nonmated for m in real)
    return wrong / sum(m.nonmated for m in real) if real else math.nan


def rate_table(
    title: str, rates: Rates, value: Callable[[Measured], float | None], cell: Callable[[Measured], str] | None = None
) -> list[list[str]]:
    """Rows of a table: real sets, their mean, then synthetic sets.

    Args:
        title: heads the sets.
        rates: what was measured.
        value: a share, of which the mean is taken.
        cell: what stands in a set's row; default the share, in percent.
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
    """The same rows with a column of published figures, in percent by set."""
    by_title = {SETS[name].title: f"{value:.2f}" for name, value in quoted.items()}
    by_title["mean of real sets"] = f"{mean_of_real(quoted):.2f}"
    return [[*row, title if number == 0 else by_title[row[0]]] for number, row in enumerate(rows)]


def threshold_table(rates: Rates) -> list[list[str]]:
    """Rows: how alike different fingers are, and what the stated thresholds of each calibrated model let pass."""
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
    return [f"{m.nonmated_mean:.3f}", *(percent(m.fmr_at_threshold.get(claimed)) for claimed in CLAIMED)]


def _together(sets: Mapping[str, Mapping[str, Measured]]) -> list[str]:
    mean = mean_of_real({name: ways[AS_IT_IS].nonmated_mean for name, ways in sets.items()})
    return [f"{mean:.3f}", *(percent(pooled_fmr(sets, claimed)) for claimed in CLAIMED)]


def report(rates: Rates) -> str:
    """All tables as text: EER with intervals, FNMR at two FMRs, and what the stated thresholds let pass."""
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
    """Two digits, without the sign; "-" for what could not be resolved."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.2f}"


def _eer_with_interval(m: Measured) -> str:
    low, high = m.eer_interval_95
    return f"{percent(m.eer)} ({100 * low:.1f}-{100 * high:.1f})"


def _sets(rates: Rates, synthetic: bool) -> list[str]:
    return [name for name in next(iter(rates.values())) if SETS[name].synthetic == synthetic]


def _number(share: float | None) -> float:
    return math.nan if share is None else share
