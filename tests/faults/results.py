"""Outcomes of trials: their records on disk, and the table that summarises them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# `recovered`: the result is that of an undisturbed command. `named`: refused in one line that names the file.
GOOD = ("recovered", "named")
BAD = ("lost", "silent", "left over", "traceback", "crash", "beyond budget")
NUMBERS = ("tried", "recovered or accepted", "named in one line", *BAD, "most s", "most MB")
PARSERS = "fuzzing"  # part that has a table of its own


@dataclass(frozen=True)
class Trial:
    """One trial, which its names and the seed of the run determine.

    Attributes:
        part: Part of the suite, for example `kills`.
        fault: Row of the table.
        subject: Command or file.
        number: Number of the trial.
    """

    part: str
    fault: str
    subject: str
    number: int

    @property
    def key(self) -> str:
        """Text that selects this trial on the command line."""
        return f"{self.part}::{self.fault}::{self.subject}::{self.number}"

    @classmethod
    def of(cls, key: str) -> Trial:
        """Return the trial that a text selects."""
        part, fault, subject, number = key.split("::")
        return cls(part, fault, subject, int(number))


@dataclass
class Outcome:
    """Result of a trial.

    Attributes:
        counts: Number of inputs by outcome; most trials have one input.
        details: One text for each failure.
        seconds: Largest duration of an input.
        megabytes: Largest growth of memory by an input.
    """

    counts: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    seconds: float = 0.0
    megabytes: float = 0.0

    def note(self, outcome: str, detail: str = "") -> Outcome:
        """Count one outcome, and keep the detail of a failure."""
        self.counts[outcome] += 1
        if outcome not in GOOD:
            self.details.append(f"{outcome}: {detail}")
        return self

    def measure(self, seconds: float, megabytes: float) -> None:
        """Note the time and memory of an input."""
        self.seconds, self.megabytes = max(self.seconds, seconds), max(self.megabytes, megabytes)

    def add(self, other: Outcome) -> None:
        """Add the inputs of another outcome."""
        self.counts += other.counts
        self.details += other.details
        self.measure(other.seconds, other.megabytes)

    @property
    def failures(self) -> int:
        """Number of inputs with a bad outcome."""
        return sum(number for outcome, number in self.counts.items() if outcome not in GOOD)


class Records:
    """JSON lines with one outcome each, to which a stopped run is continued.

    Args:
        folder: Folder of the records.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "outcomes.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]
        self.done = {row["key"] for row in self.rows}

    def add(self, trial: Trial, outcome: Outcome, wall: float = 0.0) -> None:
        """Append the outcome of a trial that took `wall` seconds."""
        row = {"key": trial.key, "trial": asdict(trial), **vars(outcome), "wall": wall}
        self.rows.append(row)
        self.done.add(trial.key)
        with self.path.open("ab", buffering=0) as file:  # several processes append whole lines
            file.write(json.dumps(row).encode() + b"\n")

    def failures(self, since: int = 0) -> list[str]:
        """Return one line for each failure: how to repeat it, and what was wrong.

        Args:
            since: Number of rows to skip.
        """
        return [f"--only {row['key']!r}: {detail}" for row in self.rows[since:] for detail in row["details"]]

    def findings(self, since: int = 0) -> list[str]:
        """Return one line for each kind of failure, with the number of failures and one example."""
        examples: dict[tuple[str, str], list[str]] = {}
        for row in self.rows[since:]:
            for detail in row["details"]:
                kind = re.sub(r"[0-9a-f]{8,}|[-\d.]+|'[^']*'|/\S+", "#", detail)[:150]
                examples.setdefault((row["trial"]["fault"], kind), []).append(f"{detail[:300]}  [{row['key']}]")
        return [f"{fault}: {len(found)} x {found[0]}" for (fault, _), found in examples.items()]

    def tables(self, by: Sequence[str] = ("part", "fault")) -> str:
        """Return two Markdown tables, with one row for each fault and one row for each parser.

        Args:
            by: Attributes of the trials by which the rows are grouped.
        """
        faults, parsers = (
            [row for row in self.rows if (row["trial"]["part"] == PARSERS) == wanted] for wanted in (False, True)
        )
        return f"{_table('fault', faults, by)}\n\n{_table('parser', parsers, by)}"


def _table(title: str, chosen: Sequence[dict[str, Any]], by: Sequence[str]) -> str:
    """Return a table of some rows, grouped by attributes of their trials."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in chosen:
        groups.setdefault(tuple(row["trial"][name] for name in by), []).append(row)
    lines = [(title, *NUMBERS), ("---", *["--:"] * len(NUMBERS))]
    for names, rows in groups.items():
        counts = sum((Counter(row["counts"]) for row in rows), Counter[str]())
        most = [max(row[name] for row in rows) for name in ("seconds", "megabytes")]
        numbers = [counts.total(), *(counts[name] for name in (*GOOD, *BAD))]
        label = ", ".join(dict.fromkeys(names[1:])) or names[0]
        lines.append((label, *(f"{number:,}" for number in numbers), f"{most[0]:.2f}", f"{most[1]:.0f}"))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
