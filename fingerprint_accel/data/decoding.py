"""Decode image files to grey pixels.

Image decoders are native code that may crash on damaged files, so the module `images` runs this module in a child
process. To keep the start of the process fast, this module imports numpy and the WSQ plugin only when a file needs
them.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, UnidentifiedImageError

from fingerprint_accel.data.child_server import Bytes, allow_seconds, serve

if TYPE_CHECKING:
    import numpy as np

# The limits fit an A4 page at 500 ppi (23 megapixels), and a slap of 3.2 x 3 inches at 1000 ppi (10 megapixels).
MAX_PIXELS = 25_000_000
MOST_BYTES = 2**26  # size of a file
MEMORY = 2**29  # bytes of address space; 25 megapixels take up to 0.4 GB, and JPEG 2000 in colour up to 0.65 GB
# CPU time for a file. 25 megapixels take 1.1 s; lossless JPEG 2000 takes 4.8 s in grey and 14 s in colour.
SECONDS, SECONDS_PER_MEGAPIXEL, JPEG_2000_SECONDS_PER_MEGAPIXEL = 2.0, 0.1, 1.0
FORMATS = ("PNG", "TIFF", "BMP", "DIB", "JPEG", "JPEG2000", "GIF", "PPM", "WEBP")
STRIP = 2**20  # pixels that are converted at a time, so that copies of an image stay small
IMAGE_STARTS = (
    b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", b"GIF8", b"\xff\xa0", b"RIFF", b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cjP", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6",
)  # fmt: skip
# starts that are long enough not to occur in other kinds of files by chance
SURE_STARTS = tuple(start for start in IMAGE_STARTS if len(start) > 2 and start != b"RIFF")
PNG_START = b"\x89PNG"
WSQ_START = b"\xff\xa0"  # the marker "start of image"
HEADER = struct.Struct(">IIIf")  # header of an encoded `Decoded`: height, width, pages, ppi
ORIENTATION = 274  # number of the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE_IS_ZERO, PHOTOMETRIC = 0, 262  # value and number of the TIFF tag PhotometricInterpretation
SCREEN_PPI = (72, 96)  # default values of programs for images of unknown resolution

Image.MAX_IMAGE_PIXELS = None  # `decode` checks the size and gives a reason


class ImageError(ValueError):
    """Raised for an image that cannot be used. The message gives the reason."""


class Decoded(NamedTuple):
    """Decoded image file.

    Attributes:
        height: height of the image, pixels.
        width: width of the image, pixels.
        pages: number of pages of the file; only the first is decoded.
        ppi: resolution in the tags of the file, pixels per inch; 0 if it is missing or implausible.
        pixels: height * width bytes in row-major order, 0 for black and 255 for white.
    """

    height: int
    width: int
    pages: int
    ppi: float
    pixels: Bytes

    @property
    def grey(self) -> np.ndarray:
        """Return the pixels as a (height, width) uint8 array."""
        import numpy as np

        return np.frombuffer(self.pixels, np.uint8).reshape(self.height, self.width)

    def packed(self) -> tuple[Bytes, Bytes]:
        """Encode the image as bytes. `unpack` is the inverse."""
        return HEADER.pack(*self[:4]), self.pixels

    @classmethod
    def unpack(cls, data: bytes) -> Decoded:
        """Decode the bytes of `packed`."""
        height, width, pages, ppi = HEADER.unpack_from(data)
        return cls(height, width, pages, ppi, memoryview(data)[HEADER.size :])

    @staticmethod
    def is_packed(data: bytes) -> bool:
        """Return whether bytes are the result of `packed`."""
        if len(data) < HEADER.size:
            return False
        height, width, *_ = HEADER.unpack_from(data)
        return bool(len(data) == HEADER.size + height * width)


def decode(data: bytes) -> Decoded:
    """Decode the first page of an image file to 8-bit grey pixels.

    Colour is converted to luminance and transparent pixels to white. The image is rotated according to its EXIF tag.
    Images of more than 8 bits per pixel are scaled to 8 bits, see `_deep`.

    Args:
        data: all bytes of the file.

    Raises:
        ImageError: if the file is damaged, not an image, or larger than 25 megapixels.
        MemoryError: if decoding exceeds the memory limit of the process.
    """
    from PIL import Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401  (Pillow loads the others itself)

    formats: tuple[str, ...] = FORMATS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if data.startswith(WSQ_START):
                import wsq  # noqa: F401  (registers WSQ with Pillow)

                from fingerprint_accel.data.wsq_check import checked_wsq

                data, formats = checked_wsq(data), ("WSQ",)
            elif data.startswith(PNG_START):  # `open` does not compare checksums, but `verify` does
                Image.open(io.BytesIO(data), formats=formats).verify()
            with Image.open(io.BytesIO(data), formats=formats) as image:
                _check_size(image)
                per_megapixel = JPEG_2000_SECONDS_PER_MEGAPIXEL if image.format == "JPEG2000" else SECONDS_PER_MEGAPIXEL
                allow_seconds(per_megapixel * image.width * image.height / 1e6)
                pages, ppi = getattr(image, "n_frames", 1), _stated_ppi(image)
                grey = _upright_grey(image)
                return Decoded(grey.height, grey.width, pages, ppi, grey.tobytes())
        except (ImageError, MemoryError):
            raise
        except UnidentifiedImageError:
            begun = data.startswith(SURE_STARTS)
            raise ImageError("damaged: the header is incomplete; copy it again" if begun else "not an image") from None
        except Exception as error:  # decoders raise exceptions of any type on damaged files
            raise ImageError(f"damaged: {str(error)[:60] or type(error).__name__}; copy it again") from error


def grey_image(image: Image.Image) -> np.ndarray:
    """Convert an opened Pillow image to 8-bit grey pixels, in the same way as `decode` converts a file.

    Returns:
        (H, W) uint8.

    Raises:
        ImageError: if the image is larger than 25 megapixels, or its file is damaged.
    """
    import numpy as np

    _check_size(image)
    try:
        return np.asarray(_upright_grey(image))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # an opened image may not be decoded yet
        raise ImageError(f"damaged: {str(error)[:60] or type(error).__name__}") from error


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"too large: more than {MAX_PIXELS // 1_000_000} megapixels")


def _upright_grey(image: Image.Image) -> Image.Image:
    white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    image.load()
    # Pillow inverts TIFF files that store white as 0 if they have 1, 4 or 8 bits per pixel, but not if they have more.
    grey = _grey(image, white_is_zero and image.mode.startswith(("I", "F")))
    turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    return grey if turn is None else grey.transpose(turn)


def _stated_ppi(image: Image.Image) -> float:
    """Return the resolution in the tags of a file, pixels per inch; 0 if it is missing or implausible."""
    try:
        across, down = (float(value) for value in image.info.get("dpi", (0, 0)))
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    plausible = 100 <= across <= 5000 and abs(across - down) < 0.01 * across and round(across) not in SCREEN_PPI
    return round(across, 1) if plausible else 0.0


def _grey(image: Image.Image, white_is_zero: bool) -> Image.Image:
    """Convert an image of any mode to mode L (8-bit grey)."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits per pixel
        return _deep(image, white_is_zero)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        grey = Image.new("L", image.size)
        for top, strip in _strips(image):
            colours = strip.convert("RGBA")
            white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
            grey.paste(Image.alpha_composite(white, colours).convert("L"), (0, top))
        return grey
    return image.convert("L")


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the top row and the part of an image for strips of whole rows, from top to bottom."""
    rows = max(1, STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))


def _deep(image: Image.Image, white_is_zero: bool) -> Image.Image:
    """Scale an image of more than 8 bits per pixel to 8-bit grey.

    The value of white is the smallest of 255, 1023, 4095, 16383 and 65535 that no pixel exceeds. For floating-point
    images, the candidates are 1, 255 and 65535. If a pixel is negative or exceeds 65535, the smallest value of the
    image becomes black and the largest becomes white.

    Args:
        image: image in one of Pillow's modes I (integer) and F (float).
        white_is_zero: whether the file stores white as 0. If true, the result is inverted.
    """
    import numpy as np

    extremes = [(values.min(), values.max()) for values in (np.asarray(strip) for _, strip in _strips(image))]
    if not np.isfinite(extremes).all():  # a minimum over NaN is NaN
        raise ImageError("damaged: pixel values that are not finite")
    low, high = (float(extreme) for extreme in (min(pair[0] for pair in extremes), max(pair[1] for pair in extremes)))
    tops = (1, 255, 65535) if image.mode == "F" else (255, 1023, 4095, 16383, 65535)
    fits = [top for top in tops if high <= top]
    if low < 0 or not fits:
        top = high
    else:
        low, top = 0.0, float(fits[0])
    grey = Image.new("L", image.size)
    for row, strip in _strips(image):
        values = np.asarray(strip, np.float64)
        scaled = ((values - low) * (255 / max(1e-9, top - low))).round().clip(0, 255).astype(np.uint8)
        grey.paste(Image.fromarray(255 - scaled if white_is_zero else scaled), (0, row))
    return grey


def serve_images() -> None:
    """Run the loop of a decoder process: decode the files sent on stdin until stdin is closed."""
    serve(lambda data: decode(data).packed(), MEMORY, SECONDS)
