"""Decoding of images: the bytes of a file to grey pixels, and the loop of the child process in which that happens.

Decoders are native code that is not safe on damaged files, so `images` runs them in a process that may die.
Such a process starts for every worker, so this module imports numpy and the WSQ plugin only where a file needs them.
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
# Bytes of address space. Float images of 50 megapixels, the largest case, need 1.6 GB, and a decoder that is told to
# make more by a damaged header fails at once instead of driving the machine into swap.
MEMORY_LIMIT = 3 * 2**30
OUT_OF_MEMORY = 3  # exit code
IMAGE_STARTS = (
    b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", b"GIF8", b"\xff\xa0", b"RIFF", b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cjP", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6",
)  # fmt: skip
SURE_STARTS = tuple(start for start in IMAGE_STARTS if len(start) > 2 and start != b"RIFF")  # of nothing but images
PNG_START = b"\x89PNG"
WSQ_START = b"\xff\xa0"  # the marker "start of image"
SIZE = struct.Struct(">Q")  # of the file's bytes, which follow
# decoded?, height, width, pages of the file, its ppi, bytes that follow: the pixels, or else the reason in UTF-8
ANSWER = struct.Struct(">?IIIfQ")
WHITE_IS_ZERO, PHOTOMETRIC = 0, 262  # of TIFF
SCREEN_PPI = (72, 96)  # what programs write that know no resolution

Image.MAX_IMAGE_PIXELS = None  # checked below, with a reason instead of a traceback


class ImageError(ValueError):
    """An image that cannot be used; the message says why."""


class Decoded(NamedTuple):
    """An image file as grey pixels.

    Attributes:
        height, width: of the image.
        pages: that the file has; the first is decoded.
        ppi: as the file states it, pixels per inch; 0 where it states none that can be meant.
        pixels: height * width bytes, row by row.
    """

    height: int
    width: int
    pages: int
    ppi: float
    pixels: bytes


class Grey(NamedTuple):
    """A grey image: height * width bytes, row by row."""

    height: int
    width: int
    pixels: bytes


def decode(data: bytes) -> Decoded:
    """Decodes the first page of an image file to grey, upright as its EXIF tag says.

    Colour becomes luminance, transparency white, 1-bit black and white; deeper values are scaled to 8 bits from the
    number of bits they use, floating-point values from the range they have.

    Args:
        data: all bytes of the file.

    Raises:
        ImageError: cut off, not an image, or larger than 50 megapixels.
        MemoryError: as `MEMORY_LIMIT` in a decoder process.
    """
    if data.startswith(WSQ_START):
        import wsq  # noqa: F401  (registers WSQ with Pillow)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if data.startswith(PNG_START):  # Pillow compares checksums only when it is asked to
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
            raise ImageError("damaged: what tells its size is missing" if begun else "not an image") from None
        except Exception as error:  # decoders raise anything on damaged files
            raise ImageError(f"damaged: {str(error)[:60] or type(error).__name__}") from error


def grey_image(image: Image.Image) -> Grey:
    """Convert an opened image to grey, in the same way as `decode` converts a file.

    Raises:
        ImageError: The image is larger than 50 megapixels, or its file is damaged.
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
    # Pillow turns TIFF files of 1, 4 and 8 bits that store white as 0, and leaves deeper ones
    pixels = _grey(upright, white_is_zero and image.mode.startswith(("I", "F")))
    return Grey(upright.height, upright.width, pixels)


def _stated_ppi(image: Image.Image) -> float:
    """Resolution in the tags of a file; 0 where there is none, or one that no sensor has."""
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
    """More than 8 bits per pixel: white is the top of the smallest of 8, 10, 12, 14, 16 bits that holds the values, of
    floating-point ones 1, 255 or 65535; values below 0 or above that are stretched from the smallest to the largest."""
    import numpy as np

    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise ImageError("damaged: values that are not finite")
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
    """What a decoder process does: answers files on stdin until it is closed. Says with one byte that it is ready."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # sent to all processes of a job; the parent decides what follows
    _limit(resource.RLIMIT_AS, MEMORY_LIMIT)
    _limit(resource.RLIMIT_CORE, 1)  # a core file would hold a print; 0 does not keep one from a crash handler, 1 does
    requests, answers = os.fdopen(0, "rb", closefd=False), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints must not reach the parent
    answers.write(b"\0")
    answers.flush()
    while header := requests.read(SIZE.size):
        data = requests.read(SIZE.unpack(header)[0])
        # The parent has a time limit too. This one ends a decoder that loops where the parent was killed meanwhile.
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
    except MemoryError:  # perhaps for what earlier files have left behind: the parent tries a fresh process
        os._exit(OUT_OF_MEMORY)
    answers.flush()


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    with contextlib.suppress(OSError, ValueError):  # not every system has every limit
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
