"""Read and write minutiae files (templates).

Supported formats are ISO/IEC 19794-2:2005, :2011 and on-card compact, INCITS 378-2004 and -2009, `.xyt`, `.min` and
`.mnt`. Minutiae of all formats are returned in one representation: x and y in image pixels from the top left corner,
angle in radians counter-clockwise from +x with y up, and quality from 0 to 1.
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
from fingerprint_accel.untrusted import UnreadableError, read_bytes, reason_of

__all__ = ["NO_MINUTIAE", "TemplateError", "read_template", "write_template", "xyt_kind"]
CARD_SUFFIXES = (".isocc", ".iso-cc", ".fmc")  # on-card files, which are recognised by their suffix only
UNSIGNED_SUFFIXES = (".mnt", *CARD_SUFFIXES)  # files that may start with any bytes
# suffixes of minutiae files, in order of preference if an image has several minutiae files
SUFFIXES = (".ist", ".iso", ".fmr", ".iso-fmr", ".incits378", ".ansi", *CARD_SUFFIXES, ".xyt", ".min", ".mnt")
WRAPPER = 1024  # number of bytes that are searched for the start of a record after a CBEFF header
MOST_MINUTIAE = 255  # largest number of minutiae in a view of ISO/IEC 19794-2
# Largest plausible absolute value of x, y, angle and quality. JPEG and WSQ store the size of an image in 16 bits, and
# ISO/IEC 19794-2 stores positions in 14 bits. Smaller values outside the image are dropped when the print is placed on
# its canvas.
LARGEST = 65535
IMPLAUSIBLE = f"minutiae that are not finite or above {LARGEST}"
# Largest minutiae file, in bytes. A finger has up to 200 minutiae, which take 10 KB in the longest format.
MOST_BYTES = 2**20
MOST_OF_A_FINGER = 2000  # largest number of minutiae of a print; mindtct finds at most 1000
_MIN_LINE = re.compile(r"[ \t]*\d+[ \t]*:[ \t]*(\d+)[ \t]*,[ \t]*(\d+)[ \t]*:[ \t]*(\d+)[ \t]*:[ \t]*([\d.]+)[ \t]*:")


def plausible(values: np.ndarray) -> bool:
    """Return whether all values in an array of minutiae are finite and have an absolute value of at most LARGEST."""
    # The minimum of an array with NaN is NaN, and comparisons with NaN are false. This makes no copy of the array.
    return values.size == 0 or bool(values.min() >= -LARGEST and values.max() <= LARGEST)


def read_template(path: Path, image_height: int, position: int = 0, xyt_kind: str = "") -> Template:
    """Read a minutiae file of any supported format.

    Args:
        path: path of the file. Binary formats are recognised by content, text formats by suffix.
        image_height: height of the image in pixels, for formats that count y from the bottom.
        position: position code of the finger, which selects one of several fingers in a record; 0 if unknown.
        xyt_kind: convention of an `.xyt` file, "nist" or "m1"; empty to detect it from this file.

    Raises:
        TemplateError: if the file is damaged, has an unknown format, or contains implausible numbers. The error is also
            raised if the file holds several fingers or views and `position` does not select one.
    """
    try:
        data = read_bytes(path, MOST_BYTES)
    except OSError as error:
        raise TemplateError(f"cannot be read ({error.strerror})") from error
    except UnreadableError as error:
        raise TemplateError(str(error)) from error
    try:
        template = _parsed(data, path.suffix.lower(), image_height, position, xyt_kind)
    except TemplateError:
        raise
    except (struct.error, IndexError, ValueError) as error:
        raise TemplateError(f"damaged minutiae file ({reason_of(error)}); copy it again") from error
    if len(template.minutiae) > MOST_OF_A_FINGER:
        raise TemplateError(f"{len(template.minutiae)} minutiae, more than a print has; copy it again")
    if max(template.width, template.height) > LARGEST or min(template.width, template.height) < 0:
        raise TemplateError("states an implausible size of the image; copy it again")
    return template


def _parsed(data: bytes, suffix: str, image_height: int, position: int, xyt_kind: str) -> Template:
    """Parse the contents of a minutiae file. The other arguments are those of `read_template`.

    Args:
        data: contents of the file.
        suffix: suffix of the file, in lower case.
    """
    start = data[:WRAPPER].find(MAGIC)  # a CBEFF header may come first
    if start >= 0:
        return read_record(data[start:], position)
    if suffix in (".xyt", ".min", ".mnt"):
        text = data.decode("ascii", "replace")
        if suffix == ".xyt":
            return _read_xyt(text, image_height, xyt_kind)
        return _read_min(text) if suffix == ".min" else _read_mnt(text)
    if suffix in CARD_SUFFIXES:
        return read_card(data)
    raise TemplateError("no known minutiae format; export it as ISO/IEC 19794-2")


def xyt_kind(files: Iterable[Path | str]) -> str:
    """Detect the convention of `.xyt` files that come from one source.

    The files do not state their convention. Files of `mindtct -m1` store angles in units of two degrees, so that all
    numbers are below 180. The default output of mindtct stores degrees, and almost every print has an angle of 180 or
    more. An angle of 180 or more in any file therefore decides the convention of all files.

    Args:
        files: paths or contents of the files. They are read until a file has an angle of 180 or more. Damaged files are
            skipped.

    Returns:
        "nist" for the default output of mindtct, "m1" for the output of `mindtct -m1`.
    """
    for file in files:
        with contextlib.suppress(OSError, ValueError):  # TemplateError is a ValueError
            text = read_bytes(file, MOST_BYTES).decode("ascii", "replace") if isinstance(file, Path) else file
            if (_xyt_table(text)[:, 2] >= 180).any():
                return "nist"
    return "m1"


def _xyt_table(text: str) -> np.ndarray:
    """Return the x, y, theta and quality (0 if missing) of n minutiae in an `.xyt` file, as (n, 4) float32."""
    rows = [[float(word) for word in line.split()[:4]] for line in text.splitlines() if line.strip()]
    if any(len(row) < 3 for row in rows):
        raise TemplateError("lines must contain x y theta [quality]")
    return _checked(np.array([[*row, 0.0][:4] for row in rows]).reshape(-1, 4))


def _read_xyt(text: str, image_height: int, kind: str) -> Template:
    """Parse an `.xyt` file.

    The convention "m1" counts y from the top, and its angles have units of two degrees. The angles point along the
    ridge, as in ISO/IEC 19794-2. The convention "nist" counts y from the bottom. Its angles are in degrees and
    differ from the angles of ISO/IEC 19794-2 by 180 degrees.

    Args:
        text: contents of the file.
        image_height: height of the image, pixels.
        kind: "nist", "m1", or empty to detect the convention from this file.
    """
    x, y, theta, quality = _xyt_table(text).T
    if (kind or xyt_kind([text])) == "m1":
        theta = theta * 2
    else:
        y = image_height - y
        theta = theta + 180
    return Template(np.stack([x, y, np.radians(theta % 360), _known(quality / 100)], axis=1).astype(np.float32), 0, 0)


def _read_mnt(text: str) -> Template:
    """Parse an `.mnt` file, the format of FingerNet and of flx (another implementation of DeepPrint).

    The first line is a name or a count, the second line `[count] width height`. Each of the following lines is a
    minutia `x y radians [quality]`.
    """
    lines = text.splitlines()
    if len(lines) < 2:
        raise TemplateError("no second line with width and height")
    width, height = (int(word) for word in lines[1].split()[-2:])
    filled = (words for line in lines[2:] if (words := line.split()))
    rows = [[*(float(word) for word in words[:4]), 0.0][:4] for words in filled if words[0] != "X"]
    if any(len(row) < 4 for row in rows):
        raise TemplateError("lines must contain x y angle [quality]")
    minutiae = _checked(np.array(rows).reshape(-1, 4))
    minutiae[:, 3] = _known(minutiae[:, 3])
    return Template(minutiae, width, height)


def _known(quality: np.ndarray) -> np.ndarray:
    """Replace qualities outside the range from 0 to 1 by 0, which means that no quality is stated."""
    return np.where((quality >= 0) & (quality <= 1), quality, 0)


def _checked(table: np.ndarray) -> np.ndarray:
    """Check the minutiae of a text file, (n, 4) float64, and convert them to float32.

    Raises:
        TemplateError: if a value is not finite, or its absolute value exceeds LARGEST.
    """
    if not plausible(table):
        row = int(np.flatnonzero(~(np.abs(table) <= LARGEST).all(axis=1))[0])
        raise TemplateError(f"minutia {row + 1} has numbers that are not finite or above {LARGEST}")
    return table.astype(np.float32)


def _read_min(text: str) -> Template:
    """Parse a `.min` file, a text format of mindtct.

    The file counts y from the top. Its angles are steps of 11.25 degrees, clockwise from straight up.
    """
    size = re.search(r"Image \(w,h\)\s+(\d+)\s+(\d+)", text)
    if size is None:
        raise TemplateError("no line 'Image (w,h)'")
    announced = re.search(r"\b(\d{1,9}) Minutiae Detected", text)
    found = (_MIN_LINE.match(line) for line in text.splitlines())
    rows = [[float(word) for word in match.groups()] for match in found if match]
    if announced is not None and int(announced[1]) != len(rows):
        raise TemplateError(f"damaged: {announced[1]} minutiae announced, {len(rows)} that can be read")
    table = _checked(np.array(rows).reshape(-1, 4))
    angle = np.radians((90 - table[:, 2] * 11.25) % 360)
    minutiae = np.stack([table[:, 0], table[:, 1], angle, _known(table[:, 3])], axis=1).astype(np.float32)
    return Template(minutiae, int(size[1]), int(size[2]))


def write_template(path: Path, minutiae: np.ndarray, width: int, height: int, ppi: int) -> None:
    """Write a minutiae file. The suffix `.xyt` selects the format of mindtct, any other suffix ISO/IEC 19794-2:2005.

    The file is written completely or not at all. Coordinates are rounded to whole pixels.

    Args:
        path: file to write.
        minutiae: (n, 4) x, y (image pixels), angle (radians) and quality (0 to 1).
        width: width of the image, pixels.
        height: height of the image, pixels.
        ppi: resolution of the image, pixels per inch.
    """
    data = xyt_bytes(minutiae, height) if path.suffix == ".xyt" else iso_bytes(minutiae, width, height, ppi)
    write_file(path, data)


def iso_bytes(minutiae: np.ndarray, width: int, height: int, ppi: int) -> bytes:
    """Encode minutiae as a record of ISO/IEC 19794-2:2005 with one view.

    If there are more than 255 minutiae, the 255 minutiae of the highest quality are kept. The record does not state the
    type of a minutia (ending or bifurcation), the finger or the sensor. Angles are rounded to 1.4 degrees and qualities
    to 1 %. The lowest quality is 1 %, because 0 means that no quality is stated.

    Args:
        minutiae: (n, 4) x, y (image pixels), angle (radians) and quality (0 to 1).
        width: width of the image, pixels.
        height: height of the image, pixels.
        ppi: resolution of the image, pixels per inch.
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
    """Encode minutiae as the contents of an `.xyt` file, in the default format of mindtct.

    Each line is `x y theta quality`. y is counted from the bottom, and theta is the angle of the opposite direction
    along the ridge in degrees. If all angles are below 180, `xyt_kind` would detect the file as output of `mindtct
    -m1`. In this case 360 is added to one angle, which does not change the direction of the minutia.

    Args:
        minutiae: (n, 4) x, y (image pixels), angle (radians) and quality (0 to 1).
        image_height: height of the image, pixels.
    """
    theta = (np.degrees(minutiae[:, 2]) - 180).round().astype(int) % 360
    if len(theta) and (theta < 180).all():
        theta[0] += 360
    quality = np.clip((100 * minutiae[:, 3]).round(), 0, 100).astype(int)
    x, y = minutiae[:, 0].round().astype(int), (image_height - minutiae[:, 1]).round().astype(int)
    return "".join(f"{a} {b} {c} {d}\n" for a, b, c, d in zip(x, y, theta, quality, strict=True)).encode()
