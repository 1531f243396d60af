"""Compare files with the checksums that were stored when they were written."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from fingerprint_accel.durable import file_sha256
from fingerprint_accel.executors import cores

MOST_THREADS = 4  # hashing releases the GIL, so threads run in parallel; with more threads the disk is the limit


def differing_files(expected: Mapping[Path, str], label: str, progress: bool = True) -> list[Path]:
    """Return the files whose content does not have the expected checksum.

    Args:
        expected: SHA-256 of each file in hexadecimal, or the first digits of it.
        label: text in front of the progress bar.
        progress: show a progress bar.

    Raises:
        OSError: if a file is missing or cannot be read.
    """
    sizes = {path: path.stat().st_size for path in expected}
    differing = []
    with (
        tqdm(total=sum(sizes.values()), desc=label, unit="B", unit_scale=True, disable=not progress) as bar,
        ThreadPoolExecutor(min(MOST_THREADS, cores())) as pool,
    ):
        for path, found in zip(expected, pool.map(file_sha256, expected), strict=True):
            if not found.startswith(expected[path]):
                differing.append(path)
            bar.update(sizes[path])
    return differing
