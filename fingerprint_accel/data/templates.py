"""Minutiae files: ISO/IEC 19794-2:2005 and :2011, INCITS 378-2004, and NBIS `.xyt` and `.min`.

All end up as the same array: x and y in image pixels from the top left, angle in radians counter-clockwise from +x
with y up, quality 0..1.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fingerprint_accel.durable import write_file

SUFFIXES = (".ist", ".iso", ".fmr", ".iso-fmr", ".incits378", ".ansi", ".xyt", ".min")  # searched in this order
MOST_MINUTIAE = 255  # that a view of ISO/IEC 19794-2 holds
CM_PER_INCH = 2.54
# Of x, y, angle and quality. JPEG and WSQ store the sides of an image in 16 bits, ISO/IEC 19794-2 places in 14; a side
# of 65,535 pixels is 3.3 m at 500 ppi. Minutiae beyond the image but below this are dropped with what the canvas cuts.
LARGEST = 65535
IMPLAUSIBLE = f"minutiae that are not finite or above {LARGEST}"
NO_MINUTIAE = np.empty((0, 4), np.float32)
_MIN_LINE = re.compile(r"^\s*\d+\s*:\s*(\d+)\s*,\s*(\d+)\s*:\s*(\d+)\s*:\s*([\d.]+)\s*:", re.MULTILINE)


def plausible(values: np.ndarray) -> bool:
    """Whether values of minutiae, of any shape, are all finite and none is above LARGEST; makes no copy."""
    # comparisons with nan are false, and the extremes of an array that holds nan are nan
    return values.size == 0 or bool(values.min() >= -LARGEST and values.max() <= LARGEST)


class TemplateError(ValueError):
    """A minutiae file that cannot be read; the message says why."""


@dataclass(frozen=True)
class Template:
    """Minutiae of one print.

    Attributes:
        minutiae: (n, 4) float32 x, y, angle, quality.
        width, height: of the image they were found in, as the file states it; 0 where it does not.
    """

    minutiae: np.ndarray
    width: int
    height: int

    def fitted(self, width: int, height: int) -> np.ndarray:
        """(n, 4): the minutiae on an image of another size; points scale along each axis, angles bend along."""
        if not self.width or not self.height or (self.width, self.height) == (width, height):
            return self.minutiae
        scale_x, scale_y = width / self.width, height / self.height
        fitted = self.minutiae.copy()
        fitted[:, 0] *= scale_x
        fitted[:, 1] *= scale_y
        angle = self.minutiae[:, 2]
        fitted[:, 2] = np.arctan2(np.sin(angle) * scale_y, np.cos(angle) * scale_x)
        return fitted


def read_template(path: Path, image_height: int) -> Template:
    """Reads a minutiae file of any known format.

    Args:
        path: the file; its content decides for binary formats, its suffix for text.
        image_height: pixels, for formats that count y from the bottom.

    Raises:
        TemplateError: damaged, of no known format, of several fingers or views, or with numbers that no print can have.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TemplateError(f"cannot be read ({error.strerror})") from error
    try:
        for start, suffix, read in FORMATS:
            if (start and data.startswith(start)) or (suffix and path.suffix.lower() == suffix):
                return read(data, image_height)
    except TemplateError:
        raise
    except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
        raise TemplateError(f"damaged minutiae file ({error})") from error
    raise TemplateError("no known minutiae format")


def _read_fmr(data: bytes, _: int) -> Template:
    version = data[4:7]
    if version == b"030":
        return _read_iso_2011(data)
    if version != b" 20":
        raise TemplateError(f"minutiae record of version {version!r}")
    if struct.unpack(">I", data[8:12])[0] == len(data):
        return _read_views(data, header=24, size_at=14, views_at=22, unit=2 * math.pi / 256)
    if struct.unpack(">H", data[8:10])[0] == len(data):
        return _read_views(data, header=26, size_at=16, views_at=24, unit=math.radians(2))
    if data[8:10] == b"\0\0" and struct.unpack(">I", data[10:14])[0] == len(data):  # INCITS: six-byte length
        return _read_views(data, header=30, size_at=20, views_at=28, unit=math.radians(2))
    raise TemplateError("record length differs from file length")


