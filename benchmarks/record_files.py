"""Writes container files as agencies keep them: ANSI/NIST transactions and finger image records."""

import io
import struct

import numpy as np
import wsq  # noqa: F401  (registers WSQ with Pillow)
from PIL import Image

FS, GS, RS, US = b"\x1c", b"\x1d", b"\x1e", b"\x1f"
FORMATS = {"WSQ20": "WSQ", "JP2": "JPEG2000", "PNG": "PNG", "JPEGB": "JPEG", "PNM": "PPM"}


def encoded(grey, algorithm):
    """An image as the bytes that a record of this compression algorithm holds; NONE is raw."""
    if algorithm == "NONE":
        return grey.tobytes()
    file = io.BytesIO()
    Image.fromarray(grey).save(file, FORMATS[algorithm], **({"quality": 95} if algorithm == "JPEGB" else {}))
    return file.getvalue()


def tagged(kind, fields, image=None, dummies=()):
    """A record of tagged fields, {number: bytes or text}; field 1 is its length."""
    body = [b"%d.%03d:" % (kind, number) + as_bytes(value) for number, value in fields.items()]
    body += [b"%d.999:" % kind + dummy for dummy in dummies]
    if image is not None:
        body.append(b"%d.999:" % kind + image)
    rest = GS + GS.join(body) + FS
    length = len(rest) + len(b"%d.001:" % kind)
    digits = next(count for count in range(1, 12) if len(str(length + count)) <= count)
    return b"%d.001:%0*d" % (kind, digits, length + digits) + rest


def as_bytes(value):
    return value if isinstance(value, bytes) else str(value).encode()


def rows(*items):
    """Subfields of items."""
    return RS.join(US.join(as_bytes(item) for item in row) for row in items)


def transaction(*records, header=None):
    """A file of (record type, IDC, bytes)."""
    content = rows((1, len(records)), *[(kind, f"{idc:02d}") for kind, idc, _ in records])
    fields = {2: "0500", 3: content, 4: "TEST", 9: "TCN42", 11: "19.69", 12: "19.69", **(header or {})}
    return tagged(1, fields) + b"".join(data for _, _, data in records)


def type_2(idc=0, **fields):
    return 2, idc, tagged(2, {2: f"{idc:02d}", **{int(name[1:]): value for name, value in fields.items()}})


def type_4(idc, grey, position, algorithm="WSQ20", native=0):
    image = encoded(grey, algorithm)
    head = bytes([idc, 0, position, 255, 255, 255, 255, 255, native])
    head += struct.pack(">HHB", grey.shape[1], grey.shape[0], 0 if algorithm == "NONE" else 1)
    return 4, idc, struct.pack(">I", 18 + len(image)) + head + image


def type_14(idc, grey, position, algorithm="WSQ20", per_unit=500, units=1, kind=14, dummies=(), **fields):
    known = {2: f"{idc:02d}", 3: 0, 6: grey.shape[1], 7: grey.shape[0], 8: units, 9: per_unit, 10: per_unit}
    known |= {11: algorithm, 12: 8, 13: position, **{int(name[1:]): value for name, value in fields.items()}}
    return kind, idc, tagged(kind, known, encoded(grey, algorithm), dummies)


def legacy_minutiae(idc, points, ppi, height):
    """Type 9 with field 9.012; points are x, y (pixels), degrees of the direction along the ridge, quality 0 to 1."""
    found = []
    for number, (x, y, degrees, quality) in enumerate(points, start=1):
        across, up = round(x * 2540 / ppi), round((height - y) * 2540 / ppi)
        found.append(
            (f"{number:03d}", f"{across:05d}{up:05d}{round(degrees + 180) % 360:03d}", round(64 - 62 * quality), "A")
        )
    return 9, idc, tagged(9, {2: f"{idc:02d}", 3: 4, 4: "S", 12: rows(*found)})


def incits_minutiae(idc, points, ppi):
    found = [
        (number, round(x), round(y), round(degrees / 2) % 180, 1, round(100 * quality))
        for number, (x, y, degrees, quality) in enumerate(points, start=1)
    ]
    return 9, idc, tagged(9, {2: f"{idc:02d}", 3: 4, 4: "U", 130: 1, 131: ppi, 132: ppi, 137: rows(*found)})


def extended_minutiae(idc, points, ppi, corner=(0, 0)):
    """Type 9 with the extended feature set; `corner` is that of the region of interest, pixels."""
    unit = 2540 / ppi
    region = (5000, 5000, round(corner[0] * unit), round(corner[1] * unit))
    found = [
        (round((x - corner[0]) * unit), round((y - corner[1]) * unit), round(degrees) % 360, "E")
        for x, y, degrees, _ in points
    ]
    return 9, idc, tagged(9, {2: f"{idc:02d}", 300: rows(region), 331: rows(*found)})


def iso_2005(prints, ppi=500, incits=False, units=1):
    """ISO/IEC 19794-4:2005 or INCITS 381-2004; prints are (image, position, algorithm)."""
    codes = {"NONE": 0, "WSQ20": 2, "JPEGB": 3, "JP2": 4, "PNG": 5}
    views = b""
    for grey, position, algorithm in prints:
        image = encoded(grey, algorithm)
        views += (
            struct.pack(">IBBBBBHHB", 14 + len(image), position, 1, 1, 90, 0, grey.shape[1], grey.shape[0], 0) + image
        )
    start = bytes(4) if incits else b""  # product identifier
    code = codes[prints[0][2]]
    rest = struct.pack(">HHBBHHHHBBH", 0, 31, len(prints), units, ppi, ppi, ppi, ppi, 8, code, 0)
    length = 14 + len(start) + len(rest) + len(views)
    return b"FIR\x00010\0" + length.to_bytes(6, "big") + start + rest + views


def iso_2011(prints, ppi=500, certified=False):
    codes = {"NONE": 0, "WSQ20": 2, "JPEGB": 3, "JP2": 4, "PNG": 5}
    parts = b""
    for grey, position, algorithm in prints:
        image = encoded(grey, algorithm)
        head = bytes(9 + 1 + 4) + bytes([1]) + bytes(5) + (bytes([1]) + bytes(3) if certified else b"")
        head += struct.pack(">BBBHHHHBBB", position, 0, 1, ppi, ppi, ppi, ppi, 8, codes[algorithm], 0)
        head += struct.pack(">HHI", grey.shape[1], grey.shape[0], len(image))
        parts += struct.pack(">I", 4 + len(head) + len(image)) + head + image
    return b"FIR\x00020\0" + struct.pack(">IHBB", 16 + len(parts), len(prints), certified, len(prints)) + parts


def noise(number=0, shape=(60, 50)):
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)
