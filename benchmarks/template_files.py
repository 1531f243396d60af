"""Write minutiae files in the formats of SDKs and laboratories.

Points are (n, 4) x, y (pixels), angle (radians counter-clockwise from +x, y up), quality 0 to 1, as in the whole
package.
"""

import math
import struct

import numpy as np

from fingerprint_accel.data.templates import iso_bytes, xyt_bytes

PER_CM = 197  # 500 ppi


def packed(points: np.ndarray, turn: int) -> bytes:
    """Return minutiae of six bytes each; a full turn is `turn` units."""
    angle = np.round(points[:, 2] * turn / (2 * math.pi)).astype(int) % turn
    table = zip(*points[:, :2].round().astype(int).T, angle, (100 * points[:, 3]).round().astype(int), strict=True)
    return b"".join(struct.pack(">HHBB", 1 << 14 | x, y, angle, quality) for x, y, angle, quality in table) + b"\0\0"


def incits_2004(points: np.ndarray, width: int, height: int, position: int = 0) -> bytes:
    """Return an INCITS 378-2004 record."""
    header = struct.pack(">HHHHHHHBB", 1, 2, 0, width, height, PER_CM, PER_CM, 1, 0)
    rest = header + bytes([position, 0, 90, len(points)]) + packed(points, 180)
    return b"FMR\0 20\0" + struct.pack(">H", 10 + len(rest)) + rest


def incits_2009(points: np.ndarray, width: int, height: int, position: int = 0) -> bytes:
    """Return an INCITS 378-2009 record."""
    view = bytes([position, 0, 0, 0, 0, 0, 0, 90]) + struct.pack(">HHH", width, height, PER_CM)
    view += bytes(17 - 1 - len(view)) + bytes([len(points)]) + packed(points, 180)
    return b"FMR\x00030\0" + struct.pack(">IIHBBB", 21 + len(view), 0, 0, 0, 1, 0) + view


def iso_2011(points: np.ndarray, width: int, height: int, position: int = 0) -> bytes:
    """Return an ISO/IEC 19794-2:2011 record."""
    head = bytes(9 + 1 + 4) + bytes([0])
    head += struct.pack(">BBHHBHHBB", position, 0, PER_CM, PER_CM, 0, width, height, 6 << 4, len(points))
    body = head + packed(points, 256)
    return b"FMR\x00030\0" + struct.pack(">IHB", 15 + 4 + len(body), 1, 0) + struct.pack(">I", 4 + len(body)) + body


def card(points: np.ndarray, width: int, height: int, position: int = 0) -> bytes:
    """Return an ISO/IEC 19794-2 on-card record of compact size, in steps of 0.1 mm and of 1/64 turn."""
    places = np.clip((points[:, :2] * (254 / 500)).round(), 0, 255).astype(int)
    angle = np.round(points[:, 2] * 64 / (2 * math.pi)).astype(int) % 64
    return b"".join(bytes([x, y, 64 | turn]) for (x, y), turn in zip(places, angle, strict=True))


def minutiae_text(points: np.ndarray, width: int, height: int, position: int = 0) -> bytes:
    """Return an NBIS `.min` file, with directions in steps of 11.25 degrees, clockwise from straight up."""
    lines = [f"Image (w,h) {width} {height}", "", f"{len(points)} Minutiae Detected", ""]
    for number, (x, y, angle, quality) in enumerate(points):
        direction = round((90 - math.degrees(angle)) / 11.25) % 32
        lines.append(f"{number:4d} : {round(x):4d}, {round(y):4d} : {direction:2d} : {quality:.3f} :RIG : APP : 1")
    return ("\n".join(lines) + "\n").encode()


def flx_text(points: np.ndarray, width: int, height: int, position: int = 0) -> bytes:
    """Return a `.mnt` file of flx and FingerNet."""
    lines = ["print", f"{len(points)} {width} {height}"]
    lines += [f"{x:.0f} {y:.0f} {angle:.5f}" for x, y, angle, _ in points]
    return ("\n".join(lines) + "\n").encode()


def nist_xyt(points: np.ndarray, width: int, height: int, position: int = 0) -> bytes:
    """Return an `.xyt` file as mindtct writes it."""
    return xyt_bytes(points, height)


def iso_2005(points: np.ndarray, width: int, height: int, position: int = 0) -> bytes:
    """Return an ISO/IEC 19794-2:2005 record."""
    return iso_bytes(points, width, height, 500)


WRITERS = {
    ".ist": iso_2005, ".iso": iso_2005, ".fmr": iso_2011, ".incits378": incits_2004, ".ansi": incits_2009,
    ".isocc": card, ".xyt": nist_xyt, ".min": minutiae_text, ".mnt": flx_text,
}  # fmt: skip
