"""Decode image files to grey pixels, and serve decoding requests in a child process.

Image decoders are native code that may crash on damaged files, so the module `images` runs them in a child process.
Each worker starts a child process for decoding. To keep the start fast, this module imports numpy and the WSQ plugin
only when a file needs them.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import struct
import warnings
from typing import BinaryIO, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 50_000_000
TIME_LIMIT = 300  # seconds for one file; JPEG 2000, the slowest format, takes 60 s for 50 megapixels of colour noise
# Limit of the address space in bytes. Float images of 50 megapixels, which need the most memory, take 1.6 GB. If a
# damaged header announces a huge image, the decoder fails at once and the machine does not swap.
MEMORY_LIMIT = 3 * 2**30
OUT_OF_MEMORY = 3  # exit code of a decoder process that exceeds the memory limit
IMAGE_STARTS = (
    b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", b"GIF8", b"\xff\xa0", b"RIFF", b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cjP", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6",
)  # fmt: skip
# starts that are long enough not to occur in other kinds of files by chance
SURE_STARTS = tuple(start for start in IMAGE_STARTS if len(start) > 2 and start != b"RIFF")
PNG_START = b"\x89PNG"
WSQ_START = b"\xff\xa0"  # the marker "start of image"
SIZE = struct.Struct(">Q")  # header of a request: number of bytes of the file, which follow
# Header of an answer: success, height, width, pages, ppi, number of bytes that follow. These are the pixels, or the
# reason of the failure in UTF-8.
ANSWER = struct.Struct(">?IIIfQ")
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
    pixels: bytes


class Grey(NamedTuple):
    """A grey image: height, width, and height * width pixel bytes in row-major order."""

    height: int
    width: int
    pixels: bytes


def decode(data: bytes) -> Decoded:
    """Decode the first page of an image file to 8-bit grey pixels.

    Colour is converted to luminance and transparent pixels to white. The image is rotated according to its EXIF tag.
    Images of more than 8 bits per pixel are scaled to 8 bits, see `_deep`.

    Args:
        data: all bytes of the file.

    Raises:
        ImageError: if the file is damaged, not an image, or larger than 50 megapixels.
        MemoryError: if decoding exceeds the memory limit of the process.
    """
    if data.startswith(WSQ_START):
        import wsq  # noqa: F401  (registers WSQ with Pillow)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if data.startswith(PNG_START):  # `open` does not compare checksums, but `verify` does
                Image.open(io.BytesIO(data)).verify()
            with Image.open(io.BytesIO(data)) as image:
                _check_size(image)
                pages, ppi = getattr(image, "n_frames", 1), _stated_ppi(image)
                grey = _upright_grey(image)
                return Decoded(grey.height, grey.width, pages, ppi, grey.pixels)
        except (ImageError, MemoryError):
            raise
        except UnidentifiedImageError:
            begun = data.startswith(SURE_STARTS)
            raise ImageError("damaged: the header is incomplete; copy it again" if begun else "not an image") from None
        except Exception as error:  # decoders raise exceptions of any type on damaged files
            raise ImageError(f"damaged: {str(error)[:60] or type(error).__name__}; copy it again") from error


def grey_image(image: Image.Image) -> Grey:
    """Convert an opened Pillow image to 8-bit grey pixels, in the same way as `decode` converts a file.

    Raises:
        ImageError: if the image is larger than 50 megapixels, or its file is damaged.
    """
    _check_size(image)
    try:
        return _upright_grey(image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # an opened image may not be decoded yet
        raise ImageError(f"damaged: {str(error)[:60] or type(error).__name__}") from error


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"too large: more than {MAX_PIXELS // 1_000_000} megapixels")


def _upright_grey(image: Image.Image) -> Grey:
    white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    image.load()
    upright = ImageOps.exif_transpose(image)
    # Pillow inverts TIFF files that store white as 0 if they have 1, 4 or 8 bits per pixel, but not if they have more.
    pixels = _grey(upright, white_is_zero and image.mode.startswith(("I", "F")))
    return Grey(upright.height, upright.width, pixels)


def _stated_ppi(image: Image.Image) -> float:
    """Return the resolution in the tags of a file, pixels per inch; 0 if it is missing or implausible."""
    try:
        across, down = (float(value) for value in image.info.get("dpi", (0, 0)))
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    plausible = 100 <= across <= 5000 and abs(across - down) < 0.01 * across and round(across) not in SCREEN_PPI
    return round(across, 1) if plausible else 0.0


def _grey(image: Image.Image, white_is_zero: bool) -> bytes:
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits per pixel
        return _deep(image, white_is_zero)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("L").tobytes()


def _deep(image: Image.Image, white_is_zero: bool) -> bytes:
    """Scale an image of more than 8 bits per pixel to 8-bit grey.

    The value of white is the smallest of 255, 1023, 4095, 16383 and 65535 that no pixel exceeds. For floating-point
    images, the candidates are 1, 255 and 65535. If a pixel is negative or exceeds 65535, the smallest value of the
    image becomes black and the largest becomes white.

    Args:
        image: image in one of Pillow's modes I (integer) and F (float).
        white_is_zero: whether the file stores white as 0. If true, the result is inverted.
    """
    import numpy as np

    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise ImageError("damaged: pixel values that are not finite")
    low, high = min(0.0, values.min()), values.max()
    tops = (1, 255, 65535) if image.mode == "F" else (255, 1023, 4095, 16383, 65535)
    fits = [top for top in tops if high <= top]
    if low < 0 or not fits:
        low, top = values.min(), high
    else:
        top = fits[0]
    grey = ((values - low) * (255 / max(1e-9, top - low))).round().clip(0, 255).astype(np.uint8)
    return (255 - grey if white_is_zero else grey).tobytes()


def serve() -> None:
    """Run the loop of a decoder process: decode the files sent on stdin until stdin is closed.

    The process writes one byte to stdout when it is ready, and one answer (see `ANSWER`) for each file.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # schedulers signal all processes of a job; only the parent handles it
    _limit(resource.RLIMIT_AS, MEMORY_LIMIT)
    # A core file would contain a print. The limit is 1, because a crash handler ignores the limit 0.
    _limit(resource.RLIMIT_CORE, 1)
    requests, answers = os.fdopen(0, "rb", closefd=False), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # text printed by native code must not mix with the answers
    answers.write(b"\0")
    answers.flush()
    while header := requests.read(SIZE.size):
        data = requests.read(SIZE.unpack(header)[0])
        # The parent also has a time limit. This limit ends a decoder that loops after the parent was killed.
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
        _answer(data, answers)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(data: bytes, answers: BinaryIO) -> None:
    try:
        image = decode(data)
        answers.write(ANSWER.pack(True, *image[:4], len(image.pixels)))
        answers.write(image.pixels)
    except ImageError as error:
        reason = str(error).encode(errors="replace")
        answers.write(ANSWER.pack(False, 0, 0, 0, 0.0, len(reason)) + reason)
    except MemoryError:  # earlier files may have left too little memory, so the parent retries in a new process
        os._exit(OUT_OF_MEMORY)
    answers.flush()


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    with contextlib.suppress(OSError, ValueError):  # not every system has every limit
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
