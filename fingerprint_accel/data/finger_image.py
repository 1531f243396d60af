"""Read finger image records: ISO/IEC 19794-4:2005 and :2011, INCITS 381-2004 and -2009.

A finger image record is a file that holds one or more images of fingers. It may be wrapped in a CBEFF header.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fingerprint_accel.data.image_record import (
    MOST_RECORDS,
    ImageRecord,
    RecordError,
    meant_ppi,
    why_not_a_finger,
    why_ppi_is_wrong,
)

MAGIC = b"FIR\0"
CM_PER_INCH = 2.54
UNPACKED, PACKED = 0, 1  # compression codes of raw pixels; images with other codes are recognised by their first bytes
WRAPPER = 4096  # number of bytes that are searched for the start of the record after a CBEFF header


def read_finger_images(data: memoryview) -> list[ImageRecord]:
    """Read the images of a finger image record without decoding them.

    Args:
        data: all bytes of the file.

    Raises:
        RecordError: if the file holds no finger image record, its version is unknown, or it is damaged.
    """
    start = bytes(data[:WRAPPER]).find(MAGIC)
    if start < 0:
        raise RecordError("not a finger image record")
    record = data[start:]
    version = bytes(record[4:7])
    layouts = [layout for layout in LAYOUTS if layout.version == version]
    if not layouts:
        raise RecordError(f"finger image record of version {version!r}: not supported; export it as ISO/IEC 19794-4")
    for layout in layouts:
        # ISO and INCITS use the same version strings with headers of different size. The correct header size agrees
        # with the length field.
        try:
            found = list(itertools.islice(layout.read(record, layout.header), MOST_RECORDS + 1))
            if len(found) > MOST_RECORDS:
                raise RecordError(f"more than {MOST_RECORDS} images in a file: split it")
            return found
        except (struct.error, IndexError):
            continue
    raise RecordError("damaged: the parts of the finger image record do not fit its length; copy the file again")


def _views(record: memoryview, header: int) -> Iterator[ImageRecord]:
    """Read the images of a record in the layout of ISO/IEC 19794-4:2005 and INCITS 381.

    The record begins with a header that states the resolution. In addition, each image has its own header of 14 bytes.

    Args:
        record: bytes of the record.
        header: size of the first header, bytes.

    Raises:
        IndexError, struct.error: if the record does not have this layout.
    """
    at = header
    length = int.from_bytes(record[8:14], "big")
    if length > len(record):
        raise IndexError
    fingers, units, _, _, per_unit, _, depth, compression = struct.unpack(">BBHHHHBB", record[header - 14 : header - 2])
    number = 0
    for _ in range(fingers):
        seen, views = 0, 1
        while seen < views:
            size, position, views, _, _, _, width, height = struct.unpack(">IBBBBBHH", record[at : at + 13])
            if size < 14 or at + size > length:
                raise IndexError
            seen, number = seen + 1, number + 1
            yield _image(
                number, record[at + 14 : at + size], width, height, position, units, per_unit, depth, compression
            )
            at += size
    if at != length:
        raise IndexError


def _representations(record: memoryview, header: int) -> Iterator[ImageRecord]:
    """Read the images of a record in the layout of ISO/IEC 19794-4:2011.

    Each image has a complete header of its own.

    Args:
        record: bytes of the record.
        header: size of the header before the first image, bytes.

    Raises:
        IndexError, struct.error: if the record does not have this layout.
    """
    length, count, certified = struct.unpack(">IHB", record[8:15])
    if length > len(record):
        raise IndexError
    start = header
    for number in range(1, count + 1):
        size = int.from_bytes(record[start : start + 4], "big")
        at = start + 4 + 9 + 1 + 2 + 2  # skip length, time, technology, vendor and device of the capture
        at += 1 + 5 * record[at]  # quality blocks
        if certified:
            at += 1 + 3 * record[at]
        values = struct.unpack(">BBBHHHHBBBHHI", record[at : at + 22])
        position, _, units, _, _, per_unit, _, depth, compression, _, width, height, image = values
        if image > size or start + size > length:
            raise IndexError
        data = record[at + 22 : at + 22 + image]
        yield _image(number, data, width, height, position, units, per_unit, depth, compression)
        start += size
    if start != length:
        raise IndexError


def _image(
    number: int,
    image: memoryview,
    width: int,
    height: int,
    position: int,
    units: int,
    per_unit: int,
    depth: int,
    compression: int,
) -> ImageRecord:
    reason = why_not_a_finger(position)
    if depth not in (0, 8):
        reason = reason or f"{depth} bits per pixel: only 8 can be read"
    raw = (height, width) if compression in (UNPACKED, PACKED) else None
    ppi = meant_ppi(per_unit * (CM_PER_INCH if units == 2 else 1.0))
    return ImageRecord(number, image, raw, ppi, position, reason=reason or why_ppi_is_wrong(ppi))


@dataclass(frozen=True)
class Layout:
    """One version of the format of finger image records.

    Attributes:
        version: version string in the record.
        header: size of the header before the first image, bytes.
        read: function that reads the images from the record, given the size of the header.
    """

    version: bytes
    header: int
    read: Callable[[memoryview, int], Iterator[ImageRecord]]


LAYOUTS = (
    Layout(b"010", 32, _views),  # ISO/IEC 19794-4:2005
    Layout(b"010", 36, _views),  # INCITS 381-2004
    Layout(b"020", 16, _representations),  # ISO/IEC 19794-4:2011
    Layout(b"020", 36, _views),  # INCITS 381-2009
)