def _read_views(data: bytes, header: int, size_at: int, views_at: int, unit: float) -> Template:
    """ISO 2005 and INCITS 378 share everything behind the header but the unit of angles."""
    width, height = struct.unpack(">HH", data[size_at : size_at + 4])
    views = data[views_at]
    if views == 0:
        return Template(NO_MINUTIAE, width, height)
    if views > 1:
        positions, at = [], header
        for _ in range(views):
            positions.append(data[at])
            at += 4 + 6 * data[at + 3]  # position, number and kind of the view, quality, count; minutiae
            at += 2 + struct.unpack(">H", data[at : at + 2])[0]  # extended data
        raise _several(positions)
    count = data[header + 3]
    return Template(_minutiae(data[header + 4 :], count, 6, unit), width, height)


def _several(positions: list[int]) -> TemplateError:
    """Why a record with views of these finger positions is refused: nothing says which of them the image shows."""
    fingers = len(set(positions))
    what = f"{fingers} fingers" if fingers > 1 else f"{len(positions)} views of a finger"
    return TemplateError(f"record of {what}, which cannot be told apart")


def _minutiae(data: bytes, count: int, size: int, unit: float) -> np.ndarray:
    if len(data) < count * size:
        raise TemplateError(f"cut off: {count} minutiae announced, {len(data) // size} there")
    raw = np.frombuffer(data, np.uint8, count * size).reshape(count, size).astype(np.float32)
    x = (raw[:, 0] % 64) * 256 + raw[:, 1]  # the upper two bits hold the type of minutia
    y = (raw[:, 2] % 64) * 256 + raw[:, 3]
    quality = np.where(raw[:, 5] <= 100, raw[:, 5] / 100, 0) if size == 6 else np.zeros(count)
    return np.stack([x, y, raw[:, 4] * unit, quality], axis=1).astype(np.float32)


def _read_iso_2011(data: bytes) -> Template:
    length, representations, certified = struct.unpack(">IHB", data[8:15])
    if length != len(data):
        raise TemplateError("record length differs from file length")
    if representations == 0:
        return Template(NO_MINUTIAE, 0, 0)
    positions, start = [], 15
    for _ in range(representations):
        at = start + 4 + 9 + 1 + 2 + 2  # length, time, technology, vendor and device of a representation
        at += 1 + 5 * data[at]  # quality blocks
        if certified:
            at += 1 + 3 * data[at]
        positions.append(data[at])
        start += struct.unpack(">I", data[start : start + 4])[0]
    if representations > 1:
        raise _several(positions)
    at += 1 + 1 + 2 + 2 + 1  # position, number, sampling rates, impression type
    width, height, packed, count = struct.unpack(">HHBB", data[at : at + 6])
    size = packed >> 4
    if size not in (5, 6):
        raise TemplateError(f"minutiae of {size} bytes")
    return Template(_minutiae(data[at + 6 :], count, size, 2 * math.pi / 256), width, height)


def _read_xyt(data: bytes, image_height: int) -> Template:
    """mindtct writes y from the bottom and degrees, or with -m1 y from the top and units of two degrees.

    Nothing in the file names its kind, but -m1 angles stay below 180; those of a whole print never all do otherwise.
    """
    rows = [[float(word) for word in line.split()[:4]] for line in data.decode("ascii").splitlines() if line.strip()]
    if any(len(row) < 3 for row in rows):
        raise TemplateError("lines must hold x y theta [quality]")
    if not rows:
        return Template(NO_MINUTIAE, 0, 0)
    x, y, theta, quality = _checked(np.array([[*row, 0.0][:4] for row in rows])).T
    if (theta < 180).all():
        theta = theta * 2
    else:
        y = image_height - y
        theta = theta + 180  # plain angles point the other way along the ridge
    return Template(np.stack([x, y, np.radians(theta % 360), quality / 100], axis=1).astype(np.float32), 0, 0)


def _checked(table: np.ndarray) -> np.ndarray:
    """(n, 4) float64 as in a text file -> the same as float32.

    Raises:
        TemplateError: a number that is not finite, or greater than any image is large.
    """
    if not plausible(table):
        row = int(np.flatnonzero(~(np.abs(table) <= LARGEST).all(axis=1))[0])
        raise TemplateError(f"minutia {row + 1} has numbers that are not finite or above {LARGEST}")
    return table.astype(np.float32)


