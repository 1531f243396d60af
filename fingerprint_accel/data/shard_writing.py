"""Write dataset folders: Arrow shards in the format of the library `datasets`, and the file `fingerprint.json`.

The file `fingerprint.json` describes the dataset.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.arrow_shard import digest_without_pixels, pixel_range, record_batches, schema
from fingerprint_accel.data.encoding import ENCODINGS, encode
from fingerprint_accel.data.mapping import MappedFile
from fingerprint_accel.data.print_info import PrintInfo
from fingerprint_accel.data.truth import UNKNOWN, Truth
from fingerprint_accel.durable import OTHER_FILES, errors_naming, file_sha256, write_json
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.outputs import FolderKind, interrupted_replacement, json_with
from fingerprint_accel.untrusted import XXH3, Fields, read_json

FORMAT_VERSION = 1
MOST_PRINTS = 2**31 - 1
# names of files: description of the dataset, rejected files with reasons, remarks on prints
INFO, REJECTED, NOTES = "fingerprint.json", "rejected.jsonl", "notes.jsonl"
CARD = "README.md"  # see `dataset_card`
# A large dataset has at least SHARDS shards, so that every core has work. A shard holds LEAST_ROWS to MOST_ROWS prints.
SHARDS, LEAST_ROWS, MOST_ROWS = 64, 32, 1024
BYTES_PER_RECORD_BATCH = 2**28  # maximum size of the images in a record batch; an Arrow chunk must stay below 2 GiB
MINUTIAE_BYTES = 1000  # typical size of the minutiae of a print, bytes
SHARD_NAMES = "data-{:05d}-of-{:05d}.arrow"
DATASET = FolderKind(
    "a dataset folder",
    json_with(INFO, "format_version", "canvas", "sha256"),
    # `synth` adds two files; `map` and `filter` of the library `datasets` write caches to the folder
    r"fingerprint\.json|dataset_info\.json|state\.json|rejected\.jsonl|notes\.jsonl|synthesis\.json|contact_sheet\.png"
    r"|README\.md|data-\d+-of-\d+\.arrow|cache-\w+\.arrow",
)


@dataclass(frozen=True)
class Record:
    """One print to write to a dataset.

    Attributes:
        image: (canvas, canvas) uint8, or the bytes returned by `encoding.encode`.
        finger_key: identifier of the finger, chosen by the owner of the data.
        impression: number of the impression.
        source: origin of the print, for example the path of its file.
        minutiae: (n, 4) x, y (canvas pixels), angle (radians) and quality (0 to 1).
        truth: ground truth of a synthetic print; None if it is unknown.
        finger: index of the finger in the dataset.
        nfiq2: NFIQ 2 score, 0 to 100; -1 if unknown.
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
        sha256: Dictionary from the file name of each shard to its SHA-256 checksum.
        enhanced: Whether the canvases are stored after ridge enhancement.
        xxh3_without_pixels: Dictionary from the file name of each shard to the digest of everything except its pixels,
            see `arrow_shard.digest_without_pixels`. It is empty in datasets of earlier versions.
        sha256_of_other_files: Dictionary from the name of every other file to its SHA-256 checksum. It is empty in
            datasets of earlier versions.
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
    xxh3_without_pixels: dict[str, str] = field(default_factory=dict)
    sha256_of_other_files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> DatasetInfo:
        """Read the description of a dataset folder.

        Raises:
            UserError: If the folder has no description, or if the description is damaged or of another version.
        """
        remedy = "restore it from a copy, or make the dataset again"
        try:
            found = Fields(read_json(folder / INFO, remedy), folder / INFO, remedy)
        except FileNotFoundError as error:
            remedy = interrupted_replacement(folder) or "make one with `import`"
            raise UserError(f"{folder}: not a dataset folder (no {INFO}); {remedy}") from error
        version = found.integer("format_version", 0, 2**31)
        if version != FORMAT_VERSION:
            raise UserError(f"{folder}: has format {version}, this version reads {FORMAT_VERSION}")
        prints, kind = found.integer("prints", 1, MOST_PRINTS), PrintInfo.read(found)
        return cls(
            version,
            kind.ppi,
            kind.canvas,
            found.text("encoding", choices=ENCODINGS),
            prints,
            found.integer("fingers", 1, prints),
            found.integer("with_minutiae", 0, prints),
            found.digests("sha256"),
            kind.enhanced,
            found.digests("xxh3_without_pixels", digest=XXH3),
            found.digests(OTHER_FILES),
        )


