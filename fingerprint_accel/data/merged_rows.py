"""Rows of datasets as another dataset stores them, in a worker. Imports little: every worker pays for it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.canvas import recanvas, recanvas_left
from fingerprint_accel.data.encoding import decode, encode
from fingerprint_accel.data.minutia_values import IMPLAUSIBLE, plausible
from fingerprint_accel.data.print_file import Target
from fingerprint_accel.data.shard_writing import record_batch, rows_per_record_batch, write_shard
from fingerprint_accel.data.truth import Truth
from fingerprint_accel.errors import UserError

OPEN_FILES = 4096  # mapped at a time; a mapping outlives its file descriptor, so that few of those are needed


@dataclass(frozen=True)
class ShardPath:
    """A shard of a source: where it is, a mark that changes when it is replaced, and what its prints look like."""

    path: str
    changed: int
    ppi: int
    canvas: int
    encoding: str


@dataclass(frozen=True)
class MergedRow:
    """A print as it will be stored: bytes of its image, minutiae (n, 4) float32, where it came from, and its truth."""

    image: bytes
    minutiae: np.ndarray
    source: str
    truth: Truth | None = None


def write_merged_shard(
    shards: list[ShardPath],
    shard: np.ndarray,
    row: np.ndarray,
    fingers: np.ndarray,
    impressions: np.ndarray,
    keys: pa.Array,
    target: Target,
    encoding: str,
    truth: bool,
    path: Path,
) -> dict[str, Any]:
    """Writes one shard from rows of others and says what is in it.

    Args:
        shards, shard, row, target, encoding: as of `read_rows`.
        fingers, impressions, keys: (n,) of each row.
        truth: as of `shard_writing.schema`.
        path: file to write.

    Raises:
        UserError: as of `read_rows`.
    """

    def batches() -> Iterator[pa.RecordBatch]:
        at_once = rows_per_record_batch(target.canvas)
        for start in range(0, len(row), at_once):
            some = slice(start, start + at_once)
            rows = read_rows(shards, shard[some], row[some], target, encoding)
            yield record_batch(
                [row.image for row in rows],
                fingers[some],
                impressions[some],
                keys[some],
                [row.source for row in rows],
                [row.minutiae for row in rows],
                [row.truth for row in rows] if truth else None,
            )

    return write_shard(path, batches(), truth)


def read_rows(
    shards: list[ShardPath], shard: np.ndarray, row: np.ndarray, target: Target, encoding: str
) -> list[MergedRow]:
    """Reads rows, neighbours in a file one after the other, and returns them in the order given.

    Args:
        shards: those that the rows lie in.
        shard: (n,) which of them each row lies in.
        row: (n,) where in it.
        target: what prints are to look like.
        encoding: how they are to be stored.

    Raises:
        UserError: a shard is missing or damaged, or holds minutiae that no print can have.
    """
    found: dict[int, MergedRow] = {}
    for place in np.lexsort((row, shard)).tolist():
        source = shards[shard[place]]
        try:
            found[place] = _read_row(source, int(row[place]), target, encoding)
        except UserError:
            raise
        except (OSError, pa.ArrowException, ValueError) as error:
            raise UserError(
                f"{source.path}: missing or damaged ({str(error)[:80]}); copy or import it again"
            ) from error
    return [found[place] for place in range(len(row))]


def _read_row(shard: ShardPath, row: int, target: Target, encoding: str) -> MergedRow:
    table = open_shard(shard)
    stored = table["image"][row].as_buffer()
    minutiae = table["minutiae"][row].values.to_numpy().reshape(-1, 4)
    source, truth = table["source"][row].as_py(), _truth(table, row)
    if not plausible(minutiae):
        finger, impression = table["finger_key"][row], table["impression"][row]
        raise UserError(f"{shard.path}: {IMPLAUSIBLE} (finger {finger}, impression {impression}); import it again")
    same = (shard.ppi, shard.canvas) == (target.ppi, target.canvas)
    if same and target.enhance is None and shard.encoding == encoding:
        if encoding == "raw" and len(stored) != target.canvas**2:
            raise ValueError(f"{len(stored)} bytes where {target.canvas**2} belong")
        return MergedRow(stored.to_pybytes(), minutiae.copy(), source, truth)
    image = decode(stored, shard.encoding, shard.canvas)
    if not same:
        scale = target.ppi / shard.ppi
        image, minutiae = recanvas(image, minutiae, scale, target.canvas)
        if truth is not None:
            left = recanvas_left(shard.canvas, scale, target.canvas)
            truth = truth.on_another_canvas(left, scale, shard.canvas, target.canvas)
    return MergedRow(encode(target.finish(image), encoding), minutiae.copy(), source, truth)


def _truth(table: pa.Table, row: int) -> Truth | None:
    if "pose" not in table.column_names:
        return None
    return Truth(table["pose"][row].values.to_numpy().copy(), table["contact"][row].as_py())


@functools.lru_cache(OPEN_FILES)
def open_shard(shard: ShardPath) -> pa.Table:
    """The shard, mapped into memory.

    Raises:
        OSError, pa.ArrowException: it cannot be read.
    """
    with pa.memory_map(shard.path) as file:
        table = pa.ipc.open_stream(file.read_buffer(file.size())).read_all()
    for column in ("image", "minutiae", "pose", "contact"):  # a wrong offset would read past the end of the file
        if column in table.column_names:
            table[column].validate(full=True)
    return table
