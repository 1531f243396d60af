"""Merge datasets into one dataset, and optionally change shard size, encoding, resolution and canvas size.

The module implements the command `fingerprint-accel merge`. An interrupted merge can be resumed.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from fingerprint_accel.data.checksums import differing_files
from fingerprint_accel.data.dataset_card import origin_of, write_dataset_card
from fingerprint_accel.data.encoding import check_encoding
from fingerprint_accel.data.import_summary import ImportSummary
from fingerprint_accel.data.importing import check_canvas, versions
from fingerprint_accel.data.merged_keys import kept_apart, renumbered, selected_rows
from fingerprint_accel.data.merged_rows import MergeOptions, Row, records_of, write_merged
from fingerprint_accel.data.order import permutation
from fingerprint_accel.data.shard_writing import (
    DATASET,
    MINUTIAE_BYTES,
    SHARD_NAMES,
    publish_dataset,
    rows_per_shard,
    seal_dataset,
)
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.data.watching import ShardWatcher
from fingerprint_accel.durable import file_sha256
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.executors import open_workers
from fingerprint_accel.jobs import Job, run
from fingerprint_accel.outputs import check_folder
from fingerprint_accel.staging import Facts, state_of_files

SAMPLED = 16  # number of prints that are encoded beforehand to estimate the required disk space


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
    """Merge one or more datasets into a new dataset folder.

    If a call was interrupted, a call with the same arguments continues it. The written bytes depend only on the sources
    and the options, not on the number of workers or on interruptions.

    Args:
        sources: dataset folders to merge.
        out: dataset folder to create.
        options: options of the new dataset. By default, the new dataset has the format of the first source.
        workers: number of CPU processes; 0 for one per core, 1 for the calling process. With several processes a script
            needs `if __name__ == "__main__":` around the call.
        cluster: address or file of a Dask scheduler. If given, its workers are used instead of CPU processes.
        overwrite: replace `out` if it is a dataset folder, and discard unfinished shards of a call with different
            arguments.
        progress: show a progress bar.

    Raises:
        UserError: if there is no source, a source is missing or damaged, only some sources are enhanced, an option is
            out of range, `out` exists or lies in a source, the disk has too little space, or there are unfinished
            shards of a call with different arguments.
    """
    started = time.perf_counter()
    require(len(sources) > 0, "no source: give at least one dataset folder")
    sources, out = [source.resolve() for source in sources], Path(out).absolute()
    for source, times in Counter(sources).items():
        require(times == 1, f"{source}: given {times} times; give every source once")
    check_folder(out, DATASET, inputs=sources)
    opened = [_open_source(source) for source in sources]
    job = MergeJob(opened, _completed(options or MergeOptions(), opened))
    _check_pixels(opened, progress)
    with open_workers(workers, cluster) as team:
        run(job, out, team.executor, overwrite, progress)
    return ImportSummary.of(out, time.perf_counter() - started)


def _completed(options: MergeOptions, sources: Sequence[Shards]) -> MergeOptions:
    """Return the options with defaults replaced by the values of the first source, and check them.

    Raises:
        UserError: if an option is out of range, or does not fit the sources.
    """
    enhanced = [source.info.enhanced for source in sources]
    if any(enhanced) and options.enhance is not None:
        raise UserError(f"{sources[enhanced.index(True)].folder}: enhanced already; leave out --enhance")
    if len(set(enhanced)) > 1:
        which, other = sources[enhanced.index(True)].folder, sources[enhanced.index(False)].folder
        raise UserError(f"{which}: enhanced, but {other} is not; first merge {other} with --enhance by itself")
    first = sources[0].info
    ppi, canvas = options.ppi or first.ppi, options.canvas or first.canvas
    encoding = options.encoding or first.encoding
    check_canvas("--dataset-ppi", ppi, canvas)
    check_encoding(encoding)
    require(options.rows_per_shard >= 0, f"--rows-per-shard {options.rows_per_shard}: must not be negative")
    return replace(options, ppi=ppi, canvas=canvas, encoding=encoding)


def _open_source(folder: Path) -> Shards:
    """Open a source dataset. Errors for folders that are often mistaken for datasets name a remedy."""
    if not (folder / "fingerprint.json").is_file() and folder.is_dir():
        if any(folder.glob("*.arrow")):
            raise UserError(f"{folder}: no fingerprint.json beside its shards; copy or import it again")
        raise UserError(f"{folder}: not a dataset folder; if it holds images, import them with `import`")
    return open_dataset(folder)


def _check_pixels(sources: Sequence[Shards], progress: bool) -> None:
    """Compare all shards with their checksums, because the new dataset gets checksums of what is read from them.

    Raises:
        UserError: if a shard is damaged.
    """
    expected = {file.path: source.info.sha256[file.path.name] for source in sources for file in source.files}
    if damaged := differing_files(expected, "comparing checksums", progress):
        path = damaged[0]
        raise UserError(f"{path}: differs from its sha256; restore it from a copy, or make {path.parent} again")


class MergeJob(Job):
    """Job that writes the shards of a merged dataset, with rows in random order.

    Args:
        sources: the datasets to merge.
        options: options of the merged dataset, filled in by `_completed`.

    Raises:
        UserError: if `keep` and `drop` leave no finger, or an impression number of a joined finger is too large.
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
        # A column is written if at least one source has it. In rows from sources without the column, its value is
        # "unknown".
        self.columns = {
            "truth": any(source.has_truth for source in sources),
            "nfiq2": any(source.has_nfiq2 for source in sources),
        }
        self._opened = sources
        self._sources = [
            (source.folder, state_of_files(source.folder / name for name in source.info.sha256)) for source in sources
        ]
        self._synthetic = all(
            pc.all(pc.starts_with(source.table["source"], "synthetic/")).as_py() for source in sources
        )
        self._collect(sources)
        rows = len(self._places)
        self._per_shard = options.rows_per_shard or rows_per_shard(rows, options.canvas)
        self.sizes = [min(self._per_shard, rows - start) for start in range(0, rows, self._per_shard)]

    def _collect(self, sources: Sequence[Shards]) -> None:
        """Choose the rows of the merged dataset, number their fingers and impressions, and shuffle them.

        The attribute `_keys` becomes the list of finger keys. The attribute `_places` becomes an array (N, 4) int64
        with a row for each print, in the order of writing: source, row in the source, finger and impression.
        """
        taken = selected_rows(sources, self.options.keep, self.options.drop)
        row = np.concatenate([np.arange(len(source)) for source in sources])[taken]
        origin = np.repeat(np.arange(len(sources)), [len(source) for source in sources])[taken]
        impression = np.concatenate([source.impressions for source in sources]).astype(np.int64)[taken]

        # Number the keys of all fingers first, then renumber the selected fingers without gaps.
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
        """Return a function that writes one shard of the merged dataset, see `Job.task`."""
        rows = self._rows(range(shard * self._per_shard, shard * self._per_shard + self.sizes[shard]))
        return functools.partial(write_merged, self._sources, rows, self.options, self.columns)

    def _rows(self, places: Iterable[int]) -> list[Row]:
        """Return rows of the merged dataset, given their indices in the order of writing."""
        return [
            Row(source, row, finger, self._keys[finger], impression)
            for source, row, finger, impression in self._places[list(places)].tolist()
        ]

    @functools.cached_property
    def bytes_per_print(self) -> float:  # type: ignore[override]
        """Estimated size of a print on disk, bytes.

        For the encoding lz4 the size is measured on SAMPLED prints, with a margin of 10 %.
        """
        if self.options.encoding == "raw":
            return self.options.canvas**2 + MINUTIAE_BYTES
        chosen = self._rows(np.unique(np.linspace(0, len(self._places) - 1, SAMPLED).astype(int)))
        sizes = [len(record.image) for record in records_of(self._sources, chosen, self.options)]
        return 1.1 * float(np.mean(sizes)) + MINUTIAE_BYTES

    def publish(self, folder: Path, facts: list[Facts]) -> None:
        """Write the description of the merged dataset and the dataset card, see `Job.publish`.

        Raises:
            UserError: if a source has changed since it was opened.
        """
        ShardWatcher(self._opened).finish()
        options = self.options
        publish_dataset(
            folder, self.names, facts, options.ppi, options.canvas, options.encoding, self.enhanced, **self.columns
        )
        known = {name: value for name, value in self.arguments.items() if name != "sources"}
        names = [source.name for source, _ in self._sources]
        origin = origin_of("merge", known, list(versions(options.enhance is not None)), names, self._synthetic)
        write_dataset_card(folder, origin, **self.columns)
        seal_dataset(folder)