def _read_min(data: bytes, _: int) -> Template:
    """y from the top; directions in steps of 11.25 degrees, clockwise from straight up."""
    text = data.decode("ascii")
    size = re.search(r"Image \(w,h\)\s+(\d+)\s+(\d+)", text)
    if size is None:
        raise TemplateError("no line 'Image (w,h)'")
    announced = re.search(r"(\d+) Minutiae Detected", text)
    rows = [[float(word) for word in match] for match in _MIN_LINE.findall(text)]
    if announced is not None and int(announced[1]) != len(rows):
        raise TemplateError(f"{announced[1]} minutiae announced, {len(rows)} that can be read")
    table = _checked(np.array(rows).reshape(-1, 4))
    angle = np.radians((90 - table[:, 2] * 11.25) % 360)
    minutiae = np.stack([table[:, 0], table[:, 1], angle, table[:, 3]], axis=1).astype(np.float32)
    return Template(minutiae, int(size[1]), int(size[2]))


# What a format's files begin with, or how their names end; and what reads one: (bytes, image height) -> Template. A new
# format is a function and a line here, and its suffix in SUFFIXES.
FORMATS: tuple[tuple[bytes, str, Callable[[bytes, int], Template]], ...] = (
    (b"FMR\0", "", _read_fmr),
    (b"", ".xyt", _read_xyt),
    (b"", ".min", _read_min),
)


def write_template(path: Path, minutiae: np.ndarray, width: int, height: int, ppi: int) -> None:
    """Writes minutiae as the suffix says: `.xyt` as mindtct does, `.iso` as ISO/IEC 19794-2:2005; whole or not at all.

    Args:
        path: the file.
        minutiae: (n, 4) x, y, angle, quality, as everywhere; rounded to whole pixels.
        width, height: of their image, pixels.
        ppi: of their image.
    """
    data = xyt_bytes(minutiae, height) if path.suffix == ".xyt" else iso_bytes(minutiae, width, height, ppi)
    write_file(path, data)


def iso_bytes(minutiae: np.ndarray, width: int, height: int, ppi: int) -> bytes:
    """A record of ISO/IEC 19794-2:2005 with one view; of more than 255 minutiae those of best quality.

    The kind of minutia (ending or bifurcation), the finger and the sensor are not stated. Angles are rounded to 1.4
    degrees, qualities to 1 %; 0 would mean that none is stated, so 1 is the lowest.
    """
    best = minutiae[np.argsort(-minutiae[:, 3], kind="stable")[:MOST_MINUTIAE]]
    x, y = (np.clip(best[:, axis].round(), 0, 2**14 - 1).astype(int) for axis in (0, 1))
    angle = (best[:, 2] * (256 / (2 * math.pi))).round().astype(int) % 256
    quality = np.clip((100 * best[:, 3]).round(), 1, 100).astype(int)
    body = b"".join(struct.pack(">HHBB", *row) for row in zip(x, y, angle, quality, strict=True))
    per_cm = round(ppi / CM_PER_INCH)
    header = struct.pack(">HHHHHBB", 0, width, height, per_cm, per_cm, 1, 0)
    view = bytes([0, 0, round(quality.mean()) if len(best) else 0, len(best)])
    rest = header + view + body + b"\0\0"  # no extended data
    return b"FMR\0 20\0" + struct.pack(">I", 12 + len(rest)) + rest


def xyt_bytes(minutiae: np.ndarray, image_height: int) -> bytes:
    """Lines `x y theta quality` as mindtct writes them: y from the bottom, degrees along the ridge the other way.

    `_read_xyt` takes a file without an angle from 180 on for one of `mindtct -m1`. In such a file one angle is given a
    whole turn more, which is the same direction.
    """
    theta = (np.degrees(minutiae[:, 2]) - 180).round().astype(int) % 360
    if len(theta) and (theta < 180).all():
        theta[0] += 360
    quality = np.clip((100 * minutiae[:, 3]).round(), 0, 100).astype(int)
    x, y = minutiae[:, 0].round().astype(int), (image_height - minutiae[:, 1]).round().astype(int)
    return "".join(f"{a} {b} {c} {d}\n" for a, b, c, d in zip(x, y, theta, quality, strict=True)).encode()
