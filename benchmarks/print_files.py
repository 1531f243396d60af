"""Write a print as an image file of any format that an archive may hold."""

import io
import struct
from collections.abc import Callable

import numpy as np
import wsq  # noqa: F401  (registers WSQ with Pillow)
from PIL import Image

WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1
TURNED = {  # how to store an upright image under each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
ORIENTATION = 0x112


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the bytes that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(grey: np.ndarray, bits: int = 8, photometric: int = BLACK_IS_ZERO) -> bytes:
    """Return an uncompressed TIFF of 8 or 16 bits. Pillow cannot write 16 bits with white as zero."""
    pixels = 255 - grey if photometric == WHITE_IS_ZERO else grey
    data = pixels.tobytes() if bits == 8 else (pixels.astype("<u2") * 257).tobytes()
    height, width = grey.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def exif_jpeg(grey: np.ndarray, orientation: int) -> bytes:
    """Return a photograph whose EXIF tag states its orientation."""
    image, exif = Image.fromarray(grey), Image.Exif()
    exif[ORIENTATION] = orientation
    image = image.transpose(TURNED[orientation]) if orientation in TURNED else image
    return saved(image, "JPEG", quality=95, exif=exif)


def transparent(grey: np.ndarray) -> bytes:
    """Return a PNG with black ridges on a transparent background."""
    ink = np.zeros((*grey.shape, 4), np.uint8)
    ink[..., 3] = 255 - grey
    return saved(Image.fromarray(ink, "RGBA"), "PNG")


def png(grey: np.ndarray, **options: object) -> bytes:
    """Return a grey PNG of 8 bits."""
    return saved(Image.fromarray(grey), "PNG", **options)


# Suffix and writer of each lossless and each lossy format.
LOSSLESS: dict[str, tuple[str, Callable[[np.ndarray], bytes]]] = {
    "PNG": (".png", png),
    "PNG, 16 bits": (".png", lambda grey: saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")),
    "PNG, colour": (".PNG", lambda grey: saved(Image.fromarray(grey).convert("RGB"), "PNG")),
    "PNG, transparent": (".png", transparent),
    "TIFF": (".tif", tiff),
    "TIFF, 16 bits": (".tiff", lambda grey: tiff(grey, 16)),
    "TIFF, white is zero": (".tif", lambda grey: tiff(grey, 8, WHITE_IS_ZERO)),
    "TIFF, 16 bits, white is zero": (".TIF", lambda grey: tiff(grey, 16, WHITE_IS_ZERO)),
    "TIFF, compressed": (".tif", lambda grey: saved(Image.fromarray(grey), "TIFF", compression="tiff_lzw")),
    "BMP": (".bmp", lambda grey: saved(Image.fromarray(grey), "BMP")),
    "GIF": (".gif", lambda grey: saved(Image.fromarray(grey), "GIF")),
    "PGM": (".pgm", lambda grey: saved(Image.fromarray(grey), "PPM")),
    "WebP": (".webp", lambda grey: saved(Image.fromarray(grey).convert("RGB"), "WEBP", lossless=True)),
    "JPEG 2000": (".jp2", lambda grey: saved(Image.fromarray(grey), "JPEG2000")),
}
LOSSY: dict[str, tuple[str, Callable[[np.ndarray], bytes]]] = {
    "JPEG": (".jpg", lambda grey: saved(Image.fromarray(grey), "JPEG", quality=95)),
    "WSQ": (".wsq", lambda grey: saved(Image.fromarray(grey), "WSQ")),
    "JPEG 2000, lossy": (
        ".j2k",
        lambda grey: saved(
            Image.fromarray(grey), "JPEG2000", quality_mode="rates", quality_layers=[8], irreversible=True, no_jp2=True
        ),
    ),
}
