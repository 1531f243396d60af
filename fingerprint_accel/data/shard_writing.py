"""Writing the dataset folder: Arrow shards as `datasets` saves them, and `fingerprint.json` beside them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fingerprint_accel.data.encoding import check_encoding, encode
from fingerprint_accel.data.minutia_values import IMPLAUSIBLE, plausible
from fingerprint_accel.data.truth import UNKNOWN, Truth
from fingerprint_accel.durable import file_sha256
from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import FolderKind, check_folder, json_with, put_in_place

FORMAT_VERSION = 1
INFO, REJECTED = "fingerprint.json", "rejected.jsonl"  # what is known of the prints; files left out, and why
SHARDS, LEAST_ROWS, MOST_ROWS = 64, 32, 1024  # shards at least, so that every core has work; prints in each
BYTES_PER_RECORD_BATCH = 2**28  # of images, at most; an Arrow chunk must stay below 2 GiB
MINUTIAE_BYTES = 1000  # of a print, roughly
SHARD_NAMES = "data-{:05d}-of-{:05d}.arrow"
DATASET = FolderKind(
    "a dataset folder",
    json_with(INFO, "format_version", "canvas", "sha256"),
    # `synth` adds two files; `map` and `filter` of the library `datasets` leave caches beside the shards
    r"fingerprint\.json|dataset_info\.json|state\.json|rejected\.jsonl|synthesis\.json|contact_sheet\.png"
    r"|data-\d+-of-\d+\.arrow|cache-\w+\.arrow",
)


@dataclass(frozen=True)
class Record:
    """One print: image (canvas, canvas) uint8, and minutiae (n, 4) float32 of x, y, angle, quality in canvas pixels.

    `truth` is None where it is unknown.
    """

    image: np.ndarray
    finger_key: str
    impression: int
    source: str
    minutiae: np.ndarray
    truth: Truth | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """What `fingerprint.json` says; `enhanced` prints have been through the ridge filters once and for all."""

    format_version: int
    ppi: int
    canvas: int
    encoding: str
    prints: int
    fingers: int
    with_minutiae: int
    sha256: dict[str, str]
    enhanced: bool = False


def rows_per_shard(rows: int, canvas: int) -> int:
    """Prints in each shard of a dataset of `rows` prints: the same however many workers there are."""
    return min(rows_per_record_batch(canvas), max(LEAST_ROWS, -(-rows // SHARDS)))


def write_shard(path: Path, batches: Iterable[pa.RecordBatch], truth: bool = False) -> dict[str, Any]:
    """Writes one shard and says what is in it; `truth` as in `schema`."""
    rows = with_minutiae = 0
    fingers: set[int] = set()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema(truth)) as stream:
        for batch in batches:
            stream.write_batch(batch)
            rows += len(batch)
            with_minutiae += pc.sum(pc.greater(pc.list_value_length(batch["minutiae"]), 0)).as_py() or 0
            fingers |= set(pc.unique(batch["finger"]).to_pylist())
    return {"rows": rows, "with_minutiae": with_minutiae, "fingers": sorted(fingers)}


def publish_dataset(
    folder: Path,
    names: Sequence[str],
    facts: Sequence[dict[str, Any]],
    ppi: int,
    canvas: int,
    encoding: str = "raw",
    enhanced: bool = False,
    truth: bool = False,
) -> DatasetInfo:
    """Writes what stands beside finished shards; those without a print are deleted.

    Args:
        folder: that they lie in.
        names: of the shards.
        facts: of each, as `write_shard` returns them, with its sha256.
        ppi, canvas, encoding, enhanced: of the prints.
        truth: as in `schema`.

    Raises:
        UserError: none holds a print.
    """
    filled = [(name, known) for name, known in zip(names, facts, strict=True) if known["rows"]]
    if not filled:
        raise UserError(f"{folder}: no print to write")
    for name in set(names) - {name for name, _ in filled}:
        (folder / name).unlink()
    info = DatasetInfo(
        FORMAT_VERSION,
        ppi,
        canvas,
        encoding,
        sum(known["rows"] for _, known in filled),
        len(set[int]().union(*(known["fingers"] for _, known in filled))),
        sum(known["with_minutiae"] for _, known in filled),
        {name: known["sha256"] for name, known in filled},
        enhanced,
    )
    write_info(folder, info, truth)
    return info


class ShardWriter:
    """Writes a dataset folder row by row, a shard at a time in memory; the folder appears, whole, on `close`.

    Use as a context manager: an exception leaves nothing behind.

    Args:
        out: folder to make.
        ppi: resolution of the canvases, pixels per inch.
        canvas: side of a canvas, pixels.
        rows_per_shard: prints per file.
        overwrite: replace an existing dataset folder.
        encoding: of the images, "raw" or "lz4".
        enhanced: whether the images that will be added are enhanced.
        truth: whether the dataset has the columns `pose` and `contact`.

    Raises:
        UserError: `out` exists and is not to be replaced (`outputs.check_folder`), or an unknown encoding.
    """

    def __init__(
        self,
        out: Path,
        ppi: int,
        canvas: int,
        rows_per_shard: int = MOST_ROWS,
        overwrite: bool = False,
        encoding: str = "raw",
        enhanced: bool = False,
        truth: bool = False,
    ) -> None:
        check_encoding(encoding)
        check_folder(out, DATASET, overwrite)
        self.out, self.ppi, self.canvas, self.rows_per_shard = Path(out), ppi, canvas, rows_per_shard
        self.encoding, self.enhanced, self.truth = encoding, enhanced, truth
        self.folder = self.out.with_name(f".{self.out.name}.tmp")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._fingers: dict[str, int] = {}
        self._pending: list[Record] = []
        self._facts: list[dict[str, Any]] = []
        self._closed = False

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._closed:
            self.close()
        elif kind is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, record: Record) -> None:
        """Appends one print; fingers are numbered as they first appear.

        Raises:
            UserError: its minutiae are not finite, or out of range.
        """
        assert record.image.shape == (self.canvas, self.canvas), "one canvas size per dataset"
        assert record.image.dtype == np.uint8, "canvases are uint8"
        assert self.truth or record.truth is None, "a dataset without the columns of the truth"
        if not plausible(record.minutiae):
            raise UserError(
                f"{record.source}: {IMPLAUSIBLE} (finger {record.finger_key}, impression {record.impression}); "
                "mend or leave them out"
            )
        self._pending.append(record)
        if len(self._pending) == self.rows_per_shard:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        path = self.folder / f"data-{len(self._facts):05d}.arrow"
        fingers = [self._fingers.setdefault(row.finger_key, len(self._fingers)) for row in self._pending]
        batches = record_batches(self._pending, fingers, self.canvas, self.encoding, self.truth)
        self._facts.append(write_shard(path, batches, self.truth) | {"sha256": file_sha256(path)})
        self._pending = []

    def close(self) -> DatasetInfo:
        """Completes the folder and puts it in its place.

        Raises:
            UserError: no print was added, or `out` is no dataset folder any more.
        """
        try:
            self._flush()
            if not self._facts:
                raise UserError(f"{self.out}: no print to write")
            names = [SHARD_NAMES.format(shard, len(self._facts)) for shard in range(len(self._facts))]
            for shard, name in enumerate(names):
                (self.folder / f"data-{shard:05d}.arrow").rename(self.folder / name)
            info = publish_dataset(
                self.folder, names, self._facts, self.ppi, self.canvas, self.encoding, self.enhanced, self.truth
            )
            put_in_place(self.folder, self.out, DATASET)
        except UserError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._closed = True
        return info


@cache
def schema(truth: bool = False) -> pa.Schema:
    """Columns of a dataset, with `truth` also those of `Truth`."""
    columns = {
        "image": pa.binary(),
        "finger": pa.int32(),
        "impression": pa.int16(),
        "finger_key": pa.string(),
        "source": pa.string(),
        "minutiae": pa.list_(pa.float32()),
    }
    if truth:
        columns |= {"pose": pa.list_(pa.float32(), 3), "contact": pa.binary()}
    return pa.schema(columns)


def rows_per_record_batch(canvas: int) -> int:
    """Prints that lie together in a shard, at most."""
    return max(1, min(MOST_ROWS, BYTES_PER_RECORD_BATCH // canvas**2))


def record_batches(
    rows: Sequence[Record], fingers: Sequence[int], canvas: int, encoding: str, truth: bool
) -> Iterator[pa.RecordBatch]:
    """Prints and the numbers of their fingers as the record batches of a shard."""
    at_once = rows_per_record_batch(canvas)
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        yield record_batch(
            [encode(row.image, encoding) for row in some],
            fingers[start : start + at_once],
            [row.impression for row in some],
            [row.finger_key for row in some],
            [row.source for row in some],
            [row.minutiae for row in some],
            [row.truth for row in some] if truth else None,
        )


def record_batch(
    images: Sequence[bytes],
    fingers: Sequence[int] | np.ndarray,
    impressions: Sequence[int] | np.ndarray,
    finger_keys: Sequence[str] | pa.Array,
    sources: Sequence[str],
    minutiae: Sequence[np.ndarray],
    truths: Sequence[Truth | None] | None = None,
) -> pa.RecordBatch:
    """Rows as a shard holds them; images encoded, minutiae (n, 4) each. Without `truths` they lack its columns."""
    flat = [np.ascontiguousarray(points, np.float32).ravel() for points in minutiae]
    columns: list = [images, fingers, impressions, finger_keys, sources, flat]
    if truths is not None:
        known = [truth or UNKNOWN for truth in truths]
        columns += [[truth.pose for truth in known], [truth.contact for truth in known]]
    wanted = schema(truths is not None)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, wanted, strict=True)]
    return pa.record_batch(arrays, schema=wanted)


def write_info(folder: Path, info: DatasetInfo, truth: bool = False) -> None:
    """`fingerprint.json`, and `dataset_info.json` and `state.json` as `Dataset.save_to_disk` leaves them; `truth` as in
    `schema`."""
    import datasets  # takes a second

    (folder / INFO).write_text(json.dumps(asdict(info), indent=2) + "\n")
    datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(schema(truth))).write_to_directory(str(folder))
    fingerprint = hashlib.sha256("".join(info.sha256.values()).encode()).hexdigest()[:16]
    state: dict[str, object] = {
        "_data_files": [{"filename": name} for name in info.sha256],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n")
