"""Rows of datasets as another dataset stores them, in a worker process. Imports little: every worker pays for it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.canvas import recanvas, recanvas_left
from fingerprint_accel.data.encoding import decode, encode
from fingerprint_accel.data.minutia_values import IMPLAUSIBLE, plausible
from fingerprint_accel.data.print_file import Target
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
class RowTask:
    """Rows to pack.

    Attributes:
        shards: those that the rows lie in.
        shard: (n,) which of them each row lies in.
        row: (n,) where in it.
        target: what prints are to look like.
        encoding: how they are to be stored.
    """

    shards: list[ShardPath]
    shard: np.ndarray
    row: np.ndarray
    target: Target
    encoding: str


@dataclass(frozen=True)
class PackedRow:
    """A print as it will be stored: bytes of its image, minutiae (n, 4) float32, where it came from, and its truth."""

    image: bytes
    minutiae: np.ndarray
    source: str
    truth: Truth | None = None


def pack_rows(task: RowTask) -> list[PackedRow]:
    """Reads rows, neighbours in a file one after the other, and returns them in the order of the task.

    Raises:
        UserError: a shard is missing or damaged, or holds minutiae that no print can have.
    """
    packed: dict[int, PackedRow] = {}
    for place in np.lexsort((task.row, task.shard)).tolist():
        shard = task.shards[task.shard[place]]
        try:
            packed[place] = _packed(shard, int(task.row[place]), task)
        except UserError:
            raise
        except (OSError, pa.ArrowException, ValueError) as error:
            raise UserError(f"{shard.path}: missing or damaged ({str(error)[:80]}); copy or import it again") from error
    return [packed[place] for place in range(len(task.row))]


def _packed(shard: ShardPath, row: int, task: RowTask) -> PackedRow:
    table, target = open_shard(shard), task.target
    stored = table["image"][row].as_buffer()
    minutiae = table["minutiae"][row].values.to_numpy().reshape(-1, 4)
    source, truth = table["source"][row].as_py(), _truth(table, row)
    if not plausible(minutiae):
        finger, impression = table["finger_key"][row], table["impression"][row]
        raise UserError(f"{shard.path}: {IMPLAUSIBLE} (finger {finger}, impression {impression}); import it again")
    same = (shard.ppi, shard.canvas) == (target.ppi, target.canvas)
    if same and target.enhance is None and shard.encoding == task.encoding:
        if task.encoding == "raw" and len(stored) != target.canvas**2:
            raise ValueError(f"{len(stored)} bytes where {target.canvas**2} belong")
        return PackedRow(stored.to_pybytes(), minutiae.copy(), source, truth)
    image = decode(stored, shard.encoding, shard.canvas)
    if not same:
        scale = target.ppi / shard.ppi
        image, minutiae = recanvas(image, minutiae, scale, target.canvas)
        if truth is not None:
            left = recanvas_left(shard.canvas, scale, target.canvas)
            truth = truth.on_another_canvas(left, scale, shard.canvas, target.canvas)
    return PackedRow(encode(target.finish(image), task.encoding), minutiae.copy(), source, truth)


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
