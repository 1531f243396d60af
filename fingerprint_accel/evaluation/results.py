"""What one evaluation found, as rows to print and as values to keep."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from fingerprint_accel.evaluation.against import Difference
from fingerprint_accel.evaluation.groups import Breakdown
from fingerprint_accel.evaluation.overlap import Overlap
from fingerprint_accel.metrics.identification import FPIRS, RANKS, Searches
from fingerprint_accel.metrics.protocols import Scores
from fingerprint_accel.metrics.verification import DEFINITIONS, FMRS, TAR_FARS, Metrics
from fingerprint_accel.text import aligned

Rows = list[tuple[str, str]]
KNOWN_AS = {1e-2: " (FMR100)", 1e-3: " (FMR1000)"}


@dataclass(frozen=True)
class Identification:
    """Searches of a closed and of an open set."""

    closed: Searches
    open: Searches

    def rows(self) -> Rows:
        """Rates by name; a dash where there are too few searches."""
        rows = [
            (f"rank-{rank} identification", percent(self.closed.identified(rank)))
            for rank in RANKS
            if rank == 1 or rank < self.closed.enrolled
        ]
        searches = f"{int(self.closed.is_mated.sum()):,} searches among {self.closed.enrolled:,} references"
        rows[0] = (rows[0][0], f"{rows[0][1]} ({searches})")
        nonmated = int((~self.open.is_mated).sum())
        for fpir in FPIRS:
            found = self.open.fnir(fpir)
            missing = f"- (needs {round(1 / fpir)} non-mated searches, there are {nonmated})"
            rows.append((f"FNIR at FPIR {100 * fpir:g} %", missing if found is None else at_threshold(*found)))
        return rows

    def values(self) -> dict[str, Any]:
        """For `metrics.json`."""
        mated = self.open.is_mated
        found = {f"{fpir:g}": self.open.fnir(fpir) for fpir in FPIRS}
        return {
            "closed_set": {
                "enrolled": self.closed.enrolled,
                "searches": int(self.closed.is_mated.sum()),
                "searches_possible": self.closed.possible,
                "rank": {str(rank): self.closed.identified(rank) for rank in RANKS},
                "cmc": self.closed.cmc().tolist(),
            },
            "open_set": {
                "enrolled": self.open.enrolled,
                "mated_searches": int(mated.sum()),
                "nonmated_searches": int((~mated).sum()),
                "fnir": {fpir: each and each[0] for fpir, each in found.items()},
                "fnir_thresholds": {fpir: each and finite(each[1]) for fpir, each in found.items()},
            },
        }


@dataclass(frozen=True)
class Rival:
    """Another model on the same comparisons."""

    name: str
    scores: Scores
    closed: Searches
    differences: list[Difference]


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured.

    Attributes:
        protocol, definition: which comparisons were made, by name and in words.
        scores, metrics: of verification.
        eer_interval: 95 % bootstrap interval of the EER over fingers.
        identification: closed and open set.
        failed: prints from which nothing could be extracted.
        prints: in all.
        breakdowns: by parts of the source.
        overlap: with the training data, where it was looked for.
        rival: another model, where one was given.
        poses: in which prints were compared, the best of which counts; 1: as they are.
    """

    protocol: str
    definition: str
    scores: Scores
    metrics: Metrics
    eer_interval: tuple[float, float]
    identification: Identification
    failed: int
    prints: int
    breakdowns: list[Breakdown] = field(default_factory=list)
    overlap: Overlap | None = None
    rival: Rival | None = None
    poses: int = 1

    def rates(self) -> Rows:
        """Names and values to print."""
        metrics = self.metrics
        low, high = self.eer_interval
        rows = [("EER", at_threshold(metrics.eer, metrics.eer_threshold))]
        rows.append(("EER, 95 % over fingers", f"{percent(low)} to {percent(high)}"))
        rows += [row for row, rate in zip(self.fnmr_rows(), FMRS, strict=True) if rate in metrics.fnmr_at_fmr]
        rows += [self.zero_fmr_row(), *self.other_rows(), *self.identification.rows()]
        if self.overlap is not None:
            rows.append(("training data", self.overlap.sentence()))
        return rows

    def fnmr_rows(self) -> Rows:
        """FNMR at every FMR of `FMRS`; a dash where the comparisons cannot resolve it."""
        rows = []
        for rate in FMRS:
            value = self.metrics.fnmr_at_fmr.get(rate)
            missing = f"- (needs {round(1 / rate):,} non-mated)"
            name = f"FNMR at FMR {100 * rate:g} %{KNOWN_AS.get(rate, '')}"
            rows.append((name, missing if value is None else at_threshold(value, self.metrics.thresholds[rate])))
        return rows

    def zero_fmr_row(self) -> tuple[str, str]:
        """Lowest FNMR without a false match."""
        return "ZeroFMR", at_threshold(self.metrics.zero_fmr, self.metrics.zero_fmr_threshold)

    def other_rows(self) -> Rows:
        """What else verification has to say."""
        metrics = self.metrics
        poses = f", best of {self.poses} poses" if self.poses > 1 else ""
        rows = [
            ("d'", "-" if metrics.d_prime is None else f"{metrics.d_prime:.2f}"),
            ("comparisons", f"{metrics.mated:,} mated, {metrics.nonmated:,} non-mated{poses}"),
            ("smallest resolvable FMR", f"{100 * metrics.smallest_fmr:.2g} %"),
        ]
        if self.failed:
            share = f"{self.failed:,} of {self.prints:,} prints ({percent(self.failed / self.prints)})"
            rows.append(("failure to extract", f"{share}, counted as never matching"))
        return rows

    def values(self) -> dict[str, Any]:
        """For `metrics.json`."""
        metrics = self.metrics
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
            "eer_interval_95": list(self.eer_interval),
            "nonmated_possible": self.scores.pairs.nonmated_possible,
            "failed_to_extract": self.failed,
            "identification": self.identification.values(),
            "breakdowns": [asdict(breakdown) for breakdown in self.breakdowns],
            "training_data": None if self.overlap is None else self.overlap.values(),
            "against": None
            if self.rival is None
            else {"model": self.rival.name, "differences": [asdict(row) for row in self.rival.differences]},
            "definitions": DEFINITIONS,
        }


