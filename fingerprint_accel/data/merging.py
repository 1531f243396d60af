"""`fingerprint-accel merge`: datasets become one, with other shards, encoding, resolution or canvas. Resumable."""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.encoding import check_encoding
from fingerprint_accel.data.importing import ImportSummary, check_canvas, versions
from fingerprint_accel.data.merged_rows import ShardPath, open_shard, read_rows, write_merged_shard
from fingerprint_accel.data.order import permutation
from fingerprint_accel.data.print_file import Enhance, Target
from fingerprint_accel.data.shard_writing import (
    DATASET,
    MINUTIAE_BYTES,
    SHARD_NAMES,
    DatasetInfo,
    publish_dataset,
    rows_per_shard,
)
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.durable import file_sha256
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.executors import open_workers
from fingerprint_accel.jobs import Facts, Job, run
from fingerprint_accel.outputs import check_folder

MOST_IMPRESSIONS = 2**15  # of one finger: int16 in the dataset
SAMPLED = 16  # prints encoded beforehand to tell how much room all will need


@dataclass(frozen=True)
class MergeOptions:
    """What the merged dataset is to be like; 0 or "" is what the first source is.

    Attributes:
        ppi: resolution, pixels per inch.
        canvas: side of a print, pixels.
        encoding: of the images, "raw" or "lz4".
        rows_per_shard: prints per file; 0 leaves it to `shard_writing.rows_per_shard`.
        join_fingers: equal finger keys of different sources are one finger.
        enhance: done once to every canvas (`preprocess.enhance.enhance_canvas`).
        seed: of the order in which prints are written.
    """

    ppi: int = 0
    canvas: int = 0
    encoding: str = ""
    rows_per_shard: int = 0
    join_fingers: bool = False
    enhance: Enhance | None = None
    seed: int = 0


def merge(
    sources: Sequence[Path],
    out: Path,
    options: MergeOptions | None = None,
    *,
    workers: int = 0,
    cluster: str = "",
    overwrite: bool = False,
    progress: bool = True,
) -> ImportSummary:
    """Writes one dataset folder from one or more; goes on from what an interrupted call with these arguments has left.

    The bytes depend on the sources and the options alone: not on workers or interruptions.

    Args:
        sources: dataset folders.
        out: dataset folder to make.
        options: what it is to be like.
        workers: processes; 0 for one per core. A script that asks for more than one needs
            `if __name__ == "__main__":` around the call.
        cluster: Dask scheduler whose workers take their place, see `executors.open_workers`.
        overwrite: replace `out` if it is a dataset folder, and shards that another call has left.
        progress: shows a progress bar.

    Raises:
        UserError: a source missing, damaged, or enhanced where others are not; `out` exists or lies in a source; a
            number out of range; too little room on the disk; shards of another call beside `out`.
    """
    started = time.perf_counter()
    sources, out = [source.resolve() for source in sources], Path(out).absolute()
    for source, times in Counter(sources).items():
        require(times == 1, f"{source}: given {times} times; give every source once")
    check_folder(out, DATASET, inputs=sources)
    opened = [open_source(source) for source in sources]
    job = MergeJob(opened, _completed(options or MergeOptions(), opened))
    with open_workers(workers, cluster) as team:
        run(job, out, team.executor, overwrite, progress)
    return ImportSummary.of(out, time.perf_counter() - started)


def _completed(options: MergeOptions, sources: Sequence[Source]) -> MergeOptions:
    """The options with what they leave to the first source.

    Raises:
        UserError: a number out of range, or prints that are enhanced where others are not or are to be again.
    """
    enhanced = [source.info.enhanced for source in sources]
    if any(enhanced) and options.enhance is not None:
        raise UserError(f"{sources[enhanced.index(True)].folder}: enhanced already; leave out --enhance")
    if len(set(enhanced)) > 1:
        which, other = sources[enhanced.index(True)].folder, sources[enhanced.index(False)].folder
        raise UserError(f"{which}: enhanced, but {other} is not; merge {other} with --enhance by itself first")
    first = sources[0].info
    ppi, canvas = options.ppi or first.ppi, options.canvas or first.canvas
    encoding = options.encoding or first.encoding
    check_canvas("--dataset-ppi", ppi, canvas)
    check_encoding(encoding)
    require(options.rows_per_shard >= 0, f"--rows-per-shard {options.rows_per_shard}: must not be negative")
    return replace(options, ppi=ppi, canvas=canvas, encoding=encoding)


@dataclass(frozen=True)
class Source:
    """A dataset to be merged.

    Attributes:
        folder: where it lies; its keys are prefixed with its name where they collide.
        info: of the dataset.
        shards: its files, and `rows` in each.
        fingers: (N,) int32 dense finger id of each row.
        impressions: (N,) int16.
        keys: the owner's id of each finger.
        has_truth: whether it has the columns `pose` and `contact`.
    """

    folder: Path
    info: DatasetInfo
    shards: list[ShardPath]
    rows: list[int]
    fingers: np.ndarray
    impressions: np.ndarray
    keys: list[str]
    has_truth: bool


