"""Rows of a merged dataset: where they come from, and how they are read and converted."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fingerprint_accel.data.encoding import encode
from fingerprint_accel.data.print_file import Enhance
from fingerprint_accel.data.recanvas import recanvas, recanvas_left
from fingerprint_accel.data.shard_writing import Record, rows_per_record_batch, write_shard
from fingerprint_accel.data.shards import Shards, open_dataset
from fingerprint_accel.data.truth import Truth
from fingerprint_accel.staging import Facts


@dataclass(frozen=True)
class MergeOptions:
    """Options of a merged dataset.

    Attributes:
        ppi: resolution, pixels per inch; 0 for the resolution of the first source.
        canvas: side of a print, pixels; 0 for the side in the first source.
        encoding: encoding of the images, "raw" or "lz4"; empty for the encoding of the first source.
        rows_per_shard: number of prints per shard; 0 for the default of `shard_writing.rows_per_shard`.
        join_fingers: whether prints with the same finger key in different sources belong to one finger.
        enhance: function that enhances the ridges of each canvas (the square image of a stored print), usually
            `preprocess.enhance.enhance_canvas`; None for no enhancement.
        seed: random seed of the order in which prints are written.
        keep: regular expression; only fingers whose whole key matches are merged. "" keeps all.
        drop: regular expression; fingers whose whole key matches are left out. "" drops none.
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


class Row(NamedTuple):
    """One row of the merged dataset.

    Attributes:
        source: index of the source dataset that contains the print.
        row: row index of the print in the source.
        finger: finger index in the merged dataset.
        finger_key: finger key in the merged dataset.
        impression: impression number in the merged dataset.
    """

    source: int
    row: int
    finger: int
    finger_key: str
    impression: int


def write_merged(
    sources: list[tuple[Path, str]], rows: list[Row], options: MergeOptions, columns: dict[str, bool], path: Path
) -> Facts:
    """Write one shard of a merged dataset. Worker processes run this function.

    Args:
        sources: folder of each source dataset, and digest of the state of its files.
        rows: rows of the shard.
        options: options of the merged dataset.
        columns: whether the dataset has the optional columns `truth` and `nfiq2`.
        path: file to write.
    """
    return write_shard(path, records_of(sources, rows, options), options.canvas, options.encoding, **columns)


def records_of(sources: list[tuple[Path, str]], rows: list[Row], options: MergeOptions) -> Iterator[Record]:
    """Read rows of the merged dataset from its sources, and yield them in the given order.

    Within a record batch, rows are read in the order of the source files, which is faster than the order of writing.

    Args:
        sources: folder of each source dataset, and digest of the state of its files.
        rows: rows of the merged dataset.
        options: options of the merged dataset.
    """
    at_once = rows_per_record_batch(options.canvas)
    for start in range(0, len(rows), at_once):
        batch = rows[start : start + at_once]
        found = {}
        for source, of_source in itertools.groupby(sorted(batch), lambda row: row.source):
            shards, chosen = _opened(*sources[source]), list(of_source)
            points, counts = shards.minutiae(np.array([row.row for row in chosen]))
            for row, own, count in zip(chosen, points, counts.tolist(), strict=True):
                found[row] = _record(shards, row, own[:count], options)
        yield from (found[row] for row in batch)


@functools.lru_cache
def _opened(folder: Path, state: str) -> Shards:
    """Open a source dataset, or return it from the cache of this worker process.

    Args:
        folder: dataset folder.
        state: digest of the state of its files, so that the cache does not return a replaced dataset.
    """
    return open_dataset(folder)


def _record(shards: Shards, row: Row, minutiae: np.ndarray, options: MergeOptions) -> Record:
    """Read a print from its source and convert it to the format of the merged dataset.

    Args:
        shards: source.
        row: row of the merged dataset.
        minutiae: (M, 4) float32 minutiae of the print in the source.
        options: options of the merged dataset.
    """
    info, table = shards.info, shards.table
    truth = None
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
