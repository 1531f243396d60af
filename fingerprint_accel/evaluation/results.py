"""Results of one evaluation, and methods that return them as text tables and as values for `metrics.json`.

FNIR and FPIR are the false-negative and the false-positive identification rate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fingerprint_accel.evaluation.groups import Breakdown, Table
from fingerprint_accel.evaluation.intervals import Intervals
from fingerprint_accel.evaluation.overlap import Overlap
from fingerprint_accel.evaluation.persons import PersonRates
from fingerprint_accel.evaluation.rates import (
    HEADER,
    NEEDS,
    finite,
    identification_rows,
    identification_values,
    percent,
    rate_row,
)
from fingerprint_accel.metrics.bootstrap import METHOD, Difference
from fingerprint_accel.metrics.identification import RANKS, Searches
from fingerprint_accel.metrics.protocols import Scores
from fingerprint_accel.metrics.verification import DEFINITIONS, FMRS, TAR_FARS, Metrics
from fingerprint_accel.text import aligned

Rows = list[tuple[str, str]]
"""(name, text) rows of a table."""
KNOWN_AS = {1e-2: " (FMR100)", 1e-3: " (FMR1000)"}


@dataclass(frozen=True)
class Rival:
    """Results of a second model on the same comparisons, and its differences from the evaluated model.

    Attributes:
        name: name of the other model.
        scores: similarities that the other model computed.
        closed: closed-set searches with the other model.
        differences: difference between the two models for each rate.
    """

    name: str
    scores: Scores
    closed: Searches
    differences: list[Difference]

    def table(self) -> Table:
        """Return a table with a header and one row per rate.

        A row contains the rate of each model, the difference in percentage points, and whether it is significant.
        """
        rows: Table = [("", "this model", self.name, "difference, points", "")]
        for row in self.differences:
            low, high = row.interval
            points = f"{100 * (row.ours - row.theirs):+.2f} (95 %: {100 * low:+.2f} to {100 * high:+.2f})"
            rows.append((row.name, percent(row.ours), percent(row.theirs), points, row.verdict()))
        return rows


@dataclass(frozen=True)
class Evaluation:
    """All results of an evaluation.

    Attributes:
        protocol: name of the protocol, which defines the comparisons.
        definition: description of the comparisons.
        scores: similarities of the verification test.
        metrics: error rates of the verification test.
        closed: searches of the closed-set identification test.
        open: searches of the open-set identification test.
        intervals: 95 % intervals of the rates.
        failed: number of prints that failed to acquire.
        prints: number of all prints.
        breakdowns: error rates of groups of prints.
        overlap: fingers and prints that the test set shares with the training data; None if this was not determined.
        rival: results of another model; None if only one model was evaluated.
        persons: identification of persons by several fingers; None if this was not asked for.
        poses: number of poses in which prints were compared; 1 if prints were compared in a single pose.
    """

    protocol: str
    definition: str
    scores: Scores
    metrics: Metrics
    closed: Searches
    open: Searches
    intervals: Intervals
    failed: int
    prints: int
    breakdowns: list[Breakdown] = field(default_factory=list)
    overlap: Overlap | None = None
    rival: Rival | None = None
    poses: int = 1
    persons: PersonRates | None = None

    def verification_rates(self) -> Table:
        """Return the table of verification rates with intervals and thresholds; its first row is `HEADER`."""
        metrics, intervals = self.metrics, self.intervals
        rows: Table = [HEADER, rate_row("EER", metrics.eer, intervals.eer, metrics.eer_threshold)]
        for fmr in FMRS:
            name = f"FNMR at FMR {100 * fmr:g} %{KNOWN_AS.get(fmr, '')}"
            if fmr in metrics.fnmr_at_fmr:
                rows.append(
                    rate_row(name, metrics.fnmr_at_fmr[fmr], intervals.fnmr_at_fmr.get(fmr), metrics.thresholds[fmr])
                )
            else:
                rows.append((name, "-", f"{NEEDS}{round(1 / fmr):,} non-mated", "-"))
        return [
            *rows,
            rate_row("ZeroFMR", metrics.zero_fmr, None, metrics.zero_fmr_threshold),
            rate_row("failure to acquire (FTA)", self.failed / self.prints, intervals.failed, None),
        ]

    def identification_rates(self) -> Table:
        """Return the table of identification rates with intervals and thresholds; its first row is `HEADER`."""
        intervals = self.intervals
        return [HEADER, *identification_rows(self.closed, self.open, intervals.identified, intervals.fnir, RANKS)]

    def verification_facts(self) -> Rows:
        """Return (name, text) rows with d', numbers of comparisons, smallest resolvable FMR and failed prints."""
        metrics = self.metrics
        poses = f", best of {self.poses} poses" if self.poses > 1 else ""
        return [
            ("d'", "-" if metrics.d_prime is None else f"{metrics.d_prime:.2f}"),
            ("comparisons", f"{metrics.mated:,} mated, {metrics.nonmated:,} non-mated{poses}"),
            ("smallest resolvable FMR", f"{100 * metrics.smallest_fmr:.2g} %"),
            ("prints that failed to acquire", f"{self.failed:,} of {self.prints:,}"),
        ]

    def identification_facts(self) -> Rows:
        """Return the numbers of searches, and the overlap with the training data, as (name, text) rows."""
        closed, mated = self.closed, int(self.open.is_mated.sum())
        rows = [
            ("closed-set searches", f"{int(closed.is_mated.sum()):,} among {closed.enrolled:,} references"),
            (
                "open-set searches",
                f"{mated:,} mated, {len(self.open.rank) - mated:,} non-mated among {self.open.enrolled:,} references",
            ),
        ]
        if self.overlap is not None:
            rows.append(("in common with training data", self.overlap.sentence()))
        return rows

    def text(self, groups: bool = False) -> str:
        """Return all results as text for the terminal; rates for which there are too few comparisons are left out.

        Args:
            groups: also show the error rates of groups of prints.
        """
        rates = [*self.verification_rates(), *self.identification_rates()[1:]]
        resolved = [row for row in rates if not row[2].startswith(NEEDS)]
        parts = [aligned(resolved, words=1), aligned([*self.verification_facts(), *self.identification_facts()])]
        if self.persons is not None:
            rows = [row for row in self.persons.table() if not row[3].startswith(NEEDS)]
            parts.append(aligned(rows, words=1) + f"\n{self.persons.facts()}")
        if self.rival is not None:
            parts.append(aligned(self.rival.table(), words=1))
        for part in self.breakdowns if groups else []:
            parts.append(f"{part.title()}\n" + aligned(part.table(), words=1))
        return "\n\n".join(parts)

    def values(self) -> dict[str, Any]:
        """Return all results as a dictionary, for `metrics.json`."""
        metrics, intervals, rival = self.metrics, self.intervals, self.rival
        return {
            "protocol": self.protocol,
            "protocol_definition": self.definition,
            "poses": self.poses,
            **asdict(metrics),
            "eer_threshold": finite(metrics.eer_threshold),
            "zero_fmr_threshold": finite(metrics.zero_fmr_threshold),
            "fnmr_at_fmr": {f"{fmr:g}": metrics.fnmr_at_fmr.get(fmr) for fmr in FMRS},
            "thresholds": {f"{fmr:g}": finite(metrics.thresholds.get(fmr)) for fmr in FMRS},
            "tar": {f"{far:g}": metrics.tar.get(far) for far in TAR_FARS},
            "tar_thresholds": {f"{far:g}": finite(metrics.thresholds.get(far)) for far in TAR_FARS},
            "interval_method": METHOD,
            "eer_interval_95": intervals.eer,
            "fnmr_at_fmr_interval_95": {f"{fmr:g}": intervals.fnmr_at_fmr.get(fmr) for fmr in FMRS},
            "nonmated_possible": self.scores.pairs.nonmated_possible,
            "failure_to_acquire": {
                "prints": self.prints,
                "failed": self.failed,
                "rate": self.failed / self.prints,
                "interval_95": intervals.failed,
            },
            "identification": identification_values(self.closed, self.open, intervals.identified, intervals.fnir),
            "persons": self.persons and self.persons.values(),
            "breakdowns": [asdict(breakdown) for breakdown in self.breakdowns],
            "training_data": self.overlap and self.overlap.values(),
            "against": rival and {"model": rival.name, "differences": [asdict(row) for row in rival.differences]},
            "definitions": DEFINITIONS,
        }
