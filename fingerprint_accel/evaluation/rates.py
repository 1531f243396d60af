"""Format rates with their 95 % intervals and thresholds, as rows of a table and as values for `metrics.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fingerprint_accel.evaluation.groups import Table
from fingerprint_accel.metrics.bootstrap import Interval
from fingerprint_accel.metrics.identification import FPIRS, RANKS, Searches

HEADER = ("rate", "value", "95 % interval", "threshold")
NEEDS = "needs "  # start of the text that replaces a rate for which there are too few comparisons


def identification_rows(
    closed: Searches,
    opened: Searches,
    identified: Mapping[int, Interval],
    fnir: Mapping[float, Interval],
    ranks: Sequence[int],
) -> Table:
    """Return the identification rates as rows of a table with the columns `HEADER`.

    Args:
        closed: closed-set searches.
        opened: open-set searches.
        identified: intervals of the rank-k identification rates, by rank k.
        fnir: intervals of the FNIR, by FPIR.
        ranks: ranks to show; ranks above 1 are shown only if they are below the number of references.
    """
    rows: Table = []
    for rank in ranks:
        if rank == 1 or rank < closed.enrolled:
            rows.append(rate_row(f"rank-{rank} identification", closed.identified(rank), identified.get(rank), None))
    for fpir in FPIRS:
        name, found = f"FNIR at FPIR {100 * fpir:g} %", opened.fnir(fpir)
        if found is None:
            rows.append((name, "-", f"{NEEDS}{round(1 / fpir)} non-mated searches", "-"))
        else:
            rows.append(rate_row(name, found[0], fnir.get(fpir), found[1]))
    return rows


def identification_values(
    closed: Searches, opened: Searches, identified: Mapping[int, Interval], fnir: Mapping[float, Interval]
) -> dict[str, Any]:
    """Return the results of identification tests for `metrics.json`; see `identification_rows` for the arguments."""
    mated = opened.is_mated
    found = {f"{fpir:g}": opened.fnir(fpir) for fpir in FPIRS}
    return {
        "closed_set": {
            "enrolled": closed.enrolled,
            "searches": int(closed.is_mated.sum()),
            "searches_possible": closed.possible,
            "rank": {str(rank): closed.identified(rank) for rank in RANKS},
            "rank_interval_95": {str(rank): identified.get(rank) for rank in RANKS},
            "cmc": closed.cmc().tolist(),
        },
        "open_set": {
            "enrolled": opened.enrolled,
            "mated_searches": int(mated.sum()),
            "nonmated_searches": int((~mated).sum()),
            "fnir": {fpir: each and each[0] for fpir, each in found.items()},
            "fnir_interval_95": {f"{fpir:g}": fnir.get(fpir) for fpir in FPIRS},
            "fnir_thresholds": {fpir: each and finite(each[1]) for fpir, each in found.items()},
        },
    }


def rate_row(name: str, rate: float, interval: Interval | None, threshold: float | None) -> tuple[str, ...]:
    """Format one row of a table of rates; a dash stands for an interval or a threshold that does not exist."""
    shown = "-" if threshold is None else threshold_text(threshold)
    return name, percent(rate), "-" if interval is None else interval_text(interval), shown


def interval_text(interval: Interval) -> str:
    """Format an interval of shares, for example (0.012, 0.0283) as "1.20% to 2.83%"."""
    return f"{percent(interval[0])} to {percent(interval[1])}"


def threshold_text(threshold: float) -> str:
    """Format a threshold; an infinite threshold, which accepts no comparison, becomes "none"."""
    return f"{threshold:.3f}" if math.isfinite(threshold) else "none"


def finite(value: float | None) -> float | None:
    """Replace an infinite threshold, which JSON cannot store, by None."""
    return value if value is not None and math.isfinite(value) else None


def percent(share: float) -> str:
    """Format a share in percent, for example 0.0283 as "2.83%"."""
    return f"{share:.2%}"
