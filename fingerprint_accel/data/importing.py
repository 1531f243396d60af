"""The import: a folder (or csv) of image files becomes a dataset folder, in parallel and resumable.

The files are prepared part by part (`import_parts.py`), which processes share out and write to a hidden folder beside
the dataset; the main process joins the parts once all are there.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fingerprint_accel.data.encoding import check_encoding
from fingerprint_accel.data.import_parts import PartTask, is_of, make_part, read_part
from fingerprint_accel.data.import_plan import ImportPlan
from fingerprint_accel.data.launch import ALONE, Launch
from fingerprint_accel.data.listing import list_files
from fingerprint_accel.data.part_folder import PartFolder, alone_at, workers_here
from fingerprint_accel.data.print_file import Enhance, Target
from fingerprint_accel.data.shard_writing import (
    DATASET,
    INFO,
    REJECTED,
    DatasetInfo,
    Record,
    ShardWriter,
    file_sha256,
)
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.text import aligned

JOINED = "joined.sha256"  # among the parts: of the INFO of the dataset that they have become
DEFAULT_PPI = {"socofing": 500}


@dataclass
class ImportSummary:
    """What an import or a packing did.

    Attributes:
        out: the dataset folder.
        info: of the dataset.
        impressions_per_finger: how many fingers have 1, 2, ... impressions.
        rejected: number of files by reason.
        megabytes: size of the dataset folder.
        seconds: that it took.
    """

    out: Path
    info: DatasetInfo
    impressions_per_finger: Counter[int]
    megabytes: float
    seconds: float
    rejected: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, out: Path, seconds: float) -> ImportSummary:
        """Reads from a finished dataset folder what is worth saying."""
        dataset = open_dataset(out)
        rejected: Counter[str] = Counter()
        if (out / REJECTED).is_file():
            with (out / REJECTED).open() as log:
                rejected.update(kind_of(json.loads(line)["reason"]) for line in log)
        size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
        return cls(out, dataset.info, Counter(np.bincount(dataset.fingers).tolist()), size, seconds, rejected)

    def table(self) -> str:
        """The summary as aligned text."""
        counts = sorted(self.impressions_per_finger.elements())
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
        """Prints the table, and where to find what was rejected."""
        print(self.table())
        if self.rejected:
            print(f"rejected files and reasons: {self.out / REJECTED}")


def import_dataset(
    source: Path,
    out: Path,
    layout: str,
    ppi: int = 0,
    *,
    dataset_ppi: int = 300,
    canvas: int = 320,
    minutiae: Path | None = None,
    encoding: str = "raw",
    enhance: Enhance | None = None,
    workers: int = 0,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    launch: Launch = ALONE,
) -> ImportSummary | None:
    """Imports image files into a dataset folder; goes on from what an interrupted call with these arguments has left.

    The result does not depend on the number of workers or processes, nor on interruptions.

    Args:
        source: folder of images, or the csv file.
        out: dataset folder to make.
        layout: how file names are to be read (`layouts.NAMES`).
        ppi: resolution of the images, pixels per inch; names or csv columns that state one win.
        dataset_ppi: resolution of the dataset.
        canvas: side of a print in the dataset, pixels.
        minutiae: folder of minutiae files, with the paths of the images below `source` or with stems that no two images
            have; default: beside the images.
        encoding: of the images in the dataset, "raw" or "lz4".
        enhance: done once to every canvas (`preprocess.stored.enhance_canvas`); None leaves prints as they are.
        workers: processes; 0 for one per core. A script that asks for more than one needs
            `if __name__ == "__main__":` around the call.
        seed: of the order in which prints are written.
        overwrite: replace `out` if it is a dataset folder, and parts that another call has left.
        progress: shows progress bars.
        launch: the processes that share the work; each calls this, and all see `source` and `out`.

    Returns:
        The summary on the main process, None on others.

    Raises:
        UserError: nothing to import, nothing that could be used, no ppi, too little room on the disk, `out` may not be
            written (`outputs.check_folder`), or parts of another call lie beside it.
    """
    started = time.perf_counter()
    inputs = [source, *([minutiae] if minutiae else [])]
    check_folder(out, DATASET, inputs=inputs)
    _check_numbers(ppi, dataset_ppi, canvas, minutiae)
    check_encoding(encoding)
    listing = list_files(source, layout)
    ppi = ppi or DEFAULT_PPI.get(layout, 0)
    if not ppi and (listing.table["ppi"].to_numpy() == 0).any():
        raise UserError(f"{source}: resolution unknown; add --ppi, for example --ppi 500")
    plan = ImportPlan(source, layout, listing, ppi, minutiae, Target(dataset_ppi, canvas, enhance), encoding, seed)
    parts = PartFolder(out.with_name(f".{out.name}.parts"), plan.arguments(), plan.parts)
    with alone_at(out, launch):
        if not launch.first(lambda: _joined(out, parts)):
            _make(plan, parts, out, launch, workers, overwrite, progress)
            if launch.main:
                _join(plan, parts, out, overwrite, progress)
        if not launch.main:
            return None
        parts.remove()
    return ImportSummary.of(out, time.perf_counter() - started)


def _joined(out: Path, parts: PartFolder) -> bool:
    """Whether a run of the same arguments was cut off at the very end: dataset there, parts not yet deleted."""
    try:
        return parts.stored() == parts.arguments and file_sha256(out / INFO) == (parts.folder / JOINED).read_text()
    except OSError:
        return False


def _make(
    plan: ImportPlan, parts: PartFolder, out: Path, launch: Launch, workers: int, overwrite: bool, progress: bool
) -> None:
    """Makes this process's share of the missing parts."""

    def begin() -> None:
        check_folder(out, DATASET, overwrite)
        parts.begin(overwrite)
        for part in set(range(parts.count)) - set(parts.missing()):
            if not is_of(parts.path(part), plan.jobs(part)):
                parts.path(part).unlink()
        if plan.encoding == "raw":
            parts.check_room(len(plan) * plan.target.canvas**2)

    missing = parts.shared(launch, begin, progress)
    share = launch.share(missing)
    there = len(plan) - sum(len(plan.rows(part)) for part in missing)
    with launch.counting("importing", len(plan), there, progress) as made:
        tasks = (PartTask(parts, part, plan.jobs(part), plan.target, plan.encoding) for part in share)
        parts.make(launch, make_part, tasks, workers_here(workers, launch, len(share)), made)


