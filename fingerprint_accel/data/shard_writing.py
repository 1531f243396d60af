"""Writing the dataset folder: Arrow shards as `datasets` saves them, and `fingerprint.json` beside them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.encoding import ENCODINGS, encode
from fingerprint_accel.data.truth import UNKNOWN, Truth
from fingerprint_accel.durable import write_json
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.outputs import FolderKind, json_with

FORMAT_VERSION = 1
# what is known of the prints; files left out, and why; what is worth knowing of some prints
INFO, REJECTED, NOTES = "fingerprint.json", "rejected.jsonl", "notes.jsonl"
SHARDS, LEAST_ROWS, MOST_ROWS = 64, 32, 1024  # shards at least, so that every core has work; prints in each
BYTES_PER_RECORD_BATCH = 2**28  # of images, at most; an Arrow chunk must stay below 2 GiB
MINUTIAE_BYTES = 1000  # of a print, roughly
SHARD_NAMES = "data-{:05d}-of-{:05d}.arrow"
DATASET = FolderKind(
    "a dataset folder",
    json_with(INFO, "format_version", "canvas", "sha256"),
    # `synth` adds two files; `map` and `filter` of the library `datasets` leave caches beside the shards
    r"fingerprint\.json|dataset_info\.json|state\.json|rejected\.jsonl|notes\.jsonl|synthesis\.json|contact_sheet\.png"
    r"|data-\d+-of-\d+\.arrow|cache-\w+\.arrow",
)


@dataclass(frozen=True)
class Record:
    """One print.

    Attributes:
        image: (canvas, canvas) uint8, or bytes as `encode` makes them.
        finger_key: the owner's id of the finger.
        impression: number of the impression.
        source: where the print came from.
        minutiae: (n, 4) x, y, angle, quality in canvas pixels.
        truth: None where it is unknown.
        finger: number that the dataset gives the finger.
        nfiq2: NFIQ 2 score, 0 to 100; -1 where it is not known.
    """

    image: np.ndarray | bytes
    finger_key: str
    impression: int
    source: str
    minutiae: np.ndarray
    truth: Truth | None = None
    finger: int = 0
    nfiq2: int = -1


@dataclass(frozen=True)
class DatasetInfo:
    """Content of `fingerprint.json`, which describes a dataset folder.

    Attributes:
        format_version: Version of the folder's layout.
        ppi: Resolution of the canvases in pixels per inch.
        canvas: Side of the canvases in pixels.
        encoding: `"raw"` or `"lz4"`, as in `decode_canvas`.
        prints: Number of prints.
        fingers: Number of fingers.
        with_minutiae: Number of prints with at least one minutia.
        sha256: Checksum of each shard by its name.
        enhanced: Whether the canvases are stored after ridge enhancement.
    """

    format_version: int
    ppi: int
    canvas: int
    encoding: str
    prints: int
    fingers: int
    with_minutiae: int
    sha256: dict[str, str]
    enhanced: bool = False

    @classmethod
    def read(cls, folder: Path) -> DatasetInfo:
        """Read the description of a dataset folder.

        Raises:
            UserError: The folder has none, or one that is damaged or of another version.
        """
        try:
            info = cls(**json.loads((folder / INFO).read_text()))
        except OSError as error:
            raise UserError(f"{folder}: not a dataset folder (no {INFO}); make one with `import`") from error
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder / INFO}: damaged or of another version; import again") from error
        if info.format_version != FORMAT_VERSION or info.encoding not in ENCODINGS:
            raise UserError(
                f"{folder}: format {info.format_version} ({info.encoding}), this version reads {FORMAT_VERSION}"
            )
        return info


def rows_per_shard(rows: int, canvas: int) -> int:
    """Prints in each shard of a dataset of `rows` prints: the same however many workers there are."""
    return min(rows_per_record_batch(canvas), max(LEAST_ROWS, -(-rows // SHARDS)))


def write_shard(
    path: Path,
    records: Iterable[Record],
    canvas: int,
    encoding: str = "raw",
    truth: bool = False,
    nfiq2: bool = False,
) -> dict[str, Any]:
    """Writes one shard and says what is in it; only the prints of one record batch are in memory.

    Args:
        path: file to write.
        records: the prints.
        canvas, encoding: of their images.
        truth, nfiq2: as in `schema`.
    """
    records, at_once = iter(records), rows_per_record_batch(canvas)
    rows = with_minutiae = 0
    fingers: set[int] = set()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema(truth, nfiq2)) as stream:
        while some := list(itertools.islice(records, at_once)):
            stream.write_batch(_record_batch(some, encoding, truth, nfiq2))
            rows += len(some)
            with_minutiae += sum(len(record.minutiae) > 0 for record in some)
            fingers.update(record.finger for record in some)
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
    nfiq2: bool = False,
) -> None:
    """Writes what stands beside finished shards, as `Dataset.save_to_disk` does; those without a print are deleted.

    Args:
        folder: that they lie in.
        names: of the shards.
        facts: of each, as `write_shard` returns them, with its sha256.
        ppi, canvas, encoding, enhanced: of the prints.
        truth, nfiq2: as in `schema`.

    Raises:
        UserError: none holds a print.
    """
    import datasets  # takes a second

    filled = {name: known for name, known in zip(names, facts, strict=True) if known["rows"]}
    require(bool(filled), f"{folder}: no print to write")
    for name in names:
        if name not in filled:
            (folder / name).unlink()
    info = DatasetInfo(
        FORMAT_VERSION,
        ppi,
        canvas,
        encoding,
        sum(known["rows"] for known in filled.values()),
        len(set[int]().union(*(known["fingers"] for known in filled.values()))),
        sum(known["with_minutiae"] for known in filled.values()),
        {name: known["sha256"] for name, known in filled.items()},
        enhanced,
    )
    write_json(folder / INFO, asdict(info))
    features = datasets.Features.from_arrow_schema(schema(truth, nfiq2))
    datasets.DatasetInfo(features=features).write_to_directory(str(folder))
    state: dict[str, object] = {
        "_data_files": [{"filename": name} for name in filled],
        "_fingerprint": hashlib.sha256("".join(info.sha256.values()).encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)


@cache
def schema(truth: bool = False, nfiq2: bool = False) -> pa.Schema:
    """Columns of a dataset, with `truth` also those of `Truth`, with `nfiq2` also NFIQ 2 scores."""
    columns = {
        "image": pa.binary(),
        "finger": pa.int32(),
        "impression": pa.int64(),
        "finger_key": pa.string(),
        "source": pa.string(),
        "minutiae": pa.list_(pa.float32()),
    }
    if truth:
        columns |= {"pose": pa.list_(pa.float32(), 3), "contact": pa.binary()}
    if nfiq2:
        columns["nfiq2"] = pa.int16()
    return pa.schema(columns)


def rows_per_record_batch(canvas: int) -> int:
    """Prints that lie together in a shard, at most."""
    return max(1, min(MOST_ROWS, BYTES_PER_RECORD_BATCH // canvas**2))


def _record_batch(records: Sequence[Record], encoding: str, truth: bool, nfiq2: bool) -> pa.RecordBatch:
    columns: list[list[Any]] = [
        [row.image if isinstance(row.image, bytes) else encode(row.image, encoding) for row in records],
        [row.finger for row in records],
        [row.impression for row in records],
        [row.finger_key for row in records],
        [row.source for row in records],
        [np.ascontiguousarray(row.minutiae, np.float32).ravel() for row in records],
    ]
    if truth:
        known = [row.truth or UNKNOWN for row in records]
        columns += [[each.pose for each in known], [each.contact for each in known]]
    if nfiq2:
        columns.append([row.nfiq2 for row in records])
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema(truth, nfiq2), strict=True)]
    return pa.record_batch(arrays, schema=schema(truth, nfiq2))