def at_threshold(rate: float, threshold: float | None) -> str:
    """A rate with the lowest similarity accepted: `2.83% (threshold 0.412)`."""
    shown = finite(threshold)
    return f"{percent(rate)} (threshold {'-' if shown is None else f'{shown:.3f}'})"


def finite(value: float | None) -> float | None:
    """None for what JSON cannot hold: no score of any comparison is a threshold that accepts nothing."""
    return value if value is not None and math.isfinite(value) else None


def percent(share: float) -> str:
    """0.0283 -> 2.83%."""
    return f"{share:.2%}"


GROUP_HEADER = ("group", "prints", "mated", "non-mated", "EER", "FNMR", "FMR")
Table = list[tuple[str, ...]]


def results_text(evaluation: Evaluation, groups: bool = False) -> str:
    """Everything for the terminal; error rates of groups only where they are asked for."""
    parts = [aligned(evaluation.rates())]
    if evaluation.rival is not None:
        parts.append(aligned(difference_table(evaluation.rival), words=1))
    for part in evaluation.breakdowns if groups else []:
        parts.append(f"{group_title(part)}\n" + aligned(group_table(part), words=1))
    return "\n\n".join(parts)


def difference_table(rival: Rival) -> Table:
    """Rates of both models, difference in percentage points with its interval, and what the interval says."""
    rows = [
        (
            row.name,
            percent(row.ours),
            percent(row.theirs),
            f"{100 * row.difference:+.2f} (95 %: {100 * row.interval[0]:+.2f} to {100 * row.interval[1]:+.2f})",
            row.verdict(),
        )
        for row in rival.differences
    ]
    return [("", "this model", rival.name, "difference, points", ""), *rows]


def group_title(part: Breakdown) -> str:
    """What `group_table` holds."""
    rate = f"{100 * part.threshold_fmr:g} %"
    return (
        f"by {part.by}; FNMR and FMR at the threshold that gives all together an FMR of {rate} ({part.threshold:.3f})"
    )


def group_table(part: Breakdown) -> Table:
    """A line for each group."""

    def shown(rate: float | None, digits: int = 2) -> str:
        return "-" if rate is None else f"{rate:.{digits}%}"

    rows: Table = [GROUP_HEADER]
    for group in part.groups:
        counts = (f"{group.prints:,}", f"{group.mated:,}", f"{group.nonmated:,}")
        rows.append((group.name, *counts, shown(group.eer), shown(group.fnmr), shown(group.fmr, 3)))
    return rows
