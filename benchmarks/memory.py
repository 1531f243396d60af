"""Read data larger than memory, and open a dataset of millions of rows.

python benchmarks/memory.py --out FILE.json                  # both, about 5 minutes and 5 GB of disk
python benchmarks/memory.py --parts rows                     # 1.5 million rows: opening, first batch, memory
python benchmarks/memory.py --parts bound --gigabytes 8 --bound-mb 800

`bound` reads a dataset several times as large as the memory of the reading process. A control group limits the process
to --bound-mb, cached pages of files included. Making one needs root on Linux. Each order is read with a cold cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, versions
from results_file import check_results, write_results
from shard_writer import ShardWriter
from tqdm import tqdm

from fingerprint_accel.config import ReadingConfig
from fingerprint_accel.data.loader import subset_of_prints
from fingerprint_accel.data.order import SampleOrder, permutation
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.splitting import split_prints
from fingerprint_accel.errors import UserError, one_line_errors

GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # control groups of version 1 and 2
LIMITS = {"memory.limit_in_bytes": "memory.max_usage_in_bytes", "memory.max": "memory.peak"}
BATCH = 256


def resident_mb() -> dict[str, float]:
    """Return the resident memory of this process in MB: all, anonymous, and mapped files."""
    status = Path("/proc/self/status").read_text()
    names = {"all": "VmRSS", "own": "RssAnon", "files": "RssFile"}
    return {name: int(status.split(field + ":")[1].split()[0]) / 1e3 for name, field in names.items()}


def write(folder: Path, rows: int, canvas: int, per_finger: int, minutiae: int) -> None:
    """Write a dataset of noise, shuffled over fingers."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (64, canvas, canvas), dtype=np.uint8)
    points = generator.random((minutiae, 4)).astype(np.float32)
    with ShardWriter(folder, 300, canvas) as writer:
        for row in tqdm(permutation(rows, 0, 0).tolist(), desc=f"writing {rows} prints", unit="print"):
            finger, impression = divmod(row, per_finger)
            writer.add(Record(images[row % 64], f"{finger:07d}", impression, "noise", points))


