"""Read single prints from files of all supported formats.

The formats are image files, files of raw pixels, ANSI/NIST transactions and finger image records. The last two are
called containers, because one file can hold several images.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np

from fingerprint_accel.data import ansi_nist, finger_image
from fingerprint_accel.data.decoding import IMAGE_STARTS, MAX_PIXELS, MOST_BYTES, ImageError
from fingerprint_accel.data.image_record import SLAPS, ImageRecord, RecordError
from fingerprint_accel.data.images import decode_apart
from fingerprint_accel.data.ridges import MM_PER_INCH
from fingerprint_accel.data.slaps import cut_fingers, holds_several_fingers
from fingerprint_accel.untrusted import UnreadableError, check_file_size, open_regular, read_rest

HEAD = 4096  # number of bytes at the start of a file from which its format is recognised
# Largest container. The uncompressed images of a transaction with rolled prints and slaps at 1000 ppi have 55 MB.
MOST_CONTAINER = 2**27
SEVERAL = (
    "several fingers on one image: to cut them out, state the position 13 (right hand) or 14 (left hand) in the file "
    "name (see --names) or in the column `position` of the csv"
)
LARGEST_MM = 350  # largest side of an image; an A4 page is 297 mm long
IMAGE_PPI = 500  # default resolution; most sensors and archives use it
NAME = re.compile(r"(?P<path>.+)#(?P<record>\d+)(?:-(?P<finger>\d+))?")


@dataclass(frozen=True)
class Container:
    """A file format that can hold several images.

    Attributes:
        starts: function that returns whether a file has this format, given its first `HEAD` bytes.
        read: function that returns the image records of a file, given all its bytes and the argument `key` of
            `read_records`.
    """

    starts: Callable[[bytes], bool]
    read: Callable[[memoryview, Sequence[str]], list[ImageRecord]]


# To support another container format, write its reader and add a line here.
CONTAINERS = (
    Container(lambda head: bool(ansi_nist.START.match(head)), ansi_nist.read_transaction),
    Container(lambda head: finger_image.MAGIC in head, lambda data, _: finger_image.read_finger_images(data)),
)


@dataclass(frozen=True)
class Capture:
    """One decoded print with the properties that its file states.

    Attributes:
        grey: (H, W) uint8.
        ppi: resolution that the image record states, pixels per inch; 0 if the record states no resolution.
        stated_ppi: resolution in the tags of an image file, pixels per inch; 0 if there is none. Tags are often wrong.
        pages: number of pages of the image file.
        minutiae: (n, 4) float32 x, y, angle, quality in pixels of the image; None if the file has no minutiae.
        minutiae_reason: reason why the minutiae in the file cannot be used; empty if they can, or there are none.
        quality: NFIQ 2 score, 0 to 100; -1 if the file states none.
    """

    grey: np.ndarray
    ppi: float = 0.0
    stated_ppi: float = 0.0
    pages: int = 1
    minutiae: np.ndarray | None = None
    minutiae_reason: str = ""
    quality: int = -1


def split_name(name: str) -> tuple[str, int, int]:
    """Split the name of a print into path, record number and finger position.

    For example, `cards/a.an2#4-07` gives the path `cards/a.an2`, record 4 and finger position 7. Record and position
    are 0 if the name lacks them. If a file with exactly this name exists, the whole name is returned as the path.
    """
    match = NAME.fullmatch(name)
    if match is None or Path(name).exists():
        return name, 0, 0
    return match["path"], int(match["record"]), int(match["finger"] or 0)


def join_name(path: str, record: int, finger: int) -> str:
    """Join path, record number and finger position to the name of a print. This is the inverse of `split_name`."""
    return path + (f"#{record}" if record else "") + (f"-{finger:02d}" if finger else "")


def container_of(head: bytes) -> Container | None:
    """Return the container format of a file from its first `HEAD` bytes; None if the file is not a container."""
    if head.startswith(IMAGE_STARTS):
        return None
    return next((container for container in CONTAINERS if container.starts(head)), None)


def read_records(path: Path, key: Sequence[str] = ()) -> list[ImageRecord]:
    """Read the image records of a container file without decoding the images.

    Args:
        path: path of the file. The file stays memory-mapped as long as one of its records exists.
        key: identifiers of the ANSI/NIST fields that identify the subject, for example `2.018`.

    Returns:
        The records; an empty list if the file is not a container.

    Raises:
        RecordError: if the container is damaged or holds no image.
        ImageError: if the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            container = container_of(file.read(HEAD))
            return [] if container is None else _records_in(path, file, container, key)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    except UnreadableError as error:
        raise ImageError(f"cannot be read: {error}") from error


