"""Read the minutiae in records of type 9 of an ANSI/NIST-ITL transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fingerprint_accel.data.ansi_nist_record import CM_PER_INCH, LARGEST, Record
from fingerprint_accel.data.image_record import ImageRecord
from fingerprint_accel.data.ridges import MM_PER_INCH
from fingerprint_accel.untrusted import reason_of

MOST_MINUTIAE = 2000  # in a record


def with_minutiae(found: ImageRecord, record: Record, template: Record) -> ImageRecord:
    """Return an image record with the minutiae of a record of type 9 added.

    A record of type 9 holds minutiae in one of three formats. The image record is returned without minutiae if its
    resolution is unknown, or with a reason if the minutiae cannot be read.

    Args:
        found: the image record without minutiae.
        record: the record of type 4, 13 or 14 that `found` was read from.
        template: the record of type 9.
    """
    if not found.ppi:
        return found
    if record.kind == 4:
        height = int.from_bytes(record.data[15:17], "big")
    else:
        height = int(record.number(7))
    try:
        if 331 in template.fields:
            minutiae = _extended(template, found.ppi)
        elif 137 in template.fields:
            minutiae = _incits_378(template, found.ppi)
        elif 12 in template.fields:
            minutiae = _legacy(template, found.ppi, height)
        else:
            return found
    except (ValueError, IndexError) as error:
        return dataclasses.replace(found, minutiae_reason=f"damaged record of type 9 ({reason_of(error)})")
    return dataclasses.replace(found, minutiae=minutiae)


def _minutiae(rows: Sequence[tuple[float, float, float, float]]) -> np.ndarray:
    """Convert n minutiae (x, y, angle in degrees, quality) to an array (n, 4) float32 with the angle in radians.

    Raises:
        ValueError: if there are too many, or a number is implausibly large.
    """
    if len(rows) > MOST_MINUTIAE:
        raise ValueError(f"{len(rows)} minutiae, more than a print has")
    table = np.array(rows, np.float32).reshape(-1, 4)
    if not (np.abs(table) <= LARGEST).all():
        raise ValueError("numbers that are implausibly large")
    table[:, 2] = np.radians(table[:, 2] % 360)
    return table


def _legacy(template: Record, ppi: float, height: int) -> np.ndarray:
    """Read the minutiae in field 9.012 of a record of type 9 (the legacy format).

    Each minutia is one word of digits: x and y (4 or 5 digits each, units of 0.01 mm, y counted from the bottom) and
    the angle (3 digits, degrees).

    Args:
        template: record of type 9.
        ppi: resolution of the image, pixels per inch.
        height: height of the image, pixels.

    Returns:
        (n, 4) float32 x, y (image pixels), angle (radians) and quality (0 to 1).
    """
    scale, rows = ppi / (100 * MM_PER_INCH), []
    for row in template.rows(12):
        word = row[1]
        digits = (len(word) - 3) // 2
        x, y, degrees = int(word[:digits]), int(word[digits : 2 * digits]), int(word[2 * digits :])
        # 2 is the best quality and 63 the worst; 0 and 1 mean that no quality is stated
        code = int(row[2]) if len(row) > 2 and row[2].isdigit() else 0
        quality = (64 - code) / 62 if 2 <= code <= 63 else 0.0
        # the angle of this format points in the opposite direction along the ridge
        rows.append((x * scale, height - y * scale, degrees + 180, quality))
    return _minutiae(rows)


def _incits_378(template: Record, ppi: float) -> np.ndarray:
    """Read the minutiae in field 9.137 of a record of type 9 (the format INCITS 378).

    A subfield holds an index, x, y (pixels), the angle (units of 2 degrees), the type and the quality (percent).

    Args:
        template: record of type 9.
        ppi: resolution of the image, pixels per inch.

    Returns:
        (n, 4) float32 x, y (image pixels), angle (radians) and quality (0 to 1).
    """
    per_unit = template.number(131) * (CM_PER_INCH if template.text(130) == "2" else 1.0)
    scale = ppi / per_unit if per_unit > 0 else 1.0
    rows = []
    for row in template.rows(137):
        x, y, angle = (int(item) for item in row[1:4])
        quality = int(row[5]) if len(row) > 5 else 0
        rows.append((x * scale, y * scale, 2 * angle, quality / 100 if 0 <= quality <= 100 else 0.0))
    return _minutiae(rows)


def _extended(template: Record, ppi: float) -> np.ndarray:
    """Read the minutiae in field 9.331 of a record of type 9 (the extended feature set).

    A subfield holds x and y (units of 0.01 mm, relative to the region of interest in field 9.300) and the angle
    (degrees).

    Args:
        template: record of type 9.
        ppi: resolution of the image, pixels per inch.

    Returns:
        (n, 4) float32 x, y (image pixels), angle (radians) and quality (always 0).
    """
    scale = ppi / (100 * MM_PER_INCH)
    region = template.rows(300)[0] if 300 in template.fields else []
    left, top = (int(region[at]) if len(region) > at and region[at] else 0 for at in (2, 3))
    rows = [(int(row[0]), int(row[1]), int(row[2])) for row in template.rows(331)]
    return _minutiae([((x + left) * scale, (y + top) * scale, degrees, 0.0) for x, y, degrees in rows])
