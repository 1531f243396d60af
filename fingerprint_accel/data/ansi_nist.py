"""Read ANSI/NIST-ITL transactions in traditional encoding (`.an2`, `.eft`, `.nist`).

A transaction is a file of numbered records, as police and border systems exchange them. The functions read images from
records of types 4, 13 and 14, and minutiae from records of type 9. They follow NIST Special Publication 500-290e3
(ANSI/NIST-ITL 1-2011, update 2015). The package `nistitl` on PyPI is not used: it refuses one of the samples that NIST
publishes, copies every image, and takes 4 to 14 times as long (`benchmarks/transactions.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fingerprint_accel.data.ansi_nist_record import CM_PER_INCH, FIELD, Record
from fingerprint_accel.data.image_record import (
    MOST_RECORDS,
    ImageRecord,
    RecordError,
    meant_ppi,
    why_not_a_finger,
    why_ppi_is_wrong,
)
from fingerprint_accel.data.ridges import MM_PER_INCH
from fingerprint_accel.data.type_9 import with_minutiae
from fingerprint_accel.untrusted import reason_of

START = re.compile(rb"1\.0*1:(\d+)\x1d")  # every file begins with field 1.001, the length of the first record
FILE = b"\x1c"  # last byte of a record
BINARY_TYPES = (3, 4, 5, 6, 7, 8)  # record types with fixed fields instead of tagged ones
NOT_FINGERS = {
    3: "a low-resolution image (record type 3)",
    5: "a low-resolution binary image (record type 5)",
    6: "a binary image (record type 6)",
    7: "a user-defined image (record type 7)",
    8: "a signature (record type 8)",
    10: "a face or body part (record type 10)",
    15: "a palm (record type 15)",
    16: "a test image (record type 16)",
    17: "an iris (record type 17)",
    19: "a sole or toe (record type 19)",
    20: "a source image (record type 20)",
}
MOST_TEXT = 2**22  # bytes of text in a transaction, without the images; the text of a print has up to 100 KB
MOST_TAG = 64  # number of bytes that are searched for the tag and the length of a record


def read_transaction(data: memoryview, key: Sequence[str] = ()) -> list[ImageRecord]:
    """Read the images of an ANSI/NIST transaction without decoding them.

    Args:
        data: all bytes of the file.
        key: identifiers of the fields that identify the subject, for example `2.018`. The values of these fields,
            joined with `_`, become the attribute `subject` of each image.

    Returns:
        List with one `ImageRecord` for each record with an image. If an image cannot be used, for example a palm or a
        face, its attribute `reason` explains why.

    Raises:
        RecordError: if the file is not a transaction, is damaged, or holds no image.
    """
    try:
        records = list(_records(data))
    except (ValueError, IndexError) as error:
        raise (
            error
            if isinstance(error, RecordError)
            else RecordError(f"damaged transaction ({reason_of(error)}): copy the file again")
        ) from error
    described = {(record.kind, number): record.text(number) for record in records for number in record.fields}
    words = [field.partition(".") for field in key]
    subject = "_".join(filter(None, (described.get((int(kind), int(field)), "") for kind, _, field in words)))
    templates = {record.idc: record for record in reversed(records) if record.kind == 9}
    found = []
    for position, record in enumerate(records, start=1):
        if record.kind in NOT_FINGERS:
            found.append(ImageRecord(position, reason=NOT_FINGERS[record.kind]))
        elif record.kind in (4, 13, 14):
            try:
                image = (
                    _type_4(position, record, records[0], subject)
                    if record.kind == 4
                    else (_type_14(position, record, subject))
                )
            except (ValueError, IndexError) as error:
                image = ImageRecord(position, reason=f"damaged record ({reason_of(error)}): copy the file again")
            if record.idc in templates and not image.reason:
                image = with_minutiae(image, record, templates[record.idc])
            found.append(image)
    if not found:
        raise RecordError("holds no image" + (", only minutiae" if any(each.kind == 9 for each in records) else ""))
    return found


def _records(data: memoryview) -> Iterator[Record]:
    start = START.match(bytes(data[:MOST_TAG]))
    if start is None:
        raise RecordError("not an ANSI/NIST transaction")
    header = _tagged(1, data[: int(start[1])], MOST_TEXT)
    if int(start[1]) > len(data) or 3 not in header.fields:
        raise RecordError("damaged: the first record is cut off; copy the file again")
    yield header
    at, room = int(start[1]), MOST_TEXT - int(start[1])
    contents = header.rows(3)[1:]  # type and IDC of each record, in order
    if len(contents) > MOST_RECORDS:
        raise RecordError(f"more than {MOST_RECORDS} records in a file: split it")
    for row in contents:
        kind = int(row[0])
        if kind in BINARY_TYPES:
            length = int.from_bytes(data[at : at + 4], "big")
        else:
            tag = re.match(rb"\s*%d\.0*1:(\d+)" % kind, bytes(data[at : at + MOST_TAG]))
            length = int(tag[1]) if tag else 0
        if not 0 < length <= len(data) - at:
            raise RecordError(
                f"damaged: the record of type {kind} at byte {at} does not fit the file; copy the file again"
            )
        part = data[at : at + length]
        record = _binary(kind, part) if kind in BINARY_TYPES else _tagged(kind, part, room)
        yield record
        at += length
        room -= 0 if kind in BINARY_TYPES else length - len(record.image)


def _binary(kind: int, data: memoryview) -> Record:
    return Record(kind, data, data[4] if len(data) > 4 else 0, {}, data[18:])


def _tagged(kind: int, data: memoryview, room: int) -> Record:
    """Parse a record of tagged fields.

    Args:
        kind: type of the record.
        data: bytes of the record.
        room: largest size of its text, bytes.
    """
    # The image is the last field and may contain separator bytes. Some programs write short dummy fields 999 before it.
    image = re.search(rb"\x1d%d\.0*999:(?:[^\x1d]{0,64}\x1d%d\.0*999:)*" % (kind, kind), data)
    text, rest = (data[: image.start()], data[image.end() : -1]) if image else (data, data[:0])
    if len(text) > room:
        raise RecordError(f"more than {MOST_TEXT / 1e6:.0f} MB of text: split the file")
    fields: dict[int, bytes] = {}
    for field in bytes(text).rstrip(FILE + b"\x00\r\n").split(FIELD):
        tag, _, value = field.partition(b":")
        number = tag.partition(b".")[2]
        if number.isdigit():
            fields.setdefault(int(number), value)
    idc = fields.get(2, b"0").strip()
    return Record(kind, data, int(idc) if idc.isdigit() else 0, fields, rest)


def _type_4(number: int, record: Record, transaction: Record, subject: str) -> ImageRecord:
    """Convert a record of type 4, a high-resolution grey image, to an image record.

    The record has a header of 18 bytes, followed by the image.

    Args:
        number: position of the record in the file, from 1.
        record: the record of type 4.
        transaction: record of type 1. Its field 11 holds a resolution in pixels per mm.
        subject: identifier of the person.
    """
    header = record.data
    if len(header) < 19:
        return ImageRecord(number, reason="damaged: a record of type 4 without an image")
    # Byte 12 holds the resolution code. 0: the minimum of 19.69 pixels per mm. 1: the resolution in field 1.011.
    pixels_per_mm = transaction.number(11) if header[12] == 1 else 0
    ppi = meant_ppi((pixels_per_mm or 19.69) * MM_PER_INCH)
    width, height = (int.from_bytes(header[at : at + 2], "big") for at in (13, 15))
    position = header[6]
    raw = (height, width) if header[17] == 0 else None
    reason = why_not_a_finger(position) or why_ppi_is_wrong(ppi)
    return ImageRecord(number, record.image, raw, ppi, position, subject, reason=reason)


def _type_14(number: int, record: Record, subject: str) -> ImageRecord:
    """Convert a record of type 14 (finger image of any resolution) or 13 (latent print) to an image record.

    Both types have the same fields.

    Args:
        number: position of the record in the file, from 1.
        record: the record of type 13 or 14.
        subject: identifier of the person.
    """
    width, height = int(record.number(6)), int(record.number(7))
    per_unit = record.number(9)
    ppi = per_unit * (CM_PER_INCH if record.text(8) == "2" else 1.0) if record.text(8) in ("1", "2") else 0.0
    ppi = meant_ppi(ppi)
    position = int(record.number(13))
    reason = why_not_a_finger(position) or why_ppi_is_wrong(ppi)
    if min(width, height) < 0:
        reason = reason or f"damaged: an image of {width} x {height} pixels"
    if record.kind == 14 and record.number(12) not in (0, 8):
        reason = reason or f"{record.text(12)} bits per pixel (field 14.012): only 8 can be read"
    if not len(record.image):
        reason = reason or "no image (field 999): the record is empty"
    segments, missing = {}, []
    if record.kind == 14:
        for row in record.rows(21):
            finger, left, right, top, bottom = (int(item) for item in row[:5])
            if 0 <= left < right <= width and 0 <= top < bottom <= height:
                segments[finger] = (left, top, right, bottom)
        missing = [int(row[0]) for row in record.rows(18) if len(row) > 1 and row[0].isdigit()]
    return ImageRecord(
        number, record.image, (height, width) if record.text(11) == "NONE" else None, ppi, position, subject,
        segments, tuple(missing), quality=_nfiq2(record) if record.kind == 14 else -1, reason=reason,
    )  # fmt: skip


def _nfiq2(record: Record) -> int:
    """Return the NFIQ 2 quality score (0 to 100) in field 14.024 of a record, or -1 if there is none.

    Each subfield holds the finger, a score, and two identifiers: of the owner of the quality algorithm, and of the
    algorithm itself. The owner of NFIQ 2 is 000F.
    """
    for row in record.rows(24):
        if len(row) >= 4 and row[1].isdigit() and row[2].upper() == b"000F" and int(row[1]) <= 100:
            return int(row[1])
    return -1
