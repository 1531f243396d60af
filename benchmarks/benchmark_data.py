"""A dataset of synthetic prints for benchmarks. It is made once and kept for later runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from shard_writer import ShardWriter

from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.synthesis.writing import write_synthetic_dataset

FINGERS, IMPRESSIONS, COPIES = 48, 8, 8


def cache_folder() -> Path:
    """Return the folder for files that can be made again: `$XDG_CACHE_HOME`, else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fingerprint-accel"


def default_dataset(
    accelerator: Accelerator, fingers: int = FINGERS, impressions: int = IMPRESSIONS, copies: int = COPIES
) -> str:
    """Return the folder of the benchmark dataset. The first process makes it if it is missing.

    Every print is written `copies` times. Random reading then covers more memory than a processor's cache holds,
    although few prints have to be rendered.

    Raises:
        UserError: Too little room on the disk.
    """
    folder = cache_folder() / f"benchmark-{fingers}x{impressions}x{copies}"
    with accelerator.main_process_first():
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            print(f"no --data: making {fingers * impressions} synthetic prints, kept in {folder}", flush=True)
            once = folder.with_name(folder.name + ".once")
            write_synthetic_dataset(once, fingers, impressions, overwrite=True)
            _repeat(once, folder, copies)
    return str(folder)


def _repeat(source: Path, out: Path, copies: int) -> None:
    """Write the dataset `copies` times. Prints of a finger in another copy count as further impressions of it."""
    shards = open_dataset(source)
    rows = np.arange(len(shards))
    minutiae, counts = shards.minutiae(rows)
    per_copy = int(shards.impressions.max()) + 1
    with ShardWriter(out, shards.info.ppi, shards.info.canvas, overwrite=True) as writer:
        for copy in range(copies):
            for row in rows.tolist():
                writer.add(
                    Record(
                        np.array(shards.image(row)),
                        shards.key_of_finger[shards.fingers[row]],
                        copy * per_copy + int(shards.impressions[row]),
                        "synthetic",
                        minutiae[row, : counts[row]],
                    )
                )
    shutil.rmtree(source)
