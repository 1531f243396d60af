"""`fingerprint-accel merge`: datasets become one, with other shards, encoding, resolution or canvas. Resumable."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fingerprint_accel.data.canvas import recanvas, recanvas_left
from fingerprint_accel.data.encoding import check_encoding, encode
from fingerprint_accel.data.import_summary import ImportSummary
from fingerprint_accel.data.importing import check_canvas, versions
from fingerprint_accel.data.merged_keys import kept_apart, renumbered, selected_rows
from fingerprint_accel.data.order import permutation
from fingerprint_accel.data.print_file import Enhance
from fingerprint_accel.data.shard_writing import (
    DATASET,
    MINUTIAE_BYTES,
    SHARD_NAMES,
    Record,
    publish_dataset,
    rows_per_record_batch,
    rows_per_shard,
    write_shard,
)
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.data.truth import Truth
from fingerprint_accel.durable import file_sha256
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.executors import open_workers
from fingerprint_accel.jobs import Facts, Job, run, state_of_files
from fingerprint_accel.outputs import check_folder

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
        keep: regular expression; only fingers whose whole key matches are merged. "" keeps all.
        drop: regular expression; fingers whose whole key matches are left out.
    """

    ppi: int = 0
    canvas: int = 0
    encoding: str = ""
    rows_per_shard: int = 0
    join_fingers: bool = False
    enhance: Enhance | None = None
    seed: int = 0
    keep: str = ""
    drop: str = ""


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
    opened = [_open_source(source) for source in sources]
    job = MergeJob(opened, _completed(options or MergeOptions(), opened))
    with open_workers(workers, cluster) as team:
        run(job, out, team.executor, overwrite, progress)
    return ImportSummary.of(out, time.perf_counter() - started)


def _completed(options: MergeOptions, sources: Sequence[Shards]) -> MergeOptions:
    """The options with what they leave to the first source; raises UserError where they cannot be met."""
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


def _open_source(folder: Path) -> Shards:
    """`open_dataset`, with remedies for folders that people take for datasets."""
    if not (folder / "fingerprint.json").is_file() and folder.is_dir():
        if any(folder.glob("*.arrow")):
            raise UserError(f"{folder}: no fingerprint.json beside its shards; copy or import it again")
        raise UserError(f"{folder}: not a dataset folder; if it holds images, `import` makes one of them")
    return open_dataset(folder)


class _Row(NamedTuple):
    """A row of the merged dataset: the number of its source, its row there, and its new names."""

    source: int
    row: int
    finger: int
    finger_key: str
    impression: int


