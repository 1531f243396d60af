"""Minutiae files: ISO/IEC 19794-2:2005, :2011 and on-card compact, INCITS 378-2004 and -2009, `.xyt`, `.min`, `.mnt`.

All end up as the same array: x and y in image pixels from the top left, angle in radians counter-clockwise from +x
with y up, quality 0..1.
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fingerprint_accel.data.minutiae_record import (
    CM_PER_INCH,
    MAGIC,
    NO_MINUTIAE,
    Template,
    TemplateError,
    read_card,
    read_record,
)
from fingerprint_accel.durable import write_file

CARD_SUFFIXES = (".isocc", ".iso-cc", ".fmc")  # three bytes per minutia and nothing else: the suffix must tell
UNSIGNED_SUFFIXES = (".mnt", *CARD_SUFFIXES)  # of files that may begin with anything
# in the order in which they are taken, where an image has several
SUFFIXES = (".ist", ".iso", ".fmr", ".iso-fmr", ".incits378", ".ansi", *CARD_SUFFIXES, ".xyt", ".min", ".mnt")
WRAPPER = 1024  # bytes in which a record is looked for behind a CBEFF header
MOST_MINUTIAE = 255  # that a view of ISO/IEC 19794-2 holds
# Of x, y, angle and quality. JPEG and WSQ store the sides of an image in 16 bits, ISO/IEC 19794-2 places in 14; a side
# of 65,535 pixels is 3.3 m at 500 ppi. Minutiae beyond the image but below this are dropped with what the canvas cuts.
LARGEST = 65535
IMPLAUSIBLE = f"minutiae that are not finite or above {LARGEST}"
_MIN_LINE = re.compile(r"^\s*\d+\s*:\s*(\d+)\s*,\s*(\d+)\s*:\s*(\d+)\s*:\s*([\d.]+)\s*:", re.MULTILINE)


def plausible(values: np.ndarray) -> bool:
    """Whether values of minutiae, of any shape, are all finite and none is above LARGEST; makes no copy."""
    # comparisons with nan are false, and the extremes of an array that holds nan are nan
    return values.size == 0 or bool(values.min() >= -LARGEST and values.max() <= LARGEST)


def read_template(path: Path, image_height: int, position: int = 0, xyt_kind: str = "") -> Template:
    """Reads a minutiae file of any known format.

    Args:
        path: the file; its content decides for binary formats, its suffix for text.
        image_height: pixels, for formats that count y from the bottom.
        position: finger position that the image shows, to choose from a record of several fingers; 0: not known.
        xyt_kind: of `.xyt` files, see `XYT_KINDS`; empty: as this file alone tells.

    Raises:
        TemplateError: damaged, of no known format, of several fingers or views, or with numbers that no print can have.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TemplateError(f"cannot be read ({error.strerror})") from error
    start = data[:WRAPPER].find(MAGIC)  # behind a CBEFF header, if there is one
    suffix = path.suffix.lower()
    try:
        if start >= 0:
            return read_record(data[start:], position)
        if suffix in (".xyt", ".min", ".mnt"):
            text = data.decode("ascii", "replace")
            if suffix == ".xyt":
                return _read_xyt(text, image_height, xyt_kind)
            return _read_min(text) if suffix == ".min" else _read_mnt(text)
        if suffix in CARD_SUFFIXES:
            return read_card(data)
    except TemplateError:
        raise
    except (struct.error, IndexError, ValueError) as error:
        raise TemplateError(f"damaged minutiae file ({error})") from error
    raise TemplateError("no known minutiae format")


XYT_KINDS = ("nist", "m1")


def xyt_kind(files: Iterable[Path | str]) -> str:
    """Which of two conventions `.xyt` files of one origin follow: "nist" as mindtct writes by itself, "m1" as with -m1.

    Args:
        files: paths, or texts of files; they are read until one decides. Damaged ones do not count.

    Nothing in a file names its kind, but `-m1` counts angles in units of two degrees, which stay below 180; those of a
    whole print never all do otherwise. Short files can, so that one file at or above 180 decides for all.
    """
    for file in files:
        with contextlib.suppress(OSError, ValueError):  # a TemplateError too
            text = file.read_text("ascii", "replace") if isinstance(file, Path) else file
            if any(row[2] >= 180 for row in _xyt_rows(text)):
                return "nist"
    return "m1"


def _xyt_rows(text: str) -> list[list[float]]:
    rows = [[float(word) for word in line.split()[:4]] for line in text.splitlines() if line.strip()]
    if any(len(row) < 3 for row in rows):
        raise TemplateError("lines must hold x y theta [quality]")
    return rows


def _read_xyt(text: str, image_height: int, kind: str) -> Template:
    """Plain: y from the bottom, degrees. M1: y from the top, units of two degrees, the other way along the ridge."""
    rows = _xyt_rows(text)
    if not rows:
        return Template(NO_MINUTIAE, 0, 0)
    x, y, theta, quality = _checked(np.array([[*row, 0.0][:4] for row in rows])).T
    if (kind or xyt_kind([text])) == "m1":
        theta = theta * 2
    else:
        y = image_height - y
        theta = theta + 180
    return Template(np.stack([x, y, np.radians(theta % 360), quality / 100], axis=1).astype(np.float32), 0, 0)


def _read_mnt(text: str) -> Template:
    """What flx and FingerNet use: a name or count, `[count] width height`, then lines `x y radians [quality]`."""
    lines = [line.split() for line in text.splitlines()]
    if len(lines) < 2:
        raise TemplateError("no line of sizes")
    width, height = (int(word) for word in lines[1][-2:])
    rows = [[*(float(word) for word in line[:4]), 0.0][:4] for line in lines[2:] if line and line[0] != "X"]
    if any(len(row) < 4 for row in rows):
        raise TemplateError("lines must hold x y angle [quality]")
    return Template(_checked(np.array(rows).reshape(-1, 4)), width, height)


def _checked(table: np.ndarray) -> np.ndarray:
    """(n, 4) float64 as in a text file -> the same as float32.

    Raises:
        TemplateError: a number that is not finite, or greater than any image is large.
    """
    if not plausible(table):
        row = int(np.flatnonzero(~(np.abs(table) <= LARGEST).all(axis=1))[0])
        raise TemplateError(f"minutia {row + 1} has numbers that are not finite or above {LARGEST}")
    return table.astype(np.float32)


def _read_min(text: str) -> Template:
    """y from the top; directions in steps of 11.25 degrees, clockwise from straight up."""
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

    `xyt_kind` takes a file without an angle from 180 on for one of `mindtct -m1`. In such a file one angle is given a
    whole turn more, which is the same direction.
    """
    theta = (np.degrees(minutiae[:, 2]) - 180).round().astype(int) % 360
    if len(theta) and (theta < 180).all():
        theta[0] += 360
    quality = np.clip((100 * minutiae[:, 3]).round(), 0, 100).astype(int)
    x, y = minutiae[:, 0].round().astype(int), (image_height - minutiae[:, 1]).round().astype(int)
    return "".join(f"{a} {b} {c} {d}\n" for a, b, c, d in zip(x, y, theta, quality, strict=True)).encode()
