"""Convert prints to rows of the table `fingerprint_prints`, and rows to prints, with checks of all values.

Rows are sent in the binary format of COPY (PostgreSQL documentation, "COPY: Binary Format"), and templates in the
binary format of pgvector's type halfvec: two int16, the dimension and 0, then the numbers as big-endian float16.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.gallery_parts import LAST_POSITION, Known

COLUMNS = ("id", "position", "quality", "impression", "name", "person", "source", "template")
DENSE = ("energy", "shown")  # further columns for dense templates, see `cell_columns`
RECORD = "name, person, position, source, impression, quality"  # in the order of `Known`
COPY_HEADER, COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
ROWS_AT_ONCE = 256  # rows that are sent together
SMALLEST = np.float16(2**-24)  # smallest positive float16
HALF_TOLERANCE = 2e-3  # of the squared norm of a template in float16, whose numbers have a relative error below 2^-11
MOST_TEXT, LARGEST_IMPRESSION = 2**16, 2**63 - 1
REMEDY = "restore the database from a backup, or remove the print and enrol it again"


def print_id(name: str) -> int:
    """Return the id of a print: 63 bits of the BLAKE2 hash of its name.

    Two of a billion names have the same id with a probability of 5 %. Such a print is refused at enrolment.
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 1


def as_half(embeddings: np.ndarray) -> np.ndarray:
    """Convert templates (N, D) to float16 so that numbers other than 0 stay other than 0.

    A cell of a dense template is zero exactly if the print does not show the cell.
    """
    half = embeddings.astype(np.float16)
    lost = (half == 0) & (embeddings != 0)
    half[lost] = np.copysign(SMALLEST, embeddings[lost])
    return half


def cell_columns(templates: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what `masked_similarity` needs of dense templates besides the dot product.

    Args:
        templates: (N, D) dense templates.
        cells: number of grid cells.

    Returns:
        Squared norm of each cell (N, cells) float16, and 1 for each cell that the print shows, else 0, (N, cells).
    """
    grid = templates.astype(np.float32).reshape(len(templates), cells, -1)
    return as_half(np.square(grid).sum(axis=2)), (grid != 0).any(axis=2).astype(np.float16)


def copy_rows(embeddings: np.ndarray, prints: Sequence[Known], cells: int) -> Iterator[bytes]:
    """Convert prints to the binary format of COPY, in pieces to send one after the other.

    Args:
        embeddings: (N, D) float32.
        prints: record of each print.
        cells: number of grid cells of a dense template, 0 for other templates.

    Raises:
        UserError: if a text contains a zero byte, which PostgreSQL cannot store.
    """
    half = as_half(embeddings)
    vectors = [half, *(cell_columns(half, cells) if cells else ())]
    ends = np.concatenate([_halfvec_fields(each) for each in vectors], axis=1)  # (N, bytes) uint8
    count = len(COLUMNS) + (len(DENSE) if cells else 0)
    yield COPY_HEADER
    for start in range(0, len(prints), ROWS_AT_ONCE):
        rows = []
        for row in range(start, min(start + ROWS_AT_ONCE, len(prints))):
            each = prints[row]
            numbers = struct.pack(
                ">hiqihifiq", count, 8, print_id(each.name), 2, each.position, 4, each.quality, 8, each.impression
            )
            texts = [_text(text) for text in (each.name, each.person, each.source)]
            rows += [numbers, *texts, ends[row].tobytes()]
        yield b"".join(rows)
    yield COPY_END


def _halfvec_fields(values: np.ndarray) -> np.ndarray:
    """Return fields of COPY, (N, 8 + 2 D) uint8, for vectors (N, D) float16."""
    count, dims = values.shape
    head = np.frombuffer(struct.pack(">ihh", 4 + 2 * dims, dims, 0), np.uint8)
    numbers = values.astype(">f2").view(np.uint8)
    return np.concatenate([np.broadcast_to(head, (count, len(head))), numbers], axis=1)


def _text(text: str) -> bytes:
    data = text.encode()
    if b"\0" in data:
        raise UserError(f"{text[:40]!r}: a print cannot be enrolled with a zero byte in its name, person or source")
    return len(data).to_bytes(4) + data


def read_templates(fields: Sequence[bytes], dims: int, where: str) -> np.ndarray:
    """Convert halfvec values in binary format to templates, and check them.

    Args:
        fields: N values.
        dims: dimension that the gallery states.
        where: table, for error messages.

    Returns:
        (N, D) float32, scaled to unit length; templates without any cell are zero.

    Raises:
        UserError: if a value has another dimension, or is not finite and of unit length.
    """
    size = 4 + 2 * dims
    good = all(isinstance(field, bytes) and len(field) == size for field in fields)
    require(good, f"{where}: contains a template that does not have {dims} numbers; {REMEDY}")
    raw = np.frombuffer(b"".join(fields), np.uint8).reshape(len(fields), size)
    templates = raw[:, 4:].copy().view(">f2").astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.einsum("nd,nd->n", templates, templates)
    good = bool(((np.abs(square - 1) <= HALF_TOLERANCE) | (square == 0)).all())  # comparisons with NaN are false
    require(good, f"{where}: contains a template that is not finite and of unit length; {REMEDY}")
    return templates / np.sqrt(np.where(square > 0, square, 1))[:, None]


def read_record(row: Sequence[Any], where: str) -> Known:
    """Convert the columns `RECORD` of a row to the record of a print, and check them.

    Raises:
        UserError: if a value is missing, has the wrong type or is out of range.
    """
    name, person, position, source, impression, quality = row
    texts = all(isinstance(text, str) and len(text) <= MOST_TEXT for text in (name, person, source))
    numbers = (
        type(position) is int
        and 0 <= position <= LAST_POSITION
        and type(impression) is int
        and -1 <= impression <= LARGEST_IMPRESSION
        and isinstance(quality, float)
        and math.isfinite(quality)
        and (quality == -1 or 0 <= quality <= 1)
    )
    require(texts and bool(name) and numbers, f"{where}: contains a record that no enrolment writes; {REMEDY}")
    return Known(name, person, position, source, impression, round(quality, 6))


def vector_text(vector: np.ndarray) -> str:
    """Return a vector (D,) as text for a parameter of type halfvec."""
    return "[" + ",".join(f"{value:.6g}" for value in vector.tolist()) + "]"


def bit_text(flags: np.ndarray) -> str:
    """Return flags (D,) bool as text for a parameter of type bit."""
    return "".join("1" if flag else "0" for flag in flags.tolist())