class MergeJob(Job):
    """The rows of several datasets in the order in which they are written, shuffled over fingers; shard by shard.

    Args:
        sources: the datasets.
        options: without defaults left open.

    Raises:
        UserError: more impressions of a joined finger than can be told apart.
    """

    label, kind, pattern = "merging", DATASET, SHARD_NAMES

    def __init__(self, sources: Sequence[Shards], options: MergeOptions) -> None:
        self.options = options
        self.arguments: dict[str, Any] = {
            "sources": [[str(source.folder), file_sha256(source.folder / "fingerprint.json")] for source in sources],
            "ppi": options.ppi,
            "canvas": options.canvas,
            "encoding": options.encoding,
            "rows_per_shard": options.rows_per_shard,
            "join_fingers": options.join_fingers,
            "enhance": options.enhance is not None,
            "seed": options.seed,
            "keep": options.keep,
            "drop": options.drop,
            **versions(options.enhance is not None),
        }
        self.enhanced = options.enhance is not None or sources[0].info.enhanced
        # columns that one source has at least; others do not know
        self.columns = {
            "truth": any(source.has_truth for source in sources),
            "nfiq2": any(source.has_nfiq2 for source in sources),
        }
        self._sources = [
            (source.folder, state_of_files(source.folder / name for name in source.info.sha256)) for source in sources
        ]
        self._collect(sources)
        rows = len(self._places)
        self._per_shard = options.rows_per_shard or rows_per_shard(rows, options.canvas)
        self.sizes = [min(self._per_shard, rows - start) for start in range(0, rows, self._per_shard)]

    def _collect(self, sources: Sequence[Shards]) -> None:
        """Source, row in it, and new finger and impression of each row (N, 4), in the order of writing."""
        taken = selected_rows(sources, self.options.keep, self.options.drop)
        row = np.concatenate([np.arange(len(source)) for source in sources])[taken]
        origin = np.repeat(np.arange(len(sources)), [len(source) for source in sources])[taken]
        impression = np.concatenate([source.impressions for source in sources]).astype(np.int64)[taken]

        # One number for each key, first over all fingers; then numbers without gaps for the fingers that are taken.
        keys = [source.key_of_finger for source in sources] if self.options.join_fingers else kept_apart(sources)
        numbers: dict[str, int] = {}
        of_source = [np.array([numbers.setdefault(key, len(numbers)) for key in names], np.int64) for names in keys]
        finger = np.concatenate([new[source.fingers] for new, source in zip(of_source, sources, strict=True)])[taken]
        present, finger = np.unique(finger, return_inverse=True)
        names = list(numbers)
        self._keys = [names[number] for number in present.tolist()]

        if self.options.join_fingers and len(sources) > 1:
            impression = renumbered(finger, impression, origin)
        order = permutation(len(finger), self.options.seed, epoch=0, level=2)
        self._places = np.stack([origin, row, finger, impression], axis=1)[order]

    def task(self, shard: int) -> Callable[[Path], Facts]:
        """As of `Job`."""
        rows = self._rows(range(shard * self._per_shard, shard * self._per_shard + self.sizes[shard]))
        return functools.partial(_write_merged, self._sources, rows, self.options, self.columns)

    def _rows(self, places: Iterable[int]) -> list[_Row]:
        """Rows of the merged dataset."""
        return [
            _Row(source, row, finger, self._keys[finger], impression)
            for source, row, finger, impression in self._places[list(places)].tolist()
        ]

    @functools.cached_property
    def bytes_per_print(self) -> float:  # type: ignore[override]
        """As of `Job`; how small lz4 makes prints is measured on some of them."""
        if self.options.encoding == "raw":
            return self.options.canvas**2 + MINUTIAE_BYTES
        chosen = self._rows(np.unique(np.linspace(0, len(self._places) - 1, SAMPLED).astype(int)))
        sizes = [len(record.image) for record in _records(self._sources, chosen, self.options)]
        return 1.1 * float(np.mean(sizes)) + MINUTIAE_BYTES

    def publish(self, folder: Path, facts: list[Facts]) -> None:
        """As of `Job`."""
        options = self.options
        publish_dataset(
            folder, self.names, facts, options.ppi, options.canvas, options.encoding, self.enhanced, **self.columns
        )


def _write_merged(
    sources: list[tuple[Path, str]], rows: list[_Row], options: MergeOptions, columns: dict[str, bool], path: Path
) -> Facts:
    """Writes one shard, in a worker."""
    return write_shard(path, _records(sources, rows, options), options.canvas, options.encoding, **columns)


def _records(sources: list[tuple[Path, str]], rows: list[_Row], options: MergeOptions) -> Iterator[Record]:
    """Yields rows in the order given, but reads those of each record batch in the order of the files."""
    at_once = rows_per_record_batch(options.canvas)
    for start in range(0, len(rows), at_once):
        batch = rows[start : start + at_once]
        found = {row: _record(_opened(*sources[row.source]), row, options) for row in sorted(batch)}
        yield from (found[row] for row in batch)


@functools.lru_cache
def _opened(folder: Path, state: str) -> Shards:
    """A source, opened once in a worker; `state` differs after one of its files was replaced."""
    return open_dataset(folder)


def _record(shards: Shards, row: _Row, options: MergeOptions) -> Record:
    """A print as the merged dataset stores it."""
    info, table = shards.info, shards.table
    points, counts = shards.minutiae(np.array([row.row]))
    minutiae, truth = points[0, : counts[0]], None
    if shards.has_truth:
        truth = Truth(table["pose"][row.row].values.to_numpy().copy(), table["contact"][row.row].as_py())
    same = (info.ppi, info.canvas) == (options.ppi, options.canvas)
    if same and options.enhance is None and info.encoding == options.encoding:
        stored = shards.stored(row.row)
    else:
        image = shards.image(row.row)
        if not same:
            scale = options.ppi / info.ppi
            image, minutiae = recanvas(image, minutiae, scale, options.canvas)
            if truth is not None:
                left = recanvas_left(info.canvas, scale, options.canvas)
                truth = truth.on_another_canvas(left, scale, info.canvas, options.canvas)
        if options.enhance is not None:
            image = options.enhance(image, options.ppi)
        stored = encode(image, options.encoding)
    source = table["source"][row.row].as_py()
    nfiq2 = table["nfiq2"][row.row].as_py() if shards.has_nfiq2 else -1
    return Record(stored, row.finger_key, row.impression, source, minutiae, truth, row.finger, nfiq2)