def rows_per_shard(rows: int, canvas: int) -> int:
    """Return the number of prints in each shard of a dataset with `rows` prints.

    The result depends on the arguments alone, so that the written bytes are the same for any number of workers.

    Args:
        rows: number of prints in the dataset.
        canvas: side of the images, pixels.
    """
    return min(rows_per_record_batch(canvas), max(LEAST_ROWS, -(-rows // SHARDS)))


def write_shard(
    path: Path,
    records: Iterable[Record],
    canvas: int,
    encoding: str = "raw",
    truth: bool = False,
    nfiq2: bool = False,
) -> dict[str, Any]:
    """Write one shard, an Arrow file with a part of the prints. One record batch is in memory at a time.

    Args:
        path: file to write.
        records: the prints.
        canvas: side of the images, pixels.
        encoding: encoding of the images, "raw" or "lz4".
        truth: whether to write the columns of the ground truth.
        nfiq2: whether to write the column of the NFIQ 2 scores.

    Returns:
        Properties of the shard: `rows` (number of prints), `with_minutiae` (number of prints with minutiae), `fingers`
        (sorted indices of the fingers) and `xxh3_without_pixels` (digest of everything except the pixels).

    Raises:
        OSError: if the file cannot be written.
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
    written = MappedFile(path)
    spans = [pixel_range(written, batch.column(0)) for batch in record_batches(written)] if rows else []
    digest = digest_without_pixels(written, spans)
    return {
        "rows": rows,
        "with_minutiae": with_minutiae,
        "fingers": sorted(fingers),
        "xxh3_without_pixels": digest,
    }


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
    """Write the metadata of a dataset folder beside the finished shards, and delete empty shards.

    The metadata consists of `fingerprint.json` and the files that `Dataset.save_to_disk` of the library `datasets`
    writes. Call `seal_dataset` when all other files of the folder are written.

    Args:
        folder: folder that contains the shards.
        names: file names of the shards.
        facts: result of `write_shard` for each shard, with the checksum of the file added as `sha256`.
        ppi: resolution of the prints, pixels per inch.
        canvas: side of the prints, pixels.
        encoding: encoding of the images, "raw" or "lz4".
        enhanced: whether the ridges of the prints are enhanced.
        truth: whether the shards have the columns `pose` and `contact` of the ground truth.
        nfiq2: whether there is a column of NFIQ 2 scores.

    Raises:
        UserError: if all shards are empty.
    """
    import datasets  # the import takes a second

    filled = {name: known for name, known in zip(names, facts, strict=True) if known["rows"]}
    require(bool(filled), f"{folder}: no print to write; give at least one print")
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
        {name: known["xxh3_without_pixels"] for name, known in filled.items()},
    )
    write_json(folder / INFO, asdict(info))
    features = datasets.Features.from_arrow_schema(schema(truth, nfiq2))
    with errors_naming(folder / "dataset_info.json"):
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
    write_json(folder / "state.json", state, checksum=False)  # a file of the library datasets


def seal_dataset(folder: Path) -> None:
    """Add the checksums of all files that are no shards to the description of a complete dataset folder.

    Files whose names begin with a dot are left out. Workers of a cluster whose client was killed may still write them.
    """
    info = DatasetInfo.read(folder)
    others = {
        path.name: file_sha256(path)
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and path.is_file() and path.name != INFO and path.name not in info.sha256
    }
    write_json(folder / INFO, asdict(replace(info, sha256_of_other_files=others)))


def rows_per_record_batch(canvas: int) -> int:
    """Return the maximum number of prints in an Arrow record batch for images of side `canvas`, in pixels."""
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
