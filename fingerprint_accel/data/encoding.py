"""Encode and decode the images of prints in a dataset. Encodings are raw pixels or one lz4 block per image.

A dataset stores each print on a canvas, a square image of the same side for all prints. The module imports little,
because every worker process imports it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fingerprint_accel.errors import UserError, require

ENCODINGS = ("raw", "lz4")
_LZ4 = pa.Codec("lz4_raw")  # a block without a header; the canvas size determines the decoded length


def check_encoding(encoding: str) -> None:
    """Raise `UserError` if the name of an encoding is unknown."""
    require(encoding in ENCODINGS, f"--encoding {encoding}: unknown; there are {', '.join(ENCODINGS)}")


def largest_encoded(canvas: int) -> int:
    """Return an upper limit of the size of an encoded image of side `canvas`, in bytes."""
    return canvas**2 + canvas**2 // 255 + 16  # LZ4_compressBound, which also holds for raw pixels


def encode(image: np.ndarray, encoding: str) -> bytes:
    """Encode a (canvas, canvas) uint8 image without loss, as raw pixels (`encoding="raw"`) or lz4 (`"lz4"`)."""
    raw = np.ascontiguousarray(image).data.cast("B")
    return _LZ4.compress(raw, asbytes=True) if encoding == "lz4" else bytes(raw)


def decode(stored: pa.Buffer, encoding: str, canvas: int) -> np.ndarray:
    """Decode the bytes of a dataset row to an image (canvas, canvas) uint8.

    Args:
        stored: the encoded image.
        encoding: "raw" or "lz4". Raw images are returned as a view without a copy.
        canvas: side of the image, pixels.

    Raises:
        ValueError: if the bytes are damaged.
    """
    raw = stored
    if encoding == "lz4":
        try:
            raw = _LZ4.decompress(stored, canvas**2)
        except OSError as error:
            raise ValueError(str(error)) from error
    if len(raw) != canvas**2:
        raise ValueError(f"{len(raw)} bytes instead of {canvas**2}")
    return np.frombuffer(raw, np.uint8).reshape(canvas, canvas)


def decode_canvas(stored: bytes, canvas: int, encoding: str) -> np.ndarray:
    """Decode an entry of the column `image` of a dataset folder, as `datasets.load_from_disk` returns it.

    Args:
        stored: Bytes of one print.
        canvas: Side of the canvases in pixels, `open_dataset(folder).info.canvas`.
        encoding: `"raw"` or `"lz4"`, `open_dataset(folder).info.encoding`.

    Returns:
        (canvas, canvas) uint8 array that may be written to. Ridges are dark.

    Raises:
        UserError: If the bytes are not a canvas of this size and encoding, or the encoding is unknown.
    """
    require(encoding in ENCODINGS, f"encoding {encoding!r}: must be one of {', '.join(ENCODINGS)}")
    try:
        return decode(pa.py_buffer(stored), encoding, canvas).copy()
    except ValueError as error:
        raise UserError(f"not a canvas of {canvas} x {canvas} pixels in encoding {encoding}: {error}") from error
