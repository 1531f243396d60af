"""Which print of which dataset becomes which row, when datasets become one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.order import permutation
from fingerprint_accel.data.pack_rows import RowTask, ShardPath, open_shard
from fingerprint_accel.data.print_file import Target
from fingerprint_accel.data.shard_writing import DatasetInfo
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError

MOST_IMPRESSIONS = 2**15  # of one finger: int16 in the dataset


@dataclass(frozen=True)
class Source:
    """A dataset to be merged.

    Attributes:
        name: that its keys are prefixed with where they collide.
        info: of the dataset.
        shards: its files, and `rows` in each.
        fingers: (N,) int32 dense finger id of each row.
        impressions: (N,) int16.
        keys: the owner's id of each finger.
        has_truth: whether it has the columns `pose` and `contact`.
    """

    name: str
    info: DatasetInfo
    shards: list[ShardPath]
    rows: list[int]
    fingers: np.ndarray
    impressions: np.ndarray
    keys: list[str]
    has_truth: bool


def open_source(folder: Path, name: str) -> Source:
    """Opens a dataset folder for merging; its files are mapped, not held open.

    Raises:
        UserError: it cannot be used, as `open_dataset` says.
    """
    dataset = open_dataset(folder)
    info = dataset.info
    shards = []
    for file in info.sha256:
        path = folder / file
        shards.append(ShardPath(str(path), path.stat().st_mtime_ns, info.ppi, info.canvas, info.encoding))
    rows = []
    for shard in shards:
        try:
            rows.append(open_shard(shard).num_rows)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{shard.path}: missing or damaged ({str(error)[:80]}); copy or import it again") from error
    fingers, impressions, keys = dataset.fingers, dataset.impressions, dataset.key_of_finger
    return Source(name, info, shards, rows, fingers, impressions, keys, dataset.has_truth)


class Merged:
    """The rows of several datasets in the order in which they are written: shuffled over fingers.

    Args:
        sources: the datasets.
        join: whether equal keys of different sources are one finger; otherwise they are kept apart.
        seed: of the order.

    Attributes:
        fingers: (N,) int32, numbered as they first appear.
        impressions: (N,) int16.
        has_truth: whether any source knows poses and contacts.

    Raises:
        UserError: more impressions of a joined finger than can be told apart.
    """

    def __init__(self, sources: Sequence[Source], join: bool, seed: int) -> None:
        names = [source.keys for source in sources] if join else kept_apart(sources)
        codes: dict[str, int] = {}
        finger = np.concatenate(
            [
                np.array([codes.setdefault(key, len(codes)) for key in keys], np.int64)[source.fingers]
                for source, keys in zip(sources, names, strict=True)
            ]
        )
        impression = np.concatenate([source.impressions for source in sources]).astype(np.int64)
        if join and len(sources) > 1:
            origin = np.repeat(np.arange(len(sources)), [len(source.fingers) for source in sources])
            impression = renumbered(finger, impression, origin)
            if impression.max() >= MOST_IMPRESSIONS:
                raise UserError(f"--join-fingers: a finger would have impression {impression.max()}; leave it out")
        self.has_truth = any(source.has_truth for source in sources)
        self.shards = [shard for source in sources for shard in source.shards]
        rows = [count for source in sources for count in source.rows]
        order = permutation(len(finger), seed, epoch=0, level=2)
        self._shard = np.repeat(np.arange(len(rows), dtype=np.int32), rows)[order]
        self._row = np.concatenate([np.arange(count, dtype=np.int32) for count in rows])[order]
        code = finger[order]
        _, first, which = np.unique(code, return_index=True, return_inverse=True)
        self.fingers = np.argsort(np.argsort(first))[which].astype(np.int32)
        self.impressions = impression[order].astype(np.int16)
        self._key = pa.array(list(codes), pa.string()).take(pa.array(code[np.sort(first)]))

    def __len__(self) -> int:
        return len(self.fingers)

    def keys(self, rows: slice) -> pa.Array:
        """The owner's id of the finger of each row."""
        return self._key.take(pa.array(self.fingers[rows]))

    def task(self, rows: slice | np.ndarray, target: Target, encoding: str) -> RowTask:
        """What a worker needs to know to pack some rows."""
        used, shard = np.unique(self._shard[rows], return_inverse=True)
        return RowTask([self.shards[number] for number in used], shard, self._row[rows], target, encoding)


def kept_apart(sources: Sequence[Source]) -> list[list[str]]:
    """The keys of each source; those that another source has too are prefixed with the source's name.

    Sources of one name are told apart by numbers: `db1/101`, `db1-2/101`.
    """
    count = Counter(itertools.chain.from_iterable(source.keys for source in sources))
    prefixes: set[str] = set()
    result = []
    for source in sources:
        if all(count[key] == 1 for key in source.keys):
            result.append(source.keys)
            continue
        for number in itertools.count(1):
            prefix = source.name if number == 1 else f"{source.name}-{number}"
            keys = [key if count[key] == 1 else f"{prefix}/{key}" for key in source.keys]
            taken = any(count[key] > 1 and f"{prefix}/{key}" in count for key in source.keys)
            if prefix not in prefixes and not taken:
                break
        prefixes.add(prefix)
        result.append(keys)
    return result


def renumbered(finger: np.ndarray, impression: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """(N,) int64 impressions in which those that an earlier source has taken go on behind the finger's highest.

    Args:
        finger, impression, origin: (N,) finger, impression, and number of the source of each print.
    """
    order = np.lexsort((impression, origin, finger))
    who, number = finger[order], impression[order].copy()
    claims = who << 16 | number
    _, first = np.unique(claims, return_index=True)  # the first of equal ones: that of the earliest source
    late = np.ones(len(order), bool)
    late[first] = False
    starts = np.flatnonzero(np.diff(who, prepend=-1))
    highest = np.repeat(np.maximum.reduceat(number, starts), np.diff(starts, append=len(who)))
    before = np.cumsum(late) - late  # late ones of all fingers before this print
    rank = before - np.repeat(before[starts], np.diff(starts, append=len(who)))
    number[late] = (highest + 1 + rank)[late]
    result = np.empty_like(impression)
    result[order] = number
    return result
