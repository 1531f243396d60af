"""The import: a folder (or csv) of image files becomes a dataset folder, in parallel."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from fingerprint_accel.data.encoding import check_encoding
from fingerprint_accel.data.listing import Listing, list_files
from fingerprint_accel.data.order import permutation
from fingerprint_accel.data.parallel import batched, cores, in_parallel
from fingerprint_accel.data.print_file import Enhance, Job, Prepared, Target, find_template, prepare_many
from fingerprint_accel.data.shard_writing import DatasetInfo, Record, ShardWriter
from fingerprint_accel.errors import UserError
from fingerprint_accel.text import aligned

JOBS_PER_TASK = 16
DEFAULT_PPI = {"socofing": 500}


@dataclass
class ImportSummary:
    """What an import did.

    Attributes:
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
) -> ImportSummary:
    """Imports image files into a dataset folder; the result does not depend on the number of workers.

    Args:
        source: folder of images, or the csv file.
        out: dataset folder to make.
        layout: how file names are to be read (`layouts.NAMES`).
        ppi: resolution of the images, pixels per inch; names or csv columns that state one win.
        dataset_ppi: resolution of the dataset.
        canvas: side of a print in the dataset, pixels.
        minutiae: folder of minutiae files with the images' stems; default: beside the images.
        encoding: of the images in the dataset, "raw" or "lz4".
        enhance: done once to every canvas (`preprocess.stored.enhance_canvas`); None leaves prints as they are.
        workers: processes; 0 for one per core.
        seed: of the order in which prints are written.
        overwrite: replace `out`.
        progress: shows a progress bar.

    Raises:
        UserError: nothing to import, nothing that could be used, no ppi, or `out` exists.
    """
    started = time.perf_counter()
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists already; choose another folder, or add --overwrite")
    _check_numbers(ppi, dataset_ppi, canvas, minutiae)
    check_encoding(encoding)
    listing = list_files(source, layout)
    ppi = ppi or DEFAULT_PPI.get(layout, 0)
    if not ppi and (listing.table["ppi"].to_numpy() == 0).any():
        raise UserError(f"{source}: resolution unknown; add --ppi, for example --ppi 500")
    rejected: Counter[str] = Counter()
    per_finger: Counter[str] = Counter()
    target = Target(dataset_ppi, canvas, enhance)
    enhanced = enhance is not None
    with ShardWriter(out, dataset_ppi, canvas, overwrite=overwrite, encoding=encoding, enhanced=enhanced) as writer:
        with (writer.folder / "rejected.jsonl").open("w") as log:

            def reject(path: str, reason: str) -> None:
                rejected[kind_of(reason)] += 1
                log.write(json.dumps({"path": path, "reason": reason}) + "\n")

            for path, reason in listing.rejected:
                reject(path, reason)
            jobs = _jobs(listing, ppi, minutiae, seed)
            bar = tqdm(total=len(listing.table), desc="importing", unit="print", disable=not progress)
            with contextlib.closing(_prepared(jobs, target, workers)) as results:
                for prepared in results:
                    job = prepared.job
                    if prepared.minutiae_reason:
                        reject(str(job.minutiae), prepared.minutiae_reason)
                    if prepared.image is None:
                        reject(job.name, prepared.reason)
                    else:
                        record = Record(prepared.image, job.finger_key, job.impression, job.name, prepared.minutiae)
                        writer.add(record)
                        per_finger[job.finger_key] += 1
                    bar.update()
            bar.close()
        if not per_finger:
            reasons = "; ".join(f"{number} x {reason}" for reason, number in rejected.most_common(3))
            raise UserError(f"{source}: none of {len(listing.table)} images could be used ({reasons})")
        info = writer.close()
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    seconds = time.perf_counter() - started
    return ImportSummary(out, info, Counter(per_finger.values()), size, seconds, rejected)


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


def _jobs(listing: Listing, ppi: int, minutiae: Path | None, seed: int) -> Iterator[Job]:
    """Files in the order in which they are written: shuffled over fingers."""
    table = listing.table.combine_chunks()
    order = permutation(len(table), seed, epoch=0, level=2)
    for start in range(0, len(order), 4096):
        rows = table.take(pa.array(order[start : start + 4096])).to_pylist()
        for row in rows:
            path = listing.root / row["path"]
            if row["minutiae"]:
                template: Path | None = listing.root / row["minutiae"]
            else:
                template = find_template(path, minutiae)
            yield Job(path, row["path"], row["finger_key"], row["impression"], row["ppi"] or ppi, template)


def _prepared(jobs: Iterator[Job], target: Target, workers: int) -> Generator[Prepared, None, None]:
    """Prepares jobs on several processes and yields them in order."""
    workers = workers or cores()
    tasks = ((batch, target) for batch in batched(jobs, 1 if workers == 1 else JOBS_PER_TASK))
    with contextlib.closing(in_parallel(prepare_many, tasks, workers)) as batches:
        for batch in batches:
            yield from batch
