"""The Arrow schema of the shards of a dataset, and a reader that checks the structure of a shard.

A shard may be damaged, or made by an attacker.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache

import numpy as np
import pyarrow as pa
import xxhash

from fingerprint_accel.data.mapping import MappedFile
from fingerprint_accel.untrusted import UnreadableError

IMPRESSIONS = (pa.int16(), pa.int32(), pa.int64())  # types of the column `impression` in all versions


@cache
def schema(truth: bool = False, nfiq2: bool = False) -> pa.Schema:
    """Return the Arrow schema of a dataset.

    Args:
        truth: whether to add the columns `pose` and `contact` of the ground truth, see `truth.Truth`.
        nfiq2: whether to add the column `nfiq2` of NFIQ 2 scores.
    """
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


def record_batches(file: MappedFile) -> list[pa.RecordBatch]:
    """Return the record batches of a shard, whose arrays are views of the file.

    Every column has its expected type, valid UTF-8, and offsets within the file. This function does not check numbers.

    Raises:
        ValueError: if the shard is damaged, has other columns or types than those of `shard_writing.schema`, has null
            values or no row, or is compressed as a whole. Compressed shards could expand to any size.
    """
    messages = iter(pa.ipc.MessageReader.open_stream(file.buffer))
    first = next(messages, None)
    if first is None:
        raise UnreadableError("contains no columns")
    found = pa.ipc.read_schema(first)
    if not any(found.equals(known) for known in _schemas()):
        raise UnreadableError("contains columns of another name or type")
    batches = []
    for message in messages:
        if message.type != "record batch":
            raise UnreadableError("contains dictionaries")
        _check_metadata(message.metadata)
        batch = pa.ipc.read_record_batch(message, found)
        batch.validate(full=True)
        batches.append(batch)
    if not batches or not all(map(len, batches)):
        raise UnreadableError("contains no rows")
    return batches


@cache
def _schemas() -> list[pa.Schema]:
    """Return the schemas of all versions."""
    every = [schema(truth, nfiq2) for truth in (False, True) for nfiq2 in (False, True)]
    place = every[0].get_field_index("impression")
    return [known.set(place, pa.field("impression", kind)) for kind in IMPRESSIONS for known in every]


def _check_metadata(metadata: pa.Buffer) -> None:
    """Check that the buffers of a record batch are not compressed, and that no value is null.

    The metadata are a flatbuffer, in which a table begins with the distance to the list of its fields. pyarrow checks
    the flatbuffer, but expands compressed buffers, to any size, before it returns the batch. Message.fbs in the source
    of Arrow describes the fields: 2 of `Message` is a `RecordBatch`, whose field 1 is a vector of pairs (number of
    values, number of nulls) of the columns and of their items, and whose field 3 is the compression.
    """
    data = memoryview(metadata)
    try:
        batch = _target(data, _field(data, _target(data, 0), 2))
        if _field(data, batch, 3):
            raise UnreadableError("contains compressed columns")
        nodes = _target(data, _field(data, batch, 1))
        (count,) = struct.unpack_from("<I", data, nodes)
        if any(struct.unpack_from(f"<{2 * count}q", data, nodes + 4)[1::2]):
            raise UnreadableError("contains null values")
    except struct.error as error:
        raise UnreadableError("damaged metadata") from error


def _target(data: memoryview, place: int) -> int:
    """Return the position to which a pointer of a flatbuffer points."""
    return place + int(struct.unpack_from("<I", data, place)[0])


def _field(data: memoryview, table: int, number: int) -> int:
    """Return the position of a field of a flatbuffer table, or 0 if the table does not have the field."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    slot = 4 + 2 * number
    if fields < 0 or slot >= struct.unpack_from("<H", data, fields)[0]:
        return 0
    offset = int(struct.unpack_from("<H", data, fields + slot)[0])
    return table + offset if offset else 0


def digest_without_pixels(file: MappedFile, pixels: Iterable[tuple[int, int]]) -> str:
    """Return the XXH3 digest of all bytes of a shard except the pixels of its prints, in hexadecimal.

    XXH3 reads 28 GB/s and SHA-256 2 GB/s, so that small datasets are compared each time they are opened. XXH3 detects
    accidents, not attackers.

    Args:
        file: the shard.
        pixels: result of `pixel_range` for each record batch.
    """
    digest, content, position = xxhash.xxh3_64(), memoryview(file.buffer), 0
    for start, stop in pixels:
        digest.update(content[position:start])
        position = stop
    digest.update(content[position:])
    return digest.hexdigest()


def pixel_range(file: MappedFile, images: pa.BinaryArray) -> tuple[int, int]:
    """Return the range of bytes in a file that a column `image` of a record batch refers to.

    Returns:
        Position of the first byte, and position after the last byte.
    """
    _, offsets, data = images.buffers()
    places = np.frombuffer(offsets, np.int32)
    start = file.offset(data.address)
    return start + int(places[images.offset]), start + int(places[images.offset + len(images)])
