"""Comparing datasets with the hashes that were taken when they were written."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from fingerprint_accel.data.shard_writing import file_sha256
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError

MOST_THREADS = 4  # hashing lets go of the interpreter; a disk is the limit soon


def verify_datasets(folders: Sequence[Path], threads: int, progress: bool = True) -> tuple[int, int]:
    """Compares every shard of some datasets with its sha256.

    Returns:
        Numbers of shards and of bytes compared.

    Raises:
        UserError: shards that have changed since they were written, by name; or a folder that is no dataset.
    """
    expected = {
        folder / name: hashed for folder in folders for name, hashed in open_dataset(folder).info.sha256.items()
    }
    sizes = {path: path.stat().st_size for path in expected}
    changed = []
    with (
        tqdm(total=sum(sizes.values()), desc="verifying", unit="B", unit_scale=True, disable=not progress) as bar,
        ThreadPoolExecutor(min(MOST_THREADS, threads)) as pool,
    ):
        for path, hashed in zip(expected, pool.map(file_sha256, expected), strict=True):
            if hashed != expected[path]:
                changed.append(path)
            bar.update(sizes[path])
    if changed:
        more = f", and those of {len(changed) - 1} more shards," if len(changed) > 1 else ""
        raise UserError(f"{changed[0]}: sha256 differs from fingerprint.json{more}; copy or import it again")
    return len(expected), sum(sizes.values())
