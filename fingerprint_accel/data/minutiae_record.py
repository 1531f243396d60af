"""Binary minutiae records: ISO/IEC 19794-2:2005, :2011 and on-card compact, INCITS 378-2004 and -2009."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MAGIC = b"FMR\0"
CM_PER_INCH = 2.54
CARD_PPI = 254.0  # 0.1 mm
NO_MINUTIAE = np.empty((0, 4), np.float32)


class TemplateError(ValueError):
    """A minutiae file that cannot be read; the message says why."""


@dataclass(frozen=True)
class Template:
    """Minutiae of one print.

    Attributes:
        minutiae: (n, 4) float32 x, y, angle, quality.
        width, height: of the image they were found in, as the file states it; 0 where it does not.
        ppi: of that image, as the file states it; 0 where it does not.
    """

    minutiae: np.ndarray
    width: int
    height: int
    ppi: float = 0.0

    def fitted(self, width: int, height: int, ppi: float = 0.0) -> np.ndarray:
        """(n, 4): the minutiae on an image of another size; points scale along each axis, angles bend along.

        Where the file does not state a size, its resolution and that of the image, `ppi`, decide.
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
    """How a version of the finger minutiae record begins, and how its views do; places are bytes.

    Attributes:
        version: what follows the magic.
        length: format of the record's length and where it stands.
        size: bytes of the header.
        views: where the number of views stands.
        image: where width, height and resolution of the image stand, in the header, or in the view if `in_view`.
        view: bytes of a view's header, the last of which counts its minutiae.
        unit: of angles, radians.
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
    Header(b" 20", (">2xI", 8), 30, 28, 20, 4, ANSI_ANGLE),  # the same, with a length of six bytes
    Header(b"030", (">I", 8), 21, 19, 8, 17, ANSI_ANGLE, in_view=True),  # INCITS 378-2009
    Header(b"030", (">I", 8), 20, 18, 8, 17, ANSI_ANGLE, in_view=True),  # its draft, which NIST's tools write
    Header(b"035", (">I", 8), 21, 19, 8, 17, ANSI_ANGLE, in_view=True),  # its Amendment 1
)


def read_record(data: bytes, position: int) -> Template:
    """Reads a finger minutiae record; what its length does not cover is padding, as SDKs leave in their buffers.

    Args:
        data: from the magic on.
        position: finger position that the image shows, to choose from several; 0: not known.

    Raises:
        TemplateError: of an unknown version, cut off, or of several fingers or views.
        struct.error, IndexError: damaged.
    """
    version = data[4:7]
    known = [header for header in HEADERS if header.version == version]
    if not known:
        raise TemplateError(f"minutiae record of version {version!r}")
    reason = TemplateError("record length differs from file length")
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
    if version == b"030":  # which ISO/IEC 19794-2:2011 has too
        return _read_iso_2011(data, position)
    raise reason


def _views(data: bytes, header: Header) -> Iterator[tuple[int, Template]]:
    """Finger position and minutiae of each view; IndexError where the views do not fill the record."""
    at = header.size
    for _ in range(data[header.views]):
        width, height, per_cm = struct.unpack_from(">HHH", data, header.image + (at if header.in_view else 0))
        position, count = data[at], data[at + header.view - 1]
        at += header.view
        minutiae = _minutiae(data[at:], count, 6, header.unit)
        yield position, Template(minutiae, width, height, per_cm * CM_PER_INCH)
        at += 6 * count
        at += 2 + struct.unpack_from(">H", data, at)[0]  # extended data
    # NIST's own records leave two bytes, or lack one of the extended data: only version 030, which three formats share,
    # is told by its end
    if header.version == b"030" and at != len(data):
        raise IndexError


def _chosen(views: list[tuple[int, Template]], position: int) -> Template:
    """The view of the finger that the image shows."""
    if not views:
        return Template(NO_MINUTIAE, 0, 0)
    fitting = [(stated, template) for stated, template in views if stated == position] if position else []
    if len(fitting or views) == 1:
        stated, template = (fitting or views)[0]
        if position and stated and stated != position:
            raise TemplateError(f"of finger position {stated}, but the image shows {position}")
        return template
    fingers = len({stated for stated, _ in views})
    what = f"{fingers} fingers" if fingers > 1 else f"{len(views)} views of a finger"
    raise TemplateError(f"record of {what}, which cannot be told apart")


def _minutiae(data: bytes, count: int, size: int, unit: float) -> np.ndarray:
    if len(data) < count * size:
        raise TemplateError(f"cut off: {count} minutiae announced, {len(data) // size} there")
    raw = np.frombuffer(data, np.uint8, count * size).reshape(count, size).astype(np.float32)
    x = (raw[:, 0] % 64) * 256 + raw[:, 1]  # the upper two bits hold the type of minutia
    y = (raw[:, 2] % 64) * 256 + raw[:, 3]
    quality = np.where(raw[:, 5] <= 100, raw[:, 5] / 100, 0) if size == 6 else np.zeros(count)
    return np.stack([x, y, raw[:, 4] * unit, quality], axis=1).astype(np.float32)


def _read_iso_2011(data: bytes, position: int) -> Template:
    """ISO/IEC 19794-2:2011: every representation has a header of its own, with blocks of changing length."""
    length, representations, certified = struct.unpack_from(">IHB", data, 8)
    if length > len(data) or data[length:].strip(b"\0\xff"):
        raise TemplateError("record length differs from file length")
    views, start = [], 15
    for _ in range(representations):
        at = start + 4 + 9 + 1 + 2 + 2  # length, time, technology, vendor and device of a representation
        at += 1 + 5 * data[at]  # quality blocks
        if certified:
            at += 1 + 3 * data[at]
        # position, number, resolution along x and y, impression type
        per_cm, _, _, width, height, packed, count = struct.unpack_from(">HHBHHBB", data, at + 2)
        size = packed >> 4
        if size not in (5, 6):
            raise TemplateError(f"minutiae of {size} bytes")
        minutiae = _minutiae(data[at + 13 :], count, size, ISO_ANGLE)
        views.append((data[at], Template(minutiae, width, height, per_cm * CM_PER_INCH)))
        start += struct.unpack_from(">I", data, start)[0]
    return _chosen(views, position)


def read_card(data: bytes) -> Template:
    """ISO/IEC 19794-2 on-card compact size: x and y in 0.1 mm (8 bits each, y downwards), type and angle in 6 bits."""
    if data[:2] == b"\x7f\x2e":  # a biometric data template: its first object 81 or 90 holds the minutiae
        data = _object(data, (0x81, 0x90))
    if not data or len(data) % 3:
        raise TemplateError("not a card record: three bytes per minutia")
    raw = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.float32)
    angle = (raw[:, 2] % 64) * (2 * math.pi / 64)
    zeros = np.zeros(len(raw), np.float32)
    return Template(np.stack([raw[:, 0], raw[:, 1], angle, zeros], axis=1), 0, 0, CARD_PPI)


def _object(data: bytes, tags: tuple[int, ...]) -> bytes:
    """The value of the first of some BER-TLV objects inside of the outermost one."""
    at, end = 2 + _length(data, 2)[1], len(data)
    while at < end:
        length, size = _length(data, at + 1)
        if data[at] in tags:
            return data[at + 1 + size : at + 1 + size + length]
        at += 1 + size + length
    raise TemplateError("card record without minutiae")


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A BER length, and the bytes that it takes."""
    if data[at] < 0x80:
        return data[at], 1
    more = data[at] - 0x80
    return int.from_bytes(data[at + 1 : at + 1 + more], "big"), 1 + more
