"""The parts of an import: files prepared as rows of a dataset, or why not. Imports little, for worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from fingerprint_accel.data.encoding import encode
from fingerprint_accel.data.parallel import batched, end_if_stopping
from fingerprint_accel.data.part_folder import PartFolder
from fingerprint_accel.data.print_file import Job, Prepared, Target, prepare
from fingerprint_accel.errors import UserError

PARTS, LEAST_FILES, MOST_FILES = 256, 16, 512  # parts at least, so that every core has work; files in a part
FILES_AT_ONCE = 16  # of which a worker holds the canvases
SCHEMA = pa.schema(
    {
        "image": pa.binary(),  # encoded as in the dataset; null: rejected
        "finger_key": pa.string(),
        "impression": pa.int32(),
        "source": pa.string(),
        "minutiae": pa.list_(pa.float32()),
        "reason": pa.string(),
        "minutiae_file": pa.string(),
        "minutiae_reason": pa.string(),
    }
)


@dataclass(frozen=True)
class PartTask:
    """What a worker needs to know to make a part."""

    parts: PartFolder
    part: int
    jobs: list[Job]
    target: Target
    encoding: str


@dataclass(frozen=True)
class ImportedFile:
    """What became of a file: an image, encoded as in the dataset, or a reason; and one if its minutiae failed."""

    image: bytes | None
    finger_key: str
    impression: int
    source: str
    minutiae: np.ndarray
    reason: str
    minutiae_file: str
    minutiae_reason: str


def files_per_part(files: int) -> int:
    """Enough for a worker to have something to do, few enough to be soon done; whoever takes part."""
    return min(MOST_FILES, max(LEAST_FILES, -(-files // PARTS)))


def make_part(task: PartTask) -> int:
    """Prepares the files of a part, which is on the disk once this returns; says how many they are."""
    schema = SCHEMA.with_metadata({"files": state_of(task.jobs)})
    with task.parts.writing(task.part) as file, pa.ipc.new_stream(file, schema) as writer:
        for jobs in batched(iter(task.jobs), FILES_AT_ONCE):
            rows = []
            for job in jobs:
                end_if_stopping()
                rows.append(_row(prepare(job, task.target), task.encoding))
            columns = [pa.array([row[place] for row in rows], field.type) for place, field in enumerate(SCHEMA)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return len(task.jobs)


def state_of(jobs: list[Job]) -> str:
    """Tells files of these sizes and times from the same files after a change."""
    state = hashlib.sha256()
    for path in [path for job in jobs for path in (job.path, job.minutiae) if path is not None]:
        try:
            known = path.stat()
            state.update(f"{known.st_size} {known.st_mtime_ns}\n".encode())
        except OSError:
            state.update(b"unreadable\n")
    return state.hexdigest()


def is_of(path: Path, jobs: list[Job]) -> bool:
    """Whether a part was made from these files as they are now."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            return bool(reader.schema.metadata[b"files"].decode() == state_of(jobs))
    except (OSError, pa.ArrowException, TypeError, KeyError):
        return False


def _row(prepared: Prepared, encoding: str) -> tuple:
    job = prepared.job
    image = None if prepared.image is None else encode(prepared.image, encoding)
    minutiae = np.ascontiguousarray(prepared.minutiae, np.float32).ravel()
    file = str(job.minutiae) if prepared.minutiae_reason else ""
    return (
        *(image, job.finger_key, job.impression, job.name, minutiae),
        *(prepared.reason, file, prepared.minutiae_reason),
    )


def read_part(path: Path) -> Iterator[ImportedFile]:
    """The files of a part, in order.

    Raises:
        UserError: it is damaged.
    """
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                batch.validate(full=True)
                yield from _files(batch)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged; delete it and run the same command again") from error


def _files(batch: pa.RecordBatch) -> Iterator[ImportedFile]:
    images, minutiae = batch["image"], batch["minutiae"]
    for row, values in enumerate(batch.drop_columns(["image", "minutiae"]).to_pylist()):
        image = images[row].as_buffer().to_pybytes() if images[row].is_valid else None
        yield ImportedFile(image, minutiae=minutiae[row].values.to_numpy().reshape(-1, 4).copy(), **values)
