"""How a canvas becomes the bytes of its row, and back: raw, or one lz4 block. Imports little, for worker processes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fingerprint_accel.errors import UserError, require

ENCODINGS = ("raw", "lz4")
_LZ4 = pa.Codec("lz4_raw")  # a bare block: the length of its content is that of the canvas


def check_encoding(encoding: str) -> None:
    """Raises UserError where there is no such encoding."""
    require(encoding in ENCODINGS, f"--encoding {encoding}: there are {', '.join(ENCODINGS)}")


def encode(image: np.ndarray, encoding: str) -> bytes:
    """image (canvas, canvas) uint8 -> the bytes of its row; no loss."""
    raw = np.ascontiguousarray(image).data.cast("B")
    return _LZ4.compress(raw, asbytes=True) if encoding == "lz4" else bytes(raw)


def decode(stored: pa.Buffer, encoding: str, canvas: int) -> np.ndarray:
    """The bytes of a row -> (canvas, canvas) uint8, a view of them where they are raw.

    Raises:
        ValueError: they are damaged.
    """
    raw = stored
    if encoding == "lz4":
        try:
            raw = _LZ4.decompress(stored, canvas**2)
        except OSError as error:
            raise ValueError(str(error)) from error
    if len(raw) != canvas**2:
        raise ValueError(f"{len(raw)} bytes where {canvas**2} belong")
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
        UserError: The bytes are not a canvas of this size and encoding, or there is no such encoding.
    """
    require(encoding in ENCODINGS, f"encoding {encoding!r}: must be one of {', '.join(ENCODINGS)}")
    try:
        return decode(pa.py_buffer(stored), encoding, canvas).copy()
    except ValueError as error:
        raise UserError(f"not a canvas of {canvas} x {canvas} pixels in encoding {encoding}: {error}") from error