def _records_in(path: Path, file: BufferedReader, container: Container, key: Sequence[str]) -> list[ImageRecord]:
    from fingerprint_accel.data.mapping import MappedFile  # takes time, and image files do not need it

    check_file_size(file, MOST_CONTAINER)
    return container.read(memoryview(MappedFile(path).buffer).cast("B"), key)


def read_capture(
    path: Path,
    record: int = 0,
    finger: int = 0,
    *,
    slap: int = 0,
    ppi: float = 0.0,
    raw_size: tuple[int, int] | None = None,
) -> Capture:
    """Read and decode one print from a file.

    Args:
        path: path of the file.
        record: position of the record in a container, from 1; 0 for an image file or for a container of a single print.
        finger: position of the finger to cut out of a slap (one image of several fingers); 0 for an image of one
            finger.
        slap: position code of a slap in an image file, for example 13 for four fingers of the right hand. For
            containers, the position code in the record is used.
        ppi: resolution of the image if the file does not state it, pixels per inch. This resolution is needed to cut
            slaps.
        raw_size: (height, width) of files of raw pixels, or None.

    Raises:
        ImageError: if the file or the record cannot be used, or if it holds several prints and the arguments select
            none of them.
        UserError: if the decoder process does not start.
    """
    try:
        if finger:
            state = path.stat()
            cut = _fingers_of(path, record, slap, ppi, raw_size, (state.st_mtime_ns, state.st_size))
            if finger not in cut:
                raise ImageError(f"does not show finger {finger}: check the position code of the image")
            return cut[finger]
        found, capture = _read(path, record, raw_size)
    except RecordError as error:
        raise ImageError(str(error)) from error
    except UnreadableError as error:
        raise ImageError(f"cannot be read: {error}") from error
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    if found.position in SLAPS:
        raise ImageError(SEVERAL)
    check_one_finger(capture.grey, capture.ppi or ppi or IMAGE_PPI)
    return capture


def check_one_finger(grey: np.ndarray, ppi: float) -> None:
    """Raise an `ImageError` if a (H, W) uint8 image is too large for a print at its resolution, or shows several."""
    _check_extent(grey, ppi)
    if holds_several_fingers(grey, ppi):
        raise ImageError(SEVERAL)


def _check_extent(grey: np.ndarray, ppi: float) -> None:
    # Work on the ridges takes time that grows with the area in mm.
    side = max(grey.shape) / ppi * MM_PER_INCH
    if side > LARGEST_MM:
        raise ImageError(f"too large: {side:.0f} mm at {ppi:.0f} ppi; check the ppi, or crop the image")


@functools.lru_cache(maxsize=1)  # the fingers of a slap are requested one after another
def _fingers_of(
    path: Path, number: int, slap: int, ppi: float, raw_size: tuple[int, int] | None, _: tuple[int, int]
) -> dict[int, Capture]:
    """Cut a slap (one image of several fingers) into single prints, and return them by finger position.

    Args:
        path: path of the file.
        number: number of the record in a container; 0 for an image file.
        slap: position code of the slap if its record states none.
        ppi: resolution of the image if the file does not state it, pixels per inch.
        raw_size: (height, width) of files of raw pixels, or None.
        `_`: modification time and size of the file, so that the cache does not return an older version of it.
    """
    record, capture = _read(path, number, raw_size)
    if record.position not in SLAPS:
        record = dataclasses.replace(record, position=slap)
    if not record.fingers[0]:
        raise ImageError(f"position {slap} does not name several fingers: use a slap code, for example 13 or 14")
    resolution = capture.ppi or ppi or IMAGE_PPI
    _check_extent(capture.grey, resolution)
    if set(record.fingers) <= set(record.segments):
        boxes = [record.segments[finger] for finger in record.fingers]
        parts = [capture.grey[top:bottom, left:right] for left, top, right, bottom in boxes]
        if not all(part.size for part in parts):
            raise RecordError("the box of a finger (field 14.021) lies outside the image")
    else:
        boxes, parts = cut_fingers(capture.grey, resolution, len(record.fingers))
    return {
        finger: dataclasses.replace(capture, grey=part, minutiae=_inside(capture.minutiae, box), quality=-1)
        for finger, part, box in zip(record.fingers, parts, boxes, strict=True)
    }


