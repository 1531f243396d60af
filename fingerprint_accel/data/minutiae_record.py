"""Read binary minutiae records.

Supported formats are ISO/IEC 19794-2:2005, :2011 and on-card compact, and INCITS 378-2004 and -2009.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MAGIC = b"FMR\0"
CM_PER_INCH = 2.54
CARD_PPI = 254.0  # resolution of the on-card format: units of 0.1 mm
MOST_VIEWS = 1000  # largest number of views in a record; a person has ten fingers
NO_MINUTIAE = np.empty((0, 4), np.float32)


class TemplateError(ValueError):
    """Raised for a minutiae file that cannot be read. The message gives the reason."""


@dataclass(frozen=True)
class Template:
    """Minutiae of one print, and the size and resolution of the image in which the minutiae were found.

    Attributes:
        minutiae: (n, 4) float32 x, y (pixels), angle (radians) and quality (0 to 1).
        width: width of the image, pixels; 0 if the file does not state it.
        height: height of the image, pixels; 0 if the file does not state it.
        ppi: resolution of the image, pixels per inch; 0 if the file does not state it.
    """

    minutiae: np.ndarray
    width: int
    height: int
    ppi: float = 0.0

    def fitted(self, width: int, height: int, ppi: float = 0.0) -> np.ndarray:
        """Scale the minutiae to an image of a different size, with a separate factor for each axis.

        If the file states no size, the ratio of the resolutions is used as the factor.

        Args:
            width: width of the new image, pixels.
            height: height of the new image, pixels.
            ppi: resolution of the new image, pixels per inch; 0 if unknown.

        Returns:
            (n, 4) float32 x, y, angle, quality. The angles are adapted to the scaling.
        """
        if not self.width or not self.height:
            scale_x = scale_y = ppi / self.ppi if ppi and self.ppi and abs(ppi / self.ppi - 1) > 0.02 else 1.0
        else:
            scale_x, scale_y = width / self.width, height / self.height
        if scale_x == scale_y == 1:
            return self.minutiae
        fitted = self.minutiae.copy()
        fitted[:, 0] *= scale_x
        fitted[:, 1] *= scale_y
        angle = self.minutiae[:, 2]
        fitted[:, 2] = np.arctan2(np.sin(angle) * scale_y, np.cos(angle) * scale_x)
        return fitted


@dataclass(frozen=True)
class Header:
    """Layout of the headers in one version of the finger minutiae record.

    A record consists of a header and views. Each view holds the minutiae of one image. Offsets and sizes are in bytes.

    Attributes:
        version: version string after the magic bytes.
        length: `struct` format and offset of the length of the record.
        size: size of the header.
        views: offset of the number of views.
        image: offset of width, height and resolution of the image, relative to the header, or to the view if `in_view`.
        view: size of the header of a view. The last byte of this header is the number of minutiae.
        unit: unit of angles, radians.
        in_view: whether size and resolution of the image are in the view.
    """

    version: bytes
    length: tuple[str, int]
    size: int
    views: int
    image: int
    view: int
    unit: float
    in_view: bool = False


ISO_ANGLE, ANSI_ANGLE = 2 * math.pi / 256, math.radians(2)
HEADERS = (
    Header(b" 20", (">I", 8), 24, 22, 14, 4, ISO_ANGLE),  # ISO/IEC 19794-2:2005
    Header(b" 20", (">H", 8), 26, 24, 16, 4, ANSI_ANGLE),  # INCITS 378-2004
    Header(b" 20", (">2xI", 8), 30, 28, 20, 4, ANSI_ANGLE),  # INCITS 378-2004 with a length field of six bytes
    Header(b"030", (">I", 8), 21, 19, 8, 17, ANSI_ANGLE, in_view=True),  # INCITS 378-2009
    Header(b"030", (">I", 8), 20, 18, 8, 17, ANSI_ANGLE, in_view=True),  # draft of INCITS 378-2009, as NIST tools write
    Header(b"035", (">I", 8), 21, 19, 8, 17, ANSI_ANGLE, in_view=True),  # INCITS 378-2009, Amendment 1
)


def read_record(data: bytes, position: int) -> Template:
    """Read the minutiae of one finger from a finger minutiae record.

    Bytes after the stated length are ignored if they are 0 or 255, because some SDKs write padding.

    Args:
        data: bytes of the record, starting with the magic bytes `FMR`.
        position: position code of the finger, which selects one of several fingers in the record; 0 if unknown.

    Raises:
        TemplateError: if the version is unknown, the record is cut off, or `position` does not select a single view of
            a finger.
        struct.error, IndexError: if the record is damaged.
    """
    version = data[4:7]
    known = [header for header in HEADERS if header.version == version]
    if not known:
        raise TemplateError(f"minutiae record of version {version!r}, which is not supported; export it as ISO 19794-2")
    reason = TemplateError("record length differs from file length; copy the file again")
    for header in known:
        kind, at = header.length
        length = struct.unpack_from(kind, data, at)[0]
        if not header.size <= length <= len(data) or data[length:].strip(b"\0\xff"):
            continue
        try:
            views = list(_views(data[:length], header))
        except (struct.error, IndexError):
            continue
        except TemplateError as error:
            reason = error
            continue
        return _chosen(views, position)
    if version == b"030":  # ISO/IEC 19794-2:2011 has the same version string
        return _read_iso_2011(data, position)
    raise reason


def _views(data: bytes, header: Header) -> Iterator[tuple[int, Template]]:
    """Yield the views of a record. A view holds the minutiae of one image.

    Args:
        data: bytes of the record.
        header: layout of the headers in the record.

    Yields:
        Finger position code and minutiae of each view.

    Raises:
        IndexError, struct.error: if the record does not have this layout.
        TemplateError: if the record ends before its last minutia.
    """
    at = header.size
    for _ in range(data[header.views]):
        width, height, per_cm = struct.unpack_from(">HHH", data, header.image + (at if header.in_view else 0))
        position, count = data[at], data[at + header.view - 1]
        at += header.view
        minutiae = _minutiae(data, at, count, 6, header.unit)
        yield position, Template(minutiae, width, height, per_cm * CM_PER_INCH)
        at += 6 * count
        at += 2 + struct.unpack_from(">H", data, at)[0]  # skip extended data
    # The end is checked only for version 030, which three formats share. Records of NIST may have two bytes too many or
    # one too few.
    if header.version == b"030" and at != len(data):
        raise IndexError


def _chosen(views: list[tuple[int, Template]], position: int) -> Template:
    """Return the minutiae of the view that shows the finger on the image.

    Args:
        views: finger position code and minutiae of each view.
        position: position code of the finger on the image; 0 if unknown.

    Raises:
        TemplateError: if the only view shows a different finger, or if several views match.
    """
    if not views:
        return Template(NO_MINUTIAE, 0, 0)
    fitting = [(stated, template) for stated, template in views if stated == position] if position else []
    if len(fitting or views) == 1:
        stated, template = (fitting or views)[0]
        if position and stated and stated != position:
            raise TemplateError(f"of finger position {stated}, but the image shows finger position {position}")
        return template
    fingers = len({stated for stated, _ in views})
    what = f"{fingers} fingers" if fingers > 1 else f"{len(views)} views of a finger"
    raise TemplateError(f"record of {what}, which cannot be told apart; state the finger position, or split the record")


def _minutiae(data: bytes, at: int, count: int, size: int, unit: float) -> np.ndarray:
    there = max(0, len(data) - at) // size
    if there < count:
        raise TemplateError(f"cut off: {count} minutiae announced, {there} found; copy the file again")
    if not count:  # the offset may be that of the end
        return NO_MINUTIAE
    raw = np.frombuffer(data, np.uint8, count * size, at).reshape(count, size).astype(np.float32)
    x = (raw[:, 0] % 64) * 256 + raw[:, 1]  # the upper two bits hold the type of minutia
    y = (raw[:, 2] % 64) * 256 + raw[:, 3]
    quality = np.where(raw[:, 5] <= 100, raw[:, 5] / 100, 0) if size == 6 else np.zeros(count)
    return np.stack([x, y, raw[:, 4] * unit, quality], axis=1).astype(np.float32)


def _read_iso_2011(data: bytes, position: int) -> Template:
    """Read the minutiae of one finger from a record of ISO/IEC 19794-2:2011.

    In this format the header of each view has blocks of variable length. Arguments and errors are those of
    `read_record`.
    """
    length, representations, certified = struct.unpack_from(">IHB", data, 8)
    if length > len(data) or data[length:].strip(b"\0\xff"):
        raise TemplateError("record length differs from file length; copy the file again")
    if representations > MOST_VIEWS:
        raise TemplateError(f"damaged: {representations} views, more than a record has; copy the file again")
    views, start = [], 15
    for _ in range(representations):
        at = start + 4 + 9 + 1 + 2 + 2  # skip length, time, technology, vendor and device of the view
        at += 1 + 5 * data[at]  # quality blocks
        if certified:
            at += 1 + 3 * data[at]
        # Fields: resolution along x and y, impression type, width, height, sizes of fields, number of minutiae.
        per_cm, _, _, width, height, packed, count = struct.unpack_from(">HHBHHBB", data, at + 2)
        size = packed >> 4
        if size not in (5, 6):
            raise TemplateError(f"damaged: minutiae of {size} bytes instead of 5 or 6")
        minutiae = _minutiae(data, at + 13, count, size, ISO_ANGLE)
        views.append((data[at], Template(minutiae, width, height, per_cm * CM_PER_INCH)))
        start += struct.unpack_from(">I", data, start)[0]
    return _chosen(views, position)


def read_card(data: bytes) -> Template:
    """Read minutiae in the compact on-card format of ISO/IEC 19794-2.

    A minutia has three bytes: x and y in units of 0.1 mm (y downwards), then type (2 bits) and angle (6 bits).

    Raises:
        TemplateError: if the data are not in this format.
    """
    if data[:2] == b"\x7f\x2e":  # a biometric data template; its object 81 or 90 holds the minutiae
        data = _object(data, (0x81, 0x90))
    if not data or len(data) % 3:
        raise TemplateError(f"not an on-card record: {len(data)} bytes are not a multiple of 3")
    raw = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.float32)
    angle = (raw[:, 2] % 64) * (2 * math.pi / 64)
    zeros = np.zeros(len(raw), np.float32)
    return Template(np.stack([raw[:, 0], raw[:, 1], angle, zeros], axis=1), 0, 0, CARD_PPI)


def _object(data: bytes, tags: tuple[int, ...]) -> bytes:
    """Return the value of the first object with one of the given tags inside a BER-TLV object.

    BER-TLV is the encoding of smart cards: tag, length and value.

    Raises:
        TemplateError: if there is no such object.
    """
    at, end = 2 + _length(data, 2)[1], len(data)
    while at < end:
        length, size = _length(data, at + 1)
        if data[at] in tags:
            return data[at + 1 + size : at + 1 + size + length]
        at += 1 + size + length
    raise TemplateError("on-card record without minutiae; export it again")


def _length(data: bytes, at: int) -> tuple[int, int]:
    """Read the BER length field at offset `at`. Return the length and the size of the field, both in bytes."""
    if data[at] < 0x80:
        return data[at], 1
    more = data[at] - 0x80
    return int.from_bytes(data[at + 1 : at + 1 + more], "big"), 1 + more