def open_rows(folder: Path) -> dict[str, float]:
    """Measure seconds and memory for opening a dataset of many rows, and for the first batch of a resumed run."""
    before = resident_mb()
    open_seconds, shards = _timed(lambda: open_dataset(folder))
    opened = resident_mb()
    split_seconds, split = _timed(lambda: split_prints(shards, ReadingConfig(validation_fraction=0.05)))
    subset = subset_of_prints(shards, ~split.validation)

    def first_batch() -> None:
        with subset.loader(SampleOrder(len(subset), 0), BATCH, position=37 * len(subset) + 1_234_567) as loader:
            next(iter(loader))

    return {
        "rows": len(shards),
        "open_seconds": open_seconds,
        "split_seconds": split_seconds,
        "first_batch_seconds": _timed(first_batch)[0],
        "open_growth_mb": opened["all"] - before["all"],
        "training_growth_mb": resident_mb()["all"] - before["all"],
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Call `work`, and return seconds and result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def in_new_process(*words: str, group: Path | None = None) -> dict[str, float]:
    """Run this script with `words`, optionally in a control group, and return the values that it prints last."""
    done = subprocess.run(
        [sys.executable, __file__, *words],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=(lambda: _join(group)) if group else None,
    )
    if done.returncode:
        raise UserError(f"{' '.join(words)}: failed with exit code {done.returncode}; give it more --bound-mb")
    return json.loads(done.stdout.splitlines()[-1])


def read_bounded(folder: Path, order: str, batches: int) -> dict[str, float]:
    """Read batches in one order, and return rate and resident memory. Runs in the bounded process."""
    shards = open_dataset(folder)
    subset = subset_of_prints(shards, np.ones(len(shards), bool))
    before, most = resident_mb(), 0.0
    with subset.loader(SampleOrder(len(subset), 0, 16384 if order == "block" else 0), BATCH) as loader:
        read = iter(loader)
        next(read)
        started = time.perf_counter()
        for _ in range(batches):
            next(read)
            most = max(most, resident_mb()["files"] - before["files"])
        seconds = time.perf_counter() - started
    return {
        "prints_per_second": batches * BATCH / seconds,
        "read_mb": batches * BATCH * shards.info.canvas**2 / 1e6,
        "own_growth_mb": resident_mb()["own"] - before["own"],
        "most_mapped_mb": most,
        "announced": shards.larger_than_memory,
    }


@contextmanager
def memory_group(megabytes: int) -> Iterator[Path]:
    """Make a control group that limits the memory of its processes."""
    for root in GROUPS:
        group = root / f"fingerprint-accel-{os.getpid()}"
        for limit in LIMITS:
            if not (root / limit).exists() and not (root == GROUPS[1] and limit == "memory.max"):
                continue
            try:
                group.mkdir()
                (group / limit).write_text(str(megabytes * 10**6))
            except OSError:
                shutil.rmtree(group, ignore_errors=True)
                continue
            try:
                yield group
            finally:
                group.rmdir()
            return
    raise UserError("no control group can be made here (needs root on Linux); leave `bound` out of --parts")


def measure_bound(folder: Path, gigabytes: float, bound_mb: int, batches: int) -> dict[str, dict[str, float]]:
    """Measure every order in a process that may not use more than `bound_mb`."""
    rows = int(gigabytes * 1e9 / 320**2)
    write(folder, rows, canvas=320, per_finger=10, minutiae=50)
    results = {}
    for order in ("permutation", "block"):
        for file in folder.glob("*.arrow"):  # a cold cache
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with memory_group(bound_mb) as group:
            results[order] = in_new_process("--read", str(folder), order, str(batches), group=group)
            peak = next((group / name for name in LIMITS.values() if (group / name).exists()), None)
            if peak is not None:
                results[order]["peak_of_group_mb"] = int(peak.read_text()) / 1e6
        results[order] |= {"dataset_mb": rows * 320**2 / 1e6, "bound_mb": bound_mb}
    return results


def _join(group: Path) -> None:
    """Move this process into a control group."""
    (group / "cgroup.procs").write_text(str(os.getpid()))


def main() -> None:
    """Measure, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="rows,bound", help="rows, bound, or both")
    parser.add_argument("--rows", type=int, default=1_500_000, help="rows of the dataset with many rows")
    parser.add_argument("--gigabytes", type=float, default=4, help="size of the dataset read in bounded memory")
    parser.add_argument("--bound-mb", type=int, default=1000, help="memory of the reading process, file cache included")
    parser.add_argument("--batches", type=int, default=150, help=f"batches of {BATCH} prints in each order")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open:
        print(json.dumps(open_rows(given.open)))
        return
    if given.read:
        print(json.dumps(read_bounded(Path(given.read[0]), given.read[1], int(given.read[2]))))
        return
    check_results(given.out)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fingerprint-accel-") as scratch:
        if "rows" in given.parts:
            folder = Path(scratch) / "rows"
            write(folder, given.rows, canvas=8, per_finger=10, minutiae=50)
            results["rows"] = in_new_process("--open", str(folder))
            print("\n".join(f"{name:<22}{value:>12,.2f}" for name, value in results["rows"].items()))
        if "bound" in given.parts:
            results["bound"] = measure_bound(Path(scratch) / "bound", given.gigabytes, given.bound_mb, given.batches)
            for order, row in results["bound"].items():
                print(order + "".join(f"\n  {name:<20}{value:>12,.1f}" for name, value in row.items()))
    command = " ".join(["python", *sys.argv])
    results["setting"] = {**machine(torch.device("cpu")), **versions(), "command": command}
    if given.out:
        write_results(given.out, results)
        print(f"written to {given.out}")


if __name__ == "__main__":
    with one_line_errors():
        main()
