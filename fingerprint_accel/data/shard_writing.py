"""Writing the dataset folder: Arrow shards as `datasets` saves them, and `fingerprint.json` beside them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.encoding import check_encoding, encode
from fingerprint_accel.data.minutia_values import IMPLAUSIBLE, plausible
from fingerprint_accel.data.truth import UNKNOWN, Truth
from fingerprint_accel.errors import UserError
from fingerprint_accel.outputs import FolderKind, check_folder, json_with, put_in_place

if TYPE_CHECKING:
    import datasets

FORMAT_VERSION = 1
INFO, REJECTED = "fingerprint.json", "rejected.jsonl"  # what is known of the prints; files left out, and why
ROWS_PER_SHARD = 8192
ROWS_PER_RECORD_BATCH = 1024  # at most: 100 MB of 320 x 320 canvases
BYTES_PER_RECORD_BATCH = 2**28  # of images, at most; an Arrow chunk must stay below 2 GiB
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

    Bytes in place of an image are one that has the dataset's encoding already. `truth` is None where it is unknown.
    """

    image: np.ndarray | bytes
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


class ShardWriter:
    """Writes a dataset folder row by row in constant memory; the folder appears, whole, on `close`.

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
        rows_per_shard: int = ROWS_PER_SHARD,
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
        self._stream: pa.ipc.RecordBatchStreamWriter | None = None
        self._rows_per_batch = rows_per_record_batch(canvas)
        self._closed = False
        self._info: DatasetInfo | None = None
        self._rows_in_shard, self._shards, self._prints, self._with_minutiae = 0, 0, 0, 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._closed:
            self.close()
        elif kind is not None:
            if self._stream is not None:
                self._stream.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, record: Record) -> None:
        """Appends one print; fingers are numbered as they first appear.

        Raises:
            UserError: its minutiae are not finite, or out of range.
        """
        if isinstance(record.image, np.ndarray):
            assert record.image.shape == (self.canvas, self.canvas), "one canvas size per dataset"
            assert record.image.dtype == np.uint8, "canvases are uint8"
        assert self.truth or record.truth is None, "a dataset without the columns of the truth"
        if not plausible(record.minutiae):
            raise UserError(
                f"{record.source}: {IMPLAUSIBLE} (finger {record.finger_key}, impression {record.impression}); "
                "mend or leave them out"
            )
        self._pending.append(record)
        if len(self._pending) == min(self._rows_per_batch, self.rows_per_shard - self._rows_in_shard):
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        rows, self._pending = self._pending, []
        batch = record_batch(
            [row.image if isinstance(row.image, bytes) else encode(row.image, self.encoding) for row in rows],
            [self._fingers.setdefault(row.finger_key, len(self._fingers)) for row in rows],
            [row.impression for row in rows],
            [row.finger_key for row in rows],
            [row.source for row in rows],
            [row.minutiae for row in rows],
            [row.truth for row in rows] if self.truth else None,
        )
        if self._stream is None:
            self._stream = pa.ipc.new_stream(str(self.folder / f"data-{self._shards:05d}.arrow"), batch.schema)
            self._shards += 1
        self._stream.write_batch(batch)
        self._prints += len(rows)
        self._rows_in_shard += len(rows)
        self._with_minutiae += sum(len(row.minutiae) > 0 for row in rows)
        if self._rows_in_shard >= self.rows_per_shard:
            self._stream.close()
            self._stream, self._rows_in_shard = None, 0

    def close(self) -> DatasetInfo:
        """Completes the folder and puts it in its place.

        Raises:
            UserError: no print was added, or `out` is no dataset folder any more.
        """
        info = self.complete()
        try:
            put_in_place(self.folder, self.out, DATASET)
        except UserError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._closed = True
        return info

    def complete(self) -> DatasetInfo:
        """Completes the folder where it was written; `close` puts it in its place.

        Raises:
            UserError: no print was added.
        """
        if self._info is not None:
            return self._info
        self._flush()
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._prints == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise UserError(f"{self.out}: no print to write")
        names = []
        for shard in range(self._shards):
            names.append(shard_name(shard, self._shards))
            (self.folder / f"data-{shard:05d}.arrow").rename(self.folder / names[-1])
        self._info = DatasetInfo(
            FORMAT_VERSION,
            self.ppi,
            self.canvas,
            self.encoding,
            self._prints,
            len(self._fingers),
            self._with_minutiae,
            {name: file_sha256(self.folder / name) for name in names},
            self.enhanced,
        )
        write_info(self.folder, self._info, self.truth)
        return self._info


@cache
def features(truth: bool = False) -> datasets.Features:
    """Columns of a dataset, with `truth` also those of `Truth`. Only who writes one pays a second for `datasets`."""
    from datasets import Features, List, Value

    columns = {
        "image": Value("binary"),
        "finger": Value("int32"),
        "impression": Value("int16"),
        "finger_key": Value("string"),
        "source": Value("string"),
        "minutiae": List(Value("float32")),
    }
    if truth:
        columns |= {"pose": List(Value("float32"), length=3), "contact": Value("binary")}
    return Features(columns)


def rows_per_record_batch(canvas: int) -> int:
    """Prints that lie together in a shard, at most."""
    return max(1, min(ROWS_PER_RECORD_BATCH, BYTES_PER_RECORD_BATCH // canvas**2))


def shard_name(shard: int, shards: int) -> str:
    """File name of shard number `shard`, from 0."""
    return f"data-{shard:05d}-of-{shards:05d}.arrow"


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
    schema = features(truths is not None).arrow_schema
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def write_info(folder: Path, info: DatasetInfo, truth: bool = False) -> None:
    """`fingerprint.json`, and `dataset_info.json` and `state.json` as `Dataset.save_to_disk` leaves them; `truth` as in
    `features`."""
    import datasets

    (folder / INFO).write_text(json.dumps(asdict(info), indent=2) + "\n")
    datasets.DatasetInfo(features=features(truth)).write_to_directory(str(folder))
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


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
