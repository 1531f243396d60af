"""Summary of an import or a merge, read from the finished dataset folder."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fingerprint_accel.data.shard_writing import NOTES, REJECTED, DatasetInfo
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.text import aligned


@dataclass
class ImportSummary:
    """Summary of an import or a merge.

    Attributes:
        out: dataset folder.
        info: properties of the dataset.
        impressions: (F,) number of impressions of each finger, sorted in ascending order.
        rejected: number of rejected files for each reason.
        notes: number of prints for each distinct note (remark on how a print was read). The number is 1 for a note
            about the whole dataset.
        megabytes: size of the dataset folder in MB.
        seconds: duration of the import or merge.
    """

    out: Path
    info: DatasetInfo
    impressions: np.ndarray
    rejected: Counter[str]
    notes: Counter[str]
    megabytes: float
    seconds: float

    @classmethod
    def of(cls, out: Path, seconds: float) -> ImportSummary:
        """Make a summary from the files of a finished dataset folder.

        Args:
            out: dataset folder.
            seconds: duration of the import or merge.
        """
        dataset = open_dataset(out)
        rejected, notes = (Counter[str](), Counter[str]())
        for name, key, counter in ((REJECTED, "reason", rejected), (NOTES, "note", notes)):
            if (out / name).is_file():
                with (out / name).open() as lines:
                    counter.update(kind_of(json.loads(line)[key]) for line in lines)
        size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
        return cls(out, dataset.info, np.sort(np.bincount(dataset.fingers)), rejected, notes, size, seconds)

    def table(self) -> str:
        """Return the summary as a table of aligned text."""
        counts = self.impressions
        rows = [
            ("fingers", f"{self.info.fingers}"),
            ("impressions", f"{self.info.prints}"),
            ("per finger", f"{counts[0]} to {counts[-1]}, median {counts[len(counts) // 2]}"),
            ("with minutiae", f"{self.info.with_minutiae}"),
            ("rejected", f"{self.rejected.total()}"),
        ]
        rows += [(f"  {reason}", f"{number}") for reason, number in self.rejected.most_common()]
        rows += [
            ("shards", f"{len(self.info.sha256)}"),
            ("MB", f"{self.megabytes:.1f}"),
            ("seconds", f"{self.seconds:.1f} ({self.info.prints / max(1e-9, self.seconds):.0f} prints/s)"),
            ("dataset", str(self.out)),
        ]
        return aligned(rows)

    def show(self) -> None:
        """Print the table, the notes, and the path of the list of rejected files."""
        print(self.table())
        if self.rejected:
            print(f"rejected files and reasons: {self.out / REJECTED}")
        for note, count in self.notes.most_common():
            print(f"note: {note}" + (f" ({count} prints, see {self.out / NOTES})" if count > 1 else ""))


def kind_of(reason: str) -> str:
    """Return the kind of a rejection, given its reason, so that rejections of one kind can be counted.

    For example, `line 7: no path` becomes `no path`, and `damaged: ...` becomes `damaged`.
    """
    if reason.startswith("line "):
        reason = reason.partition(": ")[2]
    return reason.partition(":")[0].partition(" (")[0]