def open_source(folder: Path) -> Source:
    """Opens a dataset folder for merging; its files are mapped, not held open.

    Raises:
        UserError: it cannot be used, as `open_dataset` says.
    """
    if not (folder / "fingerprint.json").is_file() and folder.is_dir():
        if any(folder.glob("*.arrow")):
            raise UserError(f"{folder}: no fingerprint.json beside its shards; copy or import it again")
        raise UserError(f"{folder}: not a dataset folder; if it holds images, `import` makes one of them")
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
    return Source(folder, info, shards, rows, fingers, impressions, keys, dataset.has_truth)


class MergeJob(Job):
    """The rows of several datasets in the order in which they are written, shuffled over fingers; shard by shard.

    Args:
        sources: the datasets.
        options: without defaults left open.

    Raises:
        UserError: more impressions of a joined finger than can be told apart.
    """

    label, kind, pattern = "merging", DATASET, SHARD_NAMES

    def __init__(self, sources: Sequence[Source], options: MergeOptions) -> None:
        self.options, self.target = options, Target(options.ppi, options.canvas, options.enhance)
        self.arguments: dict[str, Any] = {
            "sources": [[str(source.folder), file_sha256(source.folder / "fingerprint.json")] for source in sources],
            "ppi": options.ppi,
            "canvas": options.canvas,
            "encoding": options.encoding,
            "rows_per_shard": options.rows_per_shard,
            "join_fingers": options.join_fingers,
            "enhance": options.enhance is not None,
            "seed": options.seed,
            **versions(options.enhance is not None),
        }
        self.enhanced = options.enhance is not None or sources[0].info.enhanced
        self.has_truth = any(source.has_truth for source in sources)
        self._collect(sources)
        rows = len(self._fingers)
        self._per_shard = options.rows_per_shard or rows_per_shard(rows, options.canvas)
        self.sizes = [min(self._per_shard, rows - start) for start in range(0, rows, self._per_shard)]

    def _collect(self, sources: Sequence[Source]) -> None:
        """Where each row comes from, and finger and impression that it gets, in the order of writing."""
        names = [source.keys for source in sources] if self.options.join_fingers else kept_apart(sources)
        codes: dict[str, int] = {}
        finger = np.concatenate(
            [
                np.array([codes.setdefault(key, len(codes)) for key in keys], np.int64)[source.fingers]
                for source, keys in zip(sources, names, strict=True)
            ]
        )
        impression = np.concatenate([source.impressions for source in sources]).astype(np.int64)
        if self.options.join_fingers and len(sources) > 1:
            origin = np.repeat(np.arange(len(sources)), [len(source.fingers) for source in sources])
            impression = renumbered(finger, impression, origin)
            if impression.max() >= MOST_IMPRESSIONS:
                raise UserError(f"--join-fingers: a finger would have impression {impression.max()}; leave it out")
        self._shards = [shard for source in sources for shard in source.shards]
        rows = [count for source in sources for count in source.rows]
        order = permutation(len(finger), self.options.seed, epoch=0, level=2)
        self._shard = np.repeat(np.arange(len(rows), dtype=np.int32), rows)[order]
        self._row = np.concatenate([np.arange(count, dtype=np.int32) for count in rows])[order]
        self._fingers, self._impressions = finger[order].astype(np.int32), impression[order].astype(np.int16)
        self._keys = pa.array(list(codes), pa.string())

    def task(self, shard: int) -> Callable[[Path], Facts]:
        """As of `Job`."""
        start = shard * self._per_shard
        rows = slice(start, start + self.sizes[shard])
        fingers = self._fingers[rows]
        columns = fingers, self._impressions[rows], self._keys.take(pa.array(fingers))
        return functools.partial(
            write_merged_shard, *self._places(rows), *columns, self.target, self.options.encoding, self.has_truth
        )

    def _places(self, rows: slice | np.ndarray) -> tuple[list[ShardPath], np.ndarray, np.ndarray]:
        """The source shards that some rows lie in, which of them each lies in, and where in it."""
        used, shard = np.unique(self._shard[rows], return_inverse=True)
        return [self._shards[number] for number in used], shard, self._row[rows]

    @functools.cached_property
    def bytes_per_print(self) -> float:  # type: ignore[override]
        """As of `Job`; how small lz4 makes prints is measured on some of them."""
        if self.options.encoding == "raw":
            return self.target.canvas**2 + MINUTIAE_BYTES
        chosen = np.unique(np.linspace(0, len(self._row) - 1, SAMPLED).astype(int))
        sample = read_rows(*self._places(chosen), self.target, "lz4")
        return 1.1 * float(np.mean([len(row.image) for row in sample])) + MINUTIAE_BYTES

    def publish(self, folder: Path, facts: list[Facts]) -> None:
        """As of `Job`."""
        options = self.options
        publish_dataset(
            folder, self.names, facts, options.ppi, options.canvas, options.encoding, self.enhanced, self.has_truth
        )


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
            prefix = source.folder.name if number == 1 else f"{source.folder.name}-{number}"
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
