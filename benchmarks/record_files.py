"""Write container files of agencies: ANSI/NIST transactions and finger image records."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import wsq  # noqa: F401  (registers WSQ with Pillow)
from PIL import Image

FS, GS, RS, US = b"\x1c", b"\x1d", b"\x1e", b"\x1f"
Tagged = tuple[int, int, bytes]  # record type, IDC, bytes of the record
Point = Sequence[float]  # x, y (pixels), degrees of the direction along the ridge, quality 0 to 1
View = tuple[np.ndarray, int, str]  # image (H, W) uint8, finger position, compression algorithm
FORMATS = {"WSQ20": "WSQ", "JP2": "JPEG2000", "PNG": "PNG", "JPEGB": "JPEG", "PNM": "PPM"}


def encoded(grey: np.ndarray, algorithm: str) -> bytes:
    """Encode an image by the compression algorithm of a record; NONE is raw."""
    if algorithm == "NONE":
        return grey.tobytes()
    file = io.BytesIO()
    Image.fromarray(grey).save(file, FORMATS[algorithm], **({"quality": 95} if algorithm == "JPEGB" else {}))
    return file.getvalue()


def tagged(kind: int, fields: Mapping[int, object], image: bytes | None = None, dummies: Iterable[bytes] = ()) -> bytes:
    """Return a record of tagged fields {number: bytes or text}, with its length in field 1."""
    body = [b"%d.%03d:" % (kind, number) + as_bytes(value) for number, value in fields.items()]
    body += [b"%d.999:" % kind + dummy for dummy in dummies]
    if image is not None:
        body.append(b"%d.999:" % kind + image)
    rest = GS + GS.join(body) + FS
    length = len(rest) + len(b"%d.001:" % kind)
    digits = next(count for count in range(1, 12) if len(str(length + count)) <= count)
    return b"%d.001:%0*d" % (kind, digits, length + digits) + rest


def as_bytes(value: object) -> bytes:
    """Return bytes unchanged, and other values as text."""
    return value if isinstance(value, bytes) else str(value).encode()


def rows(*items: Sequence[object]) -> bytes:
    """Return subfields, each of several items."""
    return RS.join(US.join(as_bytes(item) for item in row) for row in items)


def transaction(*records: Tagged, header: Mapping[int, object] | None = None) -> bytes:
    """Return a transaction of records, with a type 1 record in front."""
    content = rows((1, len(records)), *[(kind, f"{idc:02d}") for kind, idc, _ in records])
    fields: dict[int, object] = {2: "0500", 3: content, 4: "TEST", 9: "TCN42", 11: "19.69", 12: "19.69"}
    return tagged(1, fields | dict(header or {})) + b"".join(data for _, _, data in records)


def type_2(idc: int = 0, **fields: object) -> Tagged:
    """Return a type 2 record. Fields are named `f` and their number, as in `f018`."""
    return 2, idc, tagged(2, {2: f"{idc:02d}", **{int(name[1:]): value for name, value in fields.items()}})


def type_4(idc: int, grey: np.ndarray, position: int, algorithm: str = "WSQ20", native: int = 0) -> Tagged:
    """Return a type 4 record. With `native` 1 it has the native resolution of the header, else the nominal one."""
    image = encoded(grey, algorithm)
    head = bytes([idc, 0, position, 255, 255, 255, 255, 255, native])
    head += struct.pack(">HHB", grey.shape[1], grey.shape[0], 0 if algorithm == "NONE" else 1)
    return 4, idc, struct.pack(">I", 18 + len(image)) + head + image


def type_14(
    idc: int,
    grey: np.ndarray,
    position: int,
    algorithm: str = "WSQ20",
    per_unit: int = 500,
    units: int = 1,
    kind: int = 14,
    dummies: Iterable[bytes] = (),
    **fields: object,
) -> Tagged:
    """Return a type 14 record, or another type with the same fields, `per_unit` pixels per unit of code `units`."""
    known: dict[int, object] = {2: f"{idc:02d}", 3: 0, 6: grey.shape[1], 7: grey.shape[0], 8: units}
    known |= {
        9: per_unit,
        10: per_unit,
        11: algorithm,
        12: 8,
        13: position,
        **{int(name[1:]): value for name, value in fields.items()},
    }
    return kind, idc, tagged(kind, known, encoded(grey, algorithm), dummies)


def legacy_minutiae(idc: int, points: Iterable[Point], ppi: int, height: int) -> Tagged:
    """Return a type 9 record with field 9.012, for an image of this height."""
    found: list[tuple[object, ...]] = []
    for number, (x, y, degrees, quality) in enumerate(points, start=1):
        across, up = round(x * 2540 / ppi), round((height - y) * 2540 / ppi)
        found.append(
            (f"{number:03d}", f"{across:05d}{up:05d}{round(degrees + 180) % 360:03d}", round(64 - 62 * quality), "A")
        )
    return 9, idc, tagged(9, {2: f"{idc:02d}", 3: 4, 4: "S", 12: rows(*found)})


def incits_minutiae(idc: int, points: Iterable[Point], ppi: int) -> Tagged:
    """Return a type 9 record with the fields of INCITS 378."""
    found = [
        (number, round(x), round(y), round(degrees / 2) % 180, 1, round(100 * quality))
        for number, (x, y, degrees, quality) in enumerate(points, start=1)
    ]
    return 9, idc, tagged(9, {2: f"{idc:02d}", 3: 4, 4: "U", 130: 1, 131: ppi, 132: ppi, 137: rows(*found)})


def extended_minutiae(idc: int, points: Iterable[Point], ppi: int, corner: tuple[int, int] = (0, 0)) -> Tagged:
    """Return a type 9 record with the extended feature set. `corner` is that of the region of interest, pixels."""
    unit = 2540 / ppi
    region = (5000, 5000, round(corner[0] * unit), round(corner[1] * unit))
    found = [
        (round((x - corner[0]) * unit), round((y - corner[1]) * unit), round(degrees) % 360, "E")
        for x, y, degrees, _ in points
    ]
    return 9, idc, tagged(9, {2: f"{idc:02d}", 300: rows(region), 331: rows(*found)})


def iso_2005(prints: Sequence[View], ppi: int = 500, incits: bool = False, units: int = 1) -> bytes:
    """Return a record of ISO/IEC 19794-4:2005 or INCITS 381-2004."""
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


def iso_2011(prints: Sequence[View], ppi: int = 500, certified: bool = False) -> bytes:
    """Return a record of ISO/IEC 19794-4:2011."""
    codes = {"NONE": 0, "WSQ20": 2, "JPEGB": 3, "JP2": 4, "PNG": 5}
    parts = b""
    for grey, position, algorithm in prints:
        image = encoded(grey, algorithm)
        head = bytes(9 + 1 + 4) + bytes([1]) + bytes(5) + (bytes([1]) + bytes(3) if certified else b"")
        head += struct.pack(">BBBHHHHBBB", position, 0, 1, ppi, ppi, ppi, ppi, 8, codes[algorithm], 0)
        head += struct.pack(">HHI", grey.shape[1], grey.shape[0], len(image))
        parts += struct.pack(">I", 4 + len(head) + len(image)) + head + image
    return b"FIR\x00020\0" + struct.pack(">IHBB", 16 + len(parts), len(prints), certified, len(prints)) + parts


def noise(number: int = 0, shape: tuple[int, int] = (60, 50)) -> np.ndarray:
    """Return an image of noise (H, W) uint8 with this seed."""
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)
