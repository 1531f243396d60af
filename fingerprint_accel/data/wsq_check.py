"""Check the structure of WSQ files before they are decoded.

The decoder of the package `wsq` believes the sizes and numbers of tables in a file, and keeps tables from one file to
the next. A damaged file would therefore write beyond its memory, or be decoded with the tables of an earlier file.
Source: WSQ Gray-Scale Fingerprint Image Compression Specification, IAFIS-IC-0110 (1997), annex A.
"""

from __future__ import annotations

import re

END, FRAME, BLOCK = b"\xa1", b"\xa2", b"\xa3"  # second bytes of the markers
TRANSFORM, QUANTIZATION, HUFFMAN, COMMENT = b"\xa4", b"\xa5", b"\xa6", b"\xa8"
INVALID = b"\xff"  # a value that the decoder rejects
FRAME_SIZE, BLOCK_SIZE, QUANTIZATION_SIZE = 17, 3, 389  # bytes of a segment without its marker
MOST_COEFFICIENTS = 32  # of a filter; the standard filters have 7 and 9
LEAST_SIDE = 32  # pixels; the decoder divides the image into 64 subbands
TABLES, CODES, LONGEST = 8, 256, 16  # numbers of Huffman tables and of codes in a table, length of a code in bits
NEXT_MARKER = re.compile(rb"\xff[^\0]")  # 0xFF in the coefficients is followed by 0


def checked_wsq(data: bytes) -> bytes:
    """Check the structure of a WSQ file, and return a file with the same image that is safer to decode.

    Comments are removed, because the decoder would parse them too. Huffman tables are completed, see `_tables`.

    Args:
        data: all bytes of the file.

    Raises:
        ValueError: if the file is damaged.
    """
    kept, at, seen, tables = [data[:2]], 2, set[bytes](), set[int]()
    while True:
        kind, size = data[at + 1 : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        segment, end = data[at + 4 : at + 2 + size], at + 2 + size
        if data[at : at + 1] != b"\xff":
            raise ValueError("a marker is missing")
        if kind == END and BLOCK in seen:
            return b"".join([*kept, data[at : at + 2]])
        if size < 2 or len(segment) != size - 2:
            raise ValueError("a segment is cut off")
        if kind == BLOCK:
            if size != BLOCK_SIZE or segment[0] not in tables or not {FRAME, TRANSFORM, QUANTIZATION} <= seen:
                raise ValueError("a table is missing")
            found = NEXT_MARKER.search(data, end)
            if found is None:
                raise ValueError("the end is missing")
            end = found.start()
        elif kind == HUFFMAN:
            segment, numbers = _tables(segment)
            tables |= numbers
        elif kind == FRAME:
            _check_frame(segment, seen)
        elif kind == TRANSFORM:
            _check_transform(segment)
        elif kind != COMMENT and (kind != QUANTIZATION or size != QUANTIZATION_SIZE):
            raise ValueError("an unknown segment")
        seen.add(kind)
        if kind != COMMENT:
            kept += [data[at : at + 2], (len(segment) + 2).to_bytes(2, "big"), segment, data[at + 2 + size : end]]
        at = end


def _check_frame(segment: bytes, seen: set[bytes]) -> None:
    """Check the frame header of a WSQ file: the only one, and of an image that can be divided into subbands."""
    height, width = (int.from_bytes(segment[start : start + 2], "big") for start in (2, 4))
    if len(segment) != FRAME_SIZE - 2 or seen & {FRAME, BLOCK} or min(height, width) < LEAST_SIDE:
        raise ValueError("a wrong frame header")


def _check_transform(segment: bytes) -> None:
    """Check the filters of a WSQ file. Half of the coefficients of a symmetric filter are stored, 6 bytes each."""
    sizes = segment[:2]
    if (
        len(sizes) < 2
        or not all(0 < size <= MOST_COEFFICIENTS for size in sizes)
        or len(segment) != 2 + 6 * sum((size + 1) // 2 for size in sizes)
    ):
        raise ValueError("a wrong filter")


def _tables(segment: bytes) -> tuple[bytes, set[int]]:
    """Check the Huffman tables in a segment of a WSQ file, and complete them, see `_completed`.

    Returns:
        The completed segment, and the numbers of its tables.
    """
    found, numbers, at = [], set(), 0
    while at < len(segment):
        number, counts = segment[at], segment[at + 1 : at + 1 + LONGEST]
        values = segment[at + 1 + LONGEST : at + 1 + LONGEST + sum(counts)]
        at += 1 + LONGEST + sum(counts)
        if number >= TABLES or at > len(segment) or len(values) > CODES:
            raise ValueError("a wrong Huffman table")
        complete = _completed(counts)
        found += [bytes([number]), complete, values, INVALID * (sum(complete) - len(values))]
        numbers.add(number)
    return b"".join(found), numbers


def _completed(counts: bytes) -> bytes:
    """Add codes to a Huffman table, so that every sequence of bits has a code.

    The decoder reads beyond its tables for a sequence without a code. The added codes have an invalid value, which the
    decoder reports as an error. Only the longest code may consist of ones alone, because up to 7 ones fill the last
    byte of a block.

    Args:
        counts: number of codes of each length from 1 to LONGEST.
    """
    added, room = list(counts), 1  # room: number of sequences of the current length that have no code
    longest = max((size for size, count in enumerate(counts, 1) if count), default=0)
    for size, count in enumerate(counts, 1):
        room = 2 * room - count
        if room < 0:
            raise ValueError("a wrong Huffman table")
        if size >= longest:
            more = room if size == LONGEST else max(0, room - 1)
            added[size - 1] += more
            room -= more
    return bytes(added) if sum(added) <= CODES and max(added) < 256 else counts