def _inside(minutiae: np.ndarray | None, box: tuple[int, int, int, int]) -> np.ndarray | None:
    """Select the minutiae of an image inside a box, and convert their coordinates to pixels of the box.

    Args:
        minutiae: (n, 4) float32 x, y, angle, quality in image pixels, or None.
        box: (left, top, right, bottom) in image pixels.
    """
    if minutiae is None:
        return None
    left, top, right, bottom = box
    moved = minutiae - np.array([left, top, 0, 0], np.float32)
    return moved[((moved[:, :2] >= 0) & (moved[:, :2] < (right - left, bottom - top))).all(axis=1)]


def _read(path: Path, number: int, raw_size: tuple[int, int] | None) -> tuple[ImageRecord, Capture]:
    """Read one record of a file and decode its whole image.

    Image files and files of raw pixels have no records. For them the returned record is empty.

    Args:
        path: path of the file.
        number: number of the record in a container; 0 for other files or for a container of a single print.
        raw_size: (height, width) of files of raw pixels, or None.
    """
    with open_regular(path) as file:
        head = file.read(HEAD)
        container = container_of(head)
        if container is not None:
            record = _chosen(_records_in(path, file, container, ()), number, path)
            return record, _decoded(record, str(path))
        data = head + read_rest(file, MOST_BYTES)
    if not data:
        raise ImageError("empty file: copy it again")
    if raw_size is not None and len(data) == raw_size[0] * raw_size[1]:
        return ImageRecord(0), Capture(_raw(data, raw_size))
    image = decode_apart(data, str(path))
    return ImageRecord(0), Capture(image.grey, 0.0, image.ppi, image.pages)


def _chosen(records: list[ImageRecord], number: int, path: Path) -> ImageRecord:
    """Return one of the records of a container file.

    Args:
        records: all image records of the file.
        number: position of the record to return, from 1. 0 selects the only usable record of the file.
        path: path of the file, for error messages.

    Raises:
        ImageError: if the file has no record with this number, if the record cannot be used, or if `number` is 0 and
            the file has several records that can be used.
    """
    usable = [record for record in records if not record.reason]
    if number:
        usable = [record for record in records if record.number == number]
        if not usable:
            raise ImageError(f"has no record {number}: it has {len(records)} image records")
    if not usable or usable[0].reason:
        raise ImageError((usable or records)[0].reason)
    if len(usable) > 1:
        names = " or ".join(join_name(path.name, record.number, 0) for record in usable[:2])
        raise ImageError(f"holds {len(usable)} prints: name one of them, for example {names}")
    return usable[0]


def _decoded(record: ImageRecord, name: str) -> Capture:
    data = bytes(record.image)
    # The record may state a wrong compression. The first bytes of the image are more reliable.
    if record.raw is not None and (len(data) == record.raw[0] * record.raw[1] or not data.startswith(IMAGE_STARTS)):
        grey = _raw(data, record.raw)
    else:
        grey = decode_apart(data, name).grey
    return Capture(
        grey, record.ppi, minutiae=record.minutiae, minutiae_reason=record.minutiae_reason, quality=record.quality
    )


def _raw(data: bytes, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    if height * width > MAX_PIXELS:
        raise ImageError(f"too large: more than {MAX_PIXELS // 1_000_000} megapixels")
    if not height * width or len(data) < height * width:
        raise ImageError(f"damaged: {len(data)} bytes are too few for {width} x {height} raw pixels")
    return np.frombuffer(data, np.uint8, height * width).reshape(height, width)