def _join(plan: ImportPlan, parts: PartFolder, out: Path, overwrite: bool, progress: bool) -> None:
    """Parts to shards, and what was rejected to a list."""
    target, rejected = plan.target, Counter[str]()
    with ShardWriter(
        out, target.ppi, target.canvas,
        overwrite=overwrite, encoding=plan.encoding, enhanced=target.enhance is not None,
    ) as writer:  # fmt: skip
        with (writer.folder / REJECTED).open("w") as log:

            def reject(path: str, reason: str) -> None:
                rejected[kind_of(reason)] += 1
                log.write(json.dumps({"path": path, "reason": reason}) + "\n")

            used, listed = False, set()
            for path, reason in plan.listing.rejected:
                reject(path, reason)
            for part in tqdm(range(parts.count), desc="joining", unit="part", disable=not progress):
                for file in read_part(parts.path(part)):
                    if file.minutiae_reason and file.minutiae_file not in listed:  # one that fits several prints
                        listed.add(file.minutiae_file)
                        reject(file.minutiae_file, file.minutiae_reason)
                    if file.image is None:
                        reject(file.source, file.reason)
                    else:
                        writer.add(Record(file.image, file.finger_key, file.impression, file.source, file.minutiae))
                        used = True
        if not used:
            parts.remove()
            reasons = "; ".join(f"{number} x {reason}" for reason, number in rejected.most_common(3))
            raise UserError(f"{plan.source}: none of {len(plan)} images could be used ({reasons})")
        writer.complete()
        (parts.folder / JOINED).write_text(file_sha256(writer.folder / INFO))


def kind_of(reason: str) -> str:
    """What reasons have in common, for the summary: `line 7: no path` is `no path`, `damaged: ...` is `damaged`."""
    if reason.startswith("line "):
        reason = reason.partition(": ")[2]
    return reason.partition(":")[0].partition(" (")[0]


def _check_numbers(ppi: int, dataset_ppi: int, canvas: int, minutiae: Path | None) -> None:
    if not 50 <= (ppi or 500) <= 5000:
        raise UserError(f"--ppi {ppi}: must lie between 50 and 5000")
    check_canvas("--dataset-ppi", dataset_ppi, canvas)
    if minutiae is not None and not minutiae.is_dir():
        raise UserError(f"--minutiae {minutiae}: no such folder")


def check_canvas(option: str, ppi: int, canvas: int) -> None:
    """Raises UserError where a dataset cannot have this ppi, given as `option`, or this canvas."""
    if not 50 <= ppi <= 2000:
        raise UserError(f"{option} {ppi}: must lie between 50 and 2000")
    if not 64 <= canvas <= 2048:
        raise UserError(f"--canvas {canvas}: must lie between 64 and 2048")
