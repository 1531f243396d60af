"""Any image file to grey uint8, safely: whatever is wrong with it ends in one reason, never in a crash."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fingerprint_accel.data.decoder_processes import decode_apart
from fingerprint_accel.data.decoding import ImageError

SUFFIXES = frozenset(
    (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".jp2", ".j2k", ".gif", ".pgm", ".ppm", ".pnm", ".webp", ".wsq")
)
__all__ = ["SUFFIXES", "ImageError", "read_grey"]


def read_grey(path: Path | str) -> np.ndarray:
    """Reads an image as (H, W) uint8, as `decoding.decode` does, in another process, which damaged files may crash.

    Raises:
        ImageError: empty, cut off, not an image, larger than 50 megapixels, or a file that crashes its decoder.
        UserError: that process does not start, or was killed from outside.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise ImageError("empty file")
    image = decode_apart(data, str(path))
    return np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width)
