"""`fingerprint-accel pack`: datasets become one, with other shards, encoding, resolution or canvas. Resumable."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.importing import ImportSummary, import_dataset
from fingerprint_accel.data.launch import ALONE, Launch, launched
from fingerprint_accel.data.merging import Merged, Source, open_source
from fingerprint_accel.data.pack_options import PackOptions, arguments, check_places, completed, is_dataset
from fingerprint_accel.data.pack_rows import PackedRow, pack_rows
from fingerprint_accel.data.pack_work import Done, Work
from fingerprint_accel.data.parallel import cores, in_parallel
from fingerprint_accel.data.part_folder import alone_at, workers_here
from fingerprint_accel.data.print_file import Target
from fingerprint_accel.data.shard_writing import (
    DATASET,
    FORMAT_VERSION,
    DatasetInfo,
    record_batch,
    rows_per_record_batch,
    shard_name,
)
from fingerprint_accel.data.verifying import verify_datasets
from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import check_folder

ROWS_PER_TASK, BYTES_PER_TASK = 64, 2**22  # at most
SAMPLED = 16  # prints encoded beforehand to tell how much room all will need
MINUTIAE_BYTES = 1000  # of a print, roughly


def pack(
    sources: Sequence[Path],
    out: Path,
    options: PackOptions | None = None,
    *,
    verify: bool = False,
    workers: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    launch: Launch = ALONE,
) -> ImportSummary | None:
    """Writes one dataset folder from one or more; goes on from what an interrupted call with these arguments has left.

    The bytes depend on the sources and the options alone: not on workers, processes or interruptions.

    Args:
        sources: dataset folders, or folders of images in flx's naming with minutiae beside them.
        out: dataset folder to make.
        options: what it is to be like.
        verify: compare every shard of the sources with its sha256 before.
        workers: processes; 0 for one per core, or this one alone where prints are only copied or compressed. A script
            that asks for more needs `if __name__ == "__main__":` around the call.
        overwrite: replace `out` if it is a dataset folder, and shards that another call has left.
        progress: shows progress bars.
        launch: the processes that share the work; each calls this, and all see the folders.

    Returns:
        The summary on the main process, None on others.

    Raises:
        UserError: a source missing, damaged, or enhanced where others are not; `out` exists or lies in a source; a
            number out of range; too little room on the disk; shards of another call beside `out`.
    """
    started = time.perf_counter()
    options = options or PackOptions()
    sources, out = [source.resolve() for source in sources], Path(out).absolute()
    check_places(sources, out)
    options = completed(options, sources)
    work = Work(out, arguments(options, sources))
    with alone_at(out, launch):
        if launch.first(lambda: _finished(work, overwrite)):
            if launch.main:
                work.remove()
        else:
            try:
                launch.first(functools.partial(_begin, work, sources, verify, workers, overwrite, progress))
                opened = _open(work, sources, options, workers, progress, launch)
                merged = Merged(opened, options.join_fingers, options.seed)
                _write(work, merged, opened, options, workers, progress, launch)
            except UserError:
                if launch.size == 1:  # otherwise others may be writing
                    work.remove_if_empty()
                raise
    return ImportSummary.of(out, time.perf_counter() - started) if launch.main else None


def _finished(work: Work, overwrite: bool) -> bool:
    finished = work.finished()
    check_folder(work.out, DATASET, finished or overwrite)
    return finished


def _begin(work: Work, sources: Sequence[Path], verify: bool, workers: int, overwrite: bool, progress: bool) -> None:
    work.begin(overwrite)
    if verify:
        verify_datasets([source for source in sources if is_dataset(source)], workers or cores(), progress)


def _open(
    work: Work, sources: Sequence[Path], options: PackOptions, workers: int, progress: bool, launch: Launch
) -> list[Source]:
    """Opens the sources; folders of images are imported before."""
    opened = []
    for number, source in enumerate(sources):
        folder = source if is_dataset(source) else work.folder / f"import-{number}"
        if folder != source and not launch.first(functools.partial(is_dataset, folder)):
            _import_images(source, folder, options, workers, progress, launch)
            launch.first(lambda: None)  # once it is joined
            launch.wait(functools.partial(is_dataset, folder))
        opened.append(open_source(folder, source.name))
    return opened


def _import_images(
    source: Path, folder: Path, options: PackOptions, workers: int, progress: bool, launch: Launch
) -> None:
    """A folder of images becomes a dataset that the packed rows can be copied from."""
    try:
        import_dataset(
            source, folder, "flx", options.source_ppi, dataset_ppi=options.ppi, canvas=options.canvas,
            encoding=options.encoding, workers=workers, overwrite=True, progress=progress, launch=launch,
        )  # fmt: skip
    except UserError as error:
        if "layout" not in str(error):
            raise
        raise UserError(f"{error} with `import`, then pack what it makes") from error


def _write(
    work: Work,
    merged: Merged,
    sources: Sequence[Source],
    options: PackOptions,
    workers: int,
    progress: bool,
    launch: Launch,
) -> None:
    """Writes this process's share of the shards that are missing; the main process makes the dataset of all."""
    target = Target(options.ppi, options.canvas, options.enhance)
    shards = -(-len(merged) // options.rows_per_shard)
    rows = [_rows_of(number, len(merged), options.rows_per_shard) for number in range(shards)]

    def prepare() -> list[int]:
        missing = work.missing(shards)
        if len(missing) < shards and progress:
            print(f"going on: {shards - len(missing)} of {shards} shards are there", file=sys.stderr)
        _check_room(work, merged, sum(len(rows[number]) for number in missing), target, options.encoding)
        return missing

    missing = launch.first(prepare)
    share = launch.share(missing)
    if share:
        launch.see(work.stored, work.arguments, work.folder)
    size = max(1, min(ROWS_PER_TASK, BYTES_PER_TASK // options.canvas**2))
    tasks = (
        merged.task(piece, target, options.encoding)
        for number in share
        for batch in _pieces(rows[number], rows_per_record_batch(options.canvas))
        for piece in _pieces(range(batch.start, batch.stop), size)
    )
    if not workers and not any(_moves(source.info, options) for source in sources):
        workers = 1  # handing a print over costs more than copying or compressing it
    workers = workers_here(workers, launch, -(-sum(len(rows[number]) for number in share) // size))
    there = len(merged) - sum(len(rows[number]) for number in missing)
    with launch.counting("packing", len(merged), there, progress) as made:
        with contextlib.closing(in_parallel(pack_rows, tasks, workers)) as results:
            for number in share:
                batches = _batches(merged, rows[number], options.canvas, results, made)
                work.write_shard(number, shards, batches, merged.has_truth)
        if launch.main:
            launch.wait_for_all(lambda: work.missing(shards), work.folder, lambda: made(0))
    if launch.main:
        done = [work.shard(number, shards) for number in range(shards)]
        work.publish(_info(merged, done, sources, options), merged.has_truth)


def _moves(info: DatasetInfo, options: PackOptions) -> bool:
    """Whether prints of a source are to be resampled or enhanced."""
    return options.enhance is not None or (info.ppi, info.canvas) != (options.ppi, options.canvas)


def _info(merged: Merged, done: Sequence[Done | None], sources: Sequence[Source], options: PackOptions) -> DatasetInfo:
    known = [shard for shard in done if shard is not None]
    return DatasetInfo(
        FORMAT_VERSION,
        options.ppi,
        options.canvas,
        options.encoding,
        len(merged),
        int(merged.fingers.max()) + 1,
        sum(shard.with_minutiae for shard in known),
        {shard_name(number, len(done)): shard.sha256 for number, shard in enumerate(known)},
        options.enhance is not None or sources[0].info.enhanced,
    )


def _rows_of(shard: int, rows: int, per_shard: int) -> range:
    return range(shard * per_shard, min(rows, (shard + 1) * per_shard))


def _pieces(rows: range, size: int) -> Iterator[slice]:
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(rows.stop, start + size))


def _batches(
    merged: Merged,
    rows: range,
    canvas: int,
    results: Generator[list[PackedRow], None, None],
    made: Callable[[int], None],
) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard from the results of its tasks, which come in order."""
    for batch in _pieces(rows, rows_per_record_batch(canvas)):
        packed: list[PackedRow] = []
        while len(packed) < batch.stop - batch.start:
            piece = next(results)
            packed += piece
            made(len(piece))
        yield record_batch(
            [row.image for row in packed],
            merged.fingers[batch],
            merged.impressions[batch],
            merged.keys(batch),
            [row.source for row in packed],
            [row.minutiae for row in packed],
            [row.truth for row in packed] if merged.has_truth else None,
        )


def _check_room(work: Work, merged: Merged, rows: int, target: Target, encoding: str) -> None:
    """Refuses to begin what the disk cannot hold; how small lz4 makes prints is measured on some of them."""
    per_print = target.canvas**2
    if encoding == "lz4" and rows:
        chosen = np.unique(np.linspace(0, len(merged) - 1, SAMPLED).astype(int))
        sample = pack_rows(merged.task(chosen, target, encoding))
        per_print = round(1.1 * np.mean([len(row.image) for row in sample]))
    needed, free = rows * (per_print + MINUTIAE_BYTES), shutil.disk_usage(work.folder).free
    if needed > free:
        raise UserError(
            f"{work.out}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB are free; make room, or choose another disk"
        )


def pack_command(paths: Sequence[Path], options: PackOptions, verify: bool, workers: int, overwrite: bool) -> None:
    """`fingerprint-accel pack`: packs all paths but the last into the last, or verifies the only one.

    Raises:
        UserError: as `pack`, or too few paths.
    """
    if len(paths) == 1 and verify:
        shards, size = verify_datasets(paths, workers or cores())
        print(f"{paths[0]}: {shards} shards, {size / 1e6:.1f} MB, all as they were written")
        return
    if len(paths) < 2:
        raise UserError("pack: give SRC and OUT, or SRC and --verify")
    with launched() as launch:
        summary = pack(
            paths[:-1], paths[-1], options, verify=verify, workers=workers, overwrite=overwrite, launch=launch
        )
    if summary is not None:
        summary.show()
