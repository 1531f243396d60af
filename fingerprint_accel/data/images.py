"""Decode image files in child processes, so that a damaged file does not crash the program."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fingerprint_accel.data.child_process import MEMORY, TIME, Failed, Program, Refused, call
from fingerprint_accel.data.decoding import HEADER, MAX_PIXELS, MOST_BYTES, Decoded, ImageError
from fingerprint_accel.untrusted import UnreadableError, read_bytes

__all__ = ["ImageError", "decode_apart", "read_grey"]
DECODER = Program(
    "from fingerprint_accel.data.decoding import serve_images; serve_images()",
    "decodes images",
    HEADER.size + MAX_PIXELS,
    Decoded.is_packed,
    "import PIL.Image",
)


def read_grey(path: Path | str) -> np.ndarray:
    """Read the first page of an image file, and return its grey pixels as a (H, W) uint8 array.

    Raises:
        ImageError: if the file is empty, damaged, not an image, or too large, or if its decoder crashes, takes too long
            or needs too much memory.
        UserError: if the decoder process does not start or was killed from outside.
    """
    try:
        data = read_bytes(path, MOST_BYTES)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    except UnreadableError as error:
        raise ImageError(f"cannot be read: {error}") from error
    if not data:
        raise ImageError("empty file: copy it again")
    return decode_apart(data, str(path)).grey


def decode_apart(data: bytes, name: str) -> Decoded:
    """Decode an image file in a separate process that is reused for many files.

    Args:
        data: all bytes of the file.
        name: name of the file, for error messages.

    Raises:
        ImageError: if the file cannot be decoded, see `read_grey`.
        UserError: if the decoder process does not start or was killed from outside.
    """
    if len(data) > MOST_BYTES:
        raise ImageError(f"too large: more than {MOST_BYTES / 1e6:.0f} MB")
    try:
        answer = call(DECODER, data, name)
    except Refused as error:
        raise ImageError(str(error)) from None
    except Failed as error:
        if error.kind == TIME:
            raise ImageError("takes too long to decode: convert it to PNG") from None
        if error.kind == MEMORY:
            raise ImageError("takes too much memory to decode: convert it to 8-bit grey PNG") from None
        raise ImageError(f"damaged: its decoder crashed ({error.how}); copy it again") from None
    return Decoded.unpack(answer)
