"""What one evaluation found, as rows to print and as values to keep."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from fingerprint_accel.evaluation.groups import Breakdown, Table
from fingerprint_accel.evaluation.overlap import Overlap
from fingerprint_accel.metrics.bootstrap import Difference
from fingerprint_accel.metrics.identification import FPIRS, RANKS, Searches
from fingerprint_accel.metrics.protocols import Scores
from fingerprint_accel.metrics.verification import DEFINITIONS, FMRS, TAR_FARS, Metrics
from fingerprint_accel.text import aligned

Rows = list[tuple[str, str]]
KNOWN_AS = {1e-2: " (FMR100)", 1e-3: " (FMR1000)"}


@dataclass(frozen=True)
class Rival:
    """Another model on the same comparisons."""

    name: str
    scores: Scores
    closed: Searches
    differences: list[Difference]

    def table(self) -> Table:
        """Rates of both models, difference in percentage points with its interval, and what the interval says."""
        rows: Table = [("", "this model", self.name, "difference, points", "")]
        for row in self.differences:
            low, high = row.interval
            points = f"{100 * (row.ours - row.theirs):+.2f} (95 %: {100 * low:+.2f} to {100 * high:+.2f})"
            rows.append((row.name, percent(row.ours), percent(row.theirs), points, row.verdict()))
        return rows


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured.

    Attributes:
        protocol, definition: which comparisons were made, by name and in words.
        scores, metrics: of verification.
        eer_interval: 95 % bootstrap interval of the EER over fingers.
        closed, open: searches of identification.
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
    closed: Searches
    open: Searches
    failed: int
    prints: int
    breakdowns: list[Breakdown] = field(default_factory=list)
    overlap: Overlap | None = None
    rival: Rival | None = None
    poses: int = 1

    def verification_rows(self) -> Rows:
        """Rates by name; a dash where the comparisons cannot resolve one."""
        metrics = self.metrics
        low, high = self.eer_interval
        rows = [
            ("EER", at_threshold(metrics.eer, metrics.eer_threshold)),
            ("EER, 95 % interval over fingers", f"{percent(low)} to {percent(high)}"),
        ]
        for fmr in FMRS:
            text = f"- (needs {round(1 / fmr):,} non-mated)"
            if fmr in metrics.fnmr_at_fmr:
                text = at_threshold(metrics.fnmr_at_fmr[fmr], metrics.thresholds[fmr])
            rows.append((f"FNMR at FMR {100 * fmr:g} %{KNOWN_AS.get(fmr, '')}", text))
        poses = f", best of {self.poses} poses" if self.poses > 1 else ""
        rows += [
            ("ZeroFMR", at_threshold(metrics.zero_fmr, metrics.zero_fmr_threshold)),
            ("d'", "-" if metrics.d_prime is None else f"{metrics.d_prime:.2f}"),
            ("comparisons", f"{metrics.mated:,} mated, {metrics.nonmated:,} non-mated{poses}"),
            ("smallest resolvable FMR", f"{100 * metrics.smallest_fmr:.2g} %"),
        ]
        if self.failed:
            share = f"{self.failed:,} of {self.prints:,} prints ({percent(self.failed / self.prints)})"
            rows.append(("failure to extract", f"{share}, counted as never matching"))
        return rows

    def identification_rows(self) -> Rows:
        """Likewise of the searches, and what is in common with the training data."""
        rows = []
        searches = f" ({int(self.closed.is_mated.sum()):,} searches among {self.closed.enrolled:,} references)"
        for rank in RANKS:
            if rank == 1 or rank < self.closed.enrolled:
                text = f"{percent(self.closed.identified(rank))}{searches if rank == 1 else ''}"
                rows.append((f"rank-{rank} identification", text))
        nonmated = int((~self.open.is_mated).sum())
        for fpir in FPIRS:
            found = self.open.fnir(fpir)
            missing = f"- (needs {round(1 / fpir)} non-mated searches, there are {nonmated})"
            rows.append((f"FNIR at FPIR {100 * fpir:g} %", missing if found is None else at_threshold(*found)))
        if self.overlap is not None:
            rows.append(("in common with training data", self.overlap.sentence()))
        return rows

    def text(self, groups: bool = False) -> str:
        """Everything for the terminal, but for FMRs that are not resolved; groups only where they are asked for."""
        resolved = [row for row in self.verification_rows() if "(needs" not in row[1]]
        parts = [aligned(resolved + self.identification_rows())]
        if self.rival is not None:
            parts.append(aligned(self.rival.table(), words=1))
        for part in self.breakdowns if groups else []:
            parts.append(f"{part.title()}\n" + aligned(part.table(), words=1))
        return "\n\n".join(parts)

    def values(self) -> dict[str, Any]:
        """For `metrics.json`."""
        metrics, rival = self.metrics, self.rival
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
            "identification": self._identification_values(),
            "breakdowns": [asdict(breakdown) for breakdown in self.breakdowns],
            "training_data": self.overlap and self.overlap.values(),
            "against": rival and {"model": rival.name, "differences": [asdict(row) for row in rival.differences]},
            "definitions": DEFINITIONS,
        }

    def _identification_values(self) -> dict[str, Any]:
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


def at_threshold(rate: float, threshold: float) -> str:
    """A rate with the lowest similarity accepted: `2.83% (threshold 0.412)`."""
    return f"{percent(rate)} ({threshold_text(threshold)})"


def threshold_text(threshold: float) -> str:
    """`threshold 0.412`, unless nothing is accepted."""
    return f"threshold {threshold:.3f}" if math.isfinite(threshold) else "no threshold"


def finite(value: float | None) -> float | None:
    """None for what JSON cannot hold: no score of any comparison is a threshold that accepts nothing."""
    return value if value is not None and math.isfinite(value) else None


def percent(share: float) -> str:
    """0.0283 -> 2.83%."""
    return f"{share:.2%}"
