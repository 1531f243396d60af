"""Any image file to grey uint8, safely: whatever is wrong with it ends in one reason, never in a crash."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import wsq  # noqa: F401  (registers WSQ with Pillow)
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 50_000_000
SUFFIXES = frozenset(
    (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".jp2", ".j2k", ".gif", ".pgm", ".ppm", ".pnm", ".webp", ".wsq")
)
Image.MAX_IMAGE_PIXELS = None  # checked below, with a reason instead of a traceback


class ImageError(ValueError):
    """An image that cannot be used; the message says why."""


def read_grey(path: Path | str) -> np.ndarray:
    """Reads an image as (H, W) uint8.

    Colour becomes luminance, transparency white, 1-bit black and white; deeper values are scaled to 8 bits from the
    number of bits they use. Of several frames the first is taken.

    Raises:
        ImageError: empty, cut off, not an image, or larger than 50 megapixels.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise ImageError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(f"too large: more than {MAX_PIXELS // 1_000_000} megapixels")
                image.load()
                return _grey(image)
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError("not an image") from None
        except Exception as error:  # decoders raise anything on damaged files
            raise ImageError(f"damaged: {str(error)[:60] or type(error).__name__}") from error


def _grey(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits per pixel
        return _deep(np.asarray(image, np.float64))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("L"))


def _deep(values: np.ndarray) -> np.ndarray:
    """More than 8 bits per pixel: white is the top of the smallest of 8, 10, 12, 14, 16 bits that holds the values."""
    if not np.isfinite(values).all():
        raise ImageError("damaged: values that are not finite")
    low, high = min(0.0, values.min()), values.max()
    bits = next((bits for bits in (8, 10, 12, 14, 16) if high < 2**bits), None)
    top = 2**bits - 1 if bits else high
    return ((values - low) * (255 / max(1e-9, top - low))).round().astype(np.uint8)
